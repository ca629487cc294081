"""Scores that were held against other cutoffs than 0.5, moved so that 0.5 is the cutoff: the cascade's scale."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

Array = NDArray[np.float64]
Cutoff = float | Array
"""One for all, or one a row in a shape that numpy spreads over the scores."""


def classify(probability: Array, safe: float, unsafe: float) -> NDArray[np.int64]:
    """-1 safe, 0 unsure or unjudged, 1 unsafe; where the cutoffs cross, unsafe goes first."""
    return np.where(probability >= unsafe, 1, np.where(probability < safe, -1, 0))


def shift_to_half(probability: Array, said: NDArray[np.int64], safe: Cutoff, unsafe: Cutoff) -> Array:
    """The probability with the cutoff that it was held against moved to 0.5, on the scale of logits."""
    # Certainty stays certainty, also where the cutoff is 0 or 1 and the difference would be infinity minus infinity.
    inside = np.clip(probability, 1e-15, 1 - 1e-15)
    cutoff = np.clip(np.where(said > 0, unsafe, safe), 1e-15, 1 - 1e-15)
    moved: Array = expit(logit(inside) - logit(cutoff))
    return moved


def clamp_to_side(moved: Array, said: NDArray[np.int64]) -> Array:
    """Rounding must not carry a score over 0.5; NaN where nothing was said."""
    below = np.nextafter(0.5, 0.0)
    return np.where(said > 0, np.maximum(moved, 0.5), np.where(said < 0, np.minimum(moved, below), np.nan))


def withhold_safe(verdict: Array, unread: NDArray[np.bool_]) -> Array:
    """Moved p(unsafe) of N rows, NaN instead of safe where an earlier stage, or this one, could not read the row."""
    return np.where(unread & (verdict < 0.5), np.nan, verdict)


def shift_categories_to_half(
    categories: Array, probability: Array, verdict: Array, safe: Cutoff, unsafe: Cutoff
) -> Array:
    """(N, K) category scores moved as `verdict` was from `probability`, (N,) each; NaN where the verdict is.

    One monotone map a row takes both, so that the largest category stays the whole, and 0.5 is for each category the
    cutoff that the row's stage was held to.
    """
    whole, of_whole = probability[:, None], verdict[:, None]
    moved = np.minimum(shift_to_half(categories, np.where(of_whole >= 0.5, 1, -1), safe, unsafe), of_whole)
    return np.where(categories == whole, of_whole, moved)
