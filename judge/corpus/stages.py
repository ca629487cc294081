"""What a corpus is built by: stages that work on one chunk of rows at a time, stages that see all rows, and engines.

A chunk is a fixed part of the plan, so a stage that is a function of its task gives the same rows and bytes whoever
runs it, whenever, and however often. The ledger and the files are written by the builder alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .rows import CorpusRow


@dataclass(frozen=True)
class Task:
    """A chunk of rows to work on."""

    chunk: int
    """Number of the chunk."""
    rows: tuple[CorpusRow, ...]
    """Its rows without those that failed."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """Row id -> encoded picture, of the rows that have one."""


@dataclass(frozen=True)
class Result:
    """What a stage made of a task."""

    chunk: int
    rows: tuple[CorpusRow, ...]
    """Of `pictures` and `labels`: the task's rows, in the same order, filled in or failed. Of `variants`: new rows."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """Row id -> encoded picture, of the rows that got one here; `sha256` and `phash` of those rows are set."""


class ChunkStage(Protocol):
    """A stage that works on one chunk at a time, here or in another process.

    It is pickled to get there, so it loads its model at the first call, and not before.
    """

    name: str
    """`pictures`, `labels` or `variants`."""

    @property
    def about(self) -> Mapping[str, Any]:
        """JSON values that its results depend on; a build is resumed only with equal ones."""
        ...

    def __call__(self, task: Task) -> Result:
        """Do the work: a function of the task alone. What concerns one row is a failure of that row."""
        ...


class WholeStage(Protocol):
    """A stage that sees all rows at once, such as the search for near-duplicates."""

    name: str

    @property
    def about(self) -> Mapping[str, Any]:
        """JSON values that its results depend on."""
        ...

    def __call__(self, rows: Sequence[CorpusRow], read: Callable[[CorpusRow], bytes]) -> Iterable[CorpusRow]:
        """The rows that it changed; others may be among them.

        Args:
            rows: all that did not fail, in the order of the plan; variants come last.
            read: the encoded picture of one of them; fastest in the order of `rows`.
        """
        ...


Engine = Callable[[ChunkStage, Iterable[Task]], Iterator[Result]]
"""Runs a stage on tasks, which it draws as it needs them, and yields each one's result once, in any order."""


def in_this_process(stage: ChunkStage, tasks: Iterable[Task]) -> Iterator[Result]:
    """The engine that does one task after the other, here."""
    for task in tasks:
        yield stage(task)


@dataclass(frozen=True)
class Stages:
    """The stages of a build, in their order."""

    pictures: ChunkStage
    labels: ChunkStage
    variants: ChunkStage | None = None
    """Adds rows made from a chunk's rows; those without a picture are drawn, all are labelled."""
    whole: tuple[WholeStage, ...] = ()
    """Near-duplicates, then clusters and split."""

    @property
    def about(self) -> dict[str, Mapping[str, Any]]:
        """Stage -> what its results depend on."""
        every: list[ChunkStage | WholeStage] = [self.pictures, self.labels, *self.whole]
        if self.variants is not None:
            every.append(self.variants)
        return {stage.name: dict(stage.about) for stage in every}
