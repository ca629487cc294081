"""The decision boundary linearised: the nearest point of a plane within [0, 1], and how steep the margin is."""

import torch
from torch import Tensor

from adversarial.threat import Norm


def dual_norm(gradient: Tensor, norm: Norm) -> Tensor:
    """(B, 3, H, W) gradients -> (B,) how much the margin falls for a step of length 1 in the norm.

    That is the L1 norm of the gradient for linf, its L2 norm for l2.
    """
    flat = gradient.flatten(1)
    if norm == "linf":
        return flat.abs().sum(1)
    steep: Tensor = flat.double().norm(dim=1)
    return steep.to(gradient.dtype)


def project_onto_plane(pixels: Tensor, gradient: Tensor, margin: Tensor, norm: Norm) -> Tensor:
    """The nearest points of [0, 1] on the planes `margin + gradient * (z - pixels) = 0`, exactly.

    Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", section 2.2.
    At the solution every value has moved by `t` (linf), or by `t` times its slope (l2), unless it met the edge of the
    pixel range first. So the margin falls with `t` piecewise linearly, with a bend wherever a value meets its edge;
    sorted by that, the piece in which it becomes zero is read off.

    Args:
        pixels: (B, 3, H, W) in [0, 1].
        gradient: (B, 3, H, W).
        margin: (B,), of either sign.
        norm: in which they are nearest.

    Returns:
        (B, 3, H, W) in [0, 1]; where a plane misses the pixel range, the corner nearest to it.
    """
    start = pixels.flatten(1).double()  # (B, D): sums over all values need float64
    slope = gradient.flatten(1).double() * torch.where(margin < 0, -1.0, 1.0)[:, None]
    needed = margin.abs().double()[:, None]  # (B, 1)
    room = torch.where(slope > 0, start, 1 - start)
    weight = slope.abs()
    # How far each value moves for a unit of t: 1 where it has a slope (linf), or its slope (l2).
    pace = (weight > 0).double() if norm == "linf" else weight
    at_edge = torch.where(pace > 0, room / pace.clamp(min=1e-300), 0.0)
    until, order = at_edge.sort(dim=1)  # (B, D) values of t at the bends, ascending
    rate = (weight * pace).gather(1, order)
    moving = rate.flip(1).cumsum(1).flip(1)  # slope of the piece that ends at each bend
    fallen = (rate * until).cumsum(1) - rate * until + until * moving
    # (B, 1) index of the piece in which the margin reaches zero; clamped where it never does.
    piece = torch.searchsorted(fallen, needed).clamp(max=fallen.shape[1] - 1)
    excess = (fallen.gather(1, piece) - needed).clamp(min=0)
    time = until.gather(1, piece) - excess / moving.gather(1, piece).clamp(min=1e-300)
    moved = start - slope.sign() * torch.minimum(time.clamp(min=0) * pace, room)
    return moved.to(pixels.dtype).reshape(pixels.shape)
