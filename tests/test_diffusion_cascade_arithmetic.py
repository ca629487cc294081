"""A cascade around a generator, in numbers: who stops a picture, promised misses, and what the work costs."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from judge.calibration.conformal import check_levels
from judge.cascade.generation_stages import (
    GENERATION_STAGES,
    GenerationCutoffs,
    GenerationScores,
    decide_generation,
)
from judge.cascade.generation_tuning import (
    COARSE,
    GenerationFamily,
    GenerationShape,
    budget_cutoff,
    choose_generation_level,
    early_cutoffs,
    generation_losses,
    generation_shapes,
    tune_generation,
)
from judge.cascade.generation_work import Prices, work_of
from judge.cascade.stages import NEVER
from judge.cascade.tuning import LEVELS
from judge.errors import ConfigError

NAN = float("nan")
FILTER, DETECTOR, STUDENT, JUDGE = range(4)


def simulated(rows=600, seed=0, looks=2, student=True, judge=False, unjudged=0.0):
    """Scores of stages, each better than the one before, and the truth."""
    rng = np.random.default_rng(seed)
    unsafe = rng.random(rows) < 0.4

    def column(strength):
        found = expit(strength * (unsafe - 0.5) + rng.normal(0, 1.5, rows))
        found[rng.random(rows) < unjudged] = NAN
        return found

    looked = np.stack([column(3.0 + 2 * s) for s in range(looks)], axis=1) if looks else np.zeros((rows, 0))
    return GenerationScores(
        column(1.5), looked, column(9.0) if student else None, column(12.0) if judge else None
    ), unsafe


def one_by_one(scores, cutoffs, row):
    """What becomes of one picture, in plain words: (stage, look, released, unjudged)."""
    if scores.prompt[row] >= cutoffs.prompt:
        return FILTER, -1, False, False
    unread = False
    on = [place for place, cutoff in enumerate(cutoffs.looks) if cutoff <= 1]
    for place in on:
        if np.isnan(scores.looks[row, place]):
            unread = True
        elif scores.looks[row, place] >= cutoffs.looks[place]:
            return DETECTOR, place, False, False
    if cutoffs.student is None:
        released = bool(on) and not unread
        return DETECTOR if on else FILTER, -1, released, not released
    low, high = cutoffs.student
    readers = [(STUDENT, scores.student[row], low, high)]
    if cutoffs.judge is not None:
        readers.append((JUDGE, scores.judge[row], cutoffs.judge, cutoffs.judge))
    for stage, score, safe, flagged in readers:
        unread = unread or bool(np.isnan(score))
        if score >= flagged:
            return stage, -1, False, False
        if score < safe and not unread:
            return stage, -1, True, False
    return stage, -1, False, True


probability = st.floats(0, 1) | st.just(NAN)
cutoff = st.floats(0, 1) | st.just(NEVER)


@st.composite
def cascades(draw):
    looks, student = draw(st.integers(0, 3)), draw(st.booleans())
    judge, rows = student and draw(st.booleans()), draw(st.integers(1, 6))
    low = draw(cutoff)

    def column():
        return np.array(draw(st.lists(probability, min_size=rows, max_size=rows)))

    looked = np.array([column() for _ in range(looks)]).reshape(looks, rows).T
    scores = GenerationScores(column(), looked, column() if student else None, column() if judge else None)
    high = draw(st.sampled_from([low, NEVER])) if judge else low
    cutoffs = GenerationCutoffs(
        draw(cutoff),
        tuple(draw(cutoff) for _ in range(looks)),
        (low, high) if student else None,
        draw(cutoff) if judge else None,
    )
    return scores, cutoffs


@settings(max_examples=300, deadline=None)
@given(cascades())
def test_pictures_go_from_stage_to_stage(cascade):
    scores, cutoffs = cascade
    decided = decide_generation(scores, cutoffs)
    for row in range(len(scores)):
        stage, look, released, unjudged = one_by_one(scores, cutoffs, row)
        assert (decided.stage[row], decided.look[row], decided.released[row]) == (stage, look, released)
        assert np.isnan(decided.unsafe[row]) == unjudged


def test_a_prompt_alone_releases_nothing():
    scores = GenerationScores(np.array([0.0, 0.9, NAN]), np.zeros((3, 0)))
    decided = decide_generation(scores, GenerationCutoffs(0.5))
    assert not decided.released.any()
    assert np.isnan(decided.unsafe).tolist() == [True, False, True]


def test_what_a_look_could_not_read_a_later_stage_may_stop_and_not_release():
    scores = GenerationScores(np.full(2, NAN), np.array([[NAN], [NAN]]), np.array([0.1, 0.9]))
    decided = decide_generation(scores, GenerationCutoffs(looks=(0.5,), student=(0.5, 0.5)))
    assert np.isnan(decided.unsafe[0])
    assert decided.unsafe[1] >= 0.5
    # A look that is switched off is not made, so nothing of it is unread.
    decided = decide_generation(scores, GenerationCutoffs(looks=(NEVER,), student=(0.5, 0.5)))
    assert decided.released.tolist() == [True, False]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.floats(0, 0.5),
    st.floats(0, 0.3),
)
def test_a_miss_can_only_disappear_as_the_level_falls(seed, looks, student, judge, share, unjudged):
    student = student or not looks
    scores, unsafe = simulated(60, seed, looks, student, student and judge, unjudged)
    family = GenerationFamily(scores, unsafe, GenerationShape(share, (share,) * looks))
    new, _ = simulated(60, seed + 1, looks, student, student and judge, unjudged)
    losses = family.losses(new, (*LEVELS[::10], 1.0))
    assert (np.diff(losses.astype(int), axis=1) >= 0).all()
    assert not losses[:, 0].any()


def test_stages_in_front_of_a_calibrated_one_only_take_misses_away():
    scores, _ = simulated(400, judge=True)
    alone = decide_generation(scores, GenerationCutoffs(looks=(NEVER, NEVER), student=(0.3, 0.6), judge=0.5))
    behind = decide_generation(scores, GenerationCutoffs(0.7, (0.8, 0.9), student=(0.3, 0.6), judge=0.5))
    assert not (behind.released & ~alone.released).any()
    assert behind.released.sum() < alone.released.sum()


@pytest.mark.parametrize("student", [True, False])
def test_the_promise_holds_over_draws(student):
    tuning, truth = simulated(400, 1, student=student)
    family = GenerationFamily(tuning, truth, GenerationShape(0.02, (0.02, 0.02)))
    new, unsafe = simulated(4000, 2, student=student)
    check = check_levels(generation_losses(family, new.rows(unsafe)), 0.1, splits=60)
    assert check.mean <= 0.1 + 3 * check.standard_error
    assert check.mean > 0.05  # a promise of 10 % that misses nothing is not used


def test_the_budget_of_false_alarms_holds_over_draws():
    rng = np.random.default_rng(0)
    stopped = []
    for _ in range(400):
        scores = rng.random(50)
        stopped.append(rng.random() >= budget_cutoff(scores[:49], 0.1))
    # 4 of 49 lie from the cutoff on, and of a new one (4 + 1) / 50 = 0.1.
    assert 0.06 < np.mean(stopped) < 0.14
    scores = rng.random(49)
    assert (scores >= budget_cutoff(scores, 0.1)).sum() == 4
    assert budget_cutoff(scores, 0.0) == NEVER == budget_cutoff(scores, 0.01)
    assert budget_cutoff(np.array([]), 0.3) == NEVER
    assert (np.array([0.5] * 20) >= budget_cutoff(np.array([0.5] * 20), 0.2)).sum() == 0


def test_early_stages_use_their_budget_together_and_no_more():
    for seed in range(20):
        scores, unsafe = simulated(400, seed)
        # Looks that say the same stop the same pictures, and may each use the whole budget.
        twins = replace(scores, looks=scores.looks[:, [0, 0]])
        for some in (scores, twins):
            safe = some.rows(~unsafe)
            prompt, looks = early_cutoffs(safe, GenerationShape(0.0, (0.03, 0.03)))
            stopped = (safe.looks >= np.array(looks)).any(axis=1).sum()
            assert prompt == NEVER
            assert (stopped + 1) / (len(safe) + 1) <= 0.06
            assert (stopped + 3) / (len(safe) + 1) > 0.06
    prompt, looks = early_cutoffs(safe, GenerationShape(0.05, (0.0, 0.0)), last_decides=True)
    assert prompt < 1
    assert looks == (NEVER, NEVER)
    assert early_cutoffs(safe, GenerationShape(0.0, (0.0, 0.0))) == (NEVER, (NEVER, NEVER))


def test_budgets_are_divided_and_not_exceeded():
    for shape in generation_shapes(0.06, 3):
        assert shape.prompt + sum(shape.looks) == pytest.approx(0.06)
    assert {shape.looks[-1] for shape in generation_shapes(0.06, 3, last_decides=True)} == {0.0}
    assert generation_shapes(0.06, 0) == [GenerationShape(0.06, ())]


def test_work_is_counted_up_to_where_a_picture_ends():
    cutoffs = GenerationCutoffs(0.9, (0.8, NEVER, 0.7), (0.5, 0.5))
    scores = GenerationScores(
        np.array([0.95, 0.1, 0.1, 0.1]),
        np.array([[0.0, 0.0, 0.0], [0.85, 1.0, 1.0], [0.0, 1.0, 0.75], [0.1, 0.9, 0.1]]),
        np.array([0.0, 0.0, 0.0, 0.9]),
    )
    decided = decide_generation(scores, cutoffs)
    work = work_of(decided, cutoffs, (4, 6, 9), 20)
    assert [GENERATION_STAGES[stage] for stage in decided.stage] == [
        "filter",
        "detector",
        "detector",
        "student",
    ]
    assert work.step.tolist() == [0, 4, 9, 20]
    assert work.look.tolist() == [0, 1, 2, 2]  # the second look is off
    assert work.decode.tolist() == work.student.tolist() == [0, 0, 0, 1]
    assert work.prompt.tolist() == [1, 1, 1, 1]
    prices = Prices(prompt=1, step=2, look=3, decode=5, student=7)
    assert prices.of(work).tolist() == [1, 12, 25, 1 + 40 + 6 + 5 + 7]
    assert prices.in_steps().of(work).tolist() == [0.5, 6, 12.5, 29.5]
    dropped = work_of(
        decide_generation(replace(scores, student=None), replace(cutoffs, prompt=NEVER, student=None)),
        replace(cutoffs, prompt=NEVER, student=None),
        (4, 6, 9),
        20,
    )
    assert dropped.student.tolist() == dropped.prompt.tolist() == [0, 0, 0, 0]
    assert dropped.decode.tolist() == [1, 0, 0, 1]


def test_tuning_keeps_to_its_budget_and_is_cheaper_than_one_stage_alone():
    scores, unsafe = simulated(1000)
    prices = Prices(prompt=0.01, step=1, look=0.05, decode=1, student=1)
    family = tune_generation(scores, unsafe, 0.05, prices, (4, 9), 20, false_alarms=0.06)

    def cost(found):
        cutoffs = found.at(choose_generation_level(found, scores.rows(unsafe), 0.05, levels=COARSE))
        decided = decide_generation(scores, cutoffs)
        costs = prices.of(work_of(decided, cutoffs, (4, 9), 20))
        early = np.isin(decided.stage, (FILTER, DETECTOR)) & (decided.unsafe >= 0.5)
        assert early[~unsafe].mean() <= 0.06
        return 0.3 * costs[unsafe].mean() + 0.7 * costs[~unsafe].mean()

    assert cost(family) <= min(
        cost(GenerationFamily(scores, unsafe, shape)) for shape in generation_shapes(0.06, 2)
    )
    assert cost(family) < 0.95 * cost(GenerationFamily(scores, unsafe, GenerationShape(0.06, (0.0, 0.0))))


def test_bad_settings_are_refused():
    scores, unsafe = simulated(50)
    with pytest.raises(ConfigError, match="cutoffs for 1 looks"):
        decide_generation(scores, GenerationCutoffs(looks=(0.5,), student=(0.5, 0.5)))
    with pytest.raises(ConfigError, match="cross"):
        GenerationCutoffs(student=(0.6, 0.5), judge=0.5)
    with pytest.raises(ConfigError, match="band of doubt and no judge"):
        GenerationCutoffs(student=(0.4, 0.5))
    with pytest.raises(ConfigError, match="give a probability"):
        GenerationCutoffs(NAN)
    with pytest.raises(ConfigError, match="takes both"):
        GenerationFamily(scores, np.zeros(50, bool), GenerationShape(0.1, (0.1, 0.1)))
    with pytest.raises(ConfigError, match="Shares for 1 looks"):
        GenerationFamily(scores, unsafe, GenerationShape(0.1, (0.1,)))
    with pytest.raises(ConfigError, match="none can be released"):
        GenerationFamily(GenerationScores(scores.prompt, np.zeros((50, 0))), unsafe, GenerationShape(0.1))
    family = GenerationFamily(scores, unsafe, GenerationShape(0.1, (0.1, 0.1)))
    with pytest.raises(ConfigError, match="needs at least 49"):
        choose_generation_level(family, scores.rows(unsafe), 0.02)
    with pytest.raises(ConfigError, match=r"looks \(N, S\)"):
        GenerationScores(np.zeros(3), np.zeros((2, 1)))
