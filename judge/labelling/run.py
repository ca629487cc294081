"""A labelling run: what is to be done, done by an engine, and written once.

One process, the driver, writes. It skips the parts that are there, collects the blocks that an engine scores, in any
order and twice where a worker died, and writes a part as soon as it is complete. A part has its name or does not exist,
so whatever is killed, at any instant, the next run goes on with what is missing: no row is lost and none is doubled.
"""

import errno
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from judge.errors import LabellingError
from judge.runs.machine import now

from .inputs.shards import Shard
from .rows import Engine, Scored, Status, Task
from .writer import Counts, Part, counts_in, parts_in, write_part


@dataclass
class Tally:
    """What a run has done so far."""

    todo: frozenset[int] = frozenset()
    """Numbers of the shards that were not finished when it began."""
    before: int = 0
    """Rows that were there when it began."""
    rows: int = 0
    """Rows that it made."""
    size: int = 0
    """Encoded bytes that it read."""
    counts: Counts = field(default_factory=lambda: Counts(Counter(), {}))
    """All rows that are written, those from before included."""
    seconds: Counter[str] = field(default_factory=Counter)
    """Stage -> seconds, of all its processes together."""


Progress = Callable[[Tally, Scored], None]
"""Told after each block."""


def label_shards(
    shards: Iterable[Shard],
    folder: Path,
    part_rows: int,
    engine: Engine,
    about: Mapping[str, Any],
    *,
    progress: Progress = lambda tally, scored: None,
    again: Collection[Status] = (),
) -> Tally:
    """Label what is missing of shards, and write it.

    Args:
        shards: all of the plan.
        folder: the output; nobody else writes into it (`locked`).
        part_rows: inputs of one part; of a run that goes on, the same.
        engine: opens and scores.
        about: metadata of each part (`writer.ABOUT`), completed by the time.
        progress: told after each block.
        again: parts that have rows of these statuses are done again, and replaced.

    Raises:
        LabellingError: the disk is full, or the engine did not give everything back. The same call goes on.
    """
    tally = Tally()
    tasks = list(_unfinished(shards, folder, tally, again))
    tally.todo = frozenset(task.shard.number for task in tasks)
    writer = _PartWriter(folder, part_rows, about, tally, tasks)
    with _disk_explained(folder):
        for scored in engine(tasks):
            if writer.add(scored):
                tally.rows += scored.table.num_rows
                tally.size += scored.size
                tally.seconds.update(scored.seconds)
                progress(tally, scored)
    writer.check_complete()
    return tally


def _unfinished(
    shards: Iterable[Shard], folder: Path, tally: Tally, again: Collection[Status]
) -> Iterator[Task]:
    """Shards that lack a part, and which parts they have."""
    done: dict[int, set[int]] = {}
    ends: dict[int, int] = {}
    for part in parts_in(folder):
        if part.end:
            ends[part.shard] = part.number
        counts = counts_in(folder / part.name)
        if counts is None or any(counts.statuses[status] for status in again):
            continue
        tally.before += counts.statuses.total()
        tally.counts.update(counts)
        done.setdefault(part.shard, set()).add(part.number)
    for shard in shards:
        have = done.get(shard.number, set())
        if shard.number not in ends or have != set(range(ends[shard.number] + 1)):
            yield Task(shard, frozenset(have))


class _PartWriter:
    """Collects blocks until a part is complete, then writes it."""

    def __init__(
        self, folder: Path, part_rows: int, about: Mapping[str, Any], tally: Tally, tasks: Iterable[Task]
    ) -> None:
        self.folder, self.part_rows, self.about, self.tally = folder, part_rows, about, tally
        self.done = {task.shard.number: set(task.done) for task in tasks}
        """Shard -> parts that are there."""
        self.ended: set[int] = set()
        self._blocks: dict[tuple[int, int], dict[int, Scored]] = {}

    def add(self, scored: Scored) -> bool:
        """Take a block; False for one that was there already."""
        key = scored.shard, scored.part
        if scored.part in self.done[scored.shard]:
            self.ended |= {scored.shard} if scored.last else set()
            return False
        blocks = self._blocks.setdefault(key, {})
        if scored.offset in blocks:
            return False
        blocks[scored.offset] = scored
        end = max(blocks.values(), key=lambda block: block.offset).last
        rows = sum(block.table.num_rows for block in blocks.values())
        begin = scored.part * self.part_rows
        last = max(block.offset + block.table.num_rows for block in blocks.values())
        if begin + rows == last and (end or rows == self.part_rows):
            self._write(Part(*key, end), blocks)
        return True

    def _write(self, part: Part, blocks: Mapping[int, Scored]) -> None:
        about = {**self.about, "time": now()}
        tables = [blocks[offset].table for offset in sorted(blocks)]
        self.tally.counts.update(write_part(self.folder, part, tables, about))
        del self._blocks[part.shard, part.number]
        self.done[part.shard].add(part.number)
        if part.end:
            self.ended.add(part.shard)

    def check_complete(self) -> None:
        """Refuse to end while something is missing.

        Raises:
            LabellingError: blocks of a shard never came.
        """
        open_ = sorted({shard for shard, _ in self._blocks} | (self.done.keys() - self.ended))
        if open_:
            raise LabellingError(
                f"{len(open_)} shards came back incomplete, the first is number {open_[0]}; run the same command again."
            )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One run in a folder at a time; the system frees the lock of a process that was killed.

    Raises:
        LabellingError: another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LabellingError(
            f"Another process is labelling into {folder}; wait for it, or stop it."
        ) from None
    try:
        for path in folder.glob(".part-*"):  # unfinished files of a process that was killed
            path.unlink()
        yield
    finally:
        lock.release()


@contextmanager
def _disk_explained(folder: Path) -> Iterator[None]:
    """A full disk as one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise LabellingError(
            f"The disk is full: {folder} could not be written. What is labelled stays; free some space, and run the "
            "same command again."
        ) from error
