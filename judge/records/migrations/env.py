"""What Alembic runs to bring a database up to date, on the connection that `judge.records.database` gives it.

A new migration is a file in `versions/`, written by hand; `tests/test_records_migrations.py` compares the result with
the tables.
"""

from alembic import context

from judge.records.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    transactional_ddl=True,  # SQLite's too: `database` begins the transaction itself
)
with context.begin_transaction():
    context.run_migrations()
