"""A problem that records every query, so that checks do not rely on what an attack reports."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from adversarial.problem import Problem

_JUMP = 1.9
"""In epsilons: a value that moves this far between two queries crossed the ball from face to face."""
_STILL = 1e-3
"""In epsilons: smaller moves are not counted."""


@dataclass
class Record:
    """The queries about N images."""

    images: Tensor
    """(N, 3, H, W), the clean ones."""
    best: Tensor = field(init=False)
    """(N,) the lowest signed margin of any query within the budget."""
    queries: Tensor = field(init=False)
    """(N,) int64, number of queries."""
    moved: int = 0
    """Values that moved between two queries about one image, its first two queries left out."""
    jumped: int = 0
    """Of those, values that went from one face of the L-inf ball to the other."""

    def __post_init__(self) -> None:
        self.best = torch.full((len(self.images),), torch.inf)
        self.queries = torch.zeros(len(self.images), dtype=torch.long)
        self._last = self.images.clone()

    @property
    def jump_share(self) -> float:
        """Share of moves that cross the whole ball; 0 where nothing moved."""
        return self.jumped / self.moved if self.moved else 0.0

    def add(self, pixels: Tensor, margin: Tensor, rows: Tensor, inside: Tensor, epsilon: float) -> None:
        """Record (B, 3, H, W) pixels, (B,) signed margins and whether they keep the budget, of (B,) rows."""
        # Rows may repeat within a batch, so this is a scatter and no assignment.
        self.best.scatter_reduce_(0, rows[inside], margin[inside].to(self.best.device), "amin")
        # The first move, from the clean image or a random point, may be long in any attack.
        later = self.queries[rows] >= 2
        change = (pixels[later] - self._last[rows[later]]).abs()
        self.moved += int((change > _STILL * epsilon).sum())
        self.jumped += int((change > _JUMP * epsilon).sum()) if epsilon else 0
        # (N, 3, H, W) the last query of each image.
        self._last[rows] = pixels.to(self._last.device)
        self.queries[rows] += 1


class RecordingProblem(Problem):
    """The same problem with a record of all queries, those about subsets included."""

    def __init__(
        self, problem: Problem, record: Record | None = None, record_rows: Tensor | None = None
    ) -> None:
        """Record a problem; `record_rows` (N,) are its rows in an existing record."""
        super().__init__(
            problem.victim, problem.images, problem.contexts, problem.signs, problem.threat,
            batch_size=problem.batch_size, seed=problem.seed, spent=problem.spent, ids=problem.ids,
        )  # fmt: skip
        self._clean = problem.clean_margins()
        self.record = record if record is not None else Record(problem.images)
        self._record_rows = record_rows if record_rows is not None else torch.arange(len(problem))

    def subset(self, rows: Tensor) -> Problem:
        """The problem of (B,) selected rows, in the same record."""
        return RecordingProblem(super().subset(rows), self.record, self._record_rows[rows])

    def _query(self, pixels: Tensor, rows: Tensor) -> Tensor:
        margin = super()._query(pixels, rows)
        seen = pixels.detach()
        # Points beyond the budget, which minimum-norm attacks query, cannot be returned as results.
        inside = self.threat.within_budget(seen, self.images[rows])
        self.record.add(seen, margin.detach(), self._record_rows[rows], inside, self.threat.epsilon)
        return margin
