"""Comparisons of two models on the same rows: McNemar's test for verdicts, a paired bootstrap for numbers.

Overlapping intervals of two rates say little about their difference, so rows are compared in pairs. McNemar's test
takes rows as independent, and its p-value is too small where many share an image; the bootstrap draws whole images.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import MetricError, check_booleans

_RESAMPLED = 2_000_000
"""Most numbers that a bootstrap holds in memory at once."""


@dataclass(frozen=True)
class McNemar:
    """Rows on which exactly one of two models is correct."""

    only_first: int
    """Rows on which only the first model is correct."""
    only_second: int
    """Rows on which only the second is."""
    p_value: float
    """Probability of a split at least as uneven, if neither model is better."""


def mcnemar(first_correct: ArrayLike, second_correct: ArrayLike) -> McNemar:
    """The exact two-sided binomial test at 1/2 on rows where one of two models is correct (McNemar 1947).

    Args:
        first_correct: (R,) whether the first model is correct.
        second_correct: (R,) whether the second is, on the same rows.

    Raises:
        MetricError: shapes that differ.
    """
    first, second = check_booleans(first_correct), check_booleans(second_correct)
    _same_rows(first, second)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    from statsmodels.stats import contingency_tables  # a second to import

    table = [[0, only_first], [only_second, 0]]  # the test does not use the diagonal
    return McNemar(only_first, only_second, float(contingency_tables.mcnemar(table, exact=True).pvalue))


@dataclass(frozen=True)
class Difference:
    """First minus second, over the same rows."""

    mean: float
    low: float
    high: float
    draws: int
    seed: int


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    draws: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """The mean difference of two models over the same rows, with a percentile interval (Efron 1979).

    Args:
        first: (R,) a number per row, such as whether the verdict under attack is correct.
        second: (R,) the other model's, on the same rows.
        groups: (R,) names, such as the rows' images: whole groups are drawn. None: single rows.
        draws: samples with replacement, each of as many groups as there are.
        seed: of the draws.
        confidence: of the interval, in (0, 1).

    Raises:
        MetricError: shapes that differ, no rows, values that are not finite, `draws` or `confidence` out of range.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    _same_rows(one, two)
    difference = one - two
    if not len(difference) or not np.isfinite(difference).all() or draws < 1 or not 0 < confidence < 1:
        raise MetricError(
            "A bootstrap needs finite values of at least one row, at least one draw and a confidence between 0 and 1; "
            "leave out rows that either model could not judge."
        )
    rng = np.random.default_rng(seed)
    _, member = np.unique(
        np.arange(len(difference)) if groups is None else np.asarray(groups), return_inverse=True
    )
    sizes, totals = np.bincount(member), np.bincount(member, weights=difference)  # (groups,) each
    chunk = max(1, _RESAMPLED // len(sizes))
    means = []
    for done in range(0, draws, chunk):
        drawn = rng.integers(0, len(sizes), (min(chunk, draws - done), len(sizes)))  # (draws, groups)
        # Groups differ in size, so the mean over rows is a ratio of two sums.
        means.append(totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(difference.mean()), float(low), float(high), draws, seed)


def _same_rows(first: NDArray[Any], second: NDArray[Any]) -> None:
    if first.ndim != 1 or first.shape != second.shape:
        raise MetricError(
            f"Got {first.shape} and {second.shape}; compare two models on the same rows, (R,) each."
        )
