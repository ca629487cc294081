"""One scale: the whole is the largest category, of every classifier; margins and thresholds agree with it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from judge.baselines.linear_probe import LinearProbe, ParallelMLP
from judge.baselines.pooled_attention import PooledAttention, PooledAttentionHead
from judge.baselines.prompt_learning import PromptLearning, SoftPrompts
from judge.cascade.cascade import Cascade
from judge.cascade.filters_alone import FilterClassifier
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt, Similarities
from judge.cascade.stages import Cutoffs
from judge.category_margin import category_margin
from judge.encoders.dual import DualEncoder
from judge.protocol import Scores, on_one_scale
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student
from judge.vlm.score import VisionLanguageJudge
from prompts import Category, Taxonomy, verdict_from_scores

POLICY = Taxonomy(
    "short", "1", (Category("one", "a 1"), Category("two", "a 2"), Category("six", "a 6; or 9"))
)
WIDER = POLICY.extend({"balloons": "toy balloons"})
PROMPTS = ["a two", None, "one", "x " * 3000, "a photo of six"]
"""The fourth is longer than an encoder reads."""

score = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0, 1e-300, 5e-324, 1 - 1e-16, math.nan])


def scores_of(unsafe, categories):
    return Scores(np.array(unsafe), np.array(categories), (None,) * len(unsafe))


@given(st.lists(st.tuples(score, score, score, score), min_size=1, max_size=6))
def test_the_whole_and_the_order_stay_and_the_largest_category_becomes_the_whole(rows):
    given_ = scores_of([row[0] for row in rows], [row[1:] for row in rows])
    found = on_one_scale(given_)
    assert np.array_equal(found.unsafe, given_.unsafe, equal_nan=True)
    assert np.array_equal(found.category_probabilities, given_.categories, equal_nan=True)
    for unsafe, before, after in zip(given_.unsafe, given_.categories, found.categories, strict=True):
        known = ~np.isnan(before)
        assert np.array_equal(np.isnan(after), ~known)
        if np.isnan(unsafe) or not known.any():
            assert np.array_equal(after, before, equal_nan=True)
            continue
        assert after[known].max() == unsafe
        assert ((after[known] >= 0) & (after[known] <= unsafe)).all()
        order = np.argsort(before[known], kind="stable")
        assert (np.diff(after[known][order]) >= 0).all()
    again = on_one_scale(found)
    assert np.array_equal(again.categories, found.categories, equal_nan=True)
    assert np.array_equal(again.category_probabilities, found.category_probabilities, equal_nan=True)


@pytest.mark.parametrize(
    ("unsafe", "categories", "expected"),
    [
        (0.9, [0.3, 0.15, 0.0], [0.9, 0.45, 0.0]),
        (0.1, [0.4, 0.2, math.nan], [0.1, 0.05, math.nan]),
        (0.0, [0.4, 0.2, 0.0], [0.0, 0.0, 0.0]),
        (1.0, [0.5, 0.5, 0.25], [1.0, 1.0, 0.5]),
        (0.7, [0.0, math.nan, 0.0], [0.7, math.nan, 0.7]),  # it is one of them, and nobody knows which
        (0.7, [0.7, 0.2, 0.1], [0.7, 0.2, 0.1]),
        (math.nan, [0.4, 0.2, math.nan], [0.4, 0.2, math.nan]),
        (0.7, [math.nan] * 3, [math.nan] * 3),
    ],
)
def test_shares_by_hand(unsafe, categories, expected):
    found = on_one_scale(scores_of([unsafe], [categories]))
    assert found.categories[0] == pytest.approx(expected, nan_ok=True)


def test_one_category_is_the_whole():
    assert on_one_scale(scores_of([0.3, 0.0], [[0.9], [0.2]])).categories.tolist() == [[0.3], [0.0]]
    for shape in ((0, 2), (2, 0)):
        assert on_one_scale(scores_of([0.3] * shape[0], np.zeros(shape))).categories.shape == shape


def test_what_is_on_one_scale_already_is_left_as_it_is():
    there = scores_of([0.7, math.nan, 0.2], [[0.7, 0.1], [0.4, math.nan], [math.nan, 0.2]])
    assert on_one_scale(there) is there
    assert (there.separate, there.decided_by, there.because) == (None, None, None)


@pytest.fixture(scope="module")
def encoder(tiny_clip_folder):
    return DualEncoder.load(tiny_clip_folder, device="cpu")


@pytest.fixture(scope="module")
def images(noise_image):
    return [noise_image(seed, (16, 16)) for seed in range(5)]


def as_pixels(images):
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images]).float() / 255.0


def make_student(encoder):
    torch.manual_seed(3)
    head = CrossAttentionHead(HeadConfig(encoder.width, inner=32, heads=4, rank=4))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        head.calibration.copy_(torch.tensor([[1.0, 0.0], [0.8, 0.7]]))  # the whole has a life of its own
    return Student(encoder, head)


class Told:
    """Any classifier as a cascade's judge."""

    def __init__(self, unsafe):
        self.name, self.unsafe = "judge", unsafe

    def score(self, images, prompts, taxonomy):
        categories = np.tile([0.3, 0.9, 0.1, 0.2][: len(taxonomy)], (len(images), 1))
        return scores_of([self.unsafe] * len(images), categories)  # not on one scale


def make(kind, encoder):
    torch.manual_seed(1)
    if kind == "probe":
        return LinearProbe(encoder, ParallelMLP(encoder.width, len(POLICY)), POLICY)
    if kind == "prompt_learning":
        return PromptLearning(encoder, SoftPrompts(encoder, POLICY.names), POLICY)
    if kind == "pooled_attention":
        return PooledAttention(encoder, PooledAttentionHead(encoder.width), POLICY)
    text, image, student = Platt(8.0, -2.0), Platt(4.0, 0.0), make_student(encoder)
    if kind == "filters":
        return FilterClassifier(Similarities(encoder), text, image)
    if kind == "student":
        return student
    cutoffs = Cutoffs(0.8, 0.45, 0.7, 0.3, 0.6, 0.02)
    settings = CascadeSettings(text, image, cutoffs, True, 0.05, 0.02, 100)
    unsafe = {"cascade": 0.3, "strict cascade": 0.01, "cascade without judge": None}[kind]
    return Cascade(student, settings, None if unsafe is None else Told(unsafe))


KINDS = ("student", "filters", "probe", "prompt_learning", "pooled_attention")
CASCADES = ("cascade", "strict cascade", "cascade without judge")


def check(scores, taxonomy):
    """The relation, and that every way to hold thresholds against a row gives one verdict."""
    judged = 0
    for unsafe, categories, reason in zip(scores.unsafe, scores.categories, scores.reasons, strict=True):
        known = categories[~np.isnan(categories)]
        if not np.isnan(unsafe) and len(known):
            assert known.max() == unsafe
            judged += 1
        assert np.isnan(unsafe) == (reason is not None)
        for limit in (0.02, 0.3, 0.5, 0.9):
            one, same = (
                verdict_from_scores(float(unsafe), categories.tolist(), taxonomy, threshold=t, reason=reason)
                for t in (limit, dict.fromkeys(taxonomy.names, limit))
            )
            assert one == same
            if not np.isnan(unsafe):
                assert (one.status == "unsafe") == (unsafe >= limit)
    return judged


@pytest.mark.parametrize("taxonomy", [POLICY, POLICY.select(["two"]), WIDER], ids=["all", "one", "wider"])
@pytest.mark.parametrize("kind", KINDS + CASCADES)
def test_every_classifier_gives_one_scale(encoder, images, kind, taxonomy):
    prompts = [prompt if kind in ("student", "filters", *CASCADES) else None for prompt in PROMPTS]
    scores = make(kind, encoder).score(images, prompts, taxonomy)
    judged = check(scores, taxonomy)
    if kind != "pooled_attention" and taxonomy is not WIDER:
        assert judged >= 3
    if scores.separate is not None:
        assert scores.separate.shape == scores.categories.shape


def test_a_student_keeps_what_it_found_for_lessons(encoder, images):
    student = make_student(encoder)
    scores = student.score(images, None, POLICY)
    whole, categories = student.logits(encoder.encode_images(images), [None] * 5, POLICY)
    assert scores.unsafe == pytest.approx(whole.sigmoid().detach().numpy(), abs=1e-6)
    assert scores.separate == pytest.approx(categories.sigmoid().detach().numpy(), abs=1e-6)
    assert np.abs(scores.separate - scores.categories).max() > 0.01


@pytest.mark.parametrize("template", ["policy_first", "perspective", "zero_shot_1"])
@pytest.mark.parametrize("multilabel", [False, True])
def test_judges_give_one_scale_under_several_taxonomies(tiny_vlm, images, template, multilabel):
    if multilabel and template == "zero_shot_1":
        return  # asks about no category
    judge = VisionLanguageJudge(*tiny_vlm(), template)
    asked = [POLICY, WIDER, POLICY.select(["six"])]
    found = judge.score_taxonomies(images[:2], ["a two", None], asked, multilabel=multilabel)
    for scores, taxonomy in zip(found, asked, strict=True):
        judged = check(scores, taxonomy)
        assert judged == (0 if template == "zero_shot_1" else 2)
        if multilabel and len(taxonomy) > 1:
            assert scores.separate is not None


@pytest.mark.parametrize("kind", KINDS[:4])
def test_a_category_has_a_positive_margin_where_its_score_is_over_one_half(encoder, images, kind):
    classifier = make(kind, encoder)
    prompts = ["a two", None, "one", None, "a photo of six"]
    scores = classifier.score(images, prompts, POLICY)
    for place, name in enumerate(POLICY.names):
        margins = classifier.pixel_margins(as_pixels(images), prompts, POLICY, category=name)
        assert margins.sigmoid().numpy(force=True) == pytest.approx(scores.categories[:, place], abs=1e-4)


@given(st.floats(-30, 30), st.lists(st.floats(-30, 30), min_size=1, max_size=4), st.integers(0, 3))
def test_margins_are_logits_of_the_scores_and_have_gradients(whole, logits, place):
    place = min(place, len(logits) - 1)
    of_whole = torch.tensor([whole], dtype=torch.float64, requires_grad=True)
    of_categories = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    margin = category_margin(of_whole, torch.nn.functional.logsigmoid(of_categories), place)
    scores = scores_of(of_whole.sigmoid().tolist(), of_categories.sigmoid().tolist())
    expected = on_one_scale(scores).categories[0, place]
    assert float(margin.detach().sigmoid()) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    if abs(expected - 0.5) > 1e-9:
        assert (float(margin.detach()) > 0) == (expected > 0.5)
    gradients = torch.autograd.grad(margin.sum(), [of_whole, of_categories])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert float(gradients[0]) > 0
