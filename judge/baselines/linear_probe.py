"""UnsafeBench's linear probes: a small MLP per category on the frozen pooled image embedding (CCS 2025, section A.5).

The paper trains one 768-384-2 MLP per category on CLIP ViT-L/14 with cross-entropy; an image that is unsafe in another
category counts as safe. Its repository has no code for this. Unspecified details are chosen here: ReLU, and embeddings
scaled to length sqrt(D), close to CLIP's own, so that the learning rate suits any encoder.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from judge.encoders.dual import DualEncoder
from judge.protocol import Match
from judge.runs.folder import RunDir

from .classifier import CategoryClassifier, load_fixed, save_fixed


class ParallelMLP(nn.Module):
    """K separate MLPs D - hidden - 2 as two batched products; they share neither weights nor gradients.

    Attributes:
        width: D.
        into: weights (K, D, hidden) and bias (K, hidden).
        out: weights (K, hidden, 2) and bias (K, 2).
    """

    def __init__(self, width: int, categories: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = width // 2 if hidden is None else hidden
        self.width, self.hidden = width, hidden
        self.into, self.into_bias = _linear(categories, width, hidden)
        self.out, self.out_bias = _linear(categories, hidden, 2)

    def forward(self, pooled_images: Tensor) -> Tensor:
        """(B, D) embeddings of any length -> (B, K, 2) logits, safe and unsafe."""
        scaled = F.normalize(pooled_images.float(), dim=-1) * math.sqrt(self.width)
        # b: images, d: width, k: categories, h: hidden units, o: safe or unsafe.
        hidden = torch.einsum("bd,kdh->bkh", scaled, self.into) + self.into_bias
        return torch.einsum("bkh,kho->bko", hidden.relu(), self.out) + self.out_bias


def _linear(count: int, fan_in: int, fan_out: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights (count, in, out) and bias (count, out), drawn as `nn.Linear` draws them."""
    bound = 1 / math.sqrt(fan_in)  # what kaiming_uniform_ with a = sqrt(5) amounts to
    shapes = (count, fan_in, fan_out), (count, fan_out)
    weight, bias = (nn.Parameter(torch.empty(shape).uniform_(-bound, bound)) for shape in shapes)
    return weight, bias


@dataclass
class LinearProbe(CategoryClassifier):
    """A `ParallelMLP` as a classifier of images; prompts are ignored."""

    kind: ClassVar[str] = "linear_probe"


def save_linear_probe(run: RunDir, probe: LinearProbe) -> None:
    """Write the weights, their taxonomy and the encoder they belong to."""
    save_fixed(run, probe, hidden=probe.head.hidden)


def load_linear_probe(
    run: RunDir,
    *,
    device: str | None = None,
    encoder: DualEncoder | None = None,
    match: Match = "members",
    batch_size: int = 64,
) -> LinearProbe:
    """Load what `save_linear_probe` wrote.

    Raises:
        CheckpointError: files are missing or damaged, or the encoder is not the one it was trained with.
    """
    return load_fixed(
        run,
        LinearProbe,
        lambda found, taxonomy: ParallelMLP(found.width, len(taxonomy), run.manifest["hidden"]),
        device=device,
        encoder=encoder,
        match=match,
        batch_size=batch_size,
    )
