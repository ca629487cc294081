"""Build a corpus: plan, pictures, labels, variants, near-duplicates and split, shards. Kill it, and go on.

A chunk goes through a stage as a whole: its pictures get their final name, then one transaction of the ledger enters
its rows. What a killed process had not entered is done again and comes out the same, as a stage is a function of its
chunk and chunks are fixed by the plan. So no row is lost or doubled, and a build that was killed and resumed has the
same shards, to the byte, as one that was not.
"""

import errno
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from judge.errors import CorpusError

from .files import Parts
from .ledger import Ledger, Shard
from .plan import Plan
from .rows import CorpusRow
from .shards import shard_layout, write_exports, write_shard
from .stages import ChunkStage, Engine, Result, Stages, Task, in_this_process

LEDGER = "ledger.sqlite"
PARTS = "parts"
SHARDS = "shards"

Progress = Callable[[str, int, int], None]
"""Takes a stage's name, how many of its chunks (or shards) are done, and how many there are."""


@dataclass(frozen=True)
class Built:
    """What a build left behind."""

    folder: Path
    shards: tuple[Shard, ...]
    counts: Mapping[str, int]
    """Rows by what became of them: `ok`, or `STAGE: STATUS` of their failure; duplicates count as `ok`."""


def build(
    plan: Plan,
    stages: Stages,
    folder: str | Path,
    engine: Engine = in_this_process,
    *,
    progress: Progress = lambda stage, done, total: None,
) -> Built:
    """Build a corpus, or go on with one that was interrupted at any instant.

    Args:
        plan: all rows; of a build that goes on, the same.
        stages: what is done with them; of a build that goes on, with equal `about`.
        folder: for the ledger, pictures under way, shards, and rows.jsonl and failed.jsonl at the end.
        engine: where stages run.
        progress: told after each chunk.

    Raises:
        CorpusError: the folder is in use or holds another plan's build, the ledger is damaged, too many rows failed, or
            the disk is full; but for the second, the same call goes on afterwards.
    """
    folder = Path(folder)
    for name in ("", PARTS, SHARDS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with _locked(folder), _disk_explained(folder), Ledger(folder / LEDGER) as ledger:
        _begin(plan, stages, ledger)
        for name in (PARTS, SHARDS):
            _remove(
                folder / name, ".*"
            )  # unfinished files of a process that was killed; nobody else is writing
        work = _Build(plan, ledger, Parts(folder / PARTS), engine, progress)
        if not ledger.meta("rows_final"):
            work.run(stages)
            ledger.set_meta("rows_final", True)
        shards = _write_shards(plan, ledger, work.read, folder, progress)
        failures = ledger.failures()
        _remove(folder / PARTS, "*.tar")  # only now: the shards hold the pictures
        return Built(folder, tuple(shards), {"ok": ledger.count() - sum(failures.values()), **failures})


@dataclass
class _Build:
    """A build under way."""

    plan: Plan
    ledger: Ledger
    parts: Parts
    engine: Engine
    progress: Progress

    def __post_init__(self) -> None:
        self._chunk_of: dict[str, int] = {}

    def run(self, stages: Stages) -> None:
        """All stages up to the shards."""
        base = range(self.plan.chunks)
        self.fill(stages.pictures, base, "all drawn")
        self.fill(stages.labels, base, "all labelled")
        if stages.variants is not None:
            self.vary(stages.variants, base)
            more = [chunk for chunk in self.ledger.chunks() if chunk >= len(base)]
            self.fill(stages.pictures, more, "variants drawn")
            self.fill(stages.labels, more, "variants labelled")
        for number, whole in enumerate(stages.whole):
            if not self.ledger.done(whole.name):
                changed = whole(list(self.ledger.rows(failed=False)), self.read)
                self.ledger.record(whole.name, 0, list(changed))
            self.progress(whole.name, number + 1, len(stages.whole))

    def fill(self, stage: ChunkStage, chunks: Sequence[int], words: str) -> None:
        """Run `pictures` or `labels` on the chunks that it has not done."""

        def enter(result: Result) -> None:
            asked = self.wanted(stage.name, result.chunk)
            rows = [
                _with_hash(row, result.pictures) if stage.name == "pictures" else row for row in result.rows
            ]
            if [row.id for row in rows] != [row.id for row in asked]:
                raise CorpusError(f"The stage {stage.name} answered with other rows than it was given.")
            if result.pictures:
                self.parts.write(result.chunk, {**self.pictures(result.chunk), **result.pictures})
            self.ledger.record(stage.name, result.chunk, rows)

        self._each(stage, chunks, enter)

    def vary(self, stage: ChunkStage, chunks: Sequence[int]) -> None:
        """Run `variants`: what is made from chunk C becomes the chunk C + number of chunks of the plan."""

        def enter(result: Result) -> None:
            into = result.chunk + self.plan.chunks
            rows = [
                _with_hash(row, result.pictures) if row.id in result.pictures else row for row in result.rows
            ]
            if result.pictures:
                self.parts.write(into, result.pictures)
            self.ledger.record_new(stage.name, result.chunk, into, rows)

        self._each(stage, chunks, enter)

    def _each(self, stage: ChunkStage, chunks: Sequence[int], enter: Callable[[Result], None]) -> None:
        finished = self.ledger.done(stage.name)
        todo = [chunk for chunk in chunks if chunk not in finished]
        done = len(chunks) - len(todo)
        for result in self.engine(stage, (self.task(stage.name, chunk) for chunk in todo)):
            enter(result)
            done += 1
            self.progress(stage.name, done, len(chunks))
            self.check_failures(enough=False)
        if lost := sorted(set(todo) - self.ledger.done(stage.name)):
            raise CorpusError(
                f"The engine gave nothing back for the chunk {lost[0]} of {stage.name}; run it again."
            )
        self.check_failures(enough=True)

    def task(self, stage: str, chunk: int) -> Task:
        """A chunk's rows that this stage is for, with their pictures."""
        rows = self.wanted(stage, chunk)
        pictures = {} if stage == "pictures" else self.pictures(chunk)
        return Task(chunk, rows, pictures)

    def wanted(self, stage: str, chunk: int) -> tuple[CorpusRow, ...]:
        """The rows of a chunk that this stage is for: those without a picture, or those with one."""
        drawn = stage != "pictures"
        return tuple(
            row for row in self.ledger.rows(chunk, failed=False) if (row.sha256 is not None) is drawn
        )

    def pictures(self, chunk: int) -> dict[str, bytes]:
        """Row id -> picture, of the rows whose picture the ledger knows; the file may hold more, after a crash."""
        known = [row for row in self.ledger.rows(chunk, failed=False) if row.sha256]
        return {row.id: self._checked(chunk, row.id, row.sha256) for row in known}

    def read(self, row: CorpusRow) -> bytes:
        """The picture of a row that has one."""
        if not self._chunk_of:
            self._chunk_of = self.ledger.chunk_of()
        chunk = self._chunk_of[row.id]
        return self._checked(chunk, row.id, row.sha256)

    def _checked(self, chunk: int, row_id: str, expected: str | None) -> bytes:
        """The picture of a row, if it is the one that the ledger knows."""
        picture = self.parts.read(chunk).get(row_id)
        if picture is None or hashlib.sha256(picture).hexdigest() != expected:
            raise CorpusError(
                f"{self.parts.path(chunk)} lacks a picture that the ledger has, or holds another one; restore the "
                "file, or build into another folder."
            )
        return picture

    def check_failures(self, *, enough: bool) -> None:
        """Stop where more rows failed than are allowed of the plan, or once a stage is through (`enough`) all did.

        Raises:
            CorpusError: names the most frequent reasons.
        """
        failed, total = Counter(self.ledger.failures()), self.ledger.count()
        if failed.total() <= self.plan.max_failures * total and not (enough and failed.total() == total):
            return
        often = ", ".join(f"{count:,} {status}" for status, count in failed.most_common(3))
        first = next(self.ledger.rows(failed=True))
        raise CorpusError(
            f"{failed.total():,} of {total:,} rows failed ({failed.total() / total:.1%}, allowed "
            f"{self.plan.max_failures:.1%}): {often}. The first: {first.failure.reason if first.failure else ''}. "
            "Raise max_failures to go on without them."
        )


def _with_hash(row: CorpusRow, pictures: Mapping[str, bytes]) -> CorpusRow:
    if row.failure is not None:
        return row
    if row.id not in pictures:
        raise CorpusError(f"A stage gave the row {row.id} neither a picture nor a failure.")
    return replace(row, sha256=hashlib.sha256(pictures[row.id]).hexdigest())


def _begin(plan: Plan, stages: Stages, ledger: Ledger) -> None:
    """Enter the plan into a new ledger, or compare it with that of an old one.

    A stage that has done nothing yet may be another one now, such as a split that was refused.
    """
    about = {f"plan, {name}": value for name, value in plan.description.items()}
    about |= {f"{stage}, {name}": value for stage, one in stages.about.items() for name, value in one.items()}
    started = ledger.meta("about")
    if started is None:
        ledger.add_plan(plan.rows, plan.chunk_size, about)
        return
    final = ledger.meta("rows_final")
    names = [
        name
        for name in {**started, **about}
        if started.get(name) != about.get(name)
        and (final or name.startswith("plan, ") or ledger.done(name.partition(", ")[0]))
    ]
    if names:
        changed = "; ".join(f"{name}: {started.get(name)!r}, not {about.get(name)!r}" for name in names)
        raise CorpusError(
            f"{ledger.path.parent} was started with another plan ({changed}). Go on with the same one, or build "
            "into another folder."
        )
    ledger.set_meta("about", about)


def _write_shards(
    plan: Plan, ledger: Ledger, read: Callable[[CorpusRow], bytes], folder: Path, progress: Progress
) -> list[Shard]:
    """Write the shards that are missing, and the tables of all rows and of the failed ones."""
    rows = [row for row in ledger.rows(failed=False) if row.kept]
    layout = shard_layout(rows, plan.shard_rows, plan.format)
    written = {shard.name for shard in ledger.shards() if (folder / SHARDS / shard.name).is_file()}
    for number, (name, members) in enumerate(layout.items(), start=1):
        if name not in written:
            path = folder / SHARDS / name
            hashed = write_shard(path, members, read, plan)
            ledger.add_shard(Shard(name, hashed, len(members)))
        progress("shards", number, len(layout))
    write_exports(folder, ledger)
    return ledger.shards()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One build of a folder at a time; the system frees the lock of a process that was killed."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CorpusError(f"Another process is building {folder}; wait for it, or stop it.") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_explained(folder: Path) -> Iterator[None]:
    """A full disk as one line; the ledger's own message says so already."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CorpusError(
            f"The disk is full: {folder} could not be written. Nothing that was entered is lost; free some space and "
            "run the same command again."
        ) from error


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()
