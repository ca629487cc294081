"""Heads on CLIP ViT-L/14: what Q16, MultiHeaded and NSFW_Detector share, and one pass of the encoder for all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from judge.baselines.classifier import CategoryClassifier
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from judge.inputs import validate_inputs_for_taxonomies
from judge.protocol import Scores
from prompts.taxonomy import Taxonomy

if TYPE_CHECKING:
    from PIL.Image import Image

VIT_L_14 = "openai/clip-vit-large-patch14"
"""The encoder that all three were made for, on the hub; 768 wide. With another one their scores mean nothing."""


def open_encoder(encoder: str | Path | DualEncoder, device: str | None) -> DualEncoder:
    """The encoder itself, or the one of that name or folder."""
    return encoder if isinstance(encoder, DualEncoder) else DualEncoder.load(encoder, device=device)


def with_zero(logits: Tensor) -> Tensor:
    """(B, H) logits of sigmoids -> (B, H, 2) logits of the same two-way softmax."""
    return torch.stack([torch.zeros_like(logits), logits], dim=-1)


@dataclass(frozen=True)
class SharedPass:
    """Several heads on one encoder, which sees every image once.

    Attributes:
        classifiers: each on an encoder of the same weights.
        batch_size: images in one pass of the encoder.
    """

    classifiers: Sequence[CategoryClassifier]
    batch_size: int = 64

    def __post_init__(self) -> None:
        prints = {classifier.encoder.fingerprint for classifier in self.classifiers}
        if len(prints) != 1:
            raise ConfigError(
                f"{', '.join(classifier.name for classifier in self.classifiers) or 'No classifier'}: one pass needs "
                f"one encoder, and these have {len(prints)}; load them with the same `encoder`."
            )

    @validate_inputs_for_taxonomies
    def score(
        self,
        images: "Sequence[Image]",
        prompts: Sequence[str | None] | None,
        taxonomies: Sequence[Taxonomy],
    ) -> list[Scores]:
        """What each classifier's own `score` gives of B images, each under its own taxonomy, in the same order.

        Raises:
            ConfigError: another number of taxonomies than of classifiers.
        """
        if len(taxonomies) != len(self.classifiers):
            raise ConfigError(
                f"{len(taxonomies)} taxonomies for {len(self.classifiers)} classifiers; give each one its own."
            )
        encoder = self.classifiers[0].encoder
        parts = [torch.zeros(0, encoder.width)]
        for start in range(0, len(images), self.batch_size):
            parts.append(encoder.encode_images(images[start : start + self.batch_size])[:, 0].cpu())
        pooled = torch.cat(parts)
        return [
            classifier.score_embeddings(pooled, None, taxonomy)
            for classifier, taxonomy in zip(self.classifiers, taxonomies, strict=True)
        ]
