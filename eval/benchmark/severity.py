"""Whether a classifier's score grows with the severity of what an image shows, where a data set grades it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .aligned import Aligned, Answers
from .bootstrap import DRAWS, percentiles, samples

_HELD = 2_000_000
"""Most cells of contingency tables held in memory at once."""


def measure_severity(
    aligned: Aligned, answers: Answers, threshold: float = 0.5, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any] | None:
    """Kendall's tau-b between `unsafe` and the grade, with a 95 % bootstrap interval, and what each grade got.

    Returns:
        `rows`, `unjudged`, `tau_b` in [-1, 1], `tau_b_interval`, and `grades`, a list of `grade`, `rows`,
        `mean_unsafe` (of the judged), `flagged_share` (of all) and `unjudged`; None where undefined. None instead of
        all that where no row has a grade.
    """
    rows = answers.rows[~np.isnan(aligned.images.severity[answers.rows])]
    if not len(rows):
        return None
    score, grade = answers.unsafe[rows], aligned.images.severity[rows]
    drawn = np.concatenate([tau_b(score, grade, times) for times in samples(len(rows), draws, seed)])
    ends = percentiles(drawn)
    tau = float(tau_b(score, grade)[0])
    return {
        "rows": len(rows),
        "unjudged": int(np.isnan(score).sum()),
        "tau_b": None if np.isnan(tau) else tau,
        "tau_b_interval": None if np.isnan(ends).any() else [float(one) for one in ends],
        "grades": [_of_grade(score[grade == one], int(one), threshold) for one in np.unique(grade)],
    }


def tau_b(
    score: NDArray[np.float64], grade: NDArray[np.float64], times: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Kendall's tau-b (1945) of scores with grades, of which there are few; also in many samples at once.

    A row without a score is ordered wrongly against every row of another grade.

    Args:
        score: (R,) NaN where there is none.
        grade: (R,)
        times: (D, R) how often each row is in each sample; None for one sample with each row once.

    Returns:
        (D,) in [-1, 1]; NaN where all grades or all scores are the same.
    """
    weights = np.ones((1, len(score))) if times is None else times
    grades, row = np.unique(grade, return_inverse=True)
    judged = ~np.isnan(score)
    levels, column = np.unique(score[judged], return_inverse=True)
    # Rows by (grade, score), so that one pass over the sorted rows fills a table of counts.
    cell = row[judged] * len(levels) + column
    order = np.argsort(cell, kind="stable")
    filled, first = np.unique(cell[order], return_index=True)
    step = max(1, _HELD // max(1, len(grades) * len(levels)))
    found = []
    for start in range(0, len(weights), step):
        part = weights[start : start + step].astype(np.float64)
        table = np.zeros((len(part), len(grades) * len(levels)))
        if len(filled):
            table[:, filled] = np.add.reduceat(part[:, judged][:, order], first, axis=1)
        lost = np.stack(
            [part[:, ~judged & (row == place)].sum(axis=1) for place in range(len(grades))], axis=1
        )
        found.append(_tau_of_table(table.reshape(len(part), len(grades), len(levels)), lost))
    return np.concatenate(found)


def _tau_of_table(table: NDArray[np.float64], lost: NDArray[np.float64]) -> NDArray[np.float64]:
    """tau-b of counts (D, G, U) by grade and distinct score, and of rows without a score (D, G)."""
    below = np.cumsum(table, axis=2) - table  # of this grade, with a smaller score
    above = table.sum(axis=2, keepdims=True) - below - table
    balance = below - above
    lower_grades = np.cumsum(balance, axis=1) - balance
    in_order = (table * lower_grades).sum(axis=(1, 2))  # pairs in order, minus those in the wrong one
    judged, by_grade = table.sum(axis=2), table.sum(axis=2) + lost  # (D, G) each
    graded, judged_graded = _untied(by_grade), _untied(judged)
    whole, scored = by_grade.sum(axis=1), judged.sum(axis=1)
    with_lost = (whole * (whole - 1) - scored * (scored - 1)) / 2
    different = _untied(table.sum(axis=1)) + with_lost
    size = np.sqrt(graded * different)
    balance_of_all = in_order - (graded - judged_graded)
    undefined = np.full(len(size), np.nan)
    found: NDArray[np.float64] = np.divide(balance_of_all, size, out=undefined, where=size > 0)
    return found


def _untied(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts (D, M) of M values -> number of pairs (D,) with different values."""
    untied: NDArray[np.float64] = (counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)) / 2
    return untied


def _of_grade(score: NDArray[np.float64], grade: int, threshold: float) -> dict[str, Any]:
    judged = score[~np.isnan(score)]
    return {
        "grade": grade,
        "rows": len(score),
        "mean_unsafe": float(judged.mean()) if len(judged) else None,
        "flagged_share": float(np.sum(judged >= threshold) / len(score)),
        "unjudged": len(score) - len(judged),
    }
