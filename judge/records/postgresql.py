"""PostgreSQL as the records use it: how long anything is waited for, and how writers take turns."""

from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, text

from judge.errors import MissingExtraError

_CONNECT_SECONDS = 5
"""How long a server may take to let us in. The threads that wait are few, and a client should soon hear 503."""
_SILENT_SECONDS = 15
"""After which a server that no longer answers is gone; by default a system waits for a quarter of an hour and more."""
_IDLE_SECONDS = 10.0
"""How long a writer may hold its turn without doing anything, such as one whose machine has lost its power; the server
then ends its transaction. Shorter than others wait for their turn."""
_WRITERS = 0x61726269
"""Key of the advisory lock that writers take ("arbi")."""
_CONNECTION = {
    "connect_timeout": _CONNECT_SECONDS,
    "tcp_user_timeout": 1000 * _SILENT_SECONDS,  # while we wait for what we sent to arrive
    "keepalives_idle": _SILENT_SECONDS // 3,  # and while we wait for an answer
    "keepalives_interval": _SILENT_SECONDS // 3,
    "keepalives_count": 2,
}
"""What libpq is told, unless the URL says otherwise."""


def postgresql_engine(url: URL, options: dict[str, Any]) -> Engine:
    """The engine of a URL; connections that have died, as those to a server that started again, are replaced.

    Raises:
        MissingExtraError: the driver is not installed.
    """
    told = {name: value for name, value in _CONNECTION.items() if name not in url.query}
    try:
        return create_engine(
            url,
            **options,
            connect_args=told,
            pool_pre_ping=True,
            # Whatever the server's default: a writer has to see what was written while it waited for its turn. As they
            # take turns, none fails because another one wrote, and none waits for another in a circle.
            isolation_level="READ COMMITTED",
        )
    except ImportError as error:
        raise MissingExtraError(
            "PostgreSQL needs its driver: pip install 'arbiter-vision[postgresql]'."
        ) from error


def take_turn(connection: Connection, seconds: float) -> None:
    """Wait until no other writer is at work, for `seconds` at most; ours is the turn until the transaction ends.

    An answer has to outlive the server, so a commit waits for its disk even where the server's default is not to.
    """
    connection.execute(
        text(
            "SELECT set_config('lock_timeout', :wait, true), "
            "set_config('idle_in_transaction_session_timeout', :idle, true), "
            "set_config('synchronous_commit', CASE current_setting('synchronous_commit') "
            "WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true)"
        ),
        {"wait": _milliseconds(seconds), "idle": _milliseconds(_IDLE_SECONDS)},
    )
    connection.execute(text(f"SELECT pg_advisory_xact_lock({_WRITERS})"))


def _milliseconds(seconds: float) -> str:
    return f"{round(1000 * seconds)}ms"
