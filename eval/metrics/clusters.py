"""Rows that are not independent: several questions about one image say less than as many about different ones."""

import numpy as np
from numpy.typing import ArrayLike

from adversarial.errors import AttackError


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
        AttackError: shapes that differ.
    """
    values, names = np.asarray(hits, dtype=np.float64), np.asarray(groups)
    if values.ndim != 1 or values.shape != names.shape:
        raise AttackError(
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
