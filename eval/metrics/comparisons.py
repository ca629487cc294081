"""Comparisons of two models on the same rows: McNemar's test for verdicts, a paired bootstrap for numbers.

What differs between the models is what counts: intervals of two rates that overlap say little of it. McNemar's test
knows rows only, and is too sure of itself where many share an image; the bootstrap draws whole images.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats import contingency_tables

from .arrays import MetricError, check_booleans

_RESAMPLED = 2_000_000
"""Most numbers that a bootstrap holds at once."""


@dataclass(frozen=True)
class McNemar:
    """Two models' verdicts on the same rows, where they differ."""

    only_first: int
    """Rows that only the first model gets right."""
    only_second: int
    """Rows that only the second gets right."""
    p_value: float
    """How likely so uneven a split, or one more so, is where neither is better."""


def mcnemar(first_right: ArrayLike, second_right: ArrayLike) -> McNemar:
    """The exact test on rows that one of two models gets right (McNemar 1947): a two-sided binomial test at 1/2.

    Args:
        first_right: (R,) whether the first model is right.
        second_right: (R,) whether the second is, on the same rows.

    Raises:
        MetricError: shapes that differ.
    """
    first, second = check_booleans(first_right), check_booleans(second_right)
    _same_rows(first, second)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    table = [[0, only_first], [only_second, 0]]
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
    """The mean difference of two models over the same rows, with a percentile interval (Efron 1979) over the rows.

    Args:
        first: (R,) a number per row, such as right or wrong under attack.
        second: (R,) the other model's on the same rows.
        groups: (R,) names, as of the rows' images: whole groups are drawn. None: each row by itself.
        draws: samples of R rows (or as many groups as there are), with replacement.
        seed: of the draws.
        confidence: of the interval.

    Raises:
        MetricError: shapes that differ, no rows, values that are not finite.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    _same_rows(one, two)
    difference = one - two
    if not len(difference) or not np.isfinite(difference).all() or draws < 1 or not 0 < confidence < 1:
        raise MetricError(
            "A bootstrap needs finite values of one row at least, one draw at least and a confidence between 0 and 1; "
            "leave out rows that either model could not judge."
        )
    rng = np.random.default_rng(seed)
    _, member = np.unique(
        np.arange(len(difference)) if groups is None else np.asarray(groups), return_inverse=True
    )
    sizes, totals = np.bincount(member), np.bincount(member, weights=difference)
    at_once = max(1, _RESAMPLED // len(sizes))
    means = []
    for done in range(0, draws, at_once):
        drawn = rng.integers(0, len(sizes), (min(at_once, draws - done), len(sizes)))
        means.append(totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(difference.mean()), float(low), float(high), draws, seed)


def _same_rows(first: NDArray[Any], second: NDArray[Any]) -> None:
    if first.ndim != 1 or first.shape != second.shape:
        raise MetricError(
            f"Got {first.shape} and {second.shape}; compare two models on the same rows, (R,) each."
        )
