"""Fixtures: databases for records, SQLite and a PostgreSQL server of our own, and what is stored in them."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

_NUMBERS = itertools.count()


def postgresql_programs():
    """The folder of `initdb` and `postgres`; None where PostgreSQL is not installed."""
    folders = [
        *map(Path, os.environ.get("PATH", "").split(os.pathsep)),
        *Path("/usr/lib/postgresql").glob("*/bin"),
    ]
    return next((f for f in folders if (f / "initdb").is_file() and (f / "postgres").is_file()), None)


def user_for_postgresql():
    """Whom to run the server as, since it refuses root: None for ourselves, "" where nobody fits."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), "")


@pytest.fixture(scope="session", autouse=True)
def _sqlite_waits_for_no_disk():
    """As PostgreSQL below: what is written outlives any process, and no test cuts the power."""
    from judge.records import database

    configure = database._configure_sqlite

    def configure_faster(connection, record):
        configure(connection, record)
        connection.execute("PRAGMA synchronous = OFF")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_configure_sqlite", configure_faster)
        yield


@pytest.fixture(scope="session")
def postgresql_server():
    """The folder with the socket of a PostgreSQL server, which ends with the tests."""
    programs, user = postgresql_programs(), user_for_postgresql()
    if programs is None:
        pytest.skip(
            "PostgreSQL is not installed: no initdb and postgres on the PATH or in /usr/lib/postgresql"
        )
    if user == "":
        pytest.skip("we are root, and there is no user postgres or nobody to run PostgreSQL as")
    # Not in pytest's folder: another user may not enter that, and the path of a socket is at most 107 characters.
    home = Path(tempfile.mkdtemp(prefix="pg"))
    if user:
        shutil.chown(home, user)
    run = {"user": user, "cwd": home, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    command = [programs / "initdb", "-D", home / "data", "-U", "arbiter", "-A", "trust", "-E", "UTF8", "-N"]
    subprocess.run(command, check=True, **run)
    words = ["-D", home / "data", "-k", home, "-c", "listen_addresses=", "-c", "fsync=off"]
    server = subprocess.Popen([programs / "postgres", *words], **run)
    try:
        yield home
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: nobody needs the data again
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(20)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def postgresql_url(postgresql_server):
    """URL of an empty schema on the server."""
    import time

    import psycopg

    schema = f"test_{next(_NUMBERS)}"
    for attempt in itertools.count():
        try:
            with psycopg.connect(f"host={postgresql_server} user=arbiter dbname=postgres") as connection:
                connection.execute(f"CREATE SCHEMA {schema}")
            break
        except psycopg.OperationalError:  # it is still starting
            if attempt == 300:
                raise
            time.sleep(0.1)
    return f"postgresql+psycopg://arbiter@/postgres?host={postgresql_server}&options=-csearch_path%3D{schema}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """URL of an empty database, of each kind in turn."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql_url")
    return f"sqlite:///{tmp_path / 'records.sqlite'}"


@pytest.fixture
def open_records(tmp_path):
    """`open_records(url)` -> `Records` with images in `tmp_path / "images"`; closed after the test."""
    from judge.records.records import Records

    opened = []

    def open_(url):
        opened.append(Records(url, tmp_path / "images"))
        return opened[-1]

    yield open_
    for records in opened:
        records.close()


@pytest.fixture
def records(open_records, tmp_path):
    """Records in SQLite, for tests that are not about the database."""
    return open_records(f"sqlite:///{tmp_path / 'records.sqlite'}")


@pytest.fixture(scope="session")
def own_taxonomy():
    """A moderator's own taxonomy, of three categories."""
    from prompts.taxonomy import Category, Taxonomy

    categories = (
        Category("Knives", "a knife that is held as a weapon"),
        Category("Cannabis; leaves", "leaves of cannabis, drawn or real", key="cannabis"),
        Category("Gore", "wounds and blood"),
    )
    return Taxonomy("ours", "1", categories)


@pytest.fixture(scope="session")
def make_row(own_taxonomy):
    """`make_row([0.9, nan, 0.1], threshold=0.5, ...)` -> the row of a verdict under `own_taxonomy`."""
    import math

    from judge.verdicts.rows import Judging, verdict_row
    from prompts.verdict import verdict_from_scores

    def make(scores, threshold=0.5, unsafe=None, name="a.png", sha256=None, frame=None, model_hash=None):
        known = [score for score in scores if not math.isnan(score)]
        total = unsafe if unsafe is not None else max(known, default=math.nan)
        judging = Judging(own_taxonomy, threshold, "fake", model_hash)
        verdict = verdict_from_scores(total, scores, own_taxonomy, threshold=threshold, model="fake")
        time = "2026-11-22T03:00:00+00:00"
        return verdict_row(verdict, judging, time=time, path=name, image_hash=sha256, frame=frame)

    return make
