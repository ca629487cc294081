"""The bootstrap of a benchmark, and severity and naming on top of its samples."""

import math

import numpy as np
import pytest
from fixtures_benchmark import synthetic_predictions
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from eval.benchmark import bootstrap
from eval.benchmark.bootstrap import percentiles, resample, samples, share_interval
from eval.benchmark.cells import f1_of_share
from eval.benchmark.effectiveness import measure
from eval.benchmark.severity import tau_b
from eval.metrics.intervals import wilson
from eval.metrics.judged import JudgedRow
from eval.obedience.measure import f1_drop

# Samples


def test_counts_are_those_of_the_images_that_were_drawn(monkeypatch):
    monkeypatch.setattr(bootstrap, "_HELD", 100)  # several parts
    rng = np.random.default_rng(1)
    one, two = rng.random((30, 2, 3)) < 0.5, rng.random((30, 4)) < 0.2
    found = resample([one, two], draws=20, seed=5)
    rng = np.random.default_rng(5)
    for draw in range(20):
        chosen = rng.integers(0, 30, 30)  # the same images for both
        assert np.array_equal(found[0][draw], one[chosen].sum(axis=0))
        assert np.array_equal(found[1][draw], two[chosen].sum(axis=0))


def test_every_sample_has_as_many_images_as_there_are_and_another_seed_has_others():
    every = np.concatenate(list(samples(50, 300, seed=0)))
    assert every.shape == (300, 50)
    assert (every.sum(axis=1) == 50).all()
    assert every.mean(axis=0) == pytest.approx(np.ones(50), abs=0.3)
    assert np.array_equal(every, np.concatenate(list(samples(50, 300, seed=0))))
    assert not np.array_equal(every, np.concatenate(list(samples(50, 300, seed=1))))


def test_percentiles_leave_out_undefined_samples():
    drawn = np.array([[0.0, math.nan], [1.0, math.nan], [math.nan, math.nan], [0.5, math.nan]])
    low, high = percentiles(drawn)
    assert (low[0], high[0]) == (pytest.approx(0.025), pytest.approx(0.975))
    assert np.isnan([low[1], high[1]]).all()


@given(st.integers(1, 60), st.booleans())
def test_where_all_samples_are_alike_the_interval_is_wilsons(count, right):
    hits, errors = np.array([count if right else 0]), np.array([0 if right else count])
    drawn = np.full((10, 1), float(right))
    low, high = share_interval(hits, errors, drawn)
    assert (low[0], high[0]) == pytest.approx(wilson(hits[0], count))
    low, high = share_interval(hits, errors, drawn, f1_of_share)
    assert (low[0], high[0]) == pytest.approx([f1_of_share(end) for end in wilson(hits[0], count)])


def test_a_difference_has_the_interval_that_other_code_gives_it():
    """`f1_drop` draws with its own numbers; with 2,000 draws both ends agree to a hundredth."""
    made = [synthetic_predictions("a", rows=400), synthetic_predictions("b", rows=400, skill=0.3, seed=3)]
    cells = [one["overall"]["all"] for one in measure(made, draws=2000)["classifiers"].values()]
    rows = [[JudgedRow(row.id, row.truth, row.unsafe) for row in one.rows] for one in made]
    other = f1_drop(*rows)
    [behind] = [cell for cell in cells if not cell["best"]]
    assert behind["behind_best"] == pytest.approx(other.mean)
    assert behind["behind_best_interval"] == pytest.approx([other.low, other.high], abs=0.01)


# Severity


def pairs_in_order(score, grade):
    """tau-b by its definition, with rows without a score ordered wrongly."""
    balance = graded = different = 0
    for i in range(len(score)):
        for j in range(i):
            lost = math.isnan(score[i]) or math.isnan(score[j])
            graded += grade[i] != grade[j]
            different += lost or score[i] != score[j]
            if grade[i] != grade[j]:
                balance += -1 if lost else np.sign((score[i] - score[j]) * (grade[i] - grade[j]))
    return balance / math.sqrt(graded * different) if graded and different else math.nan


SCORES = st.sampled_from([0.0, 0.1, 0.5, 0.5001, 0.9, 1.0])


@given(st.lists(st.tuples(SCORES, st.integers(0, 4)), min_size=2, max_size=30))
def test_tau_b_equals_scipys(rows):
    score, grade = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    expected = kendalltau(score, grade).statistic if len(set(score)) > 1 and len(set(grade)) > 1 else math.nan
    assert tau_b(score, grade)[0] == pytest.approx(expected, nan_ok=True)


@given(st.lists(st.tuples(SCORES | st.just(math.nan), st.integers(0, 3)), min_size=1, max_size=20))
def test_tau_b_counts_rows_without_a_score_against_the_classifier(rows):
    score, grade = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    assert tau_b(score, grade)[0] == pytest.approx(pairs_in_order(score, grade), nan_ok=True)


@given(
    st.lists(
        st.tuples(SCORES | st.just(math.nan), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=15
    )
)
def test_tau_b_of_a_sample_is_that_of_its_rows(rows):
    score, grade, times = (np.array(column) for column in zip(*rows, strict=True))
    # A row drawn twice ties with itself, which only matters without a score.
    times = np.where(np.isnan(score), np.minimum(times, 1), times)
    repeated = [np.repeat(one, times) for one in (score, grade)]
    expected = tau_b(*repeated)[0] if times.any() else math.nan
    assert tau_b(score, grade, np.stack([times, times]))[1] == pytest.approx(expected, nan_ok=True)


def test_tau_b_of_many_samples_in_parts_is_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    score, grade = rng.random(40), rng.integers(0, 3, 40)
    times = rng.integers(0, 3, (25, 40))
    whole = tau_b(score, grade, times)
    monkeypatch.setattr("eval.benchmark.severity._HELD", 300)
    assert tau_b(score, grade, times) == pytest.approx(whole)
