"""What gradient attacks share: starting points, losses, and the direction of a step in each norm."""

from typing import Literal, get_args

import torch
from torch import Tensor

from adversarial.errors import AttackError
from adversarial.problem import Problem
from adversarial.threat import Norm

Loss = Literal["margin", "cross_entropy"]


def starting_points(problem: Problem, start: Tensor | None) -> Tensor:
    """(N, 3, H, W) the clean images, or a warm start of that shape projected into the budget.

    Raises:
        AttackError: a start for other images.
    """
    if start is None:
        return problem.images.clone()
    if start.shape != problem.images.shape:
        raise AttackError(
            f"start is {tuple(start.shape)}, the images are {tuple(problem.images.shape)}; give one start for each."
        )
    return problem.threat.project(start.to(problem.images), problem.images)


def loss_gradient(problem: Problem, margin: Tensor, gradient: Tensor, loss: Loss) -> Tensor:
    """(B,) signed margins and their (B, 3, H, W) gradients -> (B, 3, H, W) gradients of the loss to minimise.

    That is the margin, or minus the cross-entropy; where the latter has saturated, a zero gradient is counted.
    """
    if loss == "margin":
        return gradient
    scaled = gradient * torch.sigmoid(-margin)[:, None, None, None]
    # Counted apart from gradients that are zero already in the margin.
    vanished = (scaled.flatten(1) == 0).all(1) & (gradient.flatten(1) != 0).any(1)
    problem.spent.zero_gradients += int(vanished.sum())
    return scaled


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """(B, 3, H, W) gradients -> steepest direction of norm 1: the sign (linf), or the normalised gradient (l2).

    A zero gradient stays zero.
    """
    if norm == "linf":
        return gradient.sign()
    # Squares of small gradients underflow in float32, so the largest value is divided out first.
    scaled = gradient / gradient.flatten(1).abs().amax(1).clamp(min=1e-38)[:, None, None, None]
    scaled /= scaled.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
    return scaled


def attack_name(attack: str, loss: Loss) -> str:
    """`pgd`, or `pgd_cross_entropy` where the loss is not the margin."""
    return attack if loss == "margin" else f"{attack}_{loss}"


def check_counts(**counts: int) -> None:
    """Check that steps, restarts and the like are at least 1.

    Raises:
        AttackError: one is not.
    """
    for name, count in counts.items():
        if count < 1:
            raise AttackError(f"{name} is {count}; it must be an integer of at least 1.")


def check_loss(loss: str) -> None:
    """Check that a loss exists.

    Raises:
        AttackError: another name; the message says why it is not DLR.
    """
    if loss not in get_args(Loss):
        raise AttackError(
            f"loss is {loss!r}; it is one of {', '.join(get_args(Loss))}. (DLR divides by the "
            "difference to a third class, and a verdict has two.)"
        )
