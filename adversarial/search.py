"""What all attacks share: active images, the best point of each; and `run_verified`, which runs an attack."""

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import AttackError
from .problem import AttackResult, Problem


@dataclass
class Search:
    """Which images are still active, and the best point found for each.

    An image is done once its attack succeeds and, where the threat model stores pictures as bytes, still succeeds
    after rounding. Finished images cost nothing more: batches are filled with active ones.
    """

    problem: Problem
    limit: int
    """Most steps for each image."""
    early_stop: bool = True
    steps_taken: Tensor = field(init=False)
    """(N,) int64, steps done."""
    active: Tensor = field(init=False)
    """(N,) bool, whether another step is due."""
    result: AttackResult = field(init=False)

    def __post_init__(self) -> None:
        clean, images = self.problem.clean_margins(), self.problem.images
        count = len(images)
        self.steps_taken = torch.zeros(count, dtype=torch.long)
        misjudged = clean < 0
        self.result = AttackResult(images.clone(), clean.clone(), self.steps_taken.clone(), misjudged)
        # Misjudged images are never attacked; with a limit of 0 nothing is.
        self.active = ~misjudged & (self.limit > 0)
        self._survives = torch.zeros(count, dtype=torch.bool)

    def batches(self) -> list[Tensor]:
        """Active rows as (B,) batches; take one step for each, `update` it, and call again until the list is empty."""
        return self.problem.batches(self.active.nonzero().flatten())

    def update(self, rows: Tensor, pixels: Tensor, margin: Tensor) -> None:
        """Count one step, keep better points, and deactivate rows that are done.

        Args:
            rows: (B,) indices.
            pixels: (B, 3, H, W) where they are, within the budget.
            margin: (B,) signed margins there.
        """
        self.steps_taken[rows] += 1
        survives = self._survives_storing(rows, pixels, margin)
        # A success that survives rounding beats any that does not; among equals the lower margin wins.
        better = torch.where(
            survives == self._survives[rows],
            margin < self.result.margin[rows],
            survives & ~self._survives[rows],
        )
        chosen = rows[better]
        self.result.pixels[chosen], self.result.margin[chosen] = pixels.detach()[better], margin[better]
        self.result.steps[chosen] = self.steps_taken[chosen]
        self._survives[chosen] = survives[better]
        self.active[rows] = self.steps_taken[rows] < self.limit
        if self.early_stop:
            self.active[rows] &= ~self._survives[rows]

    def _survives_storing(self, rows: Tensor, pixels: Tensor, margin: Tensor) -> Tensor:
        survives, threat = margin < 0, self.problem.threat
        if not threat.after or not threat.can_be_stored or not bool(survives.any()):
            return survives
        places = survives.nonzero().flatten()
        # Only successes are queried again as bytes.
        stored = threat.quantize(pixels.detach()[places], self.problem.images[rows[places]])
        survives[places] = self.problem.signed_margins(stored, rows[places]) < 0
        return survives


class Attack(Protocol):
    """An attack on pixels."""

    @property
    def name(self) -> str:
        """Its name in tables."""
        ...

    @property
    def needs_gradients(self) -> bool:
        """Whether it takes gradients of the victim, or only queries its margins."""
        ...

    def run(self, problem: Problem) -> AttackResult:
        """Search within the problem's budget."""
        ...


@runtime_checkable
class WarmStart(Protocol):
    """An attack that can start at other points than the clean images."""

    def starting_at(self, pixels: Tensor) -> Attack:
        """The same attack with its first run at (N, 3, H, W) pixels."""
        ...


def run_verified(attack: Attack, problem: Problem) -> AttackResult:
    """Run an attack without trusting its claims: check its budget, and compute its margins again.

    Raises:
        AttackError: it left the budget.
    """
    found = attack.run(problem)
    outside = ~problem.threat.within_budget(found.pixels, problem.images)
    if bool(outside.any()):
        raise AttackError(f"{attack.name} left its budget on {int(outside.sum())} of {len(outside)} images.")
    margin = problem.all_signed_margins(found.pixels)
    return replace(found, margin=margin, misjudged=problem.clean_margins() < 0)
