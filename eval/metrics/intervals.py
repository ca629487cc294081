"""Confidence intervals of proportions, also where several rows share an image and are not independent."""

import numpy as np
from numpy.typing import ArrayLike

from .arrays import NAN, MetricError, check_arrays


def wilson(successes: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927), which also holds near 0 and 1; (NaN, NaN) without rows.

    Args:
        successes: from 0 to `total`; not necessarily whole, as `effective_size` is not.
        total: number of rows.
        confidence: of the interval, in (0, 1).

    Raises:
        MetricError: values outside these ranges.
    """
    if not 0 <= successes <= total or not 0 < confidence < 1:
        raise MetricError(
            f"{successes} of {total} at confidence {confidence:g} is not a proportion: give 0 <= successes <= total "
            "and a confidence between 0 and 1."
        )
    if not total:
        return NAN, NAN
    from statsmodels.stats.proportion import proportion_confint  # a second to import

    low, high = proportion_confint(successes, total, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


def image_interval(hits: ArrayLike, images: ArrayLike) -> tuple[float, float]:
    """95 % interval of the share of hits among rows of which several may share an image.

    Wilson's, with the effective number of rows (`effective_size`); (NaN, NaN) without rows.

    Args:
        hits: (N,) bool.
        images: (N,) the image of each row.
    """
    values = np.asarray(hits, dtype=np.bool_)
    size = effective_size(values, images)
    return wilson(size * float(values.mean()), size) if len(values) else (NAN, NAN)


def f1_interval(
    truth: ArrayLike, unsafe: ArrayLike, images: ArrayLike, threshold: float = 0.5
) -> tuple[float, float]:
    """95 % interval of F1 of arrays (N,), by image.

    F1 is not a proportion, but a monotone function of one: F1 = 2J / (1 + J), where J = TP / (TP + FP + FN) is the
    Jaccard index. So the ends of J's interval give those of F1's.
    """
    is_unsafe, score = check_arrays(truth, unsafe)
    correct = np.where(np.isnan(score), False, (score >= threshold) == is_unsafe)
    counted = is_unsafe | ~correct  # all but the true negatives
    low, high = image_interval((is_unsafe & correct)[counted], np.asarray(images)[counted])
    return 2 * low / (1 + low), 2 * high / (1 + high)


def effective_size(hits: ArrayLike, groups: ArrayLike) -> float:
    """How many independent rows would estimate the share of hits as precisely as these, which come in groups.

    The number of rows over the design effect (Kish 1965): the variance of the share when whole groups are drawn,
    linearised as a ratio, over its variance when single rows are. Wilson's interval with this size holds for groups
    (Dean and Pagano 2015, "Evaluating confidence interval methods for binomial proportions in clustered surveys").
    Where nearly all rows are hits, they do not show how misses cluster; so one group of typical size with hits only
    and one without any are added, as Agresti and Coull add two hits and two misses.

    Args:
        hits: (N,) bool.
        groups: (N,) names; rows of the same name are dependent.

    Returns:
        From 0 (no rows) to N; exactly N where each row is a group of its own. Never more, although rows that balance
        each other within a group could be worth more.

    Raises:
        MetricError: shapes that differ.
    """
    values, names = np.asarray(hits, dtype=np.float64), np.asarray(groups)
    if values.ndim != 1 or values.shape != names.shape:
        raise MetricError(
            f"hits are {values.shape}, groups {names.shape}; give one group for each of the N rows."
        )
    if not len(values):
        return 0.0
    _, member = np.unique(names, return_inverse=True)
    sizes, totals = np.bincount(member).astype(np.float64), np.bincount(member, weights=values)
    typical = float(np.square(sizes).sum()) / len(values)  # size of the group of a random row
    sizes, totals = np.append(sizes, [typical, typical]), np.append(totals, [typical, 0.0])
    share = totals.sum() / sizes.sum()
    # Never 0 / 0: the two added groups keep the share strictly between 0 and 1.
    effect = np.square(totals - share * sizes).sum() / (sizes.sum() * share * (1 - share))
    return len(values) / max(1.0, float(effect))
