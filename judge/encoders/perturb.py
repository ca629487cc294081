"""Attacks within training: a nearby picture of higher loss, and the schedules and forms of pixels that go with it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def perturb(loss: Callable[[Tensor], Tensor], pixels: Tensor, epsilon: float, steps: int) -> Tensor:
    """A nearby picture of higher loss: projected signed gradient ascent in the L-inf ball (Madry et al. 2018, eq. 3).

    For training: a few steps from a random start, the last iterate, no restarts; attacks to measure by are in
    `adversarial`. Steps are 2.5 epsilon / steps long (ibid., section 5), at most 1.25 epsilon (Wong et al. 2020).

    Args:
        loss: (B, 3, H, W) -> a number, the sum or mean over images; gradients go to the pixels only.
        pixels: (B, 3, H, W) floats in [0, 1].
        epsilon: largest change of a value, in the same unit.
        steps: gradients taken; 0 gives the random start.

    Returns:
        (B, 3, H, W) within epsilon and [0, 1], without gradients.
    """
    low, high = (pixels - epsilon).clamp(min=0.0), (pixels + epsilon).clamp(max=1.0)
    moved = low + (high - low) * torch.rand_like(pixels)
    for _ in range(steps):
        moved.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(moved), moved)
        moved = moved.detach() + min(2.5 / steps, 1.25) * epsilon * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, low), high)
    return moved.detach()


def as_pixels(values: Tensor) -> Tensor:
    """Bytes -> float32 in [0, 1]."""
    return values.float() / 255.0


def cosine_with_warmup(steps: int) -> Callable[[int], float]:
    """Share of the highest rate at each step: linear over a tenth of them, then a cosine to 0."""
    warm = max(steps // 10, 1)
    return lambda step: (
        (step + 1) / warm
        if step < warm
        else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))
    )
