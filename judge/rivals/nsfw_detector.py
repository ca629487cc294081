"""LAION's CLIP-based NSFW detector (2022): an MLP on CLIP, with which LAION-400M and LAION-5B were tagged.

    p = sigmoid(mlp((e / |e| - mean) / sqrt(variance))), a rectified MLP of 768-64-512-256-1; unsafe over 0.5

The original is a Keras model; this is its copy in PyTorch, as UnsafeBench publishes it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from judge.baselines.classifier import CategoryClassifier
from judge.encoders.dual import DualEncoder

from .clip import VIT_L_14, open_encoder, with_zero
from .one_score import covered_categories
from .weights import load_head

COVERS = ("Harassment", "Sexual")
"""Table 3 of UnsafeBench."""


class Standardise(nn.Module):
    """Subtract a mean (D,) and divide by the root of a variance (D,)."""

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, values: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return (values - self.mean) / self.variance.sqrt()


class StandardisedMLP(nn.Module):
    """The MLP, with the authors' names of weights.

    Attributes:
        width: D.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        """Make one of five sizes, from D to 1."""
        super().__init__()
        width, first, second, third, last = sizes
        self.width = width
        self.norm = Standardise(width)
        self.linear_1 = nn.Linear(width, first)
        self.linear_2 = nn.Linear(first, second)
        self.linear_3 = nn.Linear(second, third)
        self.linear_4 = nn.Linear(third, last)

    def forward(self, pooled_images: Tensor) -> Tensor:
        """(B, D) embeddings -> (B, 2, 2) logits, the same for both covered categories."""
        values = self.norm(F.normalize(pooled_images.float(), dim=-1))
        for layer in (self.linear_1, self.linear_2, self.linear_3):
            values = layer(values).relu()
        return with_zero(self.linear_4(values).expand(-1, len(COVERS)))


@dataclass
class NsfwDetector(CategoryClassifier):
    """LAION's detector as a classifier; prompts are ignored."""

    kind: ClassVar[str] = "nsfw_detector"


def build_head(tensors: dict[str, Tensor]) -> StandardisedMLP:
    """An MLP of the sizes of these tensors, without their values."""
    layers = [tensors[f"linear_{number}.weight"].shape for number in (1, 2, 3, 4)]
    return StandardisedMLP((layers[0][1], *(out for out, _ in layers)))


def load_nsfw_detector(
    *,
    weights: str | Path,
    encoder: str | Path | DualEncoder = VIT_L_14,
    device: str | None = None,
    batch_size: int = 64,
) -> NsfwDetector:
    """Load NSFW_Detector.

    Args:
        weights: safetensors with `norm.mean`, `norm.variance` and `linear_1` to `linear_4`, converted of
            `clip_autokeras_binary_nsfw.pth`.
        encoder: CLIP ViT-L/14 by hub id or folder, or one that is loaded, to share its pass (`SharedPass`).
        device: of an encoder that is loaded here.
        batch_size: images in one pass.

    Raises:
        CheckpointError: the weights or the encoder cannot be loaded, or do not fit each other.
    """
    head = load_head(weights, build_head, who=NsfwDetector.kind)
    encoder = open_encoder(encoder, device)
    return NsfwDetector(encoder, head, covered_categories(COVERS), batch_size=batch_size)
