"""A PostgreSQL server of the system's packages in a folder of its own, which may be killed and started again."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from judge.errors import ConfigError

from .processes import has_ended, tree

_START_SECONDS = 120
"""How long a server may take to let somebody in, recovery after a kill included."""


def why_no_postgresql() -> str | None:
    """Why no server can be started here; None where it can."""
    if _programs() is None:
        return "PostgreSQL is not installed: no initdb and postgres on the PATH or in /usr/lib/postgresql"
    if _user() == "":
        return "we are root, and there is no user postgres or nobody to run PostgreSQL as"
    return None


class PostgresqlServer:
    """A server that listens on a socket in its folder only.

    Args:
        home: an empty folder of a short path: that of a socket has at most 107 characters.
        sync: whether commits wait for the disk; what they wrote outlives a killed server either way, not a power cut.

    Raises:
        ConfigError: PostgreSQL is not here.
    """

    def __init__(self, home: Path, *, sync: bool = True) -> None:
        folder, user = _programs(), _user()
        if folder is None or user == "":
            raise ConfigError(f"No PostgreSQL server can be started: {why_no_postgresql()}.")
        self.home = home
        self._sync = sync
        self._program = folder / "postgres"
        self._run: dict[str, Any] = {
            "user": user,
            "cwd": home,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
        }
        if user:
            shutil.chown(home, user)
        words = ["-D", home / "data", "-U", "arbiter", "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run([str(folder / "initdb"), *map(str, words)], check=True, **self._run)
        self._process: subprocess.Popen[bytes] | None = None
        self._schemas = 0

    def start(self) -> None:
        """Start the server, again after a `kill`, and return once it lets clients in."""
        settings = ("listen_addresses=", "max_connections=200", f"fsync={'on' if self._sync else 'off'}")
        words = ["-D", str(self.home / "data"), "-k", str(self.home)]
        words += [word for setting in settings for word in ("-c", setting)]
        self._process = subprocess.Popen([str(self._program), *words], **self._run)
        self.execute("SELECT 1")

    def kill(self) -> None:
        """End the server and all its processes by SIGKILL, in the middle of whatever they do."""
        if self._process is not None:
            processes = tree(self._process.pid)
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._process.wait()
            # The next server would refuse to start while one of them still holds the memory that they share.
            while not all(map(has_ended, processes)):
                time.sleep(0.01)

    def stop(self) -> None:
        """Shut the server down at once, without a checkpoint."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def execute(self, command: str) -> None:
        """Run a command of SQL, as soon as the server lets us in."""
        import psycopg

        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                with psycopg.connect(f"host={self.home} user=arbiter dbname=postgres") as connection:
                    connection.execute(command.encode())
                return
            except psycopg.OperationalError:  # it is still starting
                if time.monotonic() > until or self._process is None or self._process.poll() is not None:
                    raise
            time.sleep(0.05)

    def new_url(self) -> str:
        """URL of a new, empty schema."""
        self._schemas += 1
        self.execute(f"CREATE SCHEMA schema_{self._schemas}")
        return f"postgresql+psycopg://arbiter@/postgres?host={self.home}&options=-csearch_path%3Dschema_{self._schemas}"


@contextmanager
def temporary_postgresql(*, sync: bool = True) -> Iterator[PostgresqlServer]:
    """A server that runs, and is gone with its folder afterwards.

    Raises:
        ConfigError: PostgreSQL is not here.
    """
    # Not in a folder of ours: the user that the server runs as may not enter every one.
    home = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        server = PostgresqlServer(home, sync=sync)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _programs() -> Path | None:
    """The folder of `initdb` and `postgres`."""
    path = os.environ.get("PATH", "").split(os.pathsep)
    folders = [*map(Path, path), *Path("/usr/lib/postgresql").glob("*/bin")]
    return next((f for f in folders if (f / "initdb").is_file() and (f / "postgres").is_file()), None)


def _user() -> str | None:
    """Whom to run the server as, since it refuses root: None for ourselves, empty where nobody fits."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), "")
