"""Temperatures and promised miss rates, against loops, known answers and simulation."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from judge.calibration.conformal import check_levels, conformal_level, conformal_threshold, needed_unsafe
from judge.calibration.temperature import (
    Calibration,
    LabelledScores,
    divide_logits,
    fit_calibration,
    fit_temperature,
)
from judge.errors import ConfigError
from judge.protocol import Scores
from prompts import load_taxonomy

DIGITS = load_taxonomy("digits")
probabilities = st.floats(0, 1)


def drawn(rows, seed=0, temperature=1.0):
    """Logits whose sigmoid is the true chance of unsafe, made too sure by `temperature`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, rows)
    return (rng.random(rows) < expit(logits)).astype(float), expit(logits * temperature)


# Temperature


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(true):
    truth, probability = drawn(20000, temperature=true)
    assert fit_temperature(truth, probability) == pytest.approx(true, rel=0.06)


def test_the_temperature_has_the_least_loss_on_a_grid():
    truth, probability = drawn(400, seed=3, temperature=2.5)

    def loss(temperature):
        fitted = divide_logits(probability, temperature)
        return -np.mean(truth * np.log(fitted) + (1 - truth) * np.log(1 - fitted))

    grid = np.geomspace(0.5, 10, 2000)
    best = grid[np.argmin([loss(t) for t in grid])]
    assert fit_temperature(truth, probability) == pytest.approx(best, rel=0.01)


@given(st.lists(probabilities, min_size=2, max_size=20), st.floats(0.05, 20))
def test_a_temperature_never_changes_the_order_nor_the_side_of_one_half(values, temperature):
    before = np.array(sorted(values))
    after = divide_logits(before, temperature)
    assert (np.diff(after) >= 0).all()
    assert ((after >= 0.5) >= (before >= 0.5)).all()
    assert ((after <= 0.5) >= (before <= 0.5)).all()


def test_unjudged_stays_unjudged_and_certainty_certain():
    after = divide_logits([0.0, 0.5, 1.0, np.nan], 3.0)
    assert after[:3].tolist() == [0.0, 0.5, 1.0]
    assert np.isnan(after[3])


def test_unjudged_and_unknown_rows_do_not_move_the_temperature():
    truth, probability = drawn(500, temperature=2)
    more = np.append(truth, [1, 0, np.nan]), np.append(probability, [np.nan, np.nan, 0.3])
    assert fit_temperature(*more) == fit_temperature(truth, probability)


def test_rows_that_are_separated_give_the_coldest_temperature_not_zero():
    assert fit_temperature([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature([0, 1], [0.0, 1.0]) > 0  # certain and right: finite


def answer(taxonomy, truth, probability, seed=0):
    """A batch in which every category is as the whole, and category 1 is twice as sure as it should be."""
    categories = np.repeat(probability[:, None], len(taxonomy), axis=1)
    categories[:, 1] = divide_logits(probability, 0.5)
    labels = np.repeat(truth[:, None], len(taxonomy), axis=1)
    scores = Scores(probability, categories, (None,) * len(truth))
    return LabelledScores(taxonomy, scores, truth, labels)


def test_categories_get_their_own_temperature_by_key_and_the_rare_share_one():
    truth, probability = drawn(6000)
    some, rare = DIGITS.select(["zero", "one"]).rename({"zero": "naught"}), DIGITS.select(["two", "three"])
    few = answer(rare, truth[:30], probability[:30])
    found = fit_calibration([answer(some, truth, probability), few], classifier="judge", min_examples=20)
    assert found.classifier == "judge"
    assert set(found.categories) == {"zero", "one"}  # by key, not by the name shown
    assert found.categories["zero"] == pytest.approx(1, rel=0.1)
    assert found.categories["one"] == pytest.approx(2, rel=0.1)
    assert 1.1 < found.shared < 1.9
    assert found.whole == pytest.approx(1, rel=0.1)


def test_without_enough_of_any_category_the_shared_temperature_is_the_wholes():
    truth, probability = drawn(60, seed=1, temperature=2)
    found = fit_calibration([answer(DIGITS, truth, probability)], min_examples=10000)
    assert found.categories == {}
    assert found.shared == found.whole


def test_a_category_without_a_mistake_shares_its_temperature():
    truth, probability = drawn(2000)
    right = np.where(truth == 1, 0.9, 0.1)
    some = answer(DIGITS.select(["zero", "one"]), truth, probability)
    some.scores.categories[:, 1] = right
    found = fit_calibration([some])
    assert set(found.categories) == {"zero"}
    assert 0.05 < found.shared < found.categories["zero"]


def test_apply_uses_own_then_shared_and_keeps_everything_else():
    taxonomy = DIGITS.select(["zero", "one"])
    calibration = Calibration("x", whole=2.0, shared=4.0, categories={"one": 0.5})
    scores = Scores(
        np.array([0.9, np.nan]),
        np.array([[0.9, 0.9], [np.nan, 0.2]]),
        (None, "why"),
        ("student",) * 2,
        ("a", "b"),
    )
    found = calibration.apply(scores, taxonomy)
    assert found.unsafe[0] == pytest.approx(expit(logit(0.9) / 2))
    assert found.category_probabilities[0] == pytest.approx([expit(logit(0.9) / 4), expit(logit(0.9) / 0.5)])
    assert found.categories[0].max() == found.unsafe[0]  # on one scale again
    assert np.isnan(found.unsafe[1])
    assert np.isnan(found.categories[1, 0])
    assert (found.reasons, found.decided_by, found.because) == ((None, "why"), ("student",) * 2, ("a", "b"))
    with pytest.raises(ConfigError, match="10 categories"):
        calibration.apply(scores, DIGITS)


# Promises


def check_thresholds(truth, probability, promise, **options):
    """`check_levels` of the thresholds that `conformal_threshold` chooses from: every unsafe score, and none."""
    unsafe, safe = probability[truth == 1], np.sort(probability[truth == 0])
    levels = np.concatenate([[0.0], np.sort(unsafe)])
    alarms = 1 - np.searchsorted(safe, levels) / len(safe)
    return check_levels(unsafe[:, None] < levels, promise, alarms=alarms, **options)


@pytest.mark.parametrize(
    ("promise", "needed"), [(0.5, 1), (0.1, 9), (0.02, 49), (0.01, 99), (0.3, 3), (0.99, 1)]
)
def test_unsafe_rows_needed(promise, needed):
    assert needed_unsafe(promise) == needed
    assert 1 / (needed + 1) <= promise + 1e-12
    assert needed == 1 or 1 / needed > promise


@pytest.mark.parametrize("promise", [0, 1, -0.1, 1.5, float("nan")])
def test_a_promise_is_a_share(promise):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        needed_unsafe(promise)


@settings(max_examples=60)
@given(st.lists(probabilities, min_size=9, max_size=60), st.floats(0.1, 0.9))
def test_the_threshold_is_the_largest_that_keeps_the_bound(unsafe, promise):
    truth, scores = [1] * len(unsafe) + [0], [*unsafe, 0.5]
    threshold = conformal_threshold(truth, scores, miss_rate=promise)
    n = len(unsafe)

    def bound(t):
        risk = sum(p < t for p in unsafe) / n
        return n / (n + 1) * risk + 1 / (n + 1)

    assert threshold in unsafe
    assert bound(threshold) <= promise + 1e-9
    assert bound(np.nextafter(threshold, 2)) > promise - 1e-9
    for larger in [p for p in unsafe if p > threshold]:
        assert bound(larger) > promise


@settings(max_examples=60)
@given(st.lists(probabilities, min_size=20, max_size=60), st.floats(0.05, 0.5), st.floats(0.05, 0.5))
def test_a_laxer_promise_never_lowers_the_threshold(unsafe, one, other):
    truth, scores = [1] * len(unsafe) + [0], [*unsafe, 0.5]
    low, high = (conformal_threshold(truth, scores, miss_rate=p) for p in sorted((one, other)))
    assert low <= high
    assert conformal_threshold(truth, scores, recall=1 - one) == pytest.approx(
        conformal_threshold(truth, scores, miss_rate=one)
    )


def test_round_promises_suffer_no_rounding():
    # 0.29 * 100 is 28.999999999999996 in floating point.
    assert conformal_threshold([1] * 99 + [0], np.arange(100) / 100, miss_rate=0.29) == 0.28


@pytest.mark.parametrize(("promise", "rows"), [(0.02, 49), (0.05, 60), (0.1, 200)])
def test_the_guarantee_holds_over_draws_of_calibration_set_and_new_row(promise, rows):
    rng = np.random.default_rng(0)
    missed = []
    for _ in range(4000):
        scores = rng.beta(5, 1, rows)
        threshold = conformal_threshold([1] * rows + [0], [*scores, 0.1], miss_rate=promise)
        missed.append(threshold**5)  # P(a new draw < threshold), exactly
    exact = math.floor(promise * (rows + 1) + 1e-9) / (rows + 1)
    assert np.mean(missed) == pytest.approx(exact, abs=4 * np.std(missed) / math.sqrt(4000))
    assert exact <= promise


def test_without_the_correction_the_promise_would_be_broken():
    """The same simulation tells a threshold apart that forgets 1 / (n + 1)."""
    rng = np.random.default_rng(0)
    missed = [np.sort(rng.random(49))[math.floor(0.02 * 49 + 1)] for _ in range(4000)]
    assert np.mean(missed) > 0.03


def test_unjudged_unsafe_rows_are_left_out_and_buy_no_laxer_threshold():
    rng = np.random.default_rng(1)
    scores = rng.random(200)
    truth = np.array([1] * 100 + [0] * 100)
    plain = conformal_threshold(truth, scores, miss_rate=0.1)
    for label in (1, 0):
        more = np.append(truth, [label] * 300), np.append(scores, [np.nan] * 300)
        assert conformal_threshold(*more, miss_rate=0.1) == plain
    unknown = np.append(truth, np.nan), np.append(scores, 0.0)
    assert conformal_threshold(*unknown, miss_rate=0.1) == plain


def test_a_promise_the_data_cannot_support_says_what_it_takes():
    truth, scores = [1] * 30 + [0] * 30, [0.5] * 60
    with pytest.raises(ConfigError, match=r"at least 49 .* there are 30\. Add 19, or promise 0\.032 or more"):
        conformal_threshold(truth, scores, miss_rate=0.02)
    with pytest.raises(ConfigError, match="there are 29"):
        conformal_threshold(truth, [np.nan, *scores[1:]], miss_rate=0.02)
    assert conformal_threshold([1] * 49 + [0], [0.5] * 50, miss_rate=0.02) == 0.5


@pytest.mark.parametrize("truth", [[0] * 60, [1] * 60, []])
@pytest.mark.parametrize(
    "ask",
    [
        lambda t, p: conformal_threshold(t, p, miss_rate=0.1),
        fit_temperature,
    ],
)
def test_a_calibration_set_needs_both_kinds(truth, ask):
    unsafe, safe = sum(truth), len(truth) - sum(truth)
    with pytest.raises(ConfigError, match=f"{unsafe} unsafe and {safe} safe"):
        ask(truth, [0.5] * len(truth))


def test_an_empty_calibration_is_refused():
    with pytest.raises(ConfigError, match="0 unsafe and 0 safe"):
        fit_calibration([])


@pytest.mark.parametrize(
    ("truth", "scores"),
    [([1, 0], [0.5]), ([[1, 0]], [[0.5, 0.5]]), ([1, 0], [0.5, 1.1]), ([2, 0], [0.5, 0.5])],
)
def test_arrays_that_are_no_labels_and_probabilities_are_refused(truth, scores):
    with pytest.raises(ConfigError, match="truth"):
        conformal_threshold(truth, scores, miss_rate=0.5)


@pytest.mark.parametrize("wanted", [{}, {"miss_rate": 0.1, "recall": 0.9}])
def test_either_miss_rate_or_recall(wanted):
    with pytest.raises(ConfigError, match="either miss_rate or recall"):
        conformal_threshold([1, 0], [0.5, 0.5], **wanted)


# Families of levels


@settings(max_examples=40)
@given(st.lists(probabilities, min_size=20, max_size=40), st.floats(0.06, 0.9))
def test_levels_made_of_thresholds_choose_what_the_threshold_does(unsafe, promise):
    levels = np.unique(unsafe)
    losses = np.array(unsafe)[:, None] < np.concatenate([[0.0], levels[levels > 0]])
    level = conformal_level(losses, promise)
    chosen = np.concatenate([[0.0], levels[levels > 0]])[level]
    assert chosen == conformal_threshold([1] * len(unsafe) + [0], [*unsafe, 0.5], miss_rate=promise)


@pytest.mark.parametrize(
    "losses", [[[0, 1, 0]], [[1, 1, 1]], [[0, 0.5, 1.5]], [[0, np.nan]], [0, 1], np.zeros((0, 3))]
)
def test_what_is_no_family_is_refused(losses):
    with pytest.raises(ConfigError, match="Losses"):
        conformal_level(losses, 0.5)


def test_too_few_rows_for_a_level_say_how_many():
    with pytest.raises(ConfigError, match="at least 49"):
        conformal_level(np.zeros((10, 3)), 0.02)


# Resampling


@pytest.mark.parametrize("promise", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_over_200_splits_the_mean_miss_rate_stays_under_the_promise(promise, seed):
    truth, probability = drawn(1600, seed=seed)
    found = check_thresholds(truth, probability, promise, seed=seed)
    assert found.splits == 200
    rows = round(truth.sum() / 2)
    # The expectation over all splits, a little under the promise:
    exact = math.floor(promise * (rows + 1)) / (rows + 1)
    assert exact <= promise
    assert found.mean == pytest.approx(exact, abs=4 * found.standard_error)
    assert found.mean <= promise + 2 * found.standard_error
    assert found.standard_error < 0.6 * math.sqrt(promise / rows / 100)  # pairs of splits cancel luck
    assert found.quantiles["5%"] <= found.quantiles["50%"] <= found.quantiles["95%"]
    assert 0.2 < found.share_above < 0.7  # the promise is about the mean, and the check says so


def test_the_check_agrees_with_a_plain_loop():
    truth, probability = drawn(400, seed=5)
    rng = np.random.default_rng(7)
    unsafe, safe = probability[truth == 1], probability[truth == 0]
    missed, alarms = [], []
    for _ in range(3000):
        order = rng.permutation(unsafe)
        half = len(order) // 2
        t = conformal_threshold([1] * half + [0], [*order[:half], 0.5], miss_rate=0.05)
        missed.append(np.mean(order[half:] < t))
        alarms.append(np.mean(safe >= t))
    found = check_thresholds(truth, probability, 0.05)
    assert found.mean == pytest.approx(np.mean(missed), abs=5 * np.std(missed) / math.sqrt(3000))
    assert found.false_alarm_rate == pytest.approx(np.mean(alarms), abs=0.02)
    assert json.loads(json.dumps(found.to_dict()))["mean"] == found.mean


def test_one_seed_one_answer_and_another_share_is_measured():
    truth, probability = drawn(600)
    assert check_thresholds(truth, probability, 0.1, seed=1) == check_thresholds(
        truth, probability, 0.1, seed=1
    )
    assert check_thresholds(truth, probability, 0.1, seed=1) != check_thresholds(
        truth, probability, 0.1, seed=2
    )
    assert check_thresholds(truth, probability, 0.1, share=0.8).mean <= 0.1


def test_checks_that_cannot_be_made_are_refused():
    truth, probability = drawn(100)
    with pytest.raises(ConfigError, match="splits"):
        check_thresholds(truth, probability, 0.1, splits=1)
    with pytest.raises(ConfigError, match="share"):
        check_thresholds(truth, probability, 0.1, share=1.0)
    with pytest.raises(ConfigError, match="at least 49"):
        check_thresholds(truth, probability, 0.02, share=0.5)
    with pytest.raises(ConfigError, match="one each"):
        check_levels(np.zeros((100, 3)), 0.1, alarms=[0.1])
