"""The one question every classifier answers: which of *these* categories does this image violate?"""

from collections.abc import Sequence
from dataclasses import dataclass
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
    """(B, K) probability in [0, 1] per category, in the taxonomy's order."""
    reasons: tuple[str | None, ...]
    """B reasons, None where the image was judged."""
    decided_by: tuple[str, ...] | None = None
    """B names of the stage that decided (`filter`, `student`, `judge`), from a cascade; else None."""
    because: tuple[str, ...] | None = None
    """B short lines, why that stage decided so; else None."""


class Classifier(Protocol):
    """Anything that scores images under a taxonomy chosen for this call (design, section 3)."""

    name: str

    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score B RGB images with B prompts (or none at all) under `taxonomy`."""
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
            category: name of a category, to ask whether it is violated instead of whether any is.

        Returns:
            (B,) float32; positive where `Scores.unsafe` (or that category's score) is over 0.5, else negative.
        """
        ...
