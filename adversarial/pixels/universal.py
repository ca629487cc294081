"""One perturbation for all images: learned on some, measured on others.

Once learned it needs neither the victim nor any computation per image. It shows how far a victim's weaknesses are
shared between images.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from adversarial.errors import AttackError
from adversarial.problem import AttackResult, Problem
from adversarial.search import Search
from adversarial.threat import clip_change, perturbation_norm

from .steps import check_counts, direction


@dataclass(frozen=True)
class UniversalPerturbation:
    """A perturbation that is added to any image."""

    change: Tensor = field(repr=False)
    """(3, H, W), within the epsilon it was learned for."""

    name = "universal"
    needs_gradients = False

    def run(self, problem: Problem) -> AttackResult:
        """Add it to every image, projected into the problem's budget.

        Raises:
            AttackError: images of another size.
        """
        self._check_size(problem)
        search = Search(problem, 1)
        while batches := search.batches():
            for rows in batches:
                pixels = problem.threat.project(problem.images[rows] + self.change, problem.images[rows])
                search.update(rows, pixels, problem.signed_margins(pixels, rows))
        return search.result

    def _check_size(self, problem: Problem) -> None:
        if problem.images.shape[1:] != self.change.shape:
            raise AttackError(
                f"The universal perturbation is {tuple(self.change.shape)}, the images are "
                f"{tuple(problem.images.shape[1:])}; resize the images, or find one on images of their size."
            )


@dataclass(frozen=True)
class Universal:
    """Learn a universal perturbation by stochastic sign steps on the clipped mean margin.

    Shafahi et al. 2020, "Universal adversarial training", section 3 (algorithm 2 and the clipped loss of equation 5):
    each image's loss counts up to a bound only, or a few images that are misjudged already would dominate. The
    DeepFool-based original (Moosavi-Dezfooli et al. 2017) is slower and no stronger. Steps shrink linearly to nothing,
    and the change with most successes on the given images is kept; the lowest clipped margin breaks ties.

    Images of both goals (unsafe to safe, safe to unsafe) pull one change in opposite directions; give one kind.

    Raises:
        AttackError: no epochs, or a step or bound that is not positive.
    """

    epochs: int = 20
    """Passes over the images."""
    alpha: float = 0.25
    """First step, in units of epsilon."""
    bound: float = 1.0
    """How far below zero a margin still counts, in units of the mean clean margin."""

    def __post_init__(self) -> None:
        check_counts(epochs=self.epochs)
        if not (self.alpha > 0 and self.bound > 0):
            raise AttackError(f"alpha={self.alpha} and bound={self.bound} are positive numbers.")

    def fit(self, problem: Problem) -> UniversalPerturbation:
        """Learn the change on a problem's images, those that are misjudged when clean left out.

        Raises:
            AttackError: no image is judged right.
        """
        margins = problem.clean_margins()
        rows = (margins >= 0).nonzero().flatten()
        if not len(rows):
            raise AttackError("No image is judged right, so there is nothing to learn a perturbation from.")
        floor = -self.bound * float(margins[rows].mean())
        threat, change = problem.threat, torch.zeros(problem.images.shape[1:])
        best, kept = self._value(problem, rows, change, floor), change
        random = torch.Generator().manual_seed(problem.seed)
        for epoch in range(self.epochs):
            step = self.alpha * threat.epsilon * (1 - epoch / self.epochs)
            for batch in problem.batches(rows[torch.randperm(len(rows), generator=random)]):
                downhill = self._gradient(problem, batch, change, floor)
                # One step for the whole batch: the gradients of its images are summed.
                moved = change - step * direction(downhill[None], threat.norm)[0]
                size = perturbation_norm(moved[None], threat.norm).clamp(min=1e-12)
                change = (
                    moved.clamp(-threat.epsilon, threat.epsilon)
                    if threat.norm == "linf"
                    else moved * (threat.epsilon / size).clamp(max=1.0)
                )
            value = self._value(problem, rows, change, floor)
            # Compared as (successes, minus the clipped margins): the margins break ties.
            if value > best:
                best, kept = value, change
        return UniversalPerturbation(kept)

    def _gradient(self, problem: Problem, rows: Tensor, change: Tensor, floor: float) -> Tensor:
        clean = problem.images[rows]
        margin, gradient = problem.gradient((clean + change).clamp(0.0, 1.0), rows)
        # Where the sum leaves the pixel range it is clipped, so a change further outwards has no effect.
        wanted = clean + change
        idle = ((wanted > 1) & (gradient < 0)) | ((wanted < 0) & (gradient > 0))
        gradient = gradient.masked_fill(idle, 0.0)
        # Images below the bound no longer count (equation 5); (B, 3, H, W) -> (3, H, W).
        return gradient[margin > floor].sum(0)

    def _value(self, problem: Problem, rows: Tensor, change: Tensor, floor: float) -> tuple[int, float]:
        beaten, total = 0, 0.0
        for batch in problem.batches(rows):
            clean = problem.images[batch]
            pixels = clip_change(clean + change, clean, problem.threat.epsilon, problem.threat.norm)
            margin = problem.signed_margins(pixels, batch)
            beaten += int((margin < 0).sum())
            total -= float(margin.clamp(min=floor).sum())
        return beaten, total
