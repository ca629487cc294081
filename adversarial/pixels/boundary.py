"""Minimum-norm attacks: DeepFool and FAB look for the nearest misjudged picture, whatever the budget.

Other attacks take a budget and ask whether it suffices; these ask how large a budget is needed, and then report what
the given one allows. A picture just beyond the boundary often falls back when it is stored as bytes. While budget is
left, going on in the same direction is free, so both the point found and its change scaled up to the whole budget are
tried.

Both linearise the margin: with margin g(x) and gradient w, the boundary near x is the plane g(x) + w (z - x) = 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adversarial.errors import AttackError
from adversarial.problem import AttackResult, Problem
from adversarial.threat import perturbation_norm

from .nearest import NearestPoints
from .plane import dual_norm, project_onto_plane
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
    """Points queried, at most."""
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
        return self.search(problem).best_within_budget()

    def search(self, problem: Problem) -> NearestPoints:
        """The first misjudged point of each image; a row is done early once one lies within the budget."""
        points, norm = NearestPoints(problem, self.steps), problem.threat.norm

        def move(clean: Tensor, here: Tensor, margin: Tensor, gradient: Tensor) -> Tensor:
            # Section 2: the distance to the plane is g(x) / |w|.
            far = margin / dual_norm(gradient, norm).clamp(min=1e-30) * (1 + self.overshoot)
            # Where the gradient is nearly zero the step would be endless; the pixel range stops it anyway.
            far = far.clamp(max=1e6)[:, None, None, None]
            return (here - far * direction(gradient, norm)).clamp(0.0, 1.0)

        points.iterate(move, self.steps, stop_beyond=True)
        return points


@dataclass(frozen=True)
class FAB:
    """Fast adaptive boundary attack: follow the boundary to where it is nearest to the clean image.

    Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", algorithm 1
    for two classes. Both the current point and the clean image are projected onto the plane within [0, 1]; the next
    point is a mean of the two, biased towards the clean image. A misjudged point is recorded and pulled back towards
    the clean image. Here a point that was pulled back is queried before the next projection, so that each step is one
    gradient. A bisection ends the search.

    The threat's epsilon enters the search only as the radius of random restarts for images without a misjudged point.

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
        return self.search(problem).best_within_budget()

    def search(self, problem: Problem) -> NearestPoints:
        """The nearest misjudged point found of each image; rows are done early as in `run`."""
        points, norm = NearestPoints(problem, self.steps * self.restarts + self.halvings), problem.threat.norm

        def move(clean: Tensor, here: Tensor, margin: Tensor, gradient: Tensor) -> Tensor:
            # Algorithm 1: project the point and the clean image, and average them by their distances.
            near = project_onto_plane(here, gradient, margin, norm) - here
            margin_at_clean = margin + (gradient * (clean - here)).flatten(1).sum(1)
            home = project_onto_plane(clean, gradient, margin_at_clean, norm) - clean
            distances = perturbation_norm(near, norm), perturbation_norm(home, norm)
            share = (distances[0] / (distances[0] + distances[1]).clamp(min=1e-12)).clamp(max=self.alpha_max)
            share = share[:, None, None, None]
            ahead = (1 - share) * (here + self.eta * near) + share * (clean + self.eta * home)
            # Algorithm 1, backward step with beta: from beyond the boundary, go back towards the clean image.
            back = clean + self.beta * (here - clean)
            return torch.where((margin < 0)[:, None, None, None], back, ahead.clamp(0.0, 1.0))

        points.iterate(move, self.steps, self.restarts)
        self._bisect(points)
        return points

    def _bisect(self, points: NearestPoints) -> None:
        """Shorten the changes found: on the line from the clean image the margin may cross zero earlier."""
        problem, far = points.problem, points.nearest.clone()
        low, high = torch.zeros(len(problem)), torch.ones(len(problem))
        for _ in range(self.halvings):
            left = points.search.active & points.distance.isfinite()
            for rows in problem.batches(left.nonzero().flatten()):
                middle = (low[rows] + high[rows]) / 2
                clean = problem.images[rows]
                pixels = clean + middle[:, None, None, None] * (far[rows] - clean)
                margin = problem.signed_margins(pixels, rows)
                points.update(rows, pixels, margin)
                low[rows] = torch.where(margin < 0, low[rows], middle)
                high[rows] = torch.where(margin < 0, middle, high[rows])
