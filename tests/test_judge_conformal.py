"""Promises counted by hand: means over images, and what a check over splits says of three or four rows."""

import json
import math

import numpy as np
import pytest

from judge.calibration.conformal import (
    PromiseCheck,
    allowed_misses,
    average_by,
    check_levels,
    conformal_level,
    conformal_threshold,
    needed_unsafe,
    split_by_label,
)
from judge.errors import ConfigError

NAN = float("nan")


def test_means_over_images_weigh_images_alike():
    losses = [[0, 0.5, 1], [0, 0, 1], [0, 1, 1], [0, 0, 0.5]]
    found = average_by(losses, ["b", "a", "b", "b"])
    assert found.tolist() == [[0, 0, 1], [0, 0.5, pytest.approx(2.5 / 3)]]
    assert average_by(np.array(losses) > 0, [7, 7, 7, 7]).tolist() == [[0, 0.5, 1]]
    assert found.dtype == np.float64


@pytest.mark.parametrize(
    ("rows", "promise", "misses"), [(49, 0.02, 0), (99, 0.02, 1), (98, 0.02, 0), (9, 0.5, 4), (1, 0.5, 0)]
)
def test_allowed_misses(rows, promise, misses):
    assert allowed_misses(rows, promise) == misses
    assert (misses + 1) / (rows + 1) <= promise < (misses + 2) / (rows + 1)


def test_promises_of_nearly_everything_and_nearly_nothing():
    assert needed_unsafe(0.999) == 1
    assert needed_unsafe(1e-3) == 999
    with pytest.raises(ConfigError, match="both excluded; got 1"):
        conformal_threshold([1, 0], [0.5, 0.5], recall=0)
    with pytest.raises(
        ConfigError, match=r"needs at least 2 unsafe .* there are 1\. Add 1, or promise 0\.5 or more"
    ):
        allowed_misses(1, 0.4)


def test_the_last_level_that_keeps_the_promise_even_exactly():
    losses = np.array([[0, 0, 0, 1]] * 4 + [[0, 0, 1, 1]] + [[0, 1, 1, 1]])
    # (0 + 1) / 7, (1 + 1) / 7, (2 + 1) / 7, (6 + 1) / 7
    assert [conformal_level(losses, promise) for promise in (1 / 7, 2 / 7 - 1e-6, 2 / 7, 3 / 7, 0.99)] == [
        0,
        0,
        1,
        2,
        2,
    ]
    assert conformal_level(losses[:, :1] * 0, 0.5) == 0


def test_labels_and_scores_part_into_judged_unsafe_and_judged_safe():
    unsafe, safe = split_by_label([1, 0, NAN, 1, 0, True], [0.0, 1.0, 0.5, NAN, NAN, 0.25])
    assert (unsafe.tolist(), safe.tolist()) == ([0.0, 0.25], [1.0])
    for truth, score in (([1, 0.5], [0, 0]), ([1, -1], [0, 0]), ([1, 0], [-0.01, 0]), ([1, 0], [1.01, 0])):
        with pytest.raises(ConfigError, match="truth holds 0, 1 or NaN"):
            split_by_label(truth, score)
    with pytest.raises(ConfigError, match=r"truth has shape \(2,\), probability \(3,\)"):
        split_by_label([1, 0], [0, 0, 0])


def test_a_check_over_one_pair_of_splits():
    """Of four rows one is missed at the lax level, which a promise of 0.9 always keeps: it is in one half or the other."""
    losses = [[0, 0], [0, 0], [0, 1], [0, 0]]
    for seed in range(4):
        found = check_levels(losses, 0.9, alarms=[0.1, 0.6], splits=2, seed=seed)
        assert (found.promise, found.splits, found.mean, found.share_above) == (0.9, 2, 0.25, 0.0)
        assert found.quantiles == pytest.approx({"5%": 0.025, "50%": 0.25, "95%": 0.475})
        assert found.false_alarm_rate == pytest.approx(0.6)
        assert math.isnan(found.standard_error)  # one pair says nothing of how pairs differ
        assert check_levels(losses, 0.9, splits=3, seed=seed).splits == 4
        assert (
            check_levels(losses, 0.9, splits=3, seed=seed).standard_error == 0
        )  # each pair has the same mean
        # With a promise of one half the lax level is taken where the miss is not among the rows to choose by.
        strict = check_levels(losses, 0.5, alarms=[0.1, 0.6], splits=2, seed=seed)
        assert (strict.mean, strict.share_above) == (0.25, 0.0)  # 0.5 missed is not above 0.5
        assert strict.false_alarm_rate == pytest.approx(0.35)
        assert check_levels(losses, 0.49, splits=2, seed=seed).share_above in (0.0, 0.5)


def test_the_standard_error_is_that_of_pairs():
    """One of three rows chooses. Pairs miss 0.5 where the missed row lies in the middle of the order, else 0.25."""
    found = check_levels([[0, 0], [0, 1], [0, 0]], 0.6, share=0.34, splits=60, seed=1)
    middle = (found.mean - 0.25) / 0.25
    assert 0.1 < middle < 0.6
    assert middle * 30 == pytest.approx(round(middle * 30))
    assert found.standard_error == pytest.approx(0.25 * math.sqrt(middle * (1 - middle) / 29))
    assert check_levels([[0, 0], [0, 1], [0, 0]], 0.6, share=0.34).splits == 200


def test_a_check_measures_the_level_that_calibration_chooses():
    losses = [[0, 0, 1]] * 10
    found = check_levels(losses, 0.3, alarms=[1.0, 0.75, 0.0], splits=4)
    assert (found.mean, found.standard_error, found.share_above) == (0.0, 0.0, 0.0)
    assert found.false_alarm_rate == 0.75  # of the most lenient level that misses nothing
    assert (found.splits, check_levels(losses, 0.3).splits) == (4, 200)
    assert np.isnan(check_levels(losses, 0.3).false_alarm_rate)
    with pytest.raises(ConfigError, match=r"2 splits with a share of 0\.0 of 10 unsafe rows"):
        check_levels(losses, 0.3, splits=2, share=0.0)
    with pytest.raises(ConfigError, match="3 levels but false-alarm rates of shape"):
        check_levels(np.zeros((9, 3)), 0.5, alarms=[0.1, 0.2])


def test_a_check_goes_to_json_with_all_its_numbers():
    check = PromiseCheck(0.1, 200, 0.09, 0.001, {"5%": 0.01}, 0.4, 0.2)
    assert json.loads(json.dumps(check.to_dict())) == {
        "promise": 0.1,
        "splits": 200,
        "mean": 0.09,
        "standard_error": 0.001,
        "quantiles": {"5%": 0.01},
        "share_above": 0.4,
        "false_alarm_rate": 0.2,
    }
