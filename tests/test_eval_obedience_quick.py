"""The small obedience check of training recipes: what it asks, and of what it complains."""

import numpy as np
import pytest

from eval.obedience.quick import QUICK_FAMILIES, QuickObedience
from eval.obedience.shipped import choose_families
from judge.protocol import Scores
from judge.standins.digits import digits_examples
from prompts import FlipOptions, load_taxonomy

DIGITS = load_taxonomy("digits")
FLIPS = FlipOptions(held_out=frozenset({"four", "eight"}))


class Knowing:
    """Knows every label by the picture and a category's key; calls safe what is written in a wording it is deaf to."""

    name = "knowing"

    def __init__(self, examples, deaf=lambda text: False):
        self.known = {example.image.tobytes(): example for example in examples}
        self.deaf = deaf

    def score(self, images, prompts, taxonomy):
        labels = np.array([taxonomy.label(self.known[image.tobytes()]) for image in images], dtype=float)
        if self.deaf(" ".join(category.definition for category in taxonomy)):
            labels *= 0
        return Scores(labels.max(axis=1), labels, (None,) * len(images))


@pytest.fixture(scope="module")
def examples():
    return digits_examples("test", count=240)


@pytest.fixture
def ask(examples):
    """`ask(rows=24, **stages)` -> the check after these classifiers answered."""

    def run(rows=24, **stages):
        obedience = QuickObedience(examples, DIGITS, FLIPS, rows=rows, seed=1)
        for stage, classifier in stages.items():
            obedience.ask(stage, classifier)
        return obedience

    return run


def test_some_families_are_of_lessons_some_never_and_two_are_prompts():
    families = choose_families(QUICK_FAMILIES)
    assert {family.in_lessons for family in families if family.kind == "policy"} == {True, False}
    assert sum(family.kind == "prompt" for family in families) == 2


def test_held_out_categories_are_not_asked_about(ask):
    obedience = ask()
    asked = {
        key
        for one in obedience.rewritten.values()
        for question in one.questions
        for key in question.row.taxonomy.keys
    }
    assert not asked & FLIPS.held_out
    assert all(0 < len(one.questions) <= 24 for one in obedience.rewritten.values())


def test_who_hears_everything_gets_no_complaint(ask, examples):
    obedience = ask(before=Knowing(examples), after=Knowing(examples))
    assert obedience.metrics["fell"] == obedience.metrics["lagging"] == []
    assert set(obedience.columns["after"].values()) == {1.0}
    assert len(obedience.summary().splitlines()) == 3 + len(QUICK_FAMILIES)


def test_a_judge_that_training_made_deaf_is_told_so(ask, examples):
    obedience = ask(before=Knowing(examples), after=Knowing(examples, str.isupper))
    assert obedience.metrics["fell"] == obedience.metrics["lagging"] == ["upper_case"]
    assert obedience.metrics["after"]["families"]["upper_case"]["f1"] == 0.0
    said = obedience.summary("student")
    assert "After training the student obeys fewer wordings than before: upper_case F1 1.00 -> 0.00." in said
    assert "flip.restyle" in said


def test_without_a_before_it_lags_behind_the_plain_wording(ask, examples):
    obedience = ask(after=Knowing(examples, str.isupper))
    assert obedience.metrics["before"] is None
    assert obedience.metrics["fell"] == []
    said = obedience.summary(advice="So it is.")
    assert "The judge obeys these less than the plain wording (1.00): upper_case F1 0.00.\nSo it is." in said
    assert "than before" not in said


def test_a_gain_is_no_loss(ask, examples):
    obedience = ask(before=Knowing(examples, str.isupper), after=Knowing(examples))
    assert obedience.metrics["fell"] == []


def test_no_rows_ask_nothing(ask, examples):
    obedience = ask(rows=0, before=Knowing(examples), after=Knowing(examples, str.isupper))
    assert obedience.metrics is None
    assert obedience.columns == {}
    assert obedience.summary() == ""
    assert ask(before=None).metrics is None  # no process has a whole model
