"""The ledger of a corpus: every row with its state, what is done, and the shards, in one SQLite file.

Each change is one transaction, so a process that is killed leaves what was before it or after it. Files are written
first and entered after they have their final name: an entry always speaks of a file that is there, and a file without
an entry is written again, with the same bytes.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge.errors import CorpusError

from .rows import CorpusRow

FORMAT = 1
SYNCHRONOUS = "FULL"
"""Each transaction is on the disk before the next one begins, so that a power cut loses none either."""
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE prompts (key TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE rows (
    chunk INTEGER NOT NULL, place INTEGER NOT NULL, id TEXT NOT NULL UNIQUE, failed TEXT, record TEXT NOT NULL,
    PRIMARY KEY (chunk, place)
);
CREATE INDEX failed ON rows (failed) WHERE failed IS NOT NULL;
CREATE TABLE done (stage TEXT NOT NULL, chunk INTEGER NOT NULL, PRIMARY KEY (stage, chunk));
CREATE TABLE shards (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL, rows INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Shard:
    """A shard that is written."""

    name: str
    """Of its file."""
    sha256: str
    rows: int


class Ledger:
    """An open ledger; a context manager.

    Args:
        path: its file, made if it is missing.

    Raises:
        CorpusError: the file is no ledger, damaged, or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained():
            self._database = sqlite3.connect(path)
            self._database.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._create()
            elif version != FORMAT:
                raise CorpusError(f"{path} has ledger format {version}, this version reads {FORMAT}.")

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def _create(self) -> None:
        # One transaction: of a process killed in here nothing is left, and the next one starts anew.
        self._database.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise CorpusError(f"The ledger {self.path} cannot be used: {error}.") from error
        except sqlite3.DatabaseError as error:
            raise CorpusError(f"The ledger {self.path} is damaged, or is none: {error}.") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._explained(), self._database:
            yield self._database

    # --- facts about the whole ------------------------------------------------------------------------------

    def meta(self, name: str) -> Any:
        """A JSON value by name; None where there is none."""
        with self._explained():
            found = self._database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if found is None else json.loads(found[0])

    def set_meta(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, _text(value)))

    # --- prompts --------------------------------------------------------------------------------------------

    def prompt_records(self) -> dict[str, dict[str, Any]]:
        """Key of what was asked for -> what came of it."""
        with self._explained():
            found = self._database.execute("SELECT key, record FROM prompts")
            return {key: json.loads(record) for key, record in found}

    def add_prompt(self, key: str, record: Mapping[str, Any]) -> None:
        """Keep what came of one request for a prompt; a second one changes nothing."""
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO prompts VALUES (?, ?)", (key, _text(record)))

    # --- rows -----------------------------------------------------------------------------------------------

    def add_plan(self, rows: Iterable[CorpusRow], chunk_size: int, about: Mapping[str, Any]) -> None:
        """Enter all rows of a plan, in chunks, with what the build depends on; all of it or nothing.

        Raises:
            CorpusError: two rows have the same id.
        """
        entries = ((*divmod(number, chunk_size), row) for number, row in enumerate(rows))
        with self._transaction() as database:
            _insert_rows(database, entries)
            database.execute("INSERT INTO meta VALUES ('about', ?)", (_text(about),))

    def chunks(self) -> list[int]:
        """Numbers of the chunks that have rows."""
        with self._explained():
            found = self._database.execute("SELECT DISTINCT chunk FROM rows ORDER BY chunk")
            return [number for (number,) in found]

    def rows(self, chunk: int | None = None, *, failed: bool | None = None) -> Iterator[CorpusRow]:
        """Rows in the order of the plan.

        Args:
            chunk: of this chunk; of all by default.
            failed: only those that failed, or only those that did not.
        """
        where = [] if chunk is None else ["chunk = ?"]
        if failed is not None:
            where.append(f"failed IS {'NOT ' if failed else ''}NULL")
        query = (
            f"SELECT record FROM rows {'WHERE' if where else ''} {' AND '.join(where)} ORDER BY chunk, place"
        )
        with self._explained():
            for (record,) in self._database.execute(query, () if chunk is None else (chunk,)):
                yield CorpusRow.from_dict(json.loads(record))

    def chunk_of(self) -> dict[str, int]:
        """Row id -> number of its chunk."""
        with self._explained():
            return dict(self._database.execute("SELECT id, chunk FROM rows"))

    def count(self) -> int:
        """Number of rows."""
        with self._explained():
            return int(self._database.execute("SELECT COUNT(*) FROM rows").fetchone()[0])

    def failures(self) -> dict[str, int]:
        """Number of rows that failed, by `STAGE: STATUS`; as fast as there are few of them."""
        query = "SELECT failed, COUNT(*) FROM rows WHERE failed IS NOT NULL GROUP BY failed ORDER BY failed"
        with self._explained():
            return dict(self._database.execute(query))

    def record(self, stage: str, chunk: int, rows: Sequence[CorpusRow]) -> None:
        """Enter what a stage made of the rows of a chunk, and that it is done."""
        with self._transaction() as database:
            _update_rows(database, rows)
            database.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", (stage, chunk))

    def record_new(self, stage: str, chunk: int, into: int, rows: Sequence[CorpusRow]) -> None:
        """Enter new rows as the chunk `into`, made from the chunk `chunk`, and that the stage is done with that one.

        Raises:
            CorpusError: two rows have the same id.
        """
        with self._transaction() as database:
            _insert_rows(database, ((into, place, row) for place, row in enumerate(rows)))
            database.execute("INSERT INTO done VALUES (?, ?)", (stage, chunk))

    def done(self, stage: str) -> set[int]:
        """Chunks that a stage is done with."""
        with self._explained():
            return {
                chunk
                for (chunk,) in self._database.execute("SELECT chunk FROM done WHERE stage = ?", (stage,))
            }

    # --- shards ---------------------------------------------------------------------------------------------

    def add_shard(self, shard: Shard) -> None:
        """Enter a shard whose file has its final name."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO shards VALUES (?, ?, ?)", (shard.name, shard.sha256, shard.rows)
            )

    def shards(self) -> list[Shard]:
        """The shards that are written, by name."""
        with self._explained():
            return [Shard(*found) for found in self._database.execute("SELECT * FROM shards ORDER BY name")]


def _insert_rows(database: sqlite3.Connection, entries: Iterable[tuple[int, int, CorpusRow]]) -> None:
    try:
        database.executemany(
            "INSERT INTO rows VALUES (?, ?, ?, ?, ?)",
            ((chunk, place, row.id, _status(row), _text(row.to_dict())) for chunk, place, row in entries),
        )
    except sqlite3.IntegrityError as error:
        raise CorpusError(f"Two rows are made of the same prompt, seed and settings ({error}).") from error


def _update_rows(database: sqlite3.Connection, rows: Iterable[CorpusRow]) -> None:
    database.executemany(
        "UPDATE rows SET failed = ?, record = ? WHERE id = ?",
        ((_status(row), _text(row.to_dict()), row.id) for row in rows),
    )


def _status(row: CorpusRow) -> str | None:
    return None if row.failure is None else f"{row.failure.stage}: {row.failure.status}"


def _text(value: Any) -> str:
    return json.dumps(value, allow_nan=False)  # in ASCII: a prompt may hold half a character
