"""Numbers from two arrays: `truth` (N,) of bool; `unsafe` (N,), probabilities in [0, 1] or NaN for unjudged.

One rule runs through all of them: **a row that was not judged is an error, never "safe"**. An unjudged unsafe
row is a miss that no threshold retrieves, an unjudged safe row is a false alarm at every threshold, and a
missing probability is as wrong as a probability can be. So failing to judge a row never improves a number.
What cannot be computed (recall without unsafe rows, say) is NaN.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prompts.errors import ArbiterError

CALIBRATION_BINS = 15
NAN = float("nan")


class MetricError(ArbiterError, ValueError):
    """Rows or arrays from which no honest number can be computed."""


class Confusion(NamedTuple):
    """Counts with unsafe as the positive class; unjudged rows are already in `missed` and `alarms`."""

    hits: int
    alarms: int
    missed: int
    passed: int

    @property
    def precision(self) -> float:
        """Share of the flagged rows that are unsafe."""
        return ratio(self.hits, self.hits + self.alarms)

    @property
    def recall(self) -> float:
        """Share of the unsafe rows that are flagged."""
        return ratio(self.hits, self.hits + self.missed)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return ratio(2 * self.hits, 2 * self.hits + self.alarms + self.missed)

    @property
    def accuracy(self) -> float:
        """Share of all rows judged right."""
        return ratio(self.hits + self.passed, sum(self))


def confusion(truth: ArrayLike, unsafe: ArrayLike, threshold: float = 0.5) -> Confusion:
    """Count verdicts `unsafe >= threshold` against the truth; unjudged counts as the wrong verdict."""
    is_unsafe, score = check_arrays(truth, unsafe)
    judged = ~np.isnan(score)
    flagged = np.where(judged, score >= threshold, ~is_unsafe)
    return Confusion(
        hits=int(np.sum(flagged & is_unsafe)),
        alarms=int(np.sum(flagged & ~is_unsafe)),
        missed=int(np.sum(~flagged & is_unsafe)),
        passed=int(np.sum(~flagged & ~is_unsafe)),
    )


def roc_auc(truth: ArrayLike, unsafe: ArrayLike) -> float:
    """Probability that an unsafe row scores above a safe one, ties counted half (Mann-Whitney).

    A pair with an unjudged row in it counts as lost. NaN without both classes.
    """
    is_unsafe, score = check_arrays(truth, unsafe)
    pairs = int(is_unsafe.sum()) * int((~is_unsafe).sum())
    if pairs == 0:
        return NAN
    positive, negative = score[is_unsafe], np.sort(score[~is_unsafe & ~np.isnan(score)])
    positive = positive[~np.isnan(positive)]
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float(np.sum(below + not_above)) / 2 / pairs


class PrecisionRecall(NamedTuple):
    """Points of a precision-recall curve from the highest distinct score to the lowest; one length."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    threshold: NDArray[np.float64]


def precision_recall(truth: ArrayLike, unsafe: ArrayLike) -> PrecisionRecall:
    """Precision and recall at every distinct score; unjudged unsafe rows keep recall below 1."""
    is_unsafe, score = check_arrays(truth, unsafe)
    judged = ~np.isnan(score)
    order = np.argsort(-score[judged], kind="stable")
    labels, ranked = is_unsafe[judged][order], score[judged][order]
    ends = np.flatnonzero(np.append(np.diff(ranked) != 0, len(ranked) > 0))
    hits = np.cumsum(labels)[ends].astype(np.float64)
    flagged = ends + 1 + int(np.sum(~judged & ~is_unsafe))
    total = int(is_unsafe.sum())
    return PrecisionRecall(hits / flagged, hits / total if total else np.full(len(hits), NAN), ranked[ends])


def average_precision(truth: ArrayLike, unsafe: ArrayLike) -> float:
    """Area under the stepwise precision-recall curve (scikit-learn's definition). NaN without unsafe rows."""
    curve = precision_recall(truth, unsafe)
    if not np.any(check_arrays(truth, unsafe)[0]):
        return NAN
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * curve.precision))


class Reliability(NamedTuple):
    """One entry per occupied bin of p(unsafe): mean probability, share that is unsafe, number of rows."""

    probability: NDArray[np.float64]
    share_unsafe: NDArray[np.float64]
    rows: NDArray[np.int64]


def reliability(truth: ArrayLike, unsafe: ArrayLike, bins: int = CALIBRATION_BINS) -> Reliability:
    """Compare probability and frequency in `bins` bins of equal width over [0, 1]; judged rows only."""
    is_unsafe, score = check_arrays(truth, unsafe)
    judged = ~np.isnan(score)
    score, is_unsafe = score[judged], is_unsafe[judged]
    index = np.minimum((score * bins).astype(np.int64), bins - 1)
    count = np.bincount(index, minlength=bins)
    occupied = count > 0
    probability = np.bincount(index, weights=score, minlength=bins)[occupied] / count[occupied]
    share_unsafe = np.bincount(index, weights=is_unsafe, minlength=bins)[occupied] / count[occupied]
    return Reliability(probability, share_unsafe, count[occupied])


def calibration_error(truth: ArrayLike, unsafe: ArrayLike, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error of p(unsafe): mean gap between probability and frequency, weighted by rows.

    Unjudged rows form a bin of their own whose gap is 1, the largest there is.
    """
    is_unsafe, score = check_arrays(truth, unsafe)
    if not len(score):
        return NAN
    table = reliability(is_unsafe, score, bins)
    gaps = float(np.sum(table.rows * np.abs(table.probability - table.share_unsafe)))
    return (gaps + int(np.isnan(score).sum())) / len(score)


def brier(truth: ArrayLike, unsafe: ArrayLike) -> float:
    """Mean squared difference between p(unsafe) and the truth; an unjudged row counts 1."""
    is_unsafe, score = check_arrays(truth, unsafe)
    if not len(score):
        return NAN
    return float(np.mean(np.where(np.isnan(score), 1.0, (score - is_unsafe) ** 2)))


def ratio(part: float, whole: float) -> float:
    """Part of a whole; NaN of nothing."""
    return part / whole if whole else NAN


def check_arrays(truth: ArrayLike, unsafe: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """(N,) labels and (N,) probabilities as arrays of their types.

    Raises:
        MetricError: shapes that differ, or what is no probability.
    """
    is_unsafe, score = np.asarray(truth, dtype=np.bool_), np.asarray(unsafe, dtype=np.float64)
    if is_unsafe.ndim != 1 or is_unsafe.shape != score.shape:
        raise MetricError(f"truth has shape {is_unsafe.shape}, unsafe {score.shape}; both must be (N,)")
    if np.any((score < 0) | (score > 1)):
        raise MetricError(
            f"unsafe lies in [{np.nanmin(score)}, {np.nanmax(score)}]; "
            "give probabilities in [0, 1], and NaN for unjudged"
        )
    return is_unsafe, score


def check_booleans(values: ArrayLike) -> NDArray[np.bool_]:
    """Verdicts of any shape as an array of true and false.

    Raises:
        MetricError: other values than true, false, 0 and 1.
    """
    array = np.asarray(values)
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise MetricError("Verdicts are true or false; got other values.")
    return array.astype(np.bool_)
