import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.arrays import MetricError
from eval.metrics.attack_rates import Rate, attack_success_rate
from eval.metrics.comparisons import mcnemar, paired_bootstrap
from eval.metrics.intervals import wilson


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (356, 500, 0.671, 0.750),
        (463, 500, 0.900, 0.946),
        (4, 100, 0.016, 0.098),
        (40, 1000, 0.0295, 0.054),
        (0, 100, 0.0, 0.037),
        (100, 100, 0.963, 1.0),
    ],
)
def test_wilson_known_values(successes, total, low, high):
    assert wilson(successes, total) == pytest.approx((low, high), abs=6e-4)
    assert wilson(successes, total)[0] >= 0.0
    assert wilson(successes, total)[1] <= 1.0


@given(st.integers(0, 300), st.integers(1, 300), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_solves_its_equation(successes, total, confidence):
    # The ends are where |share - p| = z sqrt(p (1 - p) / n), the score test's border.
    successes = min(successes, total)
    share, (low, high) = successes / total, wilson(successes, total, confidence)
    z = {0.8: 1.2815515655446004, 0.95: 1.959963984540054, 0.99: 2.5758293035489004}[confidence]
    for end in (low, high):
        distance = abs(share - end)
        assert distance == pytest.approx(z * math.sqrt(max(end * (1 - end), 0) / total), abs=1e-6)
    assert low <= share + 1e-12
    assert share <= high + 1e-12
    assert wilson(total - successes, total, confidence)[0] == pytest.approx(1 - high, abs=1e-12)


def test_wilson_of_nothing_and_of_nonsense():
    assert all(map(math.isnan, wilson(0, 0)))
    rate = Rate(0, 0, *wilson(0, 0))
    assert math.isnan(rate.value)
    assert str(rate) == "none of 0"
    assert str(Rate(4, 100, *wilson(4, 100))) == "0.040 (0.016 to 0.098, 4 of 100)"
    for wrong in ((-1, 4, 0.95), (5, 4, 0.95), (1, 4, 1.0), (1, 4, 0.0)):
        with pytest.raises(MetricError, match="not a proportion"):
            wilson(*wrong)


def test_both_denominators():
    #        safe   flagged, never  flagged, 2nd   flagged, 1st   missed clean
    truth = [0, 1, 1, 1, 1]
    clean = [0, 1, 1, 1, 0]
    passed = [[1, 1], [0, 0], [0, 1], [1, 1], [0, 0]]
    rates = attack_success_rate(
        truth, clean, passed, benign_flagged=[1, 0, 0], benign_flagged_clean=[0, 0, 0]
    )
    assert (rates.attempts, rates.asr_1.total, rates.passed_1.total) == (2, 3, 4)
    assert (rates.asr_1.successes, rates.asr_n.successes) == (1, 2)
    assert (rates.passed_1.successes, rates.passed_n.successes) == (2, 3)
    assert rates.missed_clean.successes == 1
    assert rates.false_alarms.value == pytest.approx(1 / 3)
    assert rates.false_alarms_clean.value == 0.0
    written = json.loads(json.dumps(rates.to_dict()))
    assert written["asr_n"] == {
        "rate": 2 / 3,
        "successes": 2,
        "total": 3,
        "low": rates.asr_n.low,
        "high": rates.asr_n.high,
    }


def test_without_benign_rows_or_repeats():
    rates = attack_success_rate([True, True], [False, False], [True, False])
    assert rates.attempts == 1
    assert math.isnan(rates.asr_1.value)  # nothing was flagged, so nothing could be broken
    assert rates.passed_n.value == 1.0
    assert rates.false_alarms is None
    assert "false_alarms" not in rates.to_dict()


@given(st.lists(st.tuples(*[st.booleans()] * 5), min_size=1, max_size=30))
def test_more_attempts_and_clean_misses_only_add(rows):
    table = np.array(rows)
    table[0, 0] = True
    rates = attack_success_rate(table[:, 0], table[:, 1], table[:, 2:])
    assert rates.asr_1.successes <= rates.asr_n.successes
    assert rates.passed_n.successes == rates.asr_n.successes + rates.missed_clean.successes
    assert rates.passed_1.successes == rates.asr_1.successes + rates.missed_clean.successes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 1], [1], [[1], [1]]), "do not match"),
        (([1, 1], [1, 1], [[1]]), "do not match"),
        (([[1]], [[1]], [1]), "do not match"),
        (([0, 0], [1, 1], [1, 1]), "No unsafe row"),
        (([1], [1], np.zeros((1, 0))), "no attempt"),
        (([1], [0.4], [1]), "true or false"),
    ],
)
def test_rates_refuse(arguments, message):
    with pytest.raises(MetricError, match=message):
        attack_success_rate(*arguments)


def test_mcnemar_is_exact_and_symmetric():
    first = np.array([1] * 9 + [0] * 1 + [1] * 5 + [0] * 5)
    second = np.array([0] * 9 + [1] * 1 + [1] * 5 + [0] * 5)
    test = mcnemar(first, second)
    assert (test.only_first, test.only_second) == (9, 1)
    assert test.p_value == pytest.approx(2 * (1 + 10) / 2**10)
    back = mcnemar(second, first)
    assert (back.only_first, back.only_second, back.p_value) == (1, 9, test.p_value)
    assert mcnemar(first, first).p_value == 1.0
    assert mcnemar([1, 0], [0, 1]).p_value == 1.0
    with pytest.raises(MetricError, match="same rows"):
        mcnemar([1, 0], [1])


def test_bootstrap_is_seeded_and_paired():
    rng = np.random.default_rng(0)
    hard = rng.random(400) < 0.5
    first = hard | (rng.random(400) < 0.2)
    one = paired_bootstrap(first, hard, draws=2000, seed=3)
    assert one == paired_bootstrap(first, hard, draws=2000, seed=3)
    assert one != paired_bootstrap(first, hard, draws=2000, seed=4)
    assert one.mean == pytest.approx(float(first.mean() - hard.mean()))
    assert 0 < one.low < one.mean < one.high
    back = paired_bootstrap(hard, first, draws=2000, seed=3)
    assert (back.low, back.high) == pytest.approx((-one.high, -one.low))
    # Against the normal interval of paired differences, of which a bootstrap of separate rows would be far too wide.
    error = float((first.astype(float) - hard).std() / 20)
    assert one.high - one.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_bootstrap_draws_do_not_depend_on_memory(monkeypatch):
    values = np.arange(50.0)
    whole = paired_bootstrap(values, values[::-1], draws=300)
    monkeypatch.setattr("eval.metrics.comparisons._RESAMPLED", 500)
    assert paired_bootstrap(values, values[::-1], draws=300) == whole


def test_bootstrap_refuses():
    for first, second in (([], []), ([np.nan], [1.0])):
        with pytest.raises(MetricError, match="finite values"):
            paired_bootstrap(first, second)
    with pytest.raises(MetricError, match="same rows"):
        paired_bootstrap([1.0, 2.0], [1.0])
