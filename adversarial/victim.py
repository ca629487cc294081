"""The protocol through which attacks see a classifier."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


@dataclass(frozen=True)
class Context:
    """What a victim gets beside the pixels."""

    prompt: str | None
    """The text behind the image, or None."""
    policy: Hashable = None
    """The taxonomy; attacks on pixels only compare it, as images under one policy share a batch."""


class Victim(Protocol):
    """A classifier under attack: a judge, a student, filters, a cascade."""

    name: str
    no_gradients: str | None
    """None where `margins` is differentiable in the pixels; else which part is not, for error messages."""

    def margins(self, pixels: Tensor, contexts: Sequence[Context]) -> Tensor:
        """(B, 3, H, W) floats in [0, 1] and B contexts -> (B,) float32 logits of "unsafe"; positive is flagged."""
        ...

    def score(self, images: "Sequence[Image]", contexts: Sequence[Context]) -> "NDArray[np.float64]":
        """The real path, as deployed: B pictures -> (B,) p(unsafe) with threshold 0.5, NaN where unjudged."""
        ...
