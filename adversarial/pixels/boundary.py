"""Minimum-norm attacks: DeepFool and FAB look for the nearest picture that is misjudged, whatever the budget.

Other attacks take a budget and ask whether it suffices. These ask how much would, so that one run answers for every
epsilon of a grid (`distances`). As attacks within a budget (`run`) they report what the budget allows of what they
found. A picture just beyond the boundary often falls back when it is stored as bytes; as long as budget is left, going
on in the same direction is free, so both the point found and the change scaled up to the whole budget are reported.

Both see the victim as a plane: with the gap g(x) and its gradient w, the boundary near x is where g(x) + w (z - x) = 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adversarial.errors import AttackError
from adversarial.problem import Found, Problem, Search
from adversarial.threat import Norm, length

from .pgd import check_counts, direction

_Move = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(clean, here, gap, gradient) of a batch -> where it is asked next."""


@dataclass(frozen=True)
class DeepFool:
    """Step onto the boundary of the linear model, again and again until it is crossed.

    Moosavi-Dezfooli et al. 2016, "DeepFool: a simple and accurate method to fool deep neural networks", section 2 (two
    classes) and section 3.3 (other norms). The step is `gap / |w|` long, |w| in the dual norm: the L1 norm of the
    gradient for L-inf, its L2 norm for L2. The overshoot belongs to each single step. (UnsafeBench's code multiplies
    the whole change by 1.02 at every step, which makes it 7.2 times as long after 100.)

    Raises:
        AttackError: no steps, or a negative overshoot.
    """

    steps: int = 50
    """Points asked about, at most."""
    overshoot: float = 0.02
    """How much further each step goes than the plane."""

    name = "deepfool"
    needs_gradients = True

    def __post_init__(self) -> None:
        check_counts(steps=self.steps)
        if self.overshoot < 0:
            raise AttackError(f"overshoot is {self.overshoot}; it is 0 or more (0.02 is usual).")

    def run(self, problem: Problem) -> Found:
        """Walk to the boundary, then report what the budget allows of the way."""
        boundary = Boundary(problem, self.steps, within_budget=True)
        last = self._walk(boundary)
        return boundary.found(last)

    def distances(self, problem: Problem) -> Tensor:
        """(N,) size of the change, in the threat's norm, that first crossed the boundary.

        0 for clean images that are misjudged already, inf where no step crossed. It is an upper bound.
        """
        boundary = Boundary(problem, self.steps)
        self._walk(boundary)
        return boundary.distance

    def _walk(self, boundary: "Boundary") -> Tensor:
        norm = boundary.problem.threat.norm

        def move(clean: Tensor, here: Tensor, gap: Tensor, gradient: Tensor) -> Tensor:
            far = gap / dual_length(gradient, norm).clamp(min=1e-30) * (1 + self.overshoot)
            # Where the gradient is nearly nothing the step would be endless; the pixel range stops it anyway.
            far = far.clamp(max=1e6)[:, None, None, None]
            return (here - far * direction(gradient, norm)).clamp(0.0, 1.0)

        return _walk(boundary, self.steps, 1, move, stop_beyond=True)


@dataclass(frozen=True)
class FAB:
    """Fast adaptive boundary attack: follow the boundary to where it is nearest to the clean image.

    Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", algorithm 1
    for two classes. From each point the plane is approached twice, from the point itself and from the clean image,
    both exactly within [0, 1]; the next point is a mean of the two, drawn towards the clean one. A misjudged point is
    recorded and pulled back towards the clean image. Here a point pulled back is asked about before the next
    projection, so that each step is one gradient. A bisection ends the search.

    The threat's epsilon plays no part in the search, but for how far random restarts begin from images of which
    nothing is found yet.

    Raises:
        AttackError: counts below 1, or shares out of range.
    """

    steps: int = 100
    """Gradients taken in each run."""
    restarts: int = 1
    """Runs for each image; the first starts at the clean image."""
    alpha_max: float = 0.1
    """Largest weight of the projection of the clean image."""
    eta: float = 1.05
    """Extrapolation beyond the plane."""
    beta: float = 0.9
    """What is left of a change when it is pulled back."""
    halvings: int = 10
    """Of the final search between the clean image and the nearest point found."""

    name = "fab"
    needs_gradients = True

    def __post_init__(self) -> None:
        check_counts(steps=self.steps, restarts=self.restarts)
        if not (0 <= self.alpha_max <= 1 and self.eta >= 1 and 0 < self.beta < 1 and self.halvings >= 0):
            raise AttackError(
                f"alpha_max={self.alpha_max} lies in [0, 1], eta={self.eta} is 1 or more, beta={self.beta} lies "
                f"between 0 and 1, halvings={self.halvings} is 0 or more; the paper has 0.1, 1.05 and 0.9."
            )

    def run(self, problem: Problem) -> Found:
        """Search; an image is done once a point within the budget survives storing."""
        boundary = Boundary(problem, self._limit, within_budget=True)
        last = self._walk(boundary)
        return boundary.found(last)

    def distances(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """(N,) smallest change found, in the threat's norm, and the pixels (N, 3, H, W) it leads to.

        0 and the clean pixels where those are misjudged already; inf and the clean pixels where nothing was found.
        """
        boundary = Boundary(problem, self._limit)
        self._walk(boundary)
        return boundary.distance, boundary.nearest

    @property
    def _limit(self) -> int:
        return self.steps * self.restarts + self.halvings

    def _walk(self, boundary: "Boundary") -> Tensor:
        norm = boundary.problem.threat.norm

        def move(clean: Tensor, here: Tensor, gap: Tensor, gradient: Tensor) -> Tensor:
            near = onto_plane(here, gradient, gap, norm) - here
            home = (
                onto_plane(clean, gradient, gap + (gradient * (clean - here)).flatten(1).sum(1), norm) - clean
            )
            ways = length(near, norm), length(home, norm)
            share = (ways[0] / (ways[0] + ways[1]).clamp(min=1e-12)).clamp(max=self.alpha_max)
            share = share[:, None, None, None]
            ahead = (1 - share) * (here + self.eta * near) + share * (clean + self.eta * home)
            back = clean + self.beta * (here - clean)
            return torch.where((gap < 0)[:, None, None, None], back, ahead.clamp(0.0, 1.0))

        last = _walk(boundary, self.steps, self.restarts, move, stop_beyond=False)
        self._bisect(boundary)
        return last

    def _bisect(self, boundary: "Boundary") -> None:
        """Shorten the changes found; along the way from the clean image the gap may cross zero earlier."""
        problem, far = boundary.problem, boundary.nearest.clone()
        low, high = torch.zeros(len(problem)), torch.ones(len(problem))
        for _ in range(self.halvings):
            for rows in problem.batches(
                (boundary.search.open & boundary.distance.isfinite()).nonzero().flatten()
            ):
                middle = (low[rows] + high[rows]) / 2
                clean = problem.images[rows]
                pixels = clean + middle[:, None, None, None] * (far[rows] - clean)
                gap = problem.gap(pixels, rows)
                boundary.report(rows, pixels, gap)
                low[rows] = torch.where(gap < 0, low[rows], middle)
                high[rows] = torch.where(gap < 0, middle, high[rows])


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
        self._done = self.search.found.misjudged.clone()
        self.nearest = problem.images.clone()
        self.distance = torch.where(self.search.found.misjudged, 0.0, torch.inf)

    def report(self, rows: Tensor, pixels: Tensor, gap: Tensor) -> None:
        """Count one step of (B,) rows at `pixels`, which need not keep the budget."""
        problem = self.problem
        self.search.taken[rows] += 1
        distance = length(pixels - problem.images[rows], problem.threat.norm)
        better = (gap < 0) & (distance < self.distance[rows])
        chosen = rows[better]
        self.nearest[chosen], self.distance[chosen] = pixels[better], distance[better]
        if self.within_budget:
            fits = better & (distance <= problem.threat.epsilon)
            self._offer(rows[fits], pixels[fits], gap[fits])

    def found(self, last: Tensor) -> Found:
        """The best within the budget; (N, 3, H, W) `last` stands in where nothing misjudged was found."""
        known = self.distance.isfinite()[:, None, None, None]
        pixels = torch.where(known, self.nearest, last)
        for rows in self.problem.batches((~self._done).nonzero().flatten()):
            self._offer(rows, pixels[rows], None)
        return self.search.found

    def _offer(self, rows: Tensor, pixels: Tensor, gap: Tensor | None) -> None:
        """Report the nearest point within the budget, and the change scaled to all of it."""
        if not len(rows):
            return
        problem, steps = self.problem, self.search.taken[rows].clone()
        inside = problem.threat.project(pixels, problem.images[rows])
        self._report(rows, inside, problem.gap(inside, rows) if gap is None else gap, steps)
        left = ~self._done[rows]
        rows, pixels, steps = rows[left], pixels[left], steps[left]
        if not len(rows):
            return
        clean = problem.images[rows]
        change = pixels - clean
        scale = problem.threat.epsilon / length(change, problem.threat.norm).clamp(min=1e-12)
        scaled = problem.threat.project(clean + scale[:, None, None, None] * change, clean)
        self._report(rows, scaled, problem.gap(scaled, rows), steps)

    def _report(self, rows: Tensor, pixels: Tensor, gap: Tensor, steps: Tensor) -> None:
        # What is offered at a step is part of that step: the count is the walk's, not the offers'.
        self.search.taken[rows] = steps - 1
        self.search.report(rows, pixels, gap)
        self._done[rows] = ~self.search.open[rows]


def _walk(boundary: Boundary, steps: int, restarts: int, move: _Move, *, stop_beyond: bool) -> Tensor:
    """Move all open images `steps` times in each run; -> (N, 3, H, W) where they stood last."""
    problem, search = boundary.problem, boundary.search
    points = problem.images.clone()
    for rows in search.batches():
        _, gradient = problem.gradient(points[rows], rows)
        points[rows] = move(points[rows], points[rows], problem.clean_gap()[rows], gradient)
    last = points.clone()
    for step in range(1, steps * restarts + 1):
        for rows in search.batches():
            here = last[rows] = points[rows]
            if step % steps:
                gap, gradient = problem.gradient(here, rows)
                points[rows] = move(problem.images[rows], here, gap, gradient)
            else:
                gap = problem.gap(here, rows)
            boundary.report(rows, here, gap)
            if stop_beyond:
                search.open[rows] &= gap >= 0
            if not step % steps and step < steps * restarts:
                points[rows] = _restart(boundary, rows, step // steps)
    return last


def _restart(boundary: Boundary, rows: Tensor, restart: int) -> Tensor:
    """Random points half as far from the clean image as the nearest found, or as the budget (algorithm 1)."""
    problem, norm = boundary.problem, boundary.problem.threat.norm
    kind = "uniform" if norm == "linf" else "normal"
    change = problem.draw(rows, f"fab/{restart}", kind)
    known = boundary.distance[rows]
    radius = torch.where(known.isfinite(), known, torch.tensor(problem.threat.epsilon)) / 2
    change = change * (radius / length(change, norm).clamp(min=1e-12))[:, None, None, None]
    return (problem.images[rows] + change).clamp(0.0, 1.0)


def dual_length(gradient: Tensor, norm: Norm) -> Tensor:
    """(B,) how much the gap falls for a step of length 1 in the norm: L1 norm (linf) or L2 norm (l2)."""
    flat = gradient.flatten(1)
    if norm == "linf":
        return flat.abs().sum(1)
    steep: Tensor = flat.double().norm(dim=1)
    return steep.to(gradient.dtype)


def onto_plane(pixels: Tensor, gradient: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """The nearest points of [0, 1] on the planes `gap + gradient * (z - pixels) = 0`, exactly.

    Croce and Hein 2020, section 2.2. At the solution every value has moved by `t` (linf), or by `t` times its slope
    (l2), unless it met the edge of the pixel range first. So the gap falls with `t` in straight pieces, which bend
    where a value meets its edge; sorted by that, the piece in which it becomes zero is read off.

    Args:
        pixels: (B, 3, H, W) in [0, 1].
        gradient: (B, 3, H, W).
        gap: (B,), of either sign.
        norm: in which they are nearest.

    Returns:
        (B, 3, H, W) in [0, 1]; where a plane misses the pixel range, the corner nearest to it.
    """
    start = pixels.flatten(1).double()
    slope = gradient.flatten(1).double() * torch.where(gap < 0, -1.0, 1.0)[:, None]
    needed = gap.abs().double()[:, None]
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
