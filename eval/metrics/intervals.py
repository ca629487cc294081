"""Intervals of shares: Wilson's, and for rows of which several are about one image."""

import numpy as np
from numpy.typing import ArrayLike
from statsmodels.stats.proportion import proportion_confint

from .arrays import NAN, MetricError, check_arrays


def wilson(successes: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927), which also holds near 0 and 1; (NaN, NaN) of nothing.

    Args:
        successes: rows that count; need not be whole, for rows that are worth less (`effective_size`).
        total: all rows.
        confidence: of the interval.

    Raises:
        MetricError: counts that are no share, a confidence outside (0, 1).
    """
    if not 0 <= successes <= total or not 0 < confidence < 1:
        raise MetricError(
            f"{successes} of {total} at confidence {confidence:g} is no share: give 0 <= successes <= total and a "
            "confidence between 0 and 1."
        )
    if not total:
        return NAN, NAN
    low, high = proportion_confint(successes, total, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


def image_interval(hits: ArrayLike, images: ArrayLike) -> tuple[float, float]:
    """95 % interval of a share of rows, several of which may be about one image and stand and fall together.

    Wilson's, for as many rows as these are worth (`effective_size`); (NaN, NaN) of nothing.

    Args:
        hits: (N,) true or false.
        images: (N,) which image a row is about.
    """
    values = np.asarray(hits, dtype=np.bool_)
    size = effective_size(values, images)
    return wilson(size * float(values.mean()), size) if len(values) else (NAN, NAN)


def f1_interval(
    truth: ArrayLike, unsafe: ArrayLike, images: ArrayLike, threshold: float = 0.5
) -> tuple[float, float]:
    """95 % interval of F1, by image, through J = hits / (hits + alarms + missed), a share, and F1 = 2J / (1 + J)."""
    is_unsafe, score = check_arrays(truth, unsafe)
    right = np.where(np.isnan(score), False, (score >= threshold) == is_unsafe)
    counted = is_unsafe | ~right
    low, high = image_interval((is_unsafe & right)[counted], np.asarray(images)[counted])
    return 2 * low / (1 + low), 2 * high / (1 + high)


def effective_size(hits: ArrayLike, groups: ArrayLike) -> float:
    """How many independent rows would say as much about a share as these, which come in groups.

    That is their number over the design effect (Kish 1965): the variance of the share when whole groups are drawn,
    linearised as a ratio, over that of as many single rows. Wilson's interval with this size holds for groups (Dean and
    Pagano 2015, "Evaluating confidence interval methods for binomial proportions in clustered surveys"). Where all rows
    are hits, or nearly all, they do not show how misses cluster; so one group of usual size with hits alone and one
    without any are counted in, as Agresti and Coull count two hits and two misses in. Never more than the number of
    rows, though rows that balance each other within a group could be worth more.

    Args:
        hits: (N,) true or false.
        groups: (N,) names; rows of one name stand and fall together.

    Returns:
        From 0 (no rows) to N; exactly N where every row is a group of its own.

    Raises:
        MetricError: shapes that differ.
    """
    values, names = np.asarray(hits, dtype=np.float64), np.asarray(groups)
    if values.ndim != 1 or values.shape != names.shape:
        raise MetricError(
            f"hits are {values.shape}, groups {names.shape}; give one group for each of N rows."
        )
    if not len(values):
        return 0.0
    _, member = np.unique(names, return_inverse=True)
    sizes, totals = np.bincount(member).astype(np.float64), np.bincount(member, weights=values)
    usual = float(np.square(sizes).sum()) / len(values)
    sizes, totals = np.append(sizes, [usual, usual]), np.append(totals, [usual, 0.0])
    share = totals.sum() / sizes.sum()
    effect = np.square(totals - share * sizes).sum() / (sizes.sum() * share * (1 - share))
    return len(values) / max(1.0, float(effect))
