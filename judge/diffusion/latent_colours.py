"""The detector after FlowGuard (arXiv 2604.07879): a linear map of latents to colours, a low-pass, a small classifier.

Known of FlowGuard from secondary sources only: the predicted picture's latents are mapped to RGB by a linear
projection, which takes the place of the autoencoder's decoder, and are low-pass filtered, as early predictions hold
noise at high frequencies; a classifier judges the result, trained from late steps to early ones. Sizes, the filter and
its width, and that all steps are learnt at once, with the log-SNR as an input, are choices of ours.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prompts.taxonomy import Taxonomy

from .learned import FixedDetector
from .look import Look
from .pairs import PairStore

FITTED_ON = 256
"""Finished pictures by which the projection to colours is fitted."""


class ColourClassifier(nn.Module):
    """Latents to logits."""

    def __init__(self, channels: int, categories: int, width: int = 32) -> None:
        super().__init__()
        self.colours: Tensor
        self.register_buffer("colours", torch.zeros(channels + 1, 3))
        kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.kernel: Tensor
        self.register_buffer(
            "kernel", torch.outer(kernel, kernel).expand(3, 1, 3, 3).clone(), persistent=False
        )
        self.body = nn.Sequential(
            nn.Conv2d(4, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.GroupNorm(8, 2 * width),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32 * width, categories),
        )

    def forward(self, clean: Tensor, log_snr: float) -> Tensor:
        """(B, C, H, W) predicted pictures -> (B, N) logits."""
        seen = self.to_colours(clean)
        padded = F.pad(seen, (1, 1, 1, 1), mode="replicate")
        smooth = F.conv2d(padded, self.kernel, groups=3)
        level = torch.full_like(smooth[:, :1], log_snr / 5)
        found: Tensor = self.body(torch.cat([smooth, level], 1))
        return found

    def to_colours(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, H, W) colours from about -1 to 1."""
        return torch.einsum("bchw,cr->brhw", latents, self.colours[:-1]) + self.colours[-1, :, None, None]


class FlowGuardDetector(FixedDetector):
    """Scores the predicted picture's colours under the categories that it was trained on."""

    kind = "latent_colours"
    head: ColourClassifier

    def __init__(self, pipeline: Any, channels: int, categories: int, *, name: str = "") -> None:
        """Of these sizes, not trained yet.

        Args:
            pipeline: whose decoder the projection imitates.
            channels: C of its latents.
            categories: N that it will be trained on.
            name: of the detector.
        """
        sizes = {"channels": channels, "categories": categories}
        super().__init__(pipeline, ColourClassifier(channels, categories), sizes, name=name)

    def outputs(self, look: Look) -> Tensor:
        """(B, N) float32 logits."""
        found: Tensor = self.head(look.clean.float(), look.log_snr)
        return found

    def prepare(self, store: PairStore, rows: NDArray[np.int64], taxonomy: Taxonomy) -> None:
        """Fit the projection by least squares: finished latents to the decoded picture at their size."""
        super().prepare(store, rows, taxonomy)
        latents = store.floats("final", rows[:FITTED_ON])
        pictures = F.adaptive_avg_pool2d(
            decoded(self.pipeline, latents), (latents.shape[-2], latents.shape[-1])
        )
        flat = latents.movedim(1, -1).flatten(0, 2)  # (N H W, C)
        inputs = torch.cat([flat, torch.ones(len(flat), 1)], 1)
        fitted = torch.linalg.lstsq(inputs, pictures.movedim(1, -1).flatten(0, 2)).solution
        self.head.colours.copy_(fitted)


@torch.inference_mode()
def decoded(pipeline: Any, latents: Tensor, batch_size: int = 32) -> Tensor:
    """(B, C, H, W) latents -> (B, 3, h, w) pictures from about -1 to 1, by the pipeline's autoencoder."""
    vae = pipeline.vae
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor + shift
    return torch.cat([vae.decode(some).sample.float().cpu() for some in scaled.split(batch_size)])
