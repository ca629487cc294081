"""The tables of the records, as SQLAlchemy maps them; `migrations/` makes them, and a test holds both together.

Times are texts in ISO 8601, in UTC, as `judge.runs.machine.now` writes them. Verdict rows are JSON as text (`json` and
not `jsonb` in PostgreSQL), which keeps the order of the categories.
"""

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

HASH = String(64)
"""SHA-256 in hexadecimal digits."""
TIME = String(32)
_AUTOINCREMENT = {"sqlite_autoincrement": True}
"""SQLite would give the id of a deleted row to the next one."""


class Table(DeclarativeBase):
    """What the tables share: names of constraints that are the same on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class SavedTaxonomyRow(Table):
    """One version of a taxonomy that a moderator saved; versions are never changed."""

    __tablename__ = "taxonomies"
    __table_args__ = (UniqueConstraint("name", "version"), _AUTOINCREMENT)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80))
    version: Mapped[int]
    hash: Mapped[str] = mapped_column(HASH)
    yaml: Mapped[str] = mapped_column(Text)
    saved_at: Mapped[str] = mapped_column(TIME)
    saved_by: Mapped[str | None] = mapped_column(String(100))


class PolicyRow(Table):
    """A taxonomy that something was judged by, saved or not."""

    __tablename__ = "policies"

    hash: Mapped[str] = mapped_column(HASH, primary_key=True)
    yaml: Mapped[str] = mapped_column(Text)


class ItemRow(Table):
    """An image in the queue, with its prompt; the image itself is a file."""

    __tablename__ = "items"
    __table_args__ = (Index(None, "state", "id"), _AUTOINCREMENT)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str] = mapped_column(HASH, index=True)
    prompt: Mapped[str | None] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(10))
    added: Mapped[str] = mapped_column(TIME)


class VerdictRow(Table):
    """What the judge said of an item under a taxonomy: the row of `judge.verdicts.rows`."""

    __tablename__ = "verdicts"
    __table_args__ = (Index(None, "policy_hash", "item_id"), _AUTOINCREMENT)

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), index=True)
    policy_hash: Mapped[str] = mapped_column(HASH, ForeignKey("policies.hash"))
    row: Mapped[dict[str, Any]] = mapped_column(JSON)
    created: Mapped[str] = mapped_column(TIME)


class DecisionRow(Table):
    """What a moderator decided; triggers of the database refuse to change or delete one."""

    __tablename__ = "decisions"
    __table_args__ = (_AUTOINCREMENT,)

    id: Mapped[int] = mapped_column(primary_key=True)
    verdict_id: Mapped[int] = mapped_column(ForeignKey("verdicts.id"), index=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), index=True)
    action: Mapped[str] = mapped_column(String(10))
    status: Mapped[str | None] = mapped_column(String(10))
    categories: Mapped[list[str]] = mapped_column(JSON)
    note: Mapped[str | None] = mapped_column(Text)
    moderator: Mapped[str] = mapped_column(String(100))
    time: Mapped[str] = mapped_column(TIME)


class RemovalRow(Table):
    """An image whose last item was deleted and whose file is still to be removed; empty but for a crash."""

    __tablename__ = "removals"

    sha256: Mapped[str] = mapped_column(HASH, primary_key=True)
