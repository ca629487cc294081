"""The decision boundary taken as a plane: the nearest point on it within [0, 1], and the nearest one found so far."""

from collections.abc import Callable

import torch
from torch import Tensor

from adversarial.problem import AttackResult, Problem
from adversarial.search import Search
from adversarial.threat import Norm, perturbation_norm

Move = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(clean, here, margin, gradient) of a batch -> where it is asked next."""


class Boundary:
    """The nearest misjudged point of each image, and, if asked for, what the budget allows of it.

    Attributes:
        problem: what is attacked.
        search: steps taken, who is open, and the best within the budget.
        nearest: (N, 3, H, W) the nearest misjudged pixels; clean ones where there are none.
        distance: (N,) how far they are, inf where there are none.
    """

    def __init__(self, problem: Problem, limit: int, *, within_budget: bool = False) -> None:
        """Start with the clean images; with `within_budget` a row closes as soon as the budget suffices."""
        self.problem, self.within_budget = problem, within_budget
        # Walks count their steps themselves. One more than they take, so that only success closes a row.
        self.search = Search(problem, limit + 1)
        self._done = self.search.result.misjudged.clone()
        self.nearest = problem.images.clone()
        self.distance = torch.where(self.search.result.misjudged, 0.0, torch.inf)

    def update(self, rows: Tensor, pixels: Tensor, margin: Tensor) -> None:
        """Count one step of (B,) rows at `pixels`, which need not keep the budget."""
        problem = self.problem
        self.search.steps_taken[rows] += 1
        distance = perturbation_norm(pixels - problem.images[rows], problem.threat.norm)
        better = (margin < 0) & (distance < self.distance[rows])
        chosen = rows[better]
        self.nearest[chosen], self.distance[chosen] = pixels[better], distance[better]
        if self.within_budget:
            fits = better & (distance <= problem.threat.epsilon)
            self._offer(rows[fits], pixels[fits], margin[fits])

    def best_within_budget(self, last: Tensor) -> AttackResult:
        """The best within the budget; (N, 3, H, W) `last` stands in where nothing misjudged was found."""
        known = self.distance.isfinite()[:, None, None, None]
        pixels = torch.where(known, self.nearest, last)
        for rows in self.problem.batches((~self._done).nonzero().flatten()):
            self._offer(rows, pixels[rows], None)
        return self.search.result

    def _offer(self, rows: Tensor, pixels: Tensor, margin: Tensor | None) -> None:
        """Report the nearest point within the budget, and the change scaled to all of it."""
        if not len(rows):
            return
        problem, steps = self.problem, self.search.steps_taken[rows].clone()
        inside = problem.threat.project(pixels, problem.images[rows])
        self._report(rows, inside, problem.signed_margins(inside, rows) if margin is None else margin, steps)
        left = ~self._done[rows]
        rows, pixels, steps = rows[left], pixels[left], steps[left]
        if not len(rows):
            return
        clean = problem.images[rows]
        change = pixels - clean
        scale = problem.threat.epsilon / perturbation_norm(change, problem.threat.norm).clamp(min=1e-12)
        scaled = problem.threat.project(clean + scale[:, None, None, None] * change, clean)
        self._report(rows, scaled, problem.signed_margins(scaled, rows), steps)

    def _report(self, rows: Tensor, pixels: Tensor, margin: Tensor, steps: Tensor) -> None:
        # What is offered at a step is part of that step: the count is the walk's, not the offers'.
        self.search.steps_taken[rows] = steps - 1
        self.search.update(rows, pixels, margin)
        self._done[rows] = ~self.search.active[rows]


def walk(boundary: Boundary, steps: int, restarts: int, move: Move, *, stop_beyond: bool) -> Tensor:
    """Move all open images `steps` times in each run; -> (N, 3, H, W) where they stood last."""
    problem, search = boundary.problem, boundary.search
    points = problem.images.clone()
    for rows in search.batches():
        _, gradient = problem.gradient(points[rows], rows)
        points[rows] = move(points[rows], points[rows], problem.clean_margins()[rows], gradient)
    last = points.clone()
    for step in range(1, steps * restarts + 1):
        for rows in search.batches():
            here = last[rows] = points[rows]
            if step % steps:
                margin, gradient = problem.gradient(here, rows)
                points[rows] = move(problem.images[rows], here, margin, gradient)
            else:
                margin = problem.signed_margins(here, rows)
            boundary.update(rows, here, margin)
            if stop_beyond:
                search.active[rows] &= margin >= 0
            if not step % steps and step < steps * restarts:
                points[rows] = restart(boundary, rows, step // steps)
    return last


def restart(boundary: Boundary, rows: Tensor, restart: int) -> Tensor:
    """Random points half as far from the clean image as the nearest found, or as the budget (algorithm 1)."""
    problem, norm = boundary.problem, boundary.problem.threat.norm
    kind = "uniform" if norm == "linf" else "normal"
    change = problem.draw_noise(rows, f"fab/{restart}", kind)
    known = boundary.distance[rows]
    radius = torch.where(known.isfinite(), known, torch.tensor(problem.threat.epsilon)) / 2
    change = change * (radius / perturbation_norm(change, norm).clamp(min=1e-12))[:, None, None, None]
    return (problem.images[rows] + change).clamp(0.0, 1.0)


def dual_length(gradient: Tensor, norm: Norm) -> Tensor:
    """(B,) how much the margin falls for a step of length 1 in the norm: L1 norm (linf) or L2 norm (l2)."""
    flat = gradient.flatten(1)
    if norm == "linf":
        return flat.abs().sum(1)
    steep: Tensor = flat.double().norm(dim=1)
    return steep.to(gradient.dtype)


def onto_plane(pixels: Tensor, gradient: Tensor, margin: Tensor, norm: Norm) -> Tensor:
    """The nearest points of [0, 1] on the planes `margin + gradient * (z - pixels) = 0`, exactly.

    Croce and Hein 2020, section 2.2. At the solution every value has moved by `t` (linf), or by `t` times its slope
    (l2), unless it met the edge of the pixel range first. So the margin falls with `t` in straight pieces, which bend
    where a value meets its edge; sorted by that, the piece in which it becomes zero is read off.

    Args:
        pixels: (B, 3, H, W) in [0, 1].
        gradient: (B, 3, H, W).
        margin: (B,), of either sign.
        norm: in which they are nearest.

    Returns:
        (B, 3, H, W) in [0, 1]; where a plane misses the pixel range, the corner nearest to it.
    """
    start = pixels.flatten(1).double()
    slope = gradient.flatten(1).double() * torch.where(margin < 0, -1.0, 1.0)[:, None]
    needed = margin.abs().double()[:, None]
    room = torch.where(slope > 0, start, 1 - start)
    weight = slope.abs()
    pace = (weight > 0).double() if norm == "linf" else weight
    at_edge = torch.where(pace > 0, room / pace.clamp(min=1e-300), 0.0)
    until, order = at_edge.sort(dim=1)
    rate = (weight * pace).gather(1, order)
    moving = rate.flip(1).cumsum(1).flip(1)
    fallen = (rate * until).cumsum(1) - rate * until + until * moving
    piece = torch.searchsorted(fallen, needed).clamp(max=fallen.shape[1] - 1)
    excess = (fallen.gather(1, piece) - needed).clamp(min=0)
    time = until.gather(1, piece) - excess / moving.gather(1, piece).clamp(min=1e-300)
    moved = start - slope.sign() * torch.minimum(time.clamp(min=0) * pace, room)
    return moved.to(pixels.dtype).reshape(pixels.shape)
