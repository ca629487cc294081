"""Minimum-norm attacks: DeepFool and FAB look for the nearest picture that is misjudged, whatever the budget.

Other attacks take a budget and ask whether it suffices. These ask how much would, so that one run answers for every
epsilon of a grid (`distances`). As attacks within a budget (`run`) they report what the budget allows of what they
found. A picture just beyond the boundary often falls back when it is stored as bytes; as long as budget is left, going
on in the same direction is free, so both the point found and the change scaled up to the whole budget are reported.

Both linearise the margin: with margin g(x) and gradient w, the boundary near x is the plane g(x) + w (z - x) = 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adversarial.errors import AttackError
from adversarial.problem import AttackResult, Problem
from adversarial.threat import perturbation_norm

from .plane import Boundary, dual_length, onto_plane, walk
from .steps import check_counts, direction


@dataclass(frozen=True)
class DeepFool:
    """Step onto the boundary of the linear model, again and again until it is crossed.

    Moosavi-Dezfooli et al. 2016, "DeepFool: a simple and accurate method to fool deep neural networks", section 2 (two
    classes) and section 3.3 (other norms). The step is `margin / |w|` long, |w| in the dual norm: the L1 norm of the
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

    def run(self, problem: Problem) -> AttackResult:
        """Walk to the boundary, then report what the budget allows of the way."""
        boundary = Boundary(problem, self.steps, within_budget=True)
        last = self._walk(boundary)
        return boundary.best_within_budget(last)

    def distances(self, problem: Problem) -> Tensor:
        """(N,) size of the change, in the threat's norm, that first crossed the boundary.

        0 for clean images that are misjudged already, inf where no step crossed. It is an upper bound.
        """
        boundary = Boundary(problem, self.steps)
        self._walk(boundary)
        return boundary.distance

    def _walk(self, boundary: "Boundary") -> Tensor:
        norm = boundary.problem.threat.norm

        def move(clean: Tensor, here: Tensor, margin: Tensor, gradient: Tensor) -> Tensor:
            far = margin / dual_length(gradient, norm).clamp(min=1e-30) * (1 + self.overshoot)
            # Where the gradient is nearly nothing the step would be endless; the pixel range stops it anyway.
            far = far.clamp(max=1e6)[:, None, None, None]
            return (here - far * direction(gradient, norm)).clamp(0.0, 1.0)

        return walk(boundary, self.steps, 1, move, stop_beyond=True)


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

    def run(self, problem: Problem) -> AttackResult:
        """Search; an image is done once a point within the budget survives storing."""
        boundary = Boundary(problem, self._limit, within_budget=True)
        last = self._walk(boundary)
        return boundary.best_within_budget(last)

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

        def move(clean: Tensor, here: Tensor, margin: Tensor, gradient: Tensor) -> Tensor:
            near = onto_plane(here, gradient, margin, norm) - here
            home = (
                onto_plane(clean, gradient, margin + (gradient * (clean - here)).flatten(1).sum(1), norm)
                - clean
            )
            ways = perturbation_norm(near, norm), perturbation_norm(home, norm)
            share = (ways[0] / (ways[0] + ways[1]).clamp(min=1e-12)).clamp(max=self.alpha_max)
            share = share[:, None, None, None]
            ahead = (1 - share) * (here + self.eta * near) + share * (clean + self.eta * home)
            back = clean + self.beta * (here - clean)
            return torch.where((margin < 0)[:, None, None, None], back, ahead.clamp(0.0, 1.0))

        last = walk(boundary, self.steps, self.restarts, move, stop_beyond=False)
        self._bisect(boundary)
        return last

    def _bisect(self, boundary: "Boundary") -> None:
        """Shorten the changes found; along the way from the clean image the margin may cross zero earlier."""
        problem, far = boundary.problem, boundary.nearest.clone()
        low, high = torch.zeros(len(problem)), torch.ones(len(problem))
        for _ in range(self.halvings):
            for rows in problem.batches(
                (boundary.search.active & boundary.distance.isfinite()).nonzero().flatten()
            ):
                middle = (low[rows] + high[rows]) / 2
                clean = problem.images[rows]
                pixels = clean + middle[:, None, None, None] * (far[rows] - clean)
                margin = problem.signed_margins(pixels, rows)
                boundary.update(rows, pixels, margin)
                low[rows] = torch.where(margin < 0, low[rows], middle)
                high[rows] = torch.where(margin < 0, middle, high[rows])
