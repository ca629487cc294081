"""Families of cutoffs: misses disappear as the level falls, and a promised miss rate holds on new rows."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from judge.calibration.conformal import average_by, check_levels
from judge.cascade.stages import NEVER, StageScores, decide
from judge.cascade.tuning import (
    LEVELS,
    CascadeShape,
    CutoffFamily,
    cascade_shapes,
    choose_level,
    precise_cutoff,
    tune,
)
from judge.errors import ConfigError


def simulated(rows=800, seed=0, judge=True, unjudged=0.0):
    """Scores of four stages, each better than the one before, and the truth."""
    rng = np.random.default_rng(seed)
    unsafe = rng.random(rows) < 0.5
    columns = []
    for strength in (0.3, 3.0, 5.0, 9.0):
        column = expit(strength * (unsafe - 0.5) + rng.normal(0, 1.5, rows))
        column[rng.random(rows) < unjudged] = np.nan
        columns.append(column)
    return StageScores(*columns[:3], columns[3] if judge else None), unsafe


# The family


shares = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.tuples(shares, shares, shares, st.floats(0.4, 1.2), st.floats(0.4, 1.2), st.floats(0, 0.6)),
    st.floats(0, 0.3),
    st.booleans(),
)
def test_a_miss_can_only_disappear_as_the_level_falls(seed, shape, unjudged, judge):
    scores, unsafe = simulated(60, seed, judge, unjudged)
    family = CutoffFamily(scores, unsafe, CascadeShape(*shape))
    new, _ = simulated(60, seed + 1, judge, unjudged)
    new = replace(new, hidden=np.arange(60) % 5 == 0)
    losses = family.losses(new, (*LEVELS[::10], 1.0))
    assert (np.diff(losses.astype(int), axis=1) >= 0).all()
    assert not losses[:, 0].any()
    undecided = np.isnan(decide(new, family.at(1.0)).unsafe)
    assert not losses[undecided].any()


def test_the_family_is_not_trivial():
    scores, unsafe = simulated()
    losses = CutoffFamily(scores, unsafe, CascadeShape()).losses(scores.rows(unsafe))
    assert losses[:, -1].mean() > 0.3
    assert len(np.unique(losses.mean(axis=0))) > 50


def test_the_students_band_keeps_its_size_in_rows_at_every_level():
    scores, unsafe = simulated(1000)
    family = CutoffFamily(scores, unsafe, CascadeShape(band=0.05))
    for level in LEVELS[50:250:40]:
        cutoffs = family.at(level)
        inside = (scores.student >= cutoffs.student_safe) & (scores.student < cutoffs.student_unsafe)
        assert inside.sum() == 50


def test_safe_cutoffs_are_lower_quantiles_of_unsafe_rows():
    scores, unsafe = simulated(1000)
    family = CutoffFamily(scores, unsafe, CascadeShape(image=0.5, student=1.0, judge=0.25))
    cutoffs = family.at(0.2)
    for column, cut, share in (
        (scores.image, cutoffs.image_safe, 0.1),
        (scores.student, cutoffs.student_safe, 0.2),
        (scores.judge, cutoffs.judge, 0.05),
    ):
        assert (column[unsafe] < cut).mean() == pytest.approx(share, abs=2 / unsafe.sum())


def test_a_tuning_set_needs_both_kinds():
    scores, unsafe = simulated(50)
    with pytest.raises(ConfigError, match="50 unsafe and 0 safe"):
        CutoffFamily(scores, np.ones_like(unsafe), CascadeShape())


@pytest.mark.parametrize("change", [{"image": 1.5}, {"band": -0.1}, {"text_precision": 3.0}])
def test_a_shape_is_made_of_shares(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        CascadeShape(**change)


def test_the_precise_cutoff_against_a_loop():
    scores, unsafe = simulated(400, seed=2)
    column = np.round(scores.image, 2)  # ties
    found = precise_cutoff(column, unsafe, 0.95)
    fit = [c for c in column if unsafe[column >= c].mean() >= 0.95 and (column >= c).sum() >= 20]
    assert found == min(fit)
    assert precise_cutoff(column, unsafe, 1.01) == NEVER
    assert precise_cutoff(column, ~unsafe, 0.95) == NEVER
    assert precise_cutoff(np.full(3, np.nan), unsafe[:3], 0.5) == NEVER


# The promise


def test_the_total_miss_rate_is_promised_over_draws_of_calibration_and_new_rows():
    tuning, unsafe = simulated(300, seed=1)
    family = CutoffFamily(tuning, unsafe, CascadeShape(image=0.5, student=1.0, judge=1.0))
    # A large population, of which every draw takes calibration rows; the rest of it are the new rows.
    population, truth = simulated(40000, seed=2, unjudged=0.01)
    levels = LEVELS[::15]
    table = family.losses(population.rows(truth), levels)
    truly = table.mean(axis=0)
    rng = np.random.default_rng(0)
    for promise, rows in ((0.05, 40), (0.1, 60)):
        missed = []
        for _ in range(400):
            chosen = table[rng.integers(0, len(table), rows)]
            kept = (chosen.sum(axis=0) + 1) / (rows + 1) <= promise
            missed.append(truly[np.flatnonzero(kept)[-1]])
        assert np.mean(missed) <= promise
        assert np.mean(missed) > promise / 4  # not by passing nothing


def test_choose_level_is_the_most_lenient_that_keeps_the_bound():
    tuning, unsafe = simulated(400, seed=1)
    family = CutoffFamily(tuning, unsafe, CascadeShape())
    calibration, truth = simulated(400, seed=3)
    rows = calibration.rows(truth)
    level = choose_level(family, rows, 0.05)
    place = LEVELS.index(level)

    def bound(level):
        return (decide(rows, family.at(level)).safe.sum() + 1) / (len(rows) + 1)

    assert bound(level) <= 0.05 < bound(LEVELS[place + 1])
    assert choose_level(family, rows, 0.02) <= level <= choose_level(family, rows, 0.2)


def test_rows_that_every_stage_failed_on_buy_no_laxer_level():
    tuning, unsafe = simulated(400, seed=1)
    family = CutoffFamily(tuning, unsafe, CascadeShape())
    rows = simulated(400, seed=3)[0]
    failed = StageScores(
        *(np.append(c, np.full(2000, np.nan)) for c in (rows.text, rows.image, rows.student, rows.judge))
    )
    assert choose_level(family, failed, 0.05) == choose_level(family, rows, 0.05)


def test_too_few_rows_for_a_promise_say_how_many():
    tuning, unsafe = simulated(400)
    family = CutoffFamily(tuning, unsafe, CascadeShape())
    with pytest.raises(ConfigError, match="at least 49 unsafe calibration examples"):
        choose_level(family, tuning.rows(slice(0, 30)), 0.02)


@pytest.mark.parametrize("judge", [True, False])
def test_tuning_spares_the_judge_and_keeps_the_promise_on_other_rows(judge):
    tuning, unsafe = simulated(600, seed=5, judge=judge)
    family = tune(tuning, unsafe, 0.05, judge_share=0.1, shapes=cascade_shapes(0.1, with_judge=judge)[::7])
    other, truth = simulated(2000, seed=6, judge=judge)
    level = choose_level(family, other.rows(truth), 0.05)
    decided = decide(other, family.at(level))
    assert np.mean(decided.stage == 2) < 0.13
    assert (decided.safe & truth).sum() / truth.sum() <= 0.05
    losses = average_by(family.losses(other.rows(truth)), np.arange(truth.sum()))
    assert check_levels(losses, 0.05, splits=50).mean <= 0.0505
    # Better than the image filter by itself at the same promise.
    safe_image = other.image[truth]
    threshold = np.sort(safe_image)[int(0.05 * len(safe_image)) - 1]
    assert (~decided.safe & ~truth).mean() < ((other.image >= threshold) & ~truth).mean()


def test_a_band_that_no_shape_can_keep_is_refused():
    tuning, unsafe = simulated(200)
    with pytest.raises(ConfigError, match=r"at most 0\.5%"):
        tune(tuning, unsafe, 0.05, judge_share=0.005, shapes=[CascadeShape(image=0.0, band=0.5)])


def test_means_over_images():
    losses = np.array([[0, 1, 1], [0, 0, 1], [0, 1, 1.0]])
    assert average_by(losses, ["b", "a", "b"]).tolist() == [[0, 0, 1], [0, 1, 1]]
