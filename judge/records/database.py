"""One database, SQLite or PostgreSQL: opened, brought up to date, read and written in transactions.

- **Writers wait for each other**, on SQLite by its lock, on PostgreSQL by an advisory one. So ids become visible in
  their order (who asks for what came after an id misses nothing), a check and what is written after it are one step,
  and none is told to try again because of another one. Readers never wait.
- **What was answered stays.** A write is one transaction; SQLite writes ahead (WAL) and syncs each commit.
- **The database knows its version.** An older one is migrated when it is opened, with its rows and in one transaction;
  a newer one is refused, as this program could misread it.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, inspect
from sqlalchemy.orm import Session

from judge.errors import first_line

from .errors import RecordsError
from .postgresql import postgresql_engine, take_turn
from .tables import Table
from .urls import checked_url

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
_WAIT_SECONDS = 30.0
"""How long a writer waits for others before it gives up."""


class Database:
    """A database of records; safe to use from several threads, and by several processes at once.

    Args:
        url: `sqlite:///PATH` or `postgresql+psycopg://USER:PASSWORD@HOST/NAME`.

    Raises:
        ConfigError: another kind of database, or no URL at all.
        RecordsError: it cannot be opened, belongs to another program, or is newer than this one.
        MissingExtraError: PostgreSQL without its driver.
    """

    def __init__(self, url: str | URL) -> None:
        parsed = checked_url(url)
        self.name = parsed.render_as_string(hide_password=True)
        """The URL without its password, for messages."""
        self._turn = threading.Lock()
        with self._explained():
            self._engine = _engine(parsed)
            self._writer = self._engine.execution_options(writes=True)
            try:
                with self._writer.begin() as connection:
                    _wait_for_writers(connection)
                    _migrate(connection, self.name)
            except BaseException:
                self.close()
                raise

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that changes nothing."""
        with self._explained(), Session(self._engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are committed together at the end, or, on an error, not at all."""
        with (
            self._explained(),
            self._turn_in_process(),
            Session(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            _wait_for_writers(session.connection())
            yield session

    @contextmanager
    def _turn_in_process(self) -> Iterator[None]:
        """On SQLite, wait for this process's other writers.

        SQLite itself has no queue: who waits looks again after a while, and of 16 that write all the time some never
        find it free.
        """
        if self._engine.dialect.name != "sqlite":
            yield
            return
        if not self._turn.acquire(timeout=_WAIT_SECONDS):
            raise RecordsError(f"The database {self.name}: other writers hold its lock for too long.")
        try:
            yield
        finally:
            self._turn.release()

    def close(self) -> None:
        """Close the connections; the database may not be used afterwards."""
        self._engine.dispose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (exc.DBAPIError, exc.ArgumentError, exc.TimeoutError) as error:
            raise RecordsError(
                f"The database {self.name}: {first_line(getattr(error, 'orig', None) or error)}."
            ) from error


def _engine(url: URL) -> Engine:
    options: dict[str, Any] = {
        "json_serializer": partial(json.dumps, allow_nan=False),
        "pool_size": 10,
        "max_overflow": 40,  # more than the threads of a server
    }
    if url.get_backend_name() == "sqlite":
        _make_private_file(Path(str(url.database)))
        engine = create_engine(url, **options, connect_args={"timeout": _WAIT_SECONDS})
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return postgresql_engine(url, options)


def _make_private_file(path: Path) -> None:
    """An empty file that only its owner can read, if there is none: SQLite would make one for everybody."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise RecordsError(f"The database {str(path)!r} cannot be opened: {first_line(error)}.") from error


def _configure_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # or Python's driver begins transactions at times of its own
    _write_ahead(connection)
    for pragma in ("synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: Any) -> None:
    # While SQLite changes the journal's mode it fails at once, whatever its timeout, if another process changes it too.
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # A reader that becomes a writer midway fails at once when another one wrote: writers say so from the start.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _wait_for_writers(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        take_turn(connection, _WAIT_SECONDS)


def _migrate(connection: Connection, name: str) -> None:
    """Bring the tables up to date, on a connection that holds the writers' lock."""
    from alembic import command
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = alembic_config(connection)
    script = ScriptDirectory.from_config(config)
    known = {revision.revision for revision in script.walk_revisions()}
    found = MigrationContext.configure(connection).get_current_heads()
    if unknown := [version for version in found if version not in known]:
        raise RecordsError(
            f"The database {name} has version {unknown[0]}, and this Arbiter knows up to "
            f"{script.get_current_head()}: a newer one wrote it. Update Arbiter, or name another database."
        )
    foreign = set(inspect(connection).get_table_names()) & set(Table.metadata.tables)
    if foreign and not found:
        raise RecordsError(
            f"The database {name} has a table {min(foreign)!r} that Arbiter did not make; name another database."
        )
    if found != (script.get_current_head(),):
        command.upgrade(config, "head")


def alembic_config(connection: Connection) -> "Config":
    """What Alembic needs to migrate on this connection; `migrations/env.py` reads it."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
