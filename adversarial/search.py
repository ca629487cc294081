"""What every attack keeps while it runs: which images are open, the best found of each, and `find`, which runs one."""

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from .errors import AttackError
from .problem import Found, Problem


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
    taken: Tensor = field(init=False)
    """(N,) steps done."""
    open: Tensor = field(init=False)
    """(N,) whether a step is left and wanted."""
    found: Found = field(init=False)

    def __post_init__(self) -> None:
        clean, images = self.problem.clean_gap(), self.problem.images
        count = len(images)
        self.taken = torch.zeros(count, dtype=torch.long)
        misjudged = clean < 0
        self.found = Found(images.clone(), clean.clone(), self.taken.clone(), misjudged)
        self.open = ~misjudged & (self.limit > 0)
        self._survives = torch.zeros(count, dtype=torch.bool)

    def batches(self) -> list[Tensor]:
        """Open rows in full batches; take one step for each and `report` it, then ask again, until there are none."""
        return self.problem.batches(self.open.nonzero().flatten())

    def report(self, rows: Tensor, pixels: Tensor, gap: Tensor) -> None:
        """Count one step for (B,) rows that stand at `pixels` with `gap`; keep what is better; close what is done.

        Pixels must keep the budget.
        """
        self.taken[rows] += 1
        survives = self._survives_storing(rows, pixels, gap)
        better = torch.where(
            survives == self._survives[rows], gap < self.found.gap[rows], survives & ~self._survives[rows]
        )
        chosen = rows[better]
        self.found.pixels[chosen], self.found.gap[chosen] = pixels.detach()[better], gap[better]
        self.found.steps[chosen] = self.taken[chosen]
        self._survives[chosen] = survives[better]
        self.open[rows] = self.taken[rows] < self.limit
        if self.early_stop:
            self.open[rows] &= ~self._survives[rows]

    def _survives_storing(self, rows: Tensor, pixels: Tensor, gap: Tensor) -> Tensor:
        survives, threat = gap < 0, self.problem.threat
        if not threat.after or not threat.can_be_stored or not bool(survives.any()):
            return survives
        places = survives.nonzero().flatten()
        stored = threat.stored(pixels.detach()[places], self.problem.images[rows[places]])
        survives[places] = self.problem.gap(stored, rows[places]) < 0
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

    def run(self, problem: Problem) -> Found:
        """Search within the problem's budget."""
        ...


def find(attack: Attack, problem: Problem) -> Found:
    """Run an attack and believe nothing it says: check its budget, and replace its gaps by the victim's own.

    Raises:
        AttackError: it left the budget.
    """
    found = attack.run(problem)
    outside = ~problem.threat.keeps_budget(found.pixels, problem.images)
    if bool(outside.any()):
        raise AttackError(f"{attack.name} left its budget on {int(outside.sum())} of {len(outside)} images.")
    again = torch.empty(len(problem))
    for rows in problem.batches(torch.arange(len(problem))):
        again[rows] = problem.gap(found.pixels[rows], rows)
    return replace(found, gap=again, misjudged=problem.clean_gap() < 0)
