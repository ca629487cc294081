"""Scores that are held against other cutoffs than 0.5, shifted so that 0.5 is the cutoff: the cascade's scale."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

Array = NDArray[np.float64]
Cutoff = float | Array
"""One for all rows, or one a row in a shape that broadcasts against the scores."""


def classify(probability: Array, safe: float, unsafe: float) -> NDArray[np.int64]:
    """(N,) -1 safe, 0 unsure or unjudged, 1 unsafe.

    Args:
        probability: (N,) in [0, 1], NaN where not judged.
        safe: below it a row is safe.
        unsafe: from it on a row is unsafe; where the two cutoffs cross, this one goes first.
    """
    return np.where(probability >= unsafe, 1, np.where(probability < safe, -1, 0))


def shift_to_half(probability: Array, sides: NDArray[np.int64], safe: Cutoff, unsafe: Cutoff) -> Array:
    """Probabilities shifted on the scale of logits so that the cutoff they were held against becomes 0.5.

    Args:
        probability: (N,) or (N, K) in [0, 1], NaN where not judged.
        sides: what `classify` made of it; broadcasts against it. Above 0 the cutoff is `unsafe`, else `safe`.
        safe: cutoff of "safe".
        unsafe: cutoff of "unsafe".

    Returns:
        The shape of `probability`, in [0, 1]; NaN stays NaN.
    """
    # Certainty stays certainty, also where the cutoff is 0 or 1 and the difference would be infinity minus infinity.
    inside = np.clip(probability, 1e-15, 1 - 1e-15)
    cutoff = np.clip(np.where(sides > 0, unsafe, safe), 1e-15, 1 - 1e-15)
    shifted: Array = expit(logit(inside) - logit(cutoff))
    return shifted


def clamp_to_side(shifted: Array, sides: NDArray[np.int64]) -> Array:
    """(N,) shifted probabilities that rounding cannot carry over 0.5; NaN where `sides` (N,) is 0."""
    below = np.nextafter(0.5, 0.0)
    return np.where(
        sides > 0, np.maximum(shifted, 0.5), np.where(sides < 0, np.minimum(shifted, below), np.nan)
    )


def withhold_safe(verdict: Array, unread: NDArray[np.bool_]) -> Array:
    """(N,) shifted p(unsafe), NaN instead of safe where `unread` (N,): a stage so far could not read the row."""
    return np.where(unread & (verdict < 0.5), np.nan, verdict)


def shift_categories_to_half(
    categories: Array, probability: Array, verdict: Array, safe: Cutoff, unsafe: Cutoff
) -> Array:
    """Category scores shifted as their row's p(unsafe) was.

    One monotone map a row takes both, so that the largest category stays the whole, and 0.5 is for each category the
    cutoff that the row's stage was held to.

    Args:
        categories: (N, K) scores in [0, 1].
        probability: (N,) p(unsafe) before the shift.
        verdict: (N,) p(unsafe) after it, NaN where the row was not settled.
        safe: cutoff of "safe", one for all or (N, 1).
        unsafe: cutoff of "unsafe", likewise.

    Returns:
        (N, K) in [0, 1]; NaN where the verdict is.
    """
    whole, shifted_whole = probability[:, None], verdict[:, None]
    shifted = shift_to_half(categories, np.where(shifted_whole >= 0.5, 1, -1), safe, unsafe)
    # A category that is the whole gets the verdict itself, and no other may pass it by rounding.
    return np.where(categories == whole, shifted_whole, np.minimum(shifted, shifted_whole))
