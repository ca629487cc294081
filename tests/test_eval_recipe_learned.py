"""The sentence on whether a training taught anything: what it says of answers whose worth is known."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.judged import JudgedRow, summarise
from eval.recipe.learned import judge_training
from prompts import Category, Example, Taxonomy

NAN = float("nan")


def rows(answers, *, images=None):
    """Judged rows of (truth, score) pairs; each of its own image unless there are fewer images."""
    count = images or len(answers)
    return summarise(
        [
            JudgedRow(id=str(i), truth=truth, unsafe=score, image=str(i % count))
            for i, (truth, score) in enumerate(answers)
        ]
    )


def answers(*, right, of=100, unjudged=0):
    """As many of both labels, the first `right` of each correct."""
    found = [(bool(i % 2), float((i % 2) == (i // 2 < right))) for i in range(2 * of)]
    return [(truth, NAN if i < unjudged else score) for i, (truth, score) in enumerate(found)]


GOOD, CHANCE = rows(answers(right=93)), rows(answers(right=50))
LABELS_AND_SCORES = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0, NAN])), min_size=1, max_size=60
)


@pytest.mark.parametrize(
    ("before", "after", "learned", "sentence"),
    [
        (CHANCE, GOOD, True, "Learned: F1 0.93 (0.88 to 0.96) on 200 test images; 0.50 before."),
        (None, GOOD, True, "Learned: F1 0.93"),
        (CHANCE, rows(answers(right=70)), True, "Learned some of it: F1 0.70"),
        (GOOD, GOOD, None, "Did not change, and was as good before training: F1 0.93"),
        (GOOD, rows(answers(right=75)), False, "Worse than before: accuracy 0.93 before, 0.75 after"),
        (CHANCE, CHANCE, False, "Did not change: accuracy 0.50"),
        (None, CHANCE, False, "Learned too little to show: accuracy 0.50"),
        (CHANCE, rows([(i % 2 == 0, 0.9) for i in range(40)]), False, "Flags everything: recall 1.00, precision 0.50."),
        (GOOD, rows([(i % 2 == 0, 0.1) for i in range(40)]), False, "Flags nothing: recall 0.00, precision undefined."),
        (GOOD, rows(answers(right=100, unjudged=150)), False, "Could not judge 150 of 200 test questions."),
        (None, rows(answers(right=4, of=6)), None, "Cannot tell from so few test images: accuracy 0.67"),
        (None, rows([(True, 0.9)] * 3), None, "Cannot tell: all 3 test questions are unsafe."),
        (None, rows([]), None, "Cannot tell: no test question."),
    ],
)  # fmt: skip
def test_the_sentence(before, after, learned, sentence):
    found = judge_training(before, after)
    assert found.learned is learned
    assert found.sentence.startswith(sentence)


@given(LABELS_AND_SCORES, LABELS_AND_SCORES)
def test_any_answers_have_a_verdict(first, second):
    before, after = rows(first), rows(second)
    found, back = judge_training(before, after), judge_training(after, before)
    assert found.sentence.endswith(".")
    assert not (found.learned and back.learned), "one of two models is not better than the other both ways"
    assert found.causes or found.learned is not False
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()
    assert "nan" not in found.to_text()


@given(st.integers(0, 100))
def test_more_right_answers_are_never_called_worse(right):
    ranks = [judge_training(CHANCE, rows(answers(right=more))).learned is True for more in (right, 100)]
    assert ranks == sorted(ranks)


def test_answering_always_the_same_is_never_learning():
    for share in (0.1, 0.5, 0.9):
        for score in (0.0, 1.0):
            constant = rows([(i < 200 * share, score) for i in range(200)])
            assert judge_training(None, constant).learned is False
            assert judge_training(CHANCE, constant).learned is False


def causes(losses, after=CHANCE, **about):
    history = [{"loss": loss, "step": 10 * (i + 1)} for i, loss in enumerate(losses)]
    return judge_training(CHANCE, after, history=history, **about).causes[0]


def test_the_first_cause_is_what_the_log_points_at():
    assert causes([0.7, 0.69]).startswith("too few steps (20)")
    assert "only fell from 0.70 to 0.69" in causes([0.7, 0.69])
    assert "divide --learning_rate by 10" in causes([0.7, 2.0])
    assert "divide --learning_rate by 10" in causes([0.7, NAN])
    assert "give more images (48 images)" in causes([0.7, 0.01], train_images=48)
    ranked = rows([(i % 2 == 0, 0.9 if i % 2 == 0 else 0.6) for i in range(100)])
    assert "arbiter calibrate" in causes([0.7, 0.01], after=ranked)


def test_what_the_numbers_cannot_show():
    taxonomy = Taxonomy(
        "mine", "1", (Category("a", "a thing"), Category("b", "b thing"), Category("c", "c thing"))
    )
    test = [
        Example(str(i), f"{i}.png", violates=frozenset(["a"] if i < 9 else ["b"] if i < 11 else []))
        for i in range(12)
    ]
    few = rows(answers(right=100), images=12)
    limits = judge_training(CHANCE, few, test=test, taxonomy=taxonomy).limits
    assert limits[0].startswith("200 questions about 12 test images are only 12 test images: any F1 from")
    assert limits[1] == "No test image violates these, so nothing is known about them: c."
    assert limits[2] == "Very few test images violate these, so their own numbers say little: b (2)."
    assert any("No category was held out" in limit for limit in limits)
    held_out = judge_training(CHANCE, few, taxonomy=taxonomy, held_out=["c"]).limits
    assert "No question was about the categories held out (c)." in held_out
    assert not any("test images" in limit for limit in judge_training(CHANCE, GOOD).limits)


def test_text_has_a_line_for_each_cause_and_limit():
    found = judge_training(CHANCE, CHANCE)
    lines = found.to_text().splitlines()
    assert lines[0] == found.sentence
    assert len(lines) == 3 + len(found.causes) + len(found.limits)
