"""The one question every classifier answers: which of *these* categories does this image violate?

**One scale.** Of every judged row, `Scores.unsafe` is the largest of its covered categories' scores. So one threshold
held against `unsafe` and the same one held against every category are one rule (`prompts.verdict`), rows sorted by
either mean the same, and thresholds per category start from what a classifier promises for the whole. Classifiers find
the whole and the categories in ways of their own, which need not agree; each of them ends with `on_one_scale`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from prompts.taxonomy import Taxonomy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Probabilities for a batch of B images under a taxonomy of K categories.

    NaN marks what was not judged or is not covered, with the reason in `reasons`; it never means safe.
    """

    unsafe: "NDArray[np.float64]"
    """(B,) probability in [0, 1] that any category is violated."""
    categories: "NDArray[np.float64]"
    """(B, K) score in [0, 1] per category, in the taxonomy's order; the largest of a judged row is `unsafe`."""
    reasons: tuple[str | None, ...]
    """B reasons, None where the image was judged."""
    decided_by: tuple[str, ...] | None = None
    """B names of the stage that decided (`filter`, `student`, `judge`), from a cascade; else None."""
    because: tuple[str, ...] | None = None
    """B short lines, why that stage decided so; else None."""
    separate: "NDArray[np.float64] | None" = None
    """(B, K) probability per category as the classifier found it, whatever the whole is; None where that is no other
    number than in `categories`. For lessons and temperatures; verdicts do not look at it."""

    @property
    def each(self) -> "NDArray[np.float64]":
        """(B, K) probability per category on its own: `separate`, or `categories` where there is none."""
        return self.categories if self.separate is None else self.separate


def on_one_scale(scores: Scores) -> Scores:
    """The same scores with the categories moved so that the largest covered one is `unsafe`.

    With p of a category, m the largest p of its row and u the whole, the score is u * p / m. So `unsafe` and the order
    of the categories stay, nothing leaves [0, 1], and where m is u already nothing changes. Shares are kept, and not
    distances of logits, because closed answers share one probability among the categories: of 0.6 and 0.001 under a
    whole of 0.9999, a shift of logits would carry the second to 0.87.

    Where the whole is 0, so are all covered categories; where all of them are 0 and the whole is not, nobody knows
    which one it is, and each gets the whole. NaN stays NaN. A row whose whole is NaN was not judged: what is known of
    single categories stays as it is. A row without any covered category keeps its whole.
    """
    import numpy as np

    whole, found = scores.unsafe[:, None], scores.categories
    highest = np.fmax.reduce(found, axis=1, keepdims=True, initial=np.nan)
    part = np.divide(found, highest, out=np.ones_like(found), where=highest > 0)
    moved = np.minimum(part * whole, whole)
    unchanged = np.isnan(found) | np.isnan(whole) | (highest == whole)
    moved = np.where(unchanged, found, moved)
    if np.array_equal(moved, found, equal_nan=True):
        return scores
    return replace(scores, categories=moved, separate=scores.each)


class Classifier(Protocol):
    """Anything that scores images under a taxonomy chosen for this call (design, section 3)."""

    name: str

    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score B images of any form with B prompts (or none at all) under `taxonomy`.

        What is wrong in form raises `QuestionError`; a picture that cannot be opened is a row of NaN with the reason.
        Decorate yours with `judge.questions.opens_images`, which sees to both.
        """
        ...


class DifferentiableClassifier(Classifier, Protocol):
    """A classifier whose verdict can be followed back to the pixels, as attacks and robust training need it."""

    def pixel_margins(
        self,
        pixels: "Tensor",
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        category: str | None = None,
    ) -> "Tensor":
        """How far the verdict is from the other one, differentiable in the pixels.

        Args:
            pixels: (B, 3, H, W) floats in [0, 1], at the images' own size; what the model does to them is done here.
            prompts: B prompts, or None.
            taxonomy: what is asked.
            category: name of a category, to ask whether its score, on one scale with the whole, says violated.

        Returns:
            (B,) float32; positive where `Scores.unsafe` (or that category's score) is over 0.5, else negative.
        """
        ...
