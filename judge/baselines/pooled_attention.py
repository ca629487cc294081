"""The published multimodal defense as a baseline: attention from one text vector to one image vector.

The classifier of "Towards Safe Synthetic Image Generation On the Web" (arXiv 2504.11707), as its released code builds
it (snapshot of December 2024): pooled CLIP image and text, one linear layer each, four-head attention with the text as
the query and the image as the only key, then an MLP over image and attention. With one key the softmax is 1 for any
query, so the text has no effect on the output and gets no gradient; the tests show both.

A difference: the original trains all of CLIP ViT-B/32 with it, here the encoder is frozen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from judge.inputs import check_prompts
from judge.protocol import Scores, on_one_scale
from judge.readings import highest_margins
from judge.runs.folder import RunDir
from prompts.taxonomy import Taxonomy

from .classifier import FixedClassifier, load_fixed, save_fixed

HEADS = 4


class PooledAttentionHead(nn.Module):
    """Two pooled embeddings of width D -> two logits, safe and unsafe."""

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % HEADS:
            raise ConfigError(
                f"The encoder's width {width} does not divide among {HEADS} heads; use another one."
            )
        self.width = width
        self.image, self.text = nn.Linear(width, width), nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.mlp = nn.Sequential(
            *_block(2 * width, width),
            *_block(width, width),
            nn.Dropout(0.2),
            nn.Linear(width, 2),
        )

    def forward(self, pooled_images: Tensor, pooled_texts: Tensor) -> Tensor:
        """(B, D) images and (B, D) texts -> (B, 1, 2) logits: one output, safe and unsafe."""
        image, text = self.image(pooled_images.float()), self.text(pooled_texts.float())
        # (B, 1, D) each: sequences of length one.
        attended, _ = self.attention(text[:, None], image[:, None], image[:, None])
        logits: Tensor = self.mlp(torch.cat([image, attended[:, 0]], dim=-1))
        return logits[:, None]


def _block(width_in: int, width_out: int) -> tuple[nn.Module, ...]:
    return (
        nn.Linear(width_in, width_out),
        nn.BatchNorm1d(width_out),
        nn.Dropout(0.5),
        nn.GELU(approximate="tanh"),
    )


@dataclass
class PooledAttention(FixedClassifier):
    """A `PooledAttentionHead` as a classifier: unsafe means that any category it was trained on is violated.

    It ignores the taxonomy, as the model has no input for one, and scores no categories.
    """

    kind: ClassVar[str] = "pooled_attention"
    uses_prompts: ClassVar[bool] = True
    scores_categories: ClassVar[bool] = False

    def score_embeddings(
        self, pooled_images: Tensor, pooled_texts: Tensor | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score (B, D) pooled images with (B, D) pooled texts, zeros where None; categories are all NaN."""
        device = self.encoder.device
        # Any text gives the same scores.
        texts = torch.zeros_like(pooled_images) if pooled_texts is None else pooled_texts
        with torch.no_grad():
            logits = self.head(pooled_images.to(device), texts.to(device))
        unsafe = logits.double().softmax(-1)[:, 0, 1].cpu().numpy()
        unsafe = np.where(np.isfinite(unsafe), unsafe, np.nan)
        reasons = tuple(f"{self.name} gave no finite score" if np.isnan(p) else None for p in unsafe)
        return on_one_scale(Scores(unsafe, np.full((len(unsafe), len(taxonomy)), np.nan), reasons))

    def pixel_margins(
        self,
        pixels: Tensor,
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        category: str | None = None,
    ) -> Tensor:
        """Logit of unsafe (B,) float32, differentiable in (B, 3, H, W) pixels in [0, 1].

        Raises:
            ConfigError: a category is given, as it scores none.
        """
        if category is not None:
            raise ConfigError(f"{self.name} scores no categories, so it has no margin for {category!r}.")
        readings = self.read_prompts(check_prompts(len(pixels), prompts))
        images = self.encoder.encode_pixels(pixels)[:, 0][list(readings.rows)]
        logits = self.head(images, self.pooled_texts(readings))[:, 0]
        return highest_margins(logits[:, 1] - logits[:, 0], readings)


def save_pooled_attention(run: RunDir, classifier: PooledAttention) -> None:
    """Write the weights, the taxonomy they were trained on, and the encoder they belong to."""
    save_fixed(run, classifier)


def load_pooled_attention(
    run: RunDir, *, device: str | None = None, encoder: DualEncoder | None = None, batch_size: int = 64
) -> PooledAttention:
    """Load what `save_pooled_attention` wrote.

    Raises:
        CheckpointError: files are missing or damaged, or the encoder is not the one it was trained with.
    """
    return load_fixed(
        run,
        PooledAttention,
        lambda found, _: PooledAttentionHead(found.width),
        device=device,
        encoder=encoder,
        batch_size=batch_size,
    )
