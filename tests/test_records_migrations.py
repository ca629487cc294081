"""The database and the code that opens it: made, migrated with its rows, or refused; and the same as the tables say."""

import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from fixtures_server import PATIENCE
from sqlalchemy import inspect, text

from judge.records import database
from judge.records.database import Database
from judge.records.entries import NewItem
from judge.records.errors import RecordsError
from judge.records.tables import Table

LATER = '''
"""A migration of the future."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("items", sa.Column("colour", sa.String(10), nullable=False, server_default="red"))
    op.execute("UPDATE items SET colour = 'blue' WHERE name = 'second'")
'''


@pytest.fixture
def later(tmp_path, monkeypatch):
    """Makes this program one that knows a further migration."""

    def become(extra=""):
        folder = tmp_path / "migrations"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(database.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / "r9999_later.py").write_text(LATER + extra)
        monkeypatch.setattr(database, "MIGRATIONS", folder)

    return become


def columns(opened, table):
    with opened._engine.connect() as connection:
        return {column["name"] for column in inspect(connection).get_columns(table)}


def test_the_migrations_make_the_tables_of_the_code(database_url):
    opened = Database(database_url)
    with opened._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Table.metadata) == []
        found = inspect(connection)
        assert set(found.get_table_names()) == {*Table.metadata.tables, "alembic_version"}
        constraints = {c["name"] for table in Table.metadata.tables for c in found.get_foreign_keys(table)}
    assert constraints == {
        c.name for table in Table.metadata.tables.values() for c in table.foreign_key_constraints
    }
    opened.close()


def test_the_comparison_sees_a_forgotten_migration(database_url):
    """The test above can fail."""
    opened = Database(database_url)
    with opened.write() as session:
        session.execute(text("ALTER TABLE items ADD COLUMN forgotten INTEGER"))
    with opened._engine.connect() as connection:
        [[kind, *_]] = compare_metadata(MigrationContext.configure(connection), Table.metadata)
    assert kind == "remove_column"
    opened.close()


def test_an_old_database_is_upgraded_with_its_rows(database_url, open_records, later):
    old = open_records(database_url)
    items = old.add_items([NewItem(b"1", "first"), NewItem(b"2", "second", "p")])
    old.close()
    later()
    new = open_records(database_url)
    assert new.items() == items
    with new._database.read() as session:
        colours = session.execute(text("SELECT name, colour FROM items ORDER BY id")).all()
    assert colours == [("first", "red"), ("second", "blue")]


def test_a_newer_database_is_refused(database_url, later, monkeypatch):
    later()
    Database(database_url).close()
    monkeypatch.undo()
    with pytest.raises(
        RecordsError, match=r"has version 9999, and this Arbiter knows up to 0001.*Update Arbiter"
    ):
        Database(database_url)


def test_a_migration_that_fails_changes_nothing(database_url, open_records, later, monkeypatch):
    old = open_records(database_url)
    [item] = old.add_items([NewItem(b"1", "first")])
    later(extra="    op.execute('SELECT * FROM nowhere')\n")
    with pytest.raises(RecordsError, match="nowhere"):
        Database(database_url)
    assert "colour" not in columns(old._database, "items")
    monkeypatch.undo()
    assert open_records(database_url).items() == [item]


def test_a_database_of_another_program_is_left_alone(database_url):
    opened = Database(database_url)
    with opened.write() as session:
        session.execute(text("DROP TABLE alembic_version"))
    opened.close()
    with pytest.raises(RecordsError, match="that Arbiter did not make"):
        Database(database_url)


def test_several_processes_make_it_once(database_url):
    starters = 6
    ready = threading.Barrier(starters)

    def start(_):
        ready.wait(PATIENCE)
        return Database(database_url)

    with ThreadPoolExecutor(starters) as pool:
        opened = list(pool.map(start, range(starters)))
    assert columns(opened[0], "items") >= {"id", "sha256"}
    for one in opened:
        one.close()


def test_another_process_that_switches_the_journal_too_is_waited_for(monkeypatch):
    """SQLite says so at once, whatever its timeout, and seldom: a real race seldom shows it."""
    said, asked = [sqlite3.OperationalError("database is locked")] * 3, []

    def execute(statement):
        asked.append(statement)
        if said:
            raise said.pop()

    connection = SimpleNamespace(execute=execute)
    database._write_ahead(connection)
    assert asked == ["PRAGMA journal_mode = WAL"] * 4
    said += [sqlite3.OperationalError("disk I/O error")]
    with pytest.raises(sqlite3.OperationalError, match="disk"):
        database._write_ahead(connection)
    monkeypatch.setattr(database, "_WAIT_SECONDS", -1)
    said += [sqlite3.OperationalError("database is locked")]
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        database._write_ahead(connection)
