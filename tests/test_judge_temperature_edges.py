"""Calibrations at their edges: defaults, files, and which categories get a temperature of their own."""

import json

import numpy as np
import pytest

from judge.calibration.temperature import (
    MIN_EXAMPLES,
    TEMPERATURES,
    Calibration,
    LabelledScores,
    fit_calibration,
    fit_temperature,
)
from judge.errors import ConfigError
from judge.protocol import Scores
from prompts import Category, Taxonomy

ONE = Taxonomy("one", "1", (Category("red", "red things", key="r"),))
TWO = Taxonomy("two", "1", (Category("rouge", "red things", key="r"), Category("blue", "blue things")))


def test_a_calibration_of_nothing_changes_nothing():
    nothing = Calibration()
    assert (nothing.classifier, nothing.whole, nothing.shared, nothing.categories) == ("", 1.0, 1.0, {})
    scores = Scores(np.array([0.3, 0.9]), np.array([[0.3], [0.9]]), (None, None))
    found = nothing.apply(scores, ONE)
    assert found.unsafe == pytest.approx(scores.unsafe)
    assert found.categories == pytest.approx(scores.categories)
    with pytest.raises(
        ConfigError, match=r"shape \(2, 1\) do not belong to the 2 categories of 'two'; pass the tax"
    ):
        nothing.apply(scores, TWO)


def test_a_calibration_goes_to_json():
    data = {"classifier": "Prüfer", "whole": 2.0, "shared": 3, "categories": {"r": 0.5}}
    assert Calibration("Prüfer", 2.0, 3, {"r": 0.5}).to_dict() == data
    assert json.loads(json.dumps(Calibration(whole=2.0).to_dict()))["whole"] == 2.0


def answers(truth, score, taxonomy=ONE, column=None):
    """The whole and every category say the same, or the first category `column`."""
    truth, score = np.array(truth, dtype=float), np.array(score, dtype=float)
    categories = np.repeat(score[:, None], len(taxonomy), axis=1)
    if column is not None:
        categories[:, 0] = column
    return LabelledScores(
        taxonomy,
        Scores(score, categories, (None,) * len(truth)),
        truth,
        np.repeat(truth[:, None], len(taxonomy), 1),
    )


def rows(each, wrong=1):
    """So many unsafe and safe rows, of each of which `wrong` are on the other side of one half."""
    return [1] * each + [0] * each, [0.2] * wrong + [0.9] * (each - wrong) + [0.7] * wrong + [0.1] * (
        each - wrong
    )


def test_the_number_of_rows_from_which_a_category_has_its_own():
    assert MIN_EXAMPLES == 20
    assert set(fit_calibration([answers(*rows(20))]).categories) == {"r"}
    assert fit_calibration([answers(*rows(19))]).categories == {}
    assert set(fit_calibration([answers(*rows(19))], min_examples=19).categories) == {"r"}
    # Rows under several taxonomies count together, by key.
    twice = fit_calibration([answers(*rows(10)), answers(*rows(10), TWO)])
    assert set(twice.categories) == {"r"}
    lopsided = [1] * 60 + [0] * 5
    assert fit_calibration([answers(lopsided, [0.2] + [0.9] * 59 + [0.7] + [0.1] * 4)]).categories == {}


def test_one_mistake_on_either_side_is_enough_and_one_half_is_one():
    truth = [1] * 20 + [0] * 20
    for unsafe, safe, has in ((0.5, 0.1, True), (0.9, 0.5, True), (0.51, 0.49, False)):
        score = [unsafe] + [0.9] * 19 + [safe] + [0.1] * 19
        found = fit_calibration([answers(truth, rows(20)[1], column=score)])
        assert (set(found.categories) == {"r"}) is has
        assert found.shared == (found.categories["r"] if has else found.whole)


def test_temperatures_stay_within_their_limits():
    coldest, hottest = TEMPERATURES
    assert (coldest, hottest) == (0.05, 20.0)
    assert fit_temperature([1, 1, 0, 0], [0.9, 0.9, 0.1, 0.1]) == pytest.approx(coldest, rel=1e-3)
    assert fit_temperature([1, 0], [0.1, 0.9]) == pytest.approx(hottest, rel=1e-3)  # always wrong: never sure
    # Three of four are right at 0.9: sigmoid(logit(0.9) / t) is 3/4 at its best.
    found = fit_temperature([1, 1, 1, 0, 0, 0, 0, 1], [0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1])
    assert found == pytest.approx(np.log(9) / np.log(3), rel=1e-3)
    assert fit_temperature([1, 1, 1, 0], [1.0, 0.9, 0.9, 0.1]) < 1  # certainty is no infinity


def test_a_certain_mistake_makes_it_as_unsure_as_can_be_and_no_surer():
    """An infinite logit on the wrong side would leave no temperature better than another."""
    right = [0.9] * 9, [0.1] * 9
    found = fit_temperature([1] * 10 + [0] * 10, [0.0, *right[0], 1.0, *right[1]])
    assert found == pytest.approx(TEMPERATURES[1], rel=1e-3)
    assert fit_temperature([1] * 10 + [0] * 9, [0.0, *right[0], *right[1]]) > 2
    assert fit_temperature([1] * 9 + [0] * 10, [*right[0], 1.0, *right[1]]) > 2
