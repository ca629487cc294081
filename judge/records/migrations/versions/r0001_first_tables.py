"""The first tables: taxonomies, policies, items, verdicts, decisions, removals."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_REFUSE_SQLITE = """
CREATE TRIGGER decisions_{event} BEFORE {event} ON decisions
BEGIN SELECT RAISE(ABORT, 'the decision log is append-only'); END
"""
_REFUSE_POSTGRESQL = """
CREATE FUNCTION refuse_to_change_decisions() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'the decision log is append-only'; END $$
"""
_TRIGGER_POSTGRESQL = """
CREATE TRIGGER decisions_change BEFORE UPDATE OR DELETE OR TRUNCATE ON decisions
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_decisions()
"""


def upgrade() -> None:
    """Make the tables, and the triggers that keep the decision log as it is."""
    _make_taxonomies()
    _make_queue()
    _make_decisions()
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_REFUSE_POSTGRESQL)
        op.execute(_TRIGGER_POSTGRESQL)
    else:
        for event in ("UPDATE", "DELETE"):
            op.execute(_REFUSE_SQLITE.format(event=event))


def _make_taxonomies() -> None:
    op.create_table(
        "taxonomies",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("yaml", sa.Text, nullable=False),
        sa.Column("saved_at", sa.String(32), nullable=False),
        sa.Column("saved_by", sa.String(100)),
        sa.PrimaryKeyConstraint("id", name="pk_taxonomies"),
        sa.UniqueConstraint("name", "version", name="uq_taxonomies_name_version"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "policies",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("yaml", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_policies"),
    )


def _make_queue() -> None:
    op.create_table(
        "items",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("prompt", sa.Text),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("added", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_items"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_items_sha256", "items", ["sha256"])
    op.create_index("ix_items_state_items_id", "items", ["state", "id"])
    op.create_table(
        "verdicts",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("item_id", sa.Integer, nullable=False),
        sa.Column("policy_hash", sa.String(64), nullable=False),
        sa.Column("row", sa.JSON, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_verdicts"),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name="fk_verdicts_item_id_items"),
        sa.ForeignKeyConstraint(["policy_hash"], ["policies.hash"], name="fk_verdicts_policy_hash_policies"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_verdicts_item_id", "verdicts", ["item_id"])
    op.create_index("ix_verdicts_policy_hash_verdicts_item_id", "verdicts", ["policy_hash", "item_id"])
    op.create_table(
        "removals",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_removals"),
    )


def _make_decisions() -> None:
    op.create_table(
        "decisions",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("verdict_id", sa.Integer, nullable=False),
        sa.Column("item_id", sa.Integer, nullable=False),
        sa.Column("action", sa.String(10), nullable=False),
        sa.Column("status", sa.String(10)),
        sa.Column("categories", sa.JSON, nullable=False),
        sa.Column("note", sa.Text),
        sa.Column("moderator", sa.String(100), nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_decisions"),
        sa.ForeignKeyConstraint(["verdict_id"], ["verdicts.id"], name="fk_decisions_verdict_id_verdicts"),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name="fk_decisions_item_id_items"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_decisions_verdict_id", "decisions", ["verdict_id"])
    op.create_index("ix_decisions_item_id", "decisions", ["item_id"])
