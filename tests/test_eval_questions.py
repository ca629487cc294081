"""Held-out questions: what is drawn, and that answers land on the right rows."""

import numpy as np
import pytest

from eval.predict import predict_questions, summarise_evaluation
from eval.questions import draw_evaluation
from judge.protocol import Scores
from judge.standins.digits import digits_examples
from prompts import Example, FlipOptions, load_taxonomy

HELD_OUT = frozenset({"four", "eight"})


@pytest.fixture(scope="module")
def evaluation():
    options = FlipOptions(held_out=HELD_OUT)
    return draw_evaluation(
        digits_examples("test", count=500), load_taxonomy("digits"), options, seed=0, rows=240
    )


class Oracle:
    """Reads the truth off a hash of the pixels; `wrong` answers the opposite, `silent` does not answer."""

    name = "oracle"

    def __init__(self, examples, wrong=False, silent=False):
        self.truth = {e.image.tobytes(): e for e in examples}
        self.wrong, self.silent, self.calls = wrong, silent, 0

    def score(self, images, prompts, taxonomy):
        self.calls += 1
        labels = np.array([taxonomy.label(self.truth[i.tobytes()]) for i in images], dtype=float)
        if self.silent:
            nothing = np.full(len(images), np.nan)
            return Scores(nothing, labels * np.nan, ("no answer",) * len(images))
        unsafe = labels.max(axis=1)
        return Scores(1 - unsafe if self.wrong else unsafe, labels, (None,) * len(images))


def test_the_flips_ask_about_seen_categories_only_and_are_balanced(evaluation):
    for question in evaluation.flips:
        assert not {m for c in question.row.taxonomy for m in c.members} & HELD_OUT
        assert not question.row.example.violates & HELD_OUT
        assert question.row.focus is None
    assert sum(q.row.unsafe for q in evaluation.flips) * 2 == len(evaluation.flips)
    assert {q.direction for q in evaluation.flips} == {"safe_to_unsafe", "unsafe_to_safe", None}


def test_held_out_questions_turn_on_a_held_out_category(evaluation):
    unsafe = [q.row for q in evaluation.held_out if q.row.unsafe]
    assert 0.4 < len(unsafe) / len(evaluation.held_out) < 0.6
    for row in unsafe:
        covered = {m for c in row.taxonomy for m in c.members}
        assert row.example.violates & covered
        assert row.example.violates & covered <= HELD_OUT
    for question in evaluation.held_out:
        assert any(set(c.members) & HELD_OUT for c in question.row.taxonomy)


@pytest.mark.parametrize(
    ("wrong", "silent", "f1"), [(False, False, 1.0), (True, False, 0.0), (False, True, 0.0)]
)
def test_answers_land_on_their_rows(evaluation, wrong, silent, f1):
    examples = [q.row.example for q in evaluation.questions]
    heard = []
    oracle = Oracle(examples, wrong, silent)
    judged = predict_questions(oracle, evaluation.questions, progress=heard.append)
    assert heard[-1] == len(evaluation.questions) == len(judged)
    assert oracle.calls < len(judged)  # rows under one policy go together
    summary = summarise_evaluation(evaluation, judged)
    for key in ("f1", "heldout_f1", "lying_prompt_f1"):
        assert summary[key] == f1
    assert summary["unjudged"] == (len(evaluation.flips) if silent else 0)
    assert summary["pair_score"] == f1
    assert summary["safe_to_unsafe"] == summary["unsafe_to_safe"] == f1


def test_where_there_can_be_no_pairs_all_questions_are_about_images_under_one_policy():
    taxonomy = load_taxonomy("digits").select(["three"])
    examples = [Example(str(n), None, violates=frozenset({"three"} if n % 2 else ())) for n in range(20)]
    found = draw_evaluation(examples, taxonomy, FlipOptions(), seed=0, rows=40)
    assert len(found.flips) == 40
    assert {question.pair for question in found.flips} == {None}
    assert sum(question.row.unsafe for question in found.flips) == 20


def test_one_image_of_a_category_is_enough_to_ask_about_it():
    taxonomy = load_taxonomy("digits").select(["three", "four", "five"])
    keys = ["three", "three", "four", "five", "five", "five", *[None] * 4]
    examples = [Example(str(n), None, violates=frozenset({key} if key else ())) for n, key in enumerate(keys)]
    found = draw_evaluation(examples, taxonomy, FlipOptions(), seed=0, rows=80)
    assert sum(question.pair is not None for question in found.flips) == 40
    asked = {question.row.category for question in found.flips if question.row.unsafe and not question.pair}
    assert asked >= {"three", "four", "five"}
