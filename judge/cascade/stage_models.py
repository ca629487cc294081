"""What the models behind a cascade's stages have to offer."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from judge.encoders.dual import DualEncoder
from judge.protocol import Classifier, Scores
from prompts.taxonomy import Taxonomy

from .settings import CascadeSettings
from .similarity import Similarities
from .stages import Cutoffs


class TokenClassifier(Protocol):
    """What stage two has to be: a classifier of images that its encoder has encoded already."""

    name: str
    encoder: DualEncoder

    def score_tokens(
        self, image_tokens: Tensor, prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score (B, 1 + P, D) tokens of `DualEncoder.encode_pixel_values` with B prompts under `taxonomy`."""
        ...


@runtime_checkable
class DifferentiableTokenClassifier(TokenClassifier, Protocol):
    """What stage two has to be for an attack by gradients."""

    def logits(
        self, image_tokens: Tensor, prompts: Sequence[str | None], taxonomy: Taxonomy
    ) -> tuple[Tensor, Tensor]:
        """Logits (B,) of the whole and (B, K) of the categories, differentiable in (B, 1 + P, D) `image_tokens`."""
        ...


class CascadeStages(Protocol):
    """The stages of a cascade, and what they were calibrated to; a `judge.cascade.cascade.Cascade` is one."""

    student: TokenClassifier
    judge: Classifier | None
    settings: CascadeSettings
    cutoffs: Cutoffs
    similarities: Similarities
