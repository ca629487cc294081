"""What all attacks share: active images, the best point of each; and `run_verified`, which runs an attack."""

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from .errors import AttackError
from .problem import AttackResult, Problem


@dataclass
class Search:
    """Which images are open, and the best that was found of each.

    An image closes once its attack succeeds and, where the threat model stores pictures as bytes, still succeeds
    after rounding. What is closed costs nothing more, and batches are filled up with what is open.
    """

    problem: Problem
    limit: int
    """Steps for each image."""
    early_stop: bool = True
    steps_taken: Tensor = field(init=False)
    """(N,) steps done."""
    active: Tensor = field(init=False)
    """(N,) whether a step is left and wanted."""
    result: AttackResult = field(init=False)

    def __post_init__(self) -> None:
        clean, images = self.problem.clean_margins(), self.problem.images
        count = len(images)
        self.steps_taken = torch.zeros(count, dtype=torch.long)
        misjudged = clean < 0
        self.result = AttackResult(images.clone(), clean.clone(), self.steps_taken.clone(), misjudged)
        self.active = ~misjudged & (self.limit > 0)
        self._survives = torch.zeros(count, dtype=torch.bool)

    def batches(self) -> list[Tensor]:
        """Open rows in full batches; take one step for each and `update` it, then ask again, until there are none."""
        return self.problem.batches(self.active.nonzero().flatten())

    def update(self, rows: Tensor, pixels: Tensor, margin: Tensor) -> None:
        """Count one step for (B,) rows that stand at `pixels` with `margin`; keep what is better; close what is done.

        Pixels must keep the budget.
        """
        self.steps_taken[rows] += 1
        survives = self._survives_storing(rows, pixels, margin)
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
        stored = threat.quantize(pixels.detach()[places], self.problem.images[rows[places]])
        survives[places] = self.problem.signed_margins(stored, rows[places]) < 0
        return survives


class Attack(Protocol):
    """A way to search: give it a problem, get the best pixels it found."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def needs_gradients(self) -> bool:
        """Whether it takes gradients of the victim, or only asks."""
        ...

    def run(self, problem: Problem) -> AttackResult:
        """Search within the problem's budget."""
        ...


def run_verified(attack: Attack, problem: Problem) -> AttackResult:
    """Run an attack and believe nothing it says: check its budget, and replace its margins by the victim's own.

    Raises:
        AttackError: it left the budget.
    """
    found = attack.run(problem)
    outside = ~problem.threat.within_budget(found.pixels, problem.images)
    if bool(outside.any()):
        raise AttackError(f"{attack.name} left its budget on {int(outside.sum())} of {len(outside)} images.")
    return replace(
        found, margin=problem.all_signed_margins(found.pixels), misjudged=problem.clean_margins() < 0
    )
