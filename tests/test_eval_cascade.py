"""A cascade on labelled questions: answers land on their rows, and what is counted is what happened."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.cascade import (
    cascade_rows,
    count_live_differences,
    evaluate_each_stage,
    predict_stages,
    resample_miss_rate,
    summarise_cascade,
)
from eval.costs import Costs
from eval.questions import draw_evaluation
from judge.cascade.cascade import Cascade
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt
from judge.cascade.stages import NEVER, STAGES, decide
from judge.cascade.tuning import CascadeShape, CutoffFamily, choose_level
from judge.protocol import Scores
from judge.standins.digits import digits_examples
from prompts import FlipOptions, load_taxonomy

FLAT = Platt(0.0, 0.0)
COSTS = Costs({"encoder": 2.0, "text": 2.0, "image": 1.0, "student": 5.0, "judge": 40.0}, 64, 2, 5)


class FakeEncoder:
    """Tokens that carry the image's number; texts all look alike."""

    width, context, device = 4, 100, torch.device("cpu")

    def too_long(self, text):
        return len(text) > 1000

    def __init__(self, examples):
        self.numbers = {example.image.tobytes(): number for number, example in enumerate(examples)}

    def token_count(self, text):
        return 1

    def encode_texts(self, texts):
        return torch.ones(len(texts), 2, 4), torch.ones(len(texts), 2, dtype=torch.bool)

    def encode_images(self, images):
        numbers = torch.tensor([float(self.numbers[image.tobytes()]) for image in images])
        return numbers[:, None, None].expand(-1, 3, 4) + 1


class Noisy:
    """Knows the truth up to noise that depends on the image and the policy only; fails on every seventh image."""

    def __init__(self, name, examples, noise, fails=True):
        self.name, self.examples, self.noise, self.fails = name, examples, noise, fails
        self.encoder = FakeEncoder(examples)

    def score(self, images, prompts, taxonomy):
        return self.score_tokens(self.encoder.encode_images(images), prompts, taxonomy)

    def score_tokens(self, tokens, prompts, taxonomy):
        rows = []
        for number in tokens[:, 0, 0].long().tolist():
            labels = np.array(taxonomy.label(self.examples[number - 1]), dtype=float)
            rng = np.random.default_rng([number, len(taxonomy), len(self.name)])
            rows.append(1 / (1 + np.exp(-4 * (labels - 0.5) - rng.normal(0, self.noise, len(labels)))))
            if self.fails and number % 7 == 0:
                rows[-1] = np.full(len(labels), np.nan)
        scores = np.array(rows)
        reasons = tuple("failed" if np.isnan(row).any() else None for row in rows)
        return Scores(scores.max(axis=1), scores, reasons)


@pytest.fixture(scope="module")
def drawn():
    examples = digits_examples("test", count=500)
    evaluation = draw_evaluation(examples, load_taxonomy("digits"), FlipOptions(), seed=0, rows=480)
    return examples, list(evaluation.flips)


@pytest.fixture(scope="module")
def predictions(drawn):
    examples, questions = drawn
    reported = []
    student, judge = Noisy("student", examples, 1.5), Noisy("judge", examples, 0.5)
    found = predict_stages(student, judge, questions, progress=reported.append)
    assert reported[-1] == len(questions)
    return found


@pytest.fixture(scope="module")
def family(predictions):
    return CutoffFamily(
        predictions.scores(FLAT, FLAT), predictions.unsafe, CascadeShape(band=0.1, image_precision=NEVER)
    )


def test_answers_land_on_their_rows(predictions, drawn):
    examples, questions = drawn
    assert sorted(question.id for question in predictions.questions) == sorted(
        question.id for question in questions
    )
    judge = Noisy("judge", examples, 0.5)
    for place in range(0, len(questions), 37):
        row = predictions.questions[place].row
        expected = judge.score([row.example.image], [row.prompt], row.taxonomy).unsafe[0]
        assert predictions.judge[place] == pytest.approx(expected, nan_ok=True)
        assert predictions.unsafe[place] == row.unsafe
        assert np.isnan(predictions.similarities["text"][place]) == (not row.prompt)
    labels = np.concatenate([answer.unsafe for answer in predictions.labelled["judge"]])
    assert (labels == predictions.unsafe).all()
    for answer in predictions.labelled["student"]:
        assert answer.categories.shape == answer.scores.categories.shape


def test_what_is_counted_is_what_was_decided(predictions, family):
    cutoffs = family.at(0.1)
    decided = decide(predictions.scores(FLAT, FLAT), cutoffs)
    found = summarise_cascade(predictions, decided, cutoffs, COSTS)
    rows = list(cascade_rows(predictions, predictions.scores(FLAT, FLAT), decided))
    assert len(rows) == found["rows"] == len(predictions.questions)
    for name in STAGES:
        mine = [row for row in rows if row["decided_by"] == name]
        stage = found["stages"][name]
        assert stage["rows"] == len(mine)
        assert stage["share"] == pytest.approx(len(mine) / len(rows))
        assert stage["misses"] == sum(row["truth"] and row["unsafe"] < 0.5 for row in mine)
        assert stage["false_alarms"] == sum(not row["truth"] and row["unsafe"] >= 0.5 for row in mine)
        assert stage["unjudged"] == sum(np.isnan(row["unsafe"]) for row in mine)
    assert found["judge_share"] == found["stages"]["judge"]["share"] > 0
    assert found["unjudged"] > 0
    unsafe = [row for row in rows if row["truth"]]
    assert found["miss_rate"] == pytest.approx(sum(row["unsafe"] < 0.5 for row in unsafe) / len(unsafe))
    wrong = sum(row["truth"] and not row["unsafe"] >= 0.5 for row in rows)  # unjudged counts against recall
    assert found["recall"] == pytest.approx(1 - wrong / len(unsafe))
    assert found["stages"]["filter"]["seconds_per_image"] == pytest.approx(
        3.0 + 2.0 * cutoffs.uses_text_filter
    )
    by_hand = sum(stage["reached"] * stage["seconds_per_image"] for stage in found["stages"].values())
    assert found["seconds_per_image_by_stages"] == pytest.approx(by_hand)
    assert found["stages"]["filter"]["reached"] == 1.0
    low, high = found["intervals"]["miss_rate"]
    assert low < found["miss_rate"] < high


def test_each_stage_alone_makes_the_same_promise(predictions):
    found = evaluate_each_stage(predictions, predictions, FLAT, FLAT, 0.1, COSTS)
    assert set(found) == {"text_filter", "image_filter", "student", "judge"}
    assert found["judge"]["f1"] > found["student"]["f1"] > found["text_filter"]["f1"]
    strict = found["judge"]["at_promise"]
    judged = predictions.unsafe & ~np.isnan(predictions.judge)
    assert (predictions.judge[judged] < strict["threshold"]).mean() <= 0.1
    assert 0 <= strict["false_alarm_rate"] <= 1


def test_the_promise_is_checked_by_image(predictions, family):
    found = resample_miss_rate(family, [predictions], FLAT, FLAT, 0.1)
    assert found["mean_miss_rate"] == found["resampling"]["mean"] <= 0.1
    assert found["resampling"]["splits"] == 200


def test_the_cascade_itself_decides_as_was_calibrated(predictions, family, drawn):
    examples, _ = drawn
    scores = predictions.scores(FLAT, FLAT)
    level = choose_level(family, scores.rows(predictions.unsafe), 0.1, images=predictions.unsafe_images)
    settings = CascadeSettings(FLAT, FLAT, family.at(level), True, 0.1, level, int(predictions.unsafe.sum()))
    cascade = Cascade(Noisy("student", examples, 1.5), settings, Noisy("judge", examples, 0.5))
    decided = decide(scores, settings.cutoffs)
    assert len(set(decided.stage)) >= 2
    assert count_live_differences(cascade, predictions, decided)["rows_decided_otherwise_live"] == 0
    other = decide(scores, family.at(0.0))
    assert count_live_differences(cascade, predictions, other)["rows_decided_otherwise_live"] > 0


def test_without_a_judge(drawn):
    examples, questions = drawn
    predictions = predict_stages(Noisy("student", examples, 1.5, fails=False), None, questions)
    assert predictions.judge is None
    family = CutoffFamily(predictions.scores(FLAT, FLAT), predictions.unsafe, CascadeShape())
    cutoffs = family.at(0.1)
    costs = replace(COSTS, seconds={name: 1.0 for name in COSTS.seconds if name != "judge"})
    found = summarise_cascade(predictions, decide(predictions.scores(FLAT, FLAT), cutoffs), cutoffs, costs)
    assert found["judge_f1"] is None
    assert found["judge_share"] == 0
    assert found["stages"]["judge"]["seconds_per_image"] is None
    assert "judge" not in evaluate_each_stage(predictions, predictions, FLAT, FLAT, 0.1, costs)
    assert {
        row["judge"]
        for row in cascade_rows(
            predictions, predictions.scores(FLAT, FLAT), decide(predictions.scores(FLAT, FLAT), cutoffs)
        )
    } == {None}
