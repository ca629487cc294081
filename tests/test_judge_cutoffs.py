"""The cascade's scale counted by hand, in odds: a score's odds over its cutoff's are its odds on the new scale."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.calibration.cutoffs import (
    clamp_to_side,
    classify,
    shift_categories_to_half,
    shift_to_half,
    withhold_safe,
)

NAN = math.nan


def column(*values):
    return np.array(values, dtype=np.float64)


def test_a_cutoff_belongs_to_unsafe_and_where_cutoffs_cross_unsafe_goes_first():
    assert classify(column(0.1, 0.2, 0.5, 0.8, 0.9, NAN), 0.2, 0.8).tolist() == [-1, 0, 0, 1, 1, 0]
    assert classify(column(0.3, 0.4, 0.6, 0.7), 0.7, 0.4).tolist() == [-1, 1, 1, 1]


def test_odds_over_the_odds_of_the_cutoff():
    # Odds of 0.8 are 4, of 0.75 3, of 0.2 a quarter.
    found = shift_to_half(column(0.8, 0.8, 0.8, 0.75, 0.2, 0.5), np.array([1, -1, 0, 1, -1, 1]), 0.5, 0.2)
    assert found == pytest.approx([16 / 17, 4 / 5, 4 / 5, 12 / 13, 1 / 5, 4 / 5])
    cutoffs = column(0.75, 0.2)  # one a row
    assert shift_to_half(column(0.75, 0.8), np.array([-1, 1]), cutoffs, cutoffs) == pytest.approx(
        [0.5, 16 / 17]
    )


def test_certainty_stays_certainty_also_where_the_cutoff_is_certain():
    said = np.array([1, 1, -1, -1])
    assert shift_to_half(column(1.0, 0.0, 1.0, 0.0), said, 0.5, 0.5) == pytest.approx([1, 0, 1, 0], abs=2e-15)
    assert shift_to_half(column(1.0, 0.0, 1.0, 0.0), said, 0.0, 1.0) == pytest.approx(
        [0.5, 0, 1, 0.5], abs=2e-15
    )
    assert shift_to_half(column(1.0, 1e-9), np.array([1, 1]), 0.5, 0.5)[1] == pytest.approx(1e-9)
    assert np.isnan(shift_to_half(column(NAN), np.array([0]), 0.5, 0.5)[0])


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 0.99))
def test_moving_keeps_the_order_and_takes_the_cutoff_to_one_half(one, other, cutoff):
    low, high, half = shift_to_half(column(*sorted((one, other)), cutoff), np.ones(3), 0.5, cutoff)
    assert 0 <= low <= high <= 1
    assert half == 0.5


def test_rounding_carries_nothing_over_one_half():
    moved = column(0.4, 0.6, 0.5, 0.6, 0.4, 0.7)
    found = clamp_to_side(moved, np.array([1, 1, -1, -1, -1, 0]))
    below = math.nextafter(0.5, 0)
    assert found[:5].tolist() == [0.5, 0.6, below, below, 0.4]
    assert np.isnan(found[5])


def test_what_was_not_read_is_never_safe():
    unread = np.array([True, True, True, False, False])
    found = withhold_safe(column(0.4, 0.5, NAN, 0.4, 0.6), unread)
    assert np.isnan(found).tolist() == [True, False, True, False, False]
    assert found[[1, 3, 4]].tolist() == [0.5, 0.4, 0.6]


def test_categories_move_as_the_whole_did():
    # Held to 0.2 and unsafe, to 0.8 and safe, to 0.2 and just unsafe, and unjudged.
    categories = np.array([[0.5, 0.2, 0.0], [0.5, 0.2, NAN], [0.2, 0.2, 0.1], [0.5, 0.2, 0.1]])
    probability, verdict = column(0.5, 0.5, 0.2, 0.5), column(0.8, 0.2, 0.5, NAN)
    found = shift_categories_to_half(categories, probability, verdict, 0.8, 0.2)
    assert found[0] == pytest.approx([0.8, 0.5, 0], abs=1e-14)
    assert found[1] == pytest.approx([0.2, 1 / 17, NAN], nan_ok=True)
    assert found[2] == pytest.approx([0.5, 0.5, 4 / 13])
    assert np.isnan(found[3]).all()


def test_the_largest_category_is_the_whole_to_the_last_bit():
    verdict = column(math.nextafter(0.7, 1), math.nextafter(0.3, 0))
    categories = np.array([[0.7, 0.7], [0.3, 0.2]])
    found = shift_categories_to_half(categories, categories[:, 0], verdict, 0.5, 0.5)
    assert found.max(axis=1).tolist() == verdict.tolist()
    # What rounding would lift above the whole stays at it.
    assert shift_categories_to_half(
        column(0.7, 0.69999)[None], column(0.7), column(0.6), 0.5, 0.5
    ).tolist() == [[0.6, 0.6]]
