"""The baseline that reads the prompt and nothing else: what any detector has to beat."""

from typing import Any

import torch
from torch import Tensor, nn

from .learned import FixedDetector
from .look import Look


class PromptOnly(FixedDetector):
    """A small network on the prompt's embedding: the last word's, which causal encoders put all into, and the mean.

    It is told nothing of the picture, so all pictures of a prompt score the same.
    """

    kind = "prompt_only"

    def __init__(self, pipeline: Any, text_width: int, categories: int, *, name: str = "") -> None:
        """Of these sizes, not trained yet.

        Args:
            pipeline: whose text encoder is read.
            text_width: E, width of its embeddings.
            categories: N that it will be trained on.
            name: of the detector.
        """
        head = nn.Sequential(
            nn.LayerNorm(2 * text_width),
            nn.Linear(2 * text_width, 128),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(128, categories),
        )
        sizes = {"text_width": text_width, "categories": categories}
        super().__init__(pipeline, head, sizes, name=name)

    def outputs(self, look: Look) -> Tensor:
        """(B, N) float32 logits."""
        text = look.text.float()
        found: Tensor = self.head(torch.cat([text[:, -1], text.mean(1)], -1))
        return found
