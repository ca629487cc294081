"""The plan of a labelling run: which file of the input belongs to which shard, for good.

It only grows. A second run over a folder that got more files appends shards and leaves the numbers of the others, so a
part that was written stays the part of the same inputs. SQLite holds it, as ten million paths need not fit in memory.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

from judge.errors import LabellingError

from .inputs.shards import Kind, Shard

if TYPE_CHECKING:
    from .inputs.locate import Found

PLAN = "_plan.sqlite"
_NAMED = 5
"""Changed files that are named, at most."""
_MOST = 2**63 - 1
"""SQLite's largest number; a time may be any."""
_TABLES = """
CREATE TABLE identity (value TEXT NOT NULL);
INSERT INTO identity VALUES (hex(randomblob(16)));
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE sources (
    number INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, kind TEXT NOT NULL, size INTEGER NOT NULL,
    modified INTEGER NOT NULL, shard INTEGER NOT NULL
);
CREATE INDEX sources_of_shard ON sources (shard);
"""


class Changed(NamedTuple):
    """What an input folder has become since the last run."""

    new: int
    """Files that were added to the plan."""
    other: tuple[str, ...]
    """Files, at most a few, whose size or time is another one than when they were planned, and were not renewed."""


class Plan:
    """The plan in an output folder; a context manager."""

    def __init__(self, folder: Path) -> None:
        """Open the plan, or begin one.

        Raises:
            LabellingError: the file is no plan, or cannot be written.
        """
        self.path = folder / PLAN
        with ExitStack() as stack:
            try:
                # Threads that read take the shards, one at a time.
                self._database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
                stack.callback(self._database.close)
                self._database.execute("PRAGMA synchronous = FULL")
                known = self._database.execute(
                    "SELECT 1 FROM sqlite_master WHERE name = 'sources'"
                ).fetchone()
                if known is None:
                    self._database.executescript(f"BEGIN; {_TABLES} COMMIT;")
                [self.identity] = self._database.execute("SELECT value FROM identity").fetchone()
            except sqlite3.Error as error:
                raise self._explained(error) from error
            stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        self._database.close()
        if isinstance(error, sqlite3.Error):
            raise self._explained(error) from error

    def _explained(self, error: sqlite3.Error) -> LabellingError:
        return LabellingError(
            f"{self.path}, the plan of a labelling run, cannot be used: {error}. If the disk is full, free some space "
            "and run the same command again; if the file is damaged, label into another folder."
        )

    @property
    def shard_count(self) -> int:
        """How many shards there are; their numbers are below it."""
        [highest] = self._database.execute("SELECT MAX(shard) FROM sources").fetchone()
        return 0 if highest is None else int(highest) + 1

    def about(self) -> dict[str, Any]:
        """What the run was started with; empty before the first."""
        rows = self._database.execute("SELECT name, value FROM about")
        return {name: json.loads(value) for name, value in rows}

    def set_about(self, about: Mapping[str, Any]) -> None:
        """Write down what the run is started with: JSON values."""
        with self._transaction():
            self._database.execute("DELETE FROM about")
            self._database.executemany(
                "INSERT INTO about VALUES (?, ?)",
                [(name, json.dumps(value)) for name, value in about.items()],
            )

    def extend(
        self, found: "Iterable[Found]", shard_files: int, renew: Callable[[int], None] | None = None
    ) -> Changed:
        """Add the files that are not planned yet, all or none of them.

        Args:
            found: what is in the input now, in an order that does not change.
            shard_files: image files in one shard; any other file is a shard by itself.
            renew: removes the parts of a shard, as one of its files changed; such files are then planned as they are
                now. None to leave both as they were.
        """
        new, other = 0, list[str]()
        with self._transaction():
            following = self.shard_count
            group, members = -1, shard_files  # the shard that image files go to, and how many it has
            for source in found:
                path, modified = os.fsencode(source.path), source.modified & _MOST
                known = self._database.execute(
                    "SELECT size, modified, shard FROM sources WHERE path = ?", (path,)
                ).fetchone()
                if known is not None:
                    if known[:2] == (source.size, modified):
                        continue
                    if renew is None:
                        other += [source.path] if len(other) < _NAMED else []
                        continue
                    # Removed before the plan says that they are of the new file.
                    renew(known[2])
                    self._database.execute(
                        "UPDATE sources SET size = ?, modified = ? WHERE path = ?",
                        (source.size, modified, path),
                    )
                    continue
                if source.kind != "images":
                    number, following = following, following + 1
                else:
                    if members == shard_files:
                        group, following, members = following, following + 1, 0
                    number, members = group, members + 1
                self._database.execute(
                    "INSERT INTO sources (path, kind, size, modified, shard) VALUES (?, ?, ?, ?, ?)",
                    (path, source.kind, source.size, modified, number),
                )
                new += 1
        return Changed(new, tuple(other))

    def shards(self, root: str, columns: Mapping[str, str]) -> Iterable[Shard]:
        """All shards, in order; read from the plan each time that they are iterated over."""
        return _Shards(partial(self._read_shards, root, columns))

    def _read_shards(self, root: str, columns: Mapping[str, str]) -> Iterator[Shard]:
        with closing(self._database.cursor()) as cursor:
            rows = cursor.execute("SELECT shard, kind, path FROM sources ORDER BY shard, number")
            number, kind, paths = -1, "", list[str]()
            for row in rows:
                if row[0] != number:
                    if paths:
                        yield Shard(number, cast(Kind, kind), root, tuple(paths), columns)
                    number, kind, paths = row[0], row[1], []
                paths.append(os.fsdecode(row[2]))
            if paths:
                yield Shard(number, cast(Kind, kind), root, tuple(paths), columns)

    def sizes(self) -> dict[int, int]:
        """Shard -> bytes of its files."""
        return dict(self._database.execute("SELECT shard, SUM(size) FROM sources GROUP BY shard"))

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._database)


class _Transaction:
    """All of what is written inside, or none."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        if self._database.in_transaction:  # a full disk has ended it already
            self._database.execute("COMMIT" if kind is None else "ROLLBACK")


class _Shards:
    """Shards that are read again each time that they are iterated over, and never all in memory."""

    def __init__(self, read: Callable[[], Iterator[Shard]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[Shard]:
        return self._read()
