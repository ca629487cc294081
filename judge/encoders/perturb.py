"""PGD for adversarial training, its learning-rate schedule, and bytes as pixels in [0, 1]."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def perturb(loss: Callable[[Tensor], Tensor], pixels: Tensor, epsilon: float, steps: int) -> Tensor:
    """Projected signed gradient ascent of `loss` in the L-inf ball around `pixels` (Madry et al. 2018, eq. 3).

    For training only: a few steps from a random start, the last iterate, no restarts; `adversarial` holds the attacks
    that measure robustness. A step is 2.5 epsilon / steps long (ibid., section 5), at most 1.25 epsilon (Wong et al.
    2020).

    Args:
        loss: (B, 3, H, W) -> a scalar, the sum or mean over images.
        pixels: (B, 3, H, W) floats in [0, 1].
        epsilon: largest change of a value, in the same unit.
        steps: gradient steps; 0 returns the random start.

    Returns:
        (B, 3, H, W) within epsilon of `pixels` and in [0, 1], detached.
    """
    low, high = (pixels - epsilon).clamp(min=0.0), (pixels + epsilon).clamp(max=1.0)
    # Uniform in the box cut to [0, 1]; clamping after adding noise would put mass on its borders.
    moved = low + (high - low) * torch.rand_like(pixels)
    for _ in range(steps):
        moved.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(moved), moved)
        moved = moved.detach() + min(2.5 / steps, 1.25) * epsilon * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, low), high)
    return moved.detach()


def as_pixels(values: Tensor) -> Tensor:
    """Bytes of any shape -> float32 in [0, 1] of the same shape."""
    return values.float() / 255.0


def cosine_with_warmup(steps: int) -> Callable[[int], float]:
    """Factor on the highest learning rate at each step: linear over the first tenth, then a cosine to 0.

    transformers' `get_cosine_schedule_with_warmup` is another schedule: its first step has rate 0, here it is 1 / warm.
    """
    warm = max(steps // 10, 1)
    return lambda step: (
        (step + 1) / warm
        if step < warm
        else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))
    )
