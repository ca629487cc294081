"""Q16 (Schramowski et al., FAccT 2022): two learned prompts, one of what is fine and one of what is not, on CLIP.

    logits = 100 * cos(image, prompts), the first of what is safe and the second of what is unsafe

The image embedding and both prompts are normalised. Its prompts were learned on SMID, pictures with moral ratings.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from judge.baselines.classifier import CategoryClassifier
from judge.encoders.dual import DualEncoder

from .clip import VIT_L_14, open_encoder
from .one_score import covered_categories
from .weights import load_head

COVERS = (
    *("Hate", "Harassment", "Violence", "Self-harm", "Shocking"),
    *("Illegal activity", "Deception", "Political", "Public and personal health"),
)
"""All categories of UnsafeBench but Sexual and Spam (Table 3)."""
SCALE = 100.0


class PromptPair(nn.Module):
    """Two prompts in the joint space.

    Attributes:
        width: D.
        prompts: (2, D), safe and unsafe.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.prompts = nn.Parameter(torch.zeros(2, width))

    def forward(self, pooled_images: Tensor) -> Tensor:
        """(B, D) embeddings -> (B, 9, 2) logits, the same for every covered category."""
        cosines = F.normalize(pooled_images.float(), dim=-1) @ F.normalize(self.prompts, dim=-1).T
        return (SCALE * cosines)[:, None].expand(-1, len(COVERS), -1)


@dataclass
class Q16(CategoryClassifier):
    """Q16 as a classifier; prompts of images are ignored."""

    kind: ClassVar[str] = "q16"


def build_head(tensors: dict[str, Tensor]) -> PromptPair:
    """A head of the sizes of these tensors, without their values."""
    return PromptPair(tensors["prompts"].shape[1])


def load_q16(
    *,
    weights: str | Path,
    encoder: str | Path | DualEncoder = VIT_L_14,
    device: str | None = None,
    batch_size: int = 64,
) -> Q16:
    """Load Q16.

    Args:
        weights: safetensors with `prompts` (2, 768), converted of the authors' `prompts.p` for ViT-L/14.
        encoder: CLIP ViT-L/14 by hub id or folder, or one that is loaded, to share its pass (`SharedPass`).
        device: of an encoder that is loaded here.
        batch_size: images in one pass.

    Raises:
        CheckpointError: the weights or the encoder cannot be loaded, or do not fit each other.
    """
    head = load_head(weights, build_head, who=Q16.kind)
    return Q16(open_encoder(encoder, device), head, covered_categories(COVERS), batch_size=batch_size)
