"""One row through the stages of a cascade: which stage settles it, against a plain loop."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from judge.cascade.stages import NEVER, STAGES, Cutoffs, StageScores, decide
from judge.errors import ConfigError

PLAIN = Cutoffs(0.8, 0.1, 0.9, 0.3, 0.6, 0.5)


@pytest.mark.parametrize(
    ("row", "stage", "status"),
    [
        ((0.5, 0.05, 0.9, 0.9), "filter", "safe"),  # the image filter is sure, the prompt does not deny it
        ((0.0, 0.5, 0.5, 0.9), "judge", "unsafe"),  # a prompt makes nothing safe
        ((np.nan, 0.05, 0.9, 0.9), "filter", "safe"),  # no prompt
        ((0.9, 0.5, 0.1, 0.1), "filter", "unsafe"),
        ((0.8, 0.9, 0.1, 0.1), "filter", "unsafe"),  # a cutoff belongs to the unsafe side
        ((0.9, 0.05, 0.1, 0.9), "student", "safe"),  # the filters contradict each other
        ((0.0, 0.95, 0.1, 0.1), "filter", "unsafe"),
        ((0.9, 0.05, 0.6, 0.1), "student", "unsafe"),
        ((0.2, 0.1, 0.29, 0.9), "student", "safe"),  # below means below
        ((0.5, 0.5, 0.3, 0.4), "judge", "safe"),
        ((0.5, 0.5, 0.59, 0.5), "judge", "unsafe"),
        # What a stage could not read goes on, to be flagged or left unjudged; a missing prompt is nothing unread.
        ((np.nan, np.nan, 0.1, 0.9), "judge", "unsafe"),
        ((0.1, np.nan, 0.1, 0.1), "judge", "unjudged"),
        ((0.9, np.nan, 0.1, 0.1), "filter", "unsafe"),
        ((0.5, 0.5, np.nan, 0.1), "judge", "unjudged"),
        ((0.5, 0.5, np.nan, 0.9), "judge", "unsafe"),
        ((0.5, 0.05, np.nan, 0.9), "filter", "safe"),  # the student was not asked
        ((0.5, 0.5, 0.4, np.nan), "judge", "unjudged"),
        ((np.nan,) * 4, "judge", "unjudged"),
    ],
)
def test_who_settles_what(row, stage, status):
    decided = decide(StageScores(*(np.array([p]) for p in row)), PLAIN)
    assert STAGES[decided.stage[0]] == stage
    assert np.isnan(decided.unsafe[0]) == (status == "unjudged")
    assert decided.safe[0] == (status == "safe")


def test_what_hides_characters_no_filter_calls_safe():
    text, image = np.array([0.5, 0.5, 0.9]), np.array([0.05, 0.95, 0.5])
    scores = StageScores(text, image, np.full(3, 0.2), hidden=np.full(3, True))
    decided = decide(scores, PLAIN.without_judge())
    assert decided.stage.tolist() == [1, 0, 0]
    assert decided.safe.tolist() == [True, False, False]
    assert decide(replace(scores, hidden=None), PLAIN.without_judge()).stage.tolist() == [0, 0, 0]


def test_near_a_category_with_a_condition_the_image_filter_clears_and_never_flags():
    text, image = np.array([0.5, 0.5, 0.9, 0.9]), np.array([0.05, 0.95, 0.95, 0.5])
    scores = StageScores(text, image, np.full(4, 0.2), conditional=np.full(4, True))
    decided = decide(scores, PLAIN.without_judge())
    assert decided.stage.tolist() == [0, 1, 0, 0]  # what the prompt says of other categories still counts
    assert decided.safe.tolist() == [True, True, False, False]
    assert decide(scores.rows([1, 2]), PLAIN.without_judge()).stage.tolist() == [1, 0]


def test_without_a_judge_the_student_is_last():
    scores = StageScores(*(np.array([p, 0.5]) for p in (0.5, 0.5, 0.4)))
    decided = decide(replace(scores, student=np.array([0.4, np.nan])), PLAIN.without_judge())
    assert decided.stage.tolist() == [1, 1]
    assert decided.unsafe[0] >= 0.5  # from student_safe on
    assert np.isnan(decided.unsafe[1])


probability = st.one_of(st.just(np.nan), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, 1e-17]))
cutoff = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, NEVER]))


@settings(max_examples=200)
@given(
    st.lists(st.tuples(*[probability] * 4, st.booleans()), min_size=1, max_size=8),
    st.tuples(*[cutoff] * 6),
    st.booleans(),
)
def test_decisions_are_those_of_a_plain_loop(rows, cuts, with_judge):
    cutoffs = Cutoffs(*cuts)
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    decided = decide(StageScores(*columns[:3], columns[3] if with_judge else None, columns[4]), cutoffs)
    for number, row in enumerate(rows):
        stage, says = by_hand(row, cutoffs, with_judge)
        assert STAGES[decided.stage[number]] == stage
        value = decided.unsafe[number]
        assert {None: np.isnan(value), True: value >= 0.5, False: value < 0.5}[says]


def by_hand(row, cutoffs, with_judge):
    def ask(p, safe, unsafe):
        return True if p >= unsafe else False if p < safe else None

    text = True if row[0] >= cutoffs.text_unsafe else None
    image = ask(row[1], cutoffs.image_safe, cutoffs.image_unsafe)
    sure, unread = {text, image} - {None}, np.isnan(row[1])
    if len(sure) == 1 and (True in sure or not (unread or row[4])):
        return "filter", sure.pop()
    later = [("student", row[2], cutoffs.student_safe, cutoffs.student_unsafe)]
    later += [("judge", row[3], cutoffs.judge, cutoffs.judge)] if with_judge else []
    for stage, p, safe, unsafe in later:
        unread = unread or np.isnan(p)
        says = ask(p, safe, unsafe)
        if says or (says is False and not unread):
            return stage, says
    return stage, None


@settings(max_examples=200)
@given(st.lists(st.tuples(*[probability] * 4), min_size=1, max_size=8), st.tuples(*[cutoff] * 6))
def test_without_the_judge_nothing_is_missed_that_was_not_missed_with_it(rows, cuts):
    cutoffs = Cutoffs(*cuts)  # crossing ones too
    scores = StageScores(*(np.array(column) for column in zip(*rows, strict=True)))
    alone = decide(replace(scores, judge=None), cutoffs.without_judge())
    assert not (alone.safe & ~decide(scores, cutoffs).safe).any()
    read = ~np.isnan(scores.student) & ~np.isnan(scores.image)
    assert not np.isnan(alone.unsafe[read]).any()  # and the student's band is settled


def test_without_the_judge_what_lies_between_crossing_cutoffs_stays_unsafe():
    crossing = replace(PLAIN, student_safe=0.7, student_unsafe=0.4)
    scores = StageScores(*(np.array([p]) for p in (0.5, 0.5, 0.6)))
    assert decide(scores, crossing).unsafe[0] >= 0.5
    assert decide(scores, crossing.without_judge()).unsafe[0] >= 0.5


@settings(max_examples=300)
@given(
    st.lists(st.tuples(*[probability] * 4, *[st.floats(0, 1)] * 2, st.booleans()), min_size=1, max_size=8),
    st.tuples(*[cutoff] * 6),
    st.booleans(),
)
def test_a_prompt_makes_no_row_safe_and_takes_no_flag_away(rows, cuts, with_judge):
    """Rows: text, image, student and judge of the image alone, how much the prompt adds to both, hidden characters."""
    text, image, student, judge, more, most, hidden = (np.array(c) for c in zip(*rows, strict=True))
    cutoffs = Cutoffs(*cuts) if with_judge else Cutoffs(*cuts).without_judge()
    alone = StageScores(np.full_like(text, np.nan), image, student, judge if with_judge else None)
    prompted = StageScores(
        text,
        image,
        student + more * (1 - student),
        judge + most * (1 - judge) if with_judge else None,
        hidden,
    )
    without, with_prompt = decide(alone, cutoffs), decide(prompted, cutoffs)
    assert not (with_prompt.safe & ~without.safe).any()
    assert (with_prompt.unsafe[without.unsafe >= 0.5] >= 0.5).all()


def test_one_half_is_the_cutoff_and_the_order_within_a_stage_stays():
    student = np.array([0.01, 0.29, 0.3, 0.6, 0.61, 0.99])
    unsure = np.full(6, 0.5)
    moved = decide(StageScores(unsure, unsure, student), PLAIN).unsafe
    assert moved[3] == 0.5
    assert moved[1] == pytest.approx(expit(logit(0.29) - logit(0.3)))
    assert moved[5] == pytest.approx(expit(logit(0.99) - logit(0.6)))
    assert (np.diff(moved[[0, 1, 3, 4, 5]]) > 0).all()


def test_where_both_filters_are_sure_the_surer_gives_the_score():
    scores = StageScores(np.array([0.81, 0.999]), np.array([0.99, 0.91]), np.full(2, 0.5))
    moved = decide(scores, PLAIN).unsafe
    assert moved[0] == pytest.approx(expit(logit(0.99) - logit(0.9)))
    assert moved[1] == pytest.approx(expit(logit(0.999) - logit(0.8)))


@pytest.mark.parametrize("value", [-0.1, 2.5, float("nan"), True, "x"])
def test_cutoffs_are_probabilities(value):
    with pytest.raises(ConfigError, match="text_unsafe"):
        Cutoffs(value, 0, 1, 0, 1, 0.5)
