"""APGD: projected gradient descent with an adaptive step size.

Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
section 3 and algorithm 1. It begins with steps of 2 epsilon and momentum. At checkpoints with ever shorter spans, an
image whose margin did not fall often enough, or whose best did not improve, returns to its best point with half the
step size.

The paper's own loss, DLR, divides by a difference to the third largest logit; a verdict has two classes, so there is
no DLR here. The margin does what DLR is for: it has no scale that could saturate (`adversarial/pixels/pgd.py` compares
it with cross-entropy).
"""

import itertools
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from adversarial.problem import AttackResult, Problem
from adversarial.search import Search

from .steps import Loss, attack_name, check_counts, check_loss, direction, loss_gradient, starting_points

_ALPHA = 0.75
"""Weight of the new step against momentum (section 3.1)."""
_RHO = 0.75
"""Share of steps between checkpoints that must have helped, else the step size is halved (section 3.2)."""


@dataclass(frozen=True)
class APGD:
    """Auto-PGD with restarts, keeping the best point of all runs.

    Steps are counted as in PGD: the first run starts at the clean image, whose margin is known, and moves at once;
    any other start is queried and costs one of its run's steps.

    Raises:
        AttackError: counts below 1, or a loss that does not exist.
    """

    steps: int = 100
    """Points queried in each run; the checkpoints are shares of it."""
    restarts: int = 1
    """Runs for each image; later ones start at random points, and only where earlier ones failed."""
    loss: Loss = "margin"
    early_stop: bool = True
    """Whether an image is done once it is misjudged; otherwise all steps go into the lowest margin."""
    start: Tensor | None = field(default=None, compare=False, repr=False)
    """(N, 3, H, W) where the first run begins, brought into the budget; None: the clean images."""

    needs_gradients = True

    def __post_init__(self) -> None:
        check_counts(steps=self.steps, restarts=self.restarts)
        check_loss(self.loss)

    @property
    def name(self) -> str:
        """Its name in tables."""
        return attack_name("apgd", self.loss)

    def starting_at(self, pixels: Tensor) -> "APGD":
        """The same attack with its first run at (N, 3, H, W) pixels."""
        return replace(self, start=pixels)

    def run(self, problem: Problem) -> AttackResult:
        """Descend for every image until it is misjudged or the steps are used up."""
        search = Search(problem, self.steps * self.restarts, self.early_stop)
        state = _RunState(problem, self.loss, starting_points(problem, self.start))
        # The margins of the clean images are known, so this takes no step of the budget.
        if self.start is None:
            for rows in search.batches():
                _, gradient = problem.gradient(state.points[rows], rows)
                state.start_run(rows, problem.clean_margins()[rows], gradient)
        stops = checkpoints(self.steps)
        spans = {stop: stop - last for last, stop in itertools.pairwise(stops)}
        while batches := search.batches():
            for rows in batches:
                # Active rows take one step per round, so all of them are at the same step.
                run, place = divmod(int(search.steps_taken[rows[0]]), self.steps)
                from_clean = run == 0 and self.start is None
                here = state.points[rows]
                # The last point of a run is only queried: no step follows it.
                if place == self.steps - 1:
                    margin = problem.signed_margins(here, rows)
                    if run + 1 < self.restarts:
                        state.points[rows] = problem.restart_points(rows, run + 1, "apgd")
                else:
                    margin, gradient = problem.gradient(here, rows)
                    # A run from another start begins once its start has been queried.
                    if place == 0 and not from_clean:
                        state.start_run(rows, margin, gradient)
                    else:
                        moves = place + 1 if from_clean else place
                        state.step(rows, margin, gradient, spans.get(moves, 0))
                search.update(rows, here, margin)
        return search.result


def checkpoints(steps: int) -> list[int]:
    """Steps at which the step size may be halved (section 3.2): 0, 22 %, then ever shorter spans, 6 % at least."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # 0.22 + 0.19 is 0.41000000000000003 in floats, and must not be rounded up to one more step.
    return sorted({min(math.ceil(share * steps - 1e-9), steps) for share in shares})


class _RunState:
    """The point, momentum and step size of each of N images in its run; (N, 3, H, W) and (N,) tensors."""

    def __init__(self, problem: Problem, loss: Loss, points: Tensor) -> None:
        self.problem, self.loss = problem, loss
        self.points, self.before = points, points.clone()
        """The next point to query, and the one before the last, for momentum."""
        self.best, self.best_gradient = points.clone(), torch.zeros_like(points)
        self.value, self.best_value, self.checked_value = torch.zeros(3, len(points))
        """Loss at the last point, at the best one of this run, and at the best one as of the last checkpoint."""
        self.size, self.checked_size = torch.zeros(2, len(points))
        """Step size, now and between the last two checkpoints."""
        self.falls = torch.zeros(len(points))
        """Steps since the last checkpoint that lowered the loss."""

    def start_run(self, rows: Tensor, margin: Tensor, gradient: Tensor) -> None:
        """Start a run of (B,) rows with (B,) margins and (B, 3, H, W) gradients, by a step of 2 epsilon."""
        here = self.points[rows]
        gradient = loss_gradient(self.problem, margin, gradient, self.loss)
        self.best[rows], self.best_gradient[rows], self.before[rows] = here, gradient, here
        self.value[rows] = self.best_value[rows] = self.checked_value[rows] = self._loss(margin)
        self.size[rows] = self.checked_size[rows] = 2 * self.problem.threat.epsilon
        self.falls[rows] = 0
        self.points[rows] = self._plain_step(rows, here, gradient)

    def step(self, rows: Tensor, margin: Tensor, gradient: Tensor, span: int) -> None:
        """Take (B,) margins and (B, 3, H, W) gradients of (B,) rows, and move them.

        `span` is the number of steps since the last checkpoint at a checkpoint, else 0.
        """
        here, value = self.points[rows], self._loss(margin)
        gradient = loss_gradient(self.problem, margin, gradient, self.loss)
        self.falls[rows] += (value < self.value[rows]).float()
        self.value[rows] = value
        better = value < self.best_value[rows]
        chosen = rows[better]
        self.best[chosen], self.best_gradient[chosen] = here[better], gradient[better]
        self.best_value[chosen] = value[better]
        # Momentum is relative to the point before this one, even where a row now returns to its best point.
        before = self.before[rows]
        if span:
            back = self._halve(rows, span)[:, None, None, None]
            here = torch.where(back, self.best[rows], here)
            gradient = torch.where(back, self.best_gradient[rows], gradient)
        # Algorithm 1: the plain step and momentum, then projected.
        moved = (
            here + _ALPHA * (self._plain_step(rows, here, gradient) - here) + (1 - _ALPHA) * (here - before)
        )
        self.before[rows] = here
        self.points[rows] = self.problem.threat.project(moved, self.problem.images[rows])

    def _halve(self, rows: Tensor, span: int) -> Tensor:
        """(B,) bool, rows that halve the step and return to their best point: conditions 1 and 2 of section 3.2."""
        # Condition 1: too few steps since the last checkpoint lowered the loss.
        too_few = self.falls[rows] < _RHO * span
        size, best = self.size[rows], self.best_value[rows]
        # Condition 2: neither the step size nor the best loss changed since the last checkpoint.
        stuck = (self.checked_size[rows] == size) & (self.checked_value[rows] == best)
        halved: Tensor = too_few | stuck
        self.checked_size[rows], self.checked_value[rows], self.falls[rows] = size, best, 0.0
        self.size[rows] = torch.where(halved, size / 2, size)
        self.value[rows] = torch.where(halved, best, self.value[rows])
        return halved

    def _plain_step(self, rows: Tensor, here: Tensor, gradient: Tensor) -> Tensor:
        """(B, 3, H, W) points and gradients of (B,) rows -> the plain projected step, z in algorithm 1."""
        threat = self.problem.threat
        step = self.size[rows][:, None, None, None] * direction(gradient, threat.norm)
        return threat.project(here - step, self.problem.images[rows])

    def _loss(self, margin: Tensor) -> Tensor:
        """(B,) signed margins -> (B,) what is minimised."""
        if self.loss == "margin":
            return margin
        # Cross-entropy of the true verdict is softplus(-margin); the attack maximises it.
        entropy: Tensor = softplus(-margin)
        return entropy.neg()
