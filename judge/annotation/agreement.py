"""Fleiss' kappa, also where images have different numbers of annotators.

Of N images, K labels and counts n_ij of annotators who gave image i label j, with n_i = sum over j of n_ij:

    agreement on image i   P_i = sum over j of n_ij (n_ij - 1) / (n_i (n_i - 1))
    share of label j       p_j = sum over i of n_ij / sum over i of n_i
    kappa                      = (mean of P_i - sum of p_j^2) / (1 - sum of p_j^2)

With one n_i for all images this is Fleiss (1971), "Measuring nominal scale agreement among many raters". With two
raters it is Scott's pi.

A third annotator who is asked only where two disagree biases this. A disagreement turns from P_i = 0 into 1/3 as soon
as the third sides with one of the two, and no agreement loses anything, so kappa over all labels is too high. (Were
each pair of annotators weighted alike instead, it would be too low: disagreements then have three pairs, agreements
one.) Kappa over the first two labels of each image has no such bias; report that one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .answers import LABELS
from .votes import Ballot

Interval = tuple[float, float]
DRAWS = 2000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree on images with at least two labels."""

    images: int
    first_two: float | None
    """Kappa over the first two labels of each image; None where it is undefined."""
    first_two_interval: Interval | None
    """95 %, by bootstrap over images."""
    all_votes: float | None
    """Kappa over all labels: too high where a third was asked on disagreement only."""
    all_votes_interval: Interval | None


def measure_agreement(ballots: Sequence[Ballot]) -> Agreement:
    """Kappa of the labels safe, unsafe and N/A; images with fewer than two labels say nothing of agreement."""
    labels = [ballot.labels for ballot in ballots if len(ballot.labels) >= 2]
    first, every = _counts([two[:2] for two in labels]), _counts(labels)
    return Agreement(
        len(labels), fleiss_kappa(first), kappa_interval(first), fleiss_kappa(every), kappa_interval(every)
    )


def fleiss_kappa(counts: ArrayLike) -> float | None:
    """Kappa of (N, K) counts, of at least two annotators in each row.

    Returns:
        From -1 to 1, and 0 for chance; None, and not 1, where all annotators gave one label or there is no image:
        agreement by chance is then certain.

    Raises:
        ValueError: a row has fewer than two annotators, or counts are no whole numbers from 0.
    """
    table = _check(counts)
    patterns, times = np.unique(table, axis=0, return_counts=True)
    [kappa] = _kappas(patterns, times[None, :].astype(np.float64)) if len(table) else [np.nan]
    return None if np.isnan(kappa) else float(kappa)


def kappa_interval(counts: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> Interval | None:
    """95 % interval of `fleiss_kappa` by percentile bootstrap over images; None where kappa is undefined.

    Draws in which it is undefined are left out.

    Args:
        counts: (N, K).
        draws: number of bootstrap samples.
        seed: of the draws.
    """
    table = _check(counts)
    if fleiss_kappa(table) is None:
        return None
    # Images with the same counts are interchangeable, so drawing N images is drawing how often each pattern occurs.
    patterns, times = np.unique(table, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(table), times / len(table), size=draws)
    kappas = _kappas(patterns, drawn.astype(np.float64))
    low, high = np.nanpercentile(kappas, (2.5, 97.5))
    return float(low), float(high)


def _kappas(patterns: NDArray[np.int64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) kappas of B tables, in which each of U rows (U, K) occurs so many times (B, U); NaN where undefined."""
    raters = patterns.sum(axis=1)
    agreement = (patterns * (patterns - 1)).sum(axis=1) / (raters * (raters - 1))
    observed = times @ agreement / times.sum(axis=1)
    shares = times @ patterns / (times @ raters)[:, None]
    expected = (shares**2).sum(axis=1)
    one_label = (shares > 0).sum(axis=1) < 2
    return np.where(one_label, np.nan, (observed - expected) / np.where(one_label, 1, 1 - expected))


def _counts(labels: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """(N, 3) how often each label was given."""
    return np.array([[row.count(label) for label in LABELS] for row in labels], dtype=np.int64).reshape(
        -1, len(LABELS)
    )


def _check(counts: ArrayLike) -> NDArray[np.int64]:
    table = np.asarray(counts)
    if table.ndim != 2 or (table.size and not np.issubdtype(table.dtype, np.integer)) or (table < 0).any():
        raise ValueError(
            f"Expected whole counts from 0 in (images, labels), got {table.dtype} of shape {table.shape}."
        )
    if (table.sum(axis=1) < 2).any():
        raise ValueError("Each image needs two annotators; leave the others out.")
    return table.astype(np.int64)
