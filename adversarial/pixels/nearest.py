"""Search for the nearest misjudged point of each image, as minimum-norm attacks do (DeepFool, FAB)."""

from collections.abc import Callable

import torch
from torch import Tensor

from adversarial.problem import AttackResult, Problem
from adversarial.search import Search
from adversarial.threat import perturbation_norm

Move = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(clean, current, margin, gradient) of a batch -> the next points, (B, 3, H, W) in [0, 1]."""


class NearestPoints:
    """The nearest misjudged point of each image, and the best point within the budget that follows from it.

    Attributes:
        problem: what is attacked.
        search: steps taken, active rows, and the best point within the budget; a row closes once one is found.
        nearest: (N, 3, H, W) the nearest misjudged pixels; the clean ones where none were found.
        distance: (N,) norm of their perturbation, inf where none were found.
        last: (N, 3, H, W) the last point queried.
    """

    def __init__(self, problem: Problem, limit: int) -> None:
        """Start at the clean images; `limit` is the number of steps for each."""
        self.problem = problem
        # `iterate` counts steps itself. With one more allowed than it takes, only success closes a row.
        self.search = Search(problem, limit + 1)
        self._done = self.search.result.misjudged.clone()
        self.nearest = problem.images.clone()
        self.distance = torch.where(self.search.result.misjudged, 0.0, torch.inf)
        self.last = problem.images.clone()

    def iterate(self, move: Move, steps: int, restarts: int = 1, *, stop_beyond: bool = False) -> None:
        """Move all active images `steps` times in each run.

        Args:
            move: the attack's step.
            steps: points queried in each run.
            restarts: runs; later ones start at random points.
            stop_beyond: close a row as soon as it has crossed the boundary.
        """
        problem, search = self.problem, self.search
        points = problem.images.clone()
        for rows in search.batches():
            _, gradient = problem.gradient(points[rows], rows)
            points[rows] = move(points[rows], points[rows], problem.clean_margins()[rows], gradient)
        self.last = points.clone()
        for step in range(1, steps * restarts + 1):
            for rows in search.batches():
                here = self.last[rows] = points[rows]
                # The last point of a run has no successor, so it needs no gradient.
                if step % steps:
                    margin, gradient = problem.gradient(here, rows)
                    points[rows] = move(problem.images[rows], here, margin, gradient)
                else:
                    margin = problem.signed_margins(here, rows)
                self.update(rows, here, margin)
                if stop_beyond:
                    search.active[rows] &= margin >= 0
                if not step % steps and step < steps * restarts:
                    points[rows] = self._random_points(rows, step // steps)

    def update(self, rows: Tensor, pixels: Tensor, margin: Tensor) -> None:
        """Count one step of (B,) rows at (B, 3, H, W) pixels, which may exceed the budget, with (B,) margins."""
        problem = self.problem
        self.search.steps_taken[rows] += 1
        distance = perturbation_norm(pixels - problem.images[rows], problem.threat.norm)
        better = (margin < 0) & (distance < self.distance[rows])
        chosen = rows[better]
        self.nearest[chosen], self.distance[chosen] = pixels[better], distance[better]
        fits = better & (distance <= problem.threat.epsilon)
        self._try_within_budget(rows[fits], pixels[fits], margin[fits])

    def best_within_budget(self) -> AttackResult:
        """What the budget allows of the nearest point, or of the last one where nothing misjudged was found."""
        known = self.distance.isfinite()[:, None, None, None]
        pixels = torch.where(known, self.nearest, self.last)
        for rows in self.problem.batches((~self._done).nonzero().flatten()):
            self._try_within_budget(rows, pixels[rows], None)
        return self.search.result

    def _try_within_budget(self, rows: Tensor, pixels: Tensor, margin: Tensor | None) -> None:
        """Record (B, 3, H, W) pixels projected into the budget, then their change scaled up to all of it."""
        if not len(rows):
            return
        problem, steps = self.problem, self.search.steps_taken[rows].clone()
        inside = problem.threat.project(pixels, problem.images[rows])
        self._record(rows, inside, problem.signed_margins(inside, rows) if margin is None else margin, steps)
        left = ~self._done[rows]
        rows, pixels, steps = rows[left], pixels[left], steps[left]
        if not len(rows):
            return
        # A point just beyond the boundary often falls back when rounded to bytes; going further is free.
        clean = problem.images[rows]
        change = pixels - clean
        scale = problem.threat.epsilon / perturbation_norm(change, problem.threat.norm).clamp(min=1e-12)
        scaled = problem.threat.project(clean + scale[:, None, None, None] * change, clean)
        self._record(rows, scaled, problem.signed_margins(scaled, rows), steps)

    def _record(self, rows: Tensor, pixels: Tensor, margin: Tensor, steps: Tensor) -> None:
        # Both candidates belong to one step of the walk, so the step count is set back before each.
        self.search.steps_taken[rows] = steps - 1
        self.search.update(rows, pixels, margin)
        self._done[rows] = ~self.search.active[rows]

    def _random_points(self, rows: Tensor, restart: int) -> Tensor:
        """(B, 3, H, W) random points half as far out as the nearest found, or as the budget (FAB, algorithm 1)."""
        problem, norm = self.problem, self.problem.threat.norm
        kind = "uniform" if norm == "linf" else "normal"
        change = problem.draw_noise(rows, f"fab/{restart}", kind)
        known = self.distance[rows]
        radius = torch.where(known.isfinite(), known, torch.tensor(problem.threat.epsilon)) / 2
        change = change * (radius / perturbation_norm(change, norm).clamp(min=1e-12))[:, None, None, None]
        return (problem.images[rows] + change).clamp(0.0, 1.0)
