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

from judge.errors import LabellingError, first_line
from judge.runs.machine import now

from .inputs.shards import Shard
from .rows import Engine, Scored, Status, Task
from .writer import Counts, Part, parts_in, read_about, write_part


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
        shards: all of the plan; they are iterated over more than once.
        folder: the output; nobody else writes into it (`locked`).
        part_rows: inputs of one part; of a run that goes on, the same.
        engine: opens and scores.
        about: metadata of each part (`writer.ABOUT`), completed by the time and the counts.
        progress: told after each block.
        again: parts that have rows of these statuses are done again, and replaced.

    Raises:
        LabellingError: the disk is full, or the engine did not give everything back, and the same call goes on; or
            parts are of another plan, or a shard has become another one.
    """
    tally = Tally()
    found = _find_parts(folder, about, tally, again)
    kept = {shard.number: found.get(shard.number) or _Kept() for shard in shards}
    kept = {number: parts for number, parts in kept.items() if not parts.complete}
    tally.todo = frozenset(kept)
    writer = _PartWriter(folder, part_rows, about, tally, kept)
    # One by one: a task holds the paths of its shard, and all of them may be more than fit in memory.
    tasks = (
        Task(shard, frozenset(kept[shard.number].done)) for shard in shards if shard.number in tally.todo
    )
    with _disk_explained(folder):
        for scored in engine(tasks):
            if writer.add(scored):
                tally.rows += scored.table.num_rows
                tally.size += scored.size
                tally.seconds.update(scored.seconds)
                progress(tally, scored)
    writer.check_complete(shards)
    return tally


@dataclass
class _Kept:
    """The parts of a shard that are there."""

    done: set[int] = field(default_factory=set)
    """Numbers of those that stay."""
    end: int | None = None
    """Number of the one that is the last of the shard, if it stays."""
    highest: int = -1
    """Number of the last one that has a file, whether that stays or not."""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.end is not None and len(self.done) == self.end + 1

    def add(self, part: Part) -> None:
        """Take a part that stays."""
        self.done.add(part.number)
        self.end = part.number if part.end else self.end
        self.highest = max(self.highest, part.number)

    def contradicts(self, scored: Scored) -> bool:
        """Whether a block cannot be of the shard that these parts are of: that had more inputs, or fewer."""
        if self.end is not None and scored.part > self.end:
            return True
        return scored.last and (
            scored.part < self.highest or (scored.part in self.done and scored.part != self.end)
        )


def _find_parts(
    folder: Path, about: Mapping[str, Any], tally: Tally, again: Collection[Status]
) -> dict[int, _Kept]:
    """Shard -> its parts that are there; not those that are damaged, or to be done again."""
    found: dict[int, _Kept] = {}
    for part in parts_in(folder):
        kept = found.setdefault(part.shard, _Kept())
        kept.highest = max(kept.highest, part.number)
        read = read_about(folder / part.name)
        if read is None:
            continue
        theirs, counts = read
        if theirs.get("plan") != about.get("plan"):
            raise LabellingError(
                f"{folder / part.name} was written under another plan than the one in this folder, so its rows may be "
                "of other inputs. Put its own plan back, or label into another folder."
            )
        if any(counts.statuses[status] for status in again):
            continue
        tally.before += counts.statuses.total()
        tally.counts.update(counts)
        kept.add(part)
    return found


class _PartWriter:
    """Collects blocks until a part is complete, then writes it."""

    def __init__(
        self, folder: Path, part_rows: int, about: Mapping[str, Any], tally: Tally, kept: Mapping[int, _Kept]
    ) -> None:
        self.folder, self.part_rows, self.about, self.tally = folder, part_rows, about, tally
        self.kept = kept
        """Shard -> parts that are there, of all shards that lack some."""
        self.changed: set[int] = set()
        """Shards that have become others."""
        self._blocks: dict[tuple[int, int], dict[int, Scored]] = {}

    def add(self, scored: Scored) -> bool:
        """Take a block; False for one that was there already, or that belongs to no part."""
        key, kept = (scored.shard, scored.part), self.kept[scored.shard]
        if kept.contradicts(scored):
            self.changed.add(scored.shard)
            return False
        if scored.part in kept.done:
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
        self.kept[part.shard].add(part)

    def check_complete(self, shards: Iterable[Shard]) -> None:
        """Refuse to end while something is missing.

        Raises:
            LabellingError: blocks of a shard never came, or came from a file that is not what it was.
        """
        open_ = sorted(number for number, kept in self.kept.items() if not kept.complete)
        if self.changed:
            first = min(self.changed)
            path = next(shard.paths[0] for shard in shards if shard.number == first)
            raise LabellingError(
                f"{len(self.changed)} shards have other inputs now than when {self.folder} was begun, the first is "
                f"{path!r}; see whether it can be read. All others are labelled. Put these files back as they were and "
                "run the same command again, or label into another folder."
            )
        if open_:
            raise LabellingError(
                f"{len(open_)} shards came back incomplete, the first is number {open_[0]}; run the same command again."
            )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One run in a folder at a time; the system frees the lock of a process that was killed.

    Raises:
        LabellingError: another process is at work there, or nothing can be written there.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise LabellingError(
            f"Another process is labelling into {folder}; wait for it, or stop it."
        ) from None
    except OSError as error:
        raise LabellingError(
            f"{folder} cannot be used: {first_line(error)}. The output is a folder that this user may write into."
        ) from error
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
