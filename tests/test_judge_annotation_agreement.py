"""Fleiss' kappa: equal to statsmodels' where that is defined, to a plain loop where raters vary; its bias and interval."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from statsmodels.stats.inter_rater import fleiss_kappa as statsmodels_kappa

from judge.annotation.agreement import fleiss_kappa, kappa_interval, measure_agreement
from judge.annotation.images import Picture
from judge.annotation.votes import Ballot, Vote

LABELS = ("safe", "unsafe", "na")


def counts(votes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, R) labels 0, 1, 2, with -1 for none -> (N, 3)."""
    return np.stack([(votes == label).sum(axis=1) for label in range(3)], axis=1)


def noisy(seed: int, images: int, raters: int, noise: float) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, images, p=[0.5, 0.3, 0.2])
    guesses = rng.choice(3, (images, raters))
    return np.where(rng.random((images, raters)) < noise, guesses, truth[:, None])


def plain_kappa(table: list[list[int]]) -> float:
    """As in Fleiss (1971), one image after another, in pairs of raters."""
    agreement = []
    for row in table:
        given_labels = [label for label, times in enumerate(row) for _ in range(times)]
        pairs = list(itertools.combinations(given_labels, 2))
        agreement.append(sum(one == other for one, other in pairs) / len(pairs))
    total = sum(map(sum, table))
    expected = sum((sum(row[label] for row in table) / total) ** 2 for label in range(len(table[0])))
    return (sum(agreement) / len(agreement) - expected) / (1 - expected)


tables = st.integers(2, 4).flatmap(
    lambda labels: st.lists(
        st.lists(st.integers(0, 3), min_size=labels, max_size=labels), min_size=1, max_size=12
    )
)


@given(
    st.integers(2, 6), st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=20)
)
def test_equals_statsmodels_for_a_constant_number_of_raters(raters: int, votes: list[list[int]]) -> None:
    chosen = np.array(votes)[:, :raters]
    table = np.stack([(chosen == label).sum(axis=1) for label in range(4)], axis=1)
    if (table.sum(axis=0) > 0).sum() < 2:
        assert fleiss_kappa(table) is None
    else:
        assert fleiss_kappa(table) == pytest.approx(statsmodels_kappa(table), abs=1e-12)


@given(tables)
def test_equals_a_plain_loop_for_any_numbers_of_raters(table: list[list[int]]) -> None:
    rows = [row for row in table if sum(row) >= 2]
    assume(rows and sum(any(row[k] for row in rows) for k in range(len(rows[0]))) > 1)
    assert fleiss_kappa(rows) == pytest.approx(plain_kappa(rows), abs=1e-12)


def test_hand_counted() -> None:
    # P_i = 1, 0, 1/3; shares 3/7, 3/7, 1/7.
    expected = (9 + 9 + 1) / 49
    assert fleiss_kappa([[2, 0, 0], [0, 1, 1], [1, 2, 0]]) == pytest.approx(
        (4 / 9 - expected) / (1 - expected)
    )
    assert fleiss_kappa([[2, 0], [0, 2]]) == 1
    assert fleiss_kappa([[1, 1], [1, 1]]) == -1


def test_undefined_is_none_and_not_one() -> None:
    for table in ([[2, 0, 0], [3, 0, 0]], np.zeros((0, 3), dtype=int)):
        assert fleiss_kappa(table) is None
        assert kappa_interval(table) is None
    nobody = measure_agreement([Ballot(Picture("a"), (Vote("anna", "safe", ()),))])
    assert (nobody.images, nobody.first_two, nobody.all_votes_interval) == (0, None, None)


@pytest.mark.parametrize("table", [[[1, 0]], [[2, -1]], [[1.5, 0.5]], [2, 0]])
def test_what_is_no_table_of_counts(table: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"annotators|counts"):
        fleiss_kappa(table)


def test_a_third_on_disagreement_biases_all_votes_upwards_and_the_first_two_not() -> None:
    votes = noisy(0, 4000, 3, 0.3)
    everybody = fleiss_kappa(counts(votes))
    asked = votes.copy()
    asked[votes[:, 0] == votes[:, 1], 2] = -1
    ballots = [
        Ballot(
            Picture(str(place)),
            tuple(Vote(f"r{n}", LABELS[label], ()) for n, label in enumerate(row) if label >= 0),
        )
        for place, row in enumerate(asked)
    ]
    found = measure_agreement(ballots)
    assert everybody is not None
    assert found.first_two is not None
    assert found.all_votes is not None
    assert found.first_two == pytest.approx(everybody, abs=0.03)
    assert found.first_two == pytest.approx(statsmodels_kappa(counts(votes[:, :2])), abs=1e-12)
    assert found.all_votes > everybody + 0.1
    assert found.all_votes == pytest.approx(fleiss_kappa(counts(asked)), abs=1e-12)


def test_the_interval_is_the_bootstrap_over_images_and_covers() -> None:
    table = counts(noisy(1, 200, 2, 0.4))
    interval = kappa_interval(table)
    assert interval is not None
    assert interval == kappa_interval(table)
    rng = np.random.default_rng(5)
    loop = [fleiss_kappa(table[rng.integers(0, 200, 200)]) for _ in range(1000)]
    low, high = np.percentile(np.array(loop, dtype=float), (2.5, 97.5))
    assert interval == pytest.approx((low, high), abs=0.03)
    truth = fleiss_kappa(counts(noisy(2, 50_000, 2, 0.4)))
    hits = 0
    for seed in range(100, 160):
        bounds = kappa_interval(counts(noisy(seed, 150, 2, 0.4)), draws=300)
        assert bounds is not None
        assert truth is not None
        hits += bounds[0] <= truth <= bounds[1]
    assert hits >= 52  # of 60; 57 are expected
