"""MultiHeaded (Qu et al., CCS 2023, "Unsafe Diffusion"): five small heads on CLIP, learned on 800 generated images.

    p = sigmoid(W2 batchnorm(relu(W1 e + b1)) + b2), unsafe if any of the five is over 0.5

The image embedding e is not normalised.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from judge.baselines.classifier import CategoryClassifier
from judge.encoders.dual import DualEncoder

from .clip import VIT_L_14, open_encoder, with_zero
from .one_score import covered_categories
from .weights import load_head

HEADS = {
    "sexual": "Sexual",
    "violent": "Violence",
    "disturbing": "Shocking",
    "hateful": "Hate",
    "political": "Political",
}
"""Name of each head's file -> key of the category that it covers (Table 3 of UnsafeBench)."""


class FiveHeads(nn.Module):
    """One head a category.

    Attributes:
        width: D.
        heads: by name of `HEADS`; numbered as the authors number the layers.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.width = width
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(width, hidden),
                    nn.ReLU(),
                    nn.Dropout(0.5),
                    nn.BatchNorm1d(hidden),
                    nn.Linear(hidden, 1),
                )
                for name in HEADS
            }
        )

    def forward(self, pooled_images: Tensor) -> Tensor:
        """(B, D) embeddings of their own length -> (B, 5, 2) logits."""
        return with_zero(torch.cat([head(pooled_images.float()) for head in self.heads.values()], dim=1))


@dataclass
class MultiHeaded(CategoryClassifier):
    """MultiHeaded as a classifier; prompts are ignored."""

    kind: ClassVar[str] = "multiheaded"


def build_head(tensors: dict[str, Tensor]) -> FiveHeads:
    """Heads of the sizes of these tensors, without their values."""
    hidden, width = tensors["heads.sexual.0.weight"].shape
    return FiveHeads(width, hidden)


def load_multiheaded(
    *,
    weights: str | Path,
    encoder: str | Path | DualEncoder = VIT_L_14,
    device: str | None = None,
    batch_size: int = 64,
) -> MultiHeaded:
    """Load MultiHeaded.

    Args:
        weights: safetensors with `heads.NAME.LAYER.weight` and so on, converted of the authors' five `.pt` files.
        encoder: CLIP ViT-L/14 by hub id or folder, or one that is loaded, to share its pass (`SharedPass`).
        device: of an encoder that is loaded here.
        batch_size: images in one pass.

    Raises:
        CheckpointError: the weights or the encoder cannot be loaded, or do not fit each other.
    """
    head = load_head(weights, build_head, who=MultiHeaded.kind)
    taxonomy = covered_categories(tuple(HEADS.values()))
    return MultiHeaded(open_encoder(encoder, device), head, taxonomy, batch_size=batch_size)
