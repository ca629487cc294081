"""Distillation: a cross-attention head learns the judge's scores of flipped rows, and known labels.

The loss of a step has three parts. *Soft*: the teacher's probabilities, both sides softened by a temperature (Hinton et
al. 2015, section 2). *Hard*: labels, where they are known. *Alignment*: within a policy, an image should be most
similar to the categories it violates (the contrastive term of arXiv 2504.11707, over tokens as in FILIP), which keeps
the joint space in order for categories that were not trained.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from judge.encoders.phrases import CONDITION
from judge.errors import ConfigError
from judge.runs.trainer import EvaluatingTrainer

from .distill_data import DistillOptions
from .head import CrossAttentionHead, Queries


class Distillation(nn.Module):
    """A head and its loss, as transformers' Trainer takes it."""

    def __init__(self, head: CrossAttentionHead, options: DistillOptions) -> None:
        super().__init__()
        self.head, self.options = head, options

    def forward(
        self,
        image: Tensor,
        prompt: Tensor,
        prompt_mask: Tensor,
        phrases: Tensor,
        kinds: Tensor,
        soft: Tensor,
        hard: Tensor,
    ) -> dict[str, Tensor]:
        """The loss of G groups of N rows, and its parts under their names.

        Args:
            image: (G, N, T, D) image tokens.
            prompt: (G, N, L, D) prompt tokens.
            prompt_mask: (G, N, L).
            phrases: (G, K, M, D) phrase embeddings.
            kinds: (G, K, M), -1 at padding.
            soft: (G, N, 1 + K) the teacher's probabilities, NaN where unknown or padded.
            hard: (G, N, 1 + K) labels, NaN where unknown or padded.
        """
        queries = self.head.queries(phrases, kinds)
        unsafe, category = self.head(image, prompt, prompt_mask, queries)
        logits = torch.cat([unsafe[..., None], category], dim=-1)  # (G, N, 1 + K)
        options = self.options
        if not options.hard_weight:  # the teacher only: the alignment term must not see labels either
            hard = torch.full_like(hard, math.nan)
        parts = {
            "soft": soft_loss(logits, soft, options.temperature),
            "hard": hard_loss(logits, hard),
            "alignment": alignment_loss(self.head, image, queries, hard[..., 1:], soft[..., 1:]),
        }
        loss = (1 - options.hard_weight) * parts["soft"] + options.hard_weight * parts["hard"]
        return {"loss": loss + options.alignment_weight * parts["alignment"], **parts}


def soft_loss(logits: Tensor, probability: Tensor, temperature: float) -> Tensor:
    """Binary cross-entropy with the teacher's probabilities, both at `temperature`, times its square.

    The square keeps gradients of the same size at any temperature (Hinton et al. 2015, section 2.1). The teacher's own
    entropy is subtracted, so that a perfect student has loss 0.

    Args:
        logits: (G, N, 1 + K), first that anything is violated.
        probability: (G, N, 1 + K) in [0, 1]; NaN is left out.
        temperature: above 0.
    """
    known = ~probability.isnan()
    # eps: a teacher's 0 and 1 have infinite logits.
    teacher = torch.logit(probability[known], eps=1e-4).div(temperature).sigmoid()
    pointwise = F.binary_cross_entropy_with_logits(logits[known] / temperature, teacher, reduction="none")
    entropy = F.binary_cross_entropy(teacher, teacher, reduction="none")
    return _balanced((pointwise - entropy) * temperature**2, known)


def hard_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy of logits (G, N, 1 + K) with labels (G, N, 1 + K) 0 or 1; NaN is left out."""
    known = ~label.isnan()
    return _balanced(F.binary_cross_entropy_with_logits(logits[known], label[known], reduction="none"), known)


def _balanced(pointwise: Tensor, known: Tensor) -> Tensor:
    """Mean of the losses in the first column plus mean of the others: K categories weigh as much as the whole."""
    first = torch.zeros_like(known)
    first[..., 0] = True
    in_first = first[known]  # one entry per known value, as in `pointwise`
    return sum(
        (pointwise[chosen].sum() / chosen.sum().clamp(min=1) for chosen in (in_first, ~in_first)),
        start=pointwise.new_zeros(()),
    )


def alignment_loss(
    head: CrossAttentionHead, image: Tensor, queries: Queries, hard: Tensor, soft: Tensor, scale: float = 10.0
) -> Tensor:
    """Contrast, within each policy, the categories an image violates with the others; 0 where there are none.

    Cross-entropy with several positives, which share the target evenly.

    Args:
        head: gives the similarities.
        image: (G, N, T, D) image tokens.
        queries: of the G policies.
        hard: (G, N, K) labels 0 or 1, NaN where unknown.
        soft: (G, N, K) the teacher's probabilities, used at 0.5 where labels are unknown.
        scale: inverse temperature of the softmax over categories.
    """
    similar = head.similarity(image, queries) * scale  # (G, N, K)
    positive = torch.where(hard.isnan(), (soft > 0.5).to(hard.dtype), hard)
    # (G, 1, K), False at padding, and where a condition on the prompt decides the label as well as the image
    present = ((queries.kinds >= 0).any(-1) & (queries.kinds != CONDITION).all(-1))[:, None]
    positive = positive.nan_to_num(0.0) * present
    contrast = (positive.sum(-1) > 0) & ((1 - positive) * present).sum(-1).gt(0)
    if not contrast.any():
        return similar.sum() * 0.0  # keeps the graph: DDP waits for a gradient of every parameter
    log_share = similar.masked_fill(~present, -1e4).log_softmax(-1)
    target = positive / positive.sum(-1, keepdim=True).clamp(min=1)
    return -(target * log_share).sum(-1)[contrast].mean()


class DistillTrainer(EvaluatingTrainer):
    """Trains a `Distillation`.

    Args:
        evaluator: scores held-out rows with the current head and returns numbers.
        scale_rate: as of `DistillOptions`.
        options: Trainer's own.
    """

    def __init__(
        self,
        *,
        evaluator: Callable[[CrossAttentionHead], Mapping[str, float]],
        scale_rate: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(evaluator=lambda model: evaluator(model.head), **options)
        self.scale_rate = scale_rate

    def create_optimizer(self, *given: Any) -> Any:
        """Trainer's own, with a rate of their own for the head's scales, without weight decay."""
        optimizer = super().create_optimizer(*given)
        if self.scale_rate != 1:
            scales = self.accelerator.unwrap_model(self.model).head.scales()
            ids = set(map(id, scales))
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in ids]
            rate = self.args.learning_rate * self.scale_rate
            optimizer.add_param_group({"params": scales, "lr": rate, "weight_decay": 0.0})
        return optimizer


def calibrate_head(head: CrossAttentionHead, logits: Tensor, labels: Tensor) -> None:
    """Fit the scale and shift of the head's probabilities (Platt 1999), in place.

    One pair for all categories and one for P(unsafe), so that untrained categories are calibrated too. A prior that
    counts like one row keeps each pair near (1, 0): few rows, which any threshold separates, change little.

    Args:
        head: its `calibration` is replaced.
        logits: (B, 1 + K) of held-out rows, first that anything is violated; NaN for padding.
        labels: (B, 1 + K) 0, 1, or NaN where unknown.

    Raises:
        ConfigError: no unsafe or no safe row among them.
    """
    from scipy.optimize import minimize

    fitted = []
    for columns in (slice(1, None), slice(0, 1)):  # the order of `calibration`: categories, then the whole
        z, y = (values[:, columns].flatten().double().cpu().numpy() for values in (logits, labels))
        known = ~(np.isnan(z) | np.isnan(y))
        z, y = z[known], y[known]
        if not 0 < y.mean() < 1:
            raise ConfigError("Calibration needs unsafe and safe rows; the held-out set has only one kind.")

        def cost(pair: Any, z: Any = z, y: Any = y) -> float:
            logit = pair[0] * z + pair[1]
            prior = (pair[0] - 1) ** 2 + pair[1] ** 2
            return float(np.sum(np.logaddexp(0, logit) - y * logit) + prior / 2)

        fitted.append(minimize(cost, (1.0, 0.0), method="Nelder-Mead").x.tolist())
    head.calibration.copy_(torch.tensor(fitted))
