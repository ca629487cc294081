"""eval/signs: zero-shot numbers, new words and conjunctions as questions, and the plainest classifier."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, roc_auc_score

from eval.questions import Question
from eval.signs.conjunctions import KNOWN_TOPICS, NEAR, WORDINGS, draw_conjunctions
from eval.signs.cosine import Cosine
from eval.signs.encoder import Scenes, best_threshold, f1_at, mean_auc, measure_encoder
from eval.signs.new_words import draw_new_words, label_by_words, new_words
from judge.encoders.conditions import split_condition
from judge.standins.signs.captions import TOPICS
from judge.standins.signs.examples import shown_concepts, signs_examples
from judge.standins.signs.glyphs import concepts
from prompts import Category, Row, Taxonomy, load_taxonomy

SIGNS = load_taxonomy("signs")
DIRECTIONS = 384


@pytest.fixture(scope="module")
def examples():
    return signs_examples("test", count=250)


class Oracle:
    """An encoder that knows the concepts: an axis each; texts lie on those of the concepts that they cover."""

    width = DIRECTIONS
    device = torch.device("cpu")
    names = tuple(concepts())

    def __init__(self, noise=0.0):
        self.noise = noise

    def covered(self, text):
        group = {category.name: category.key for category in SIGNS}.get(text)
        return new_words().get(text) or [
            name for name, one in concepts().items() if text in one.words or one.group == group
        ]

    def too_long(self, text):
        return False

    def encode_texts(self, texts):
        axes = torch.zeros(len(texts), 1, DIRECTIONS)
        for row, text in enumerate(texts):
            for name in self.covered(text):
                axes[row, 0, self.names.index(name)] = 1.0
            if not axes[row].any():
                axes[row, 0, -1] = 1.0
        return axes, torch.ones(len(texts), 1, dtype=torch.bool)

    def scenes(self, examples):
        rng = torch.Generator().manual_seed(0)
        patches = torch.zeros(len(examples), 3, DIRECTIONS)
        patches[..., -2] = 1.0
        for row, example in enumerate(examples):
            for place, name in enumerate(sorted(shown_concepts(example.id))):
                patches[row, place] = F.one_hot(torch.tensor(self.names.index(name)), DIRECTIONS)
        patches += self.noise * torch.randn(patches.shape, generator=rng)
        return Scenes(F.normalize(patches, dim=-1), tuple(shown_concepts(e.id) for e in examples))


def test_thresholds_and_areas_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(60, 4))
    truth = scores + rng.normal(size=scores.shape) > 0.5
    best = best_threshold(truth, scores)
    reached = f1_score(truth.ravel(), scores.ravel() >= best)
    assert reached == max(f1_score(truth.ravel(), scores.ravel() >= one) for one in scores.ravel())
    assert f1_at(truth, scores, best) == pytest.approx(reached)
    scores /= 10  # cosines
    truth[:, 3] = True  # no area
    areas = [roc_auc_score(truth[:, k], scores[:, k]) for k in range(3)]
    assert mean_auc(truth, scores) == pytest.approx(np.mean(areas))


def test_an_encoder_that_knows_everything_and_one_that_guesses(examples):
    validation = signs_examples("validation", count=60)
    oracle, blind = Oracle(), Oracle(noise=100.0)
    names = {"validation": validation, "test": examples, "new_styles": examples[:150]}
    sure, guessed = (
        measure_encoder(one, SIGNS, {name: one.scenes(found) for name, found in names.items()})
        for one in (oracle, blind)
    )
    for metric in ("f1", "auc_listed", "auc_names", "auc_new_words"):
        for suffix in ("", "_new_styles"):
            assert sure[metric + suffix] == pytest.approx(1.0)
            assert guessed[metric + suffix] < 0.6
    assert set(sure["new_words"]) == set(new_words())


def test_new_words_are_labelled_by_what_pictures_show(examples):
    for example, labelled in zip(examples[:40], label_by_words(examples[:40]), strict=True):
        shown = shown_concepts(example.id)
        assert labelled.violates == {
            word for word, covered in new_words().items() if any(name in shown for name in covered)
        }
    questions = draw_new_words(examples, seed=0, rows=48)
    assert Counter(question.row.unsafe for question in questions) == {True: 24, False: 24}
    for question in questions:
        covered = [new_words()[category.name] for category in question.row.taxonomy]
        shown = shown_concepts(question.row.example.id)
        assert question.row.unsafe == any(not shown.isdisjoint(each) for each in covered)
        assert all(category.name_only for category in question.row.taxonomy)


def test_a_conjunction_takes_both_halves(examples):
    keys = ["weapons", "alcohol", "religion", "law"]
    questions = draw_conjunctions(examples, SIGNS, keys, seed=0, rows=128)
    assert len(questions) == 128
    assert Counter(question.row.unsafe for question in questions) == {True: 64, False: 64}
    halves = Counter()
    for question in questions:
        row = question.row
        [category] = row.taxonomy
        subject, topic = split_condition(category.definition)
        [own] = [one for one in SIGNS if one.key == category.members[0]]
        assert subject == own.definition
        assert question.id.startswith("known-" if topic in KNOWN_TOPICS else "new-")
        speaks = any(way in row.prompt for way in TOPICS[topic])
        shows = own.key in row.example.violates
        assert row.unsafe == (shows and speaks)
        assert not row.example.violates & NEAR[topic]
        halves[shows, speaks] += 1
    assert halves == {(True, True): 64, (True, False): 32, (False, True): 32}
    assert set(NEAR) == set(TOPICS)
    assert set(KNOWN_TOPICS) < set(TOPICS)
    assert all(
        split_condition(one.format(subject="a gun", topic="work")) == ("a gun", "work") for one in WORDINGS
    )


def test_the_cosine_takes_the_best_patch_of_the_best_phrase(examples):
    encoder = Oracle()
    encoder.encode_images = lambda images: torch.cat([table[id(image)] for image in images])
    policy = Taxonomy(
        "x", "1", (Category("both", "gun, if the prompt mentions beer"), Category("beer", "wine"))
    )
    classifier = Cosine(encoder, threshold=0.5, batch_size=7)
    some = examples[:60]
    images = [SimpleNamespace() for _ in some]
    table = {
        id(image): encoder.scenes([example]).patches for image, example in zip(images, some, strict=True)
    }
    scores = Cosine.score.__wrapped__(classifier, images, None, policy)
    for example, found in zip(some, scores.categories, strict=True):
        shown = shown_concepts(example.id)
        assert (found > 0.5).tolist() == ["gun" in shown, not shown.isdisjoint({"beer", "wine"})]
    first = Cosine.score.__wrapped__(Cosine(encoder, pooled=True, threshold=0.5), images, None, policy)
    for example, found in zip(some, first.categories, strict=True):
        one = sorted(shown_concepts(example.id))[:1]  # the scene's first patch
        assert (found > 0.5).tolist() == [one == ["gun"], one in (["beer"], ["wine"])]


def test_the_threshold_of_the_cosine_is_fitted(examples, monkeypatch):
    words = Taxonomy("x", "1", (Category("gun", "gun"),))
    rows = [
        Question(str(n), Row(example, words, None, None, n % 2 == 0, None, None, "keep"))
        for n, example in enumerate(examples[:8])
    ]
    classifier = Cosine(Oracle(), threshold=0.1)
    cosines = np.array([0.4, 0.2, 0.5, 0.1, 0.3, 0.28, 0.6, 0.0])

    def answer(self, questions):
        p = 1 / (1 + np.exp(-20 * (cosines - self.threshold)))
        return [SimpleNamespace(truth=q.row.unsafe, unsafe=one) for q, one in zip(questions, p, strict=True)]

    monkeypatch.setattr("eval.signs.cosine.predict_questions", answer)
    classifier.fit(rows)
    assert classifier.threshold == pytest.approx(0.3)
