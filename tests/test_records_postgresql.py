"""What PostgreSQL needs of the records: turns whatever the server's defaults, frozen writers, silent servers; passwords."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from fixtures_server import PATIENCE
from sqlalchemy import text

from judge.errors import ConfigError
from judge.records import postgresql
from judge.records.entries import NewItem
from judge.records.errors import RecordsError
from judge.records.records import Records
from judge.records.urls import with_password


def with_setting(url, setting):
    return f"{url}%20-c{setting.replace('=', '%3D')}"


@pytest.mark.parametrize("level", ["serializable", r"repeatable\ read"])
def test_no_writer_fails_because_another_one_wrote(
    postgresql_url, open_records, own_taxonomy, monkeypatch, level
):
    """Above READ COMMITTED each of them would see the tables as they were before it waited."""
    monkeypatch.setattr("judge.records.database._WAIT_SECONDS", PATIENCE)
    records = open_records(with_setting(postgresql_url, f"default_transaction_isolation={level}"))
    with records._database._engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw.execute("SHOW default_transaction_isolation").fetchone() == (level.replace("\\", ""),)

    def save(number):
        return records.save_taxonomy("ours", own_taxonomy.reword({"Gore": f"wording {number}"})).version

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(save, range(16))) == list(range(1, 17))


def test_a_writer_that_freezes_loses_its_turn(postgresql_url, open_records, monkeypatch):
    """Such as one whose machine has lost its power: nobody tells the server."""
    monkeypatch.setattr(postgresql, "_IDLE_SECONDS", 0.2)
    frozen, other = open_records(postgresql_url), open_records(postgresql_url)
    turn = frozen._database.write()
    turn.__enter__().execute(text("INSERT INTO removals VALUES ('never')"))
    assert [item.name for item in other.add_items([NewItem(b"x", "x")])] == ["x"]
    with pytest.raises(RecordsError):
        turn.__exit__(None, None, None)
    with other._database.read() as session:
        assert session.execute(text("SELECT * FROM removals")).all() == []
    assert len(frozen.add_items([NewItem(b"y", "y")])) == 1, "and goes on when it is back"


@pytest.mark.parametrize(("default", "used"), [("off", "on"), ("remote_write", "remote_write")])
def test_what_is_answered_is_on_the_disk(postgresql_url, open_records, default, used):
    records = open_records(with_setting(postgresql_url, f"synchronous_commit={default}"))
    with records._database.write() as session:
        assert session.scalar(text("SHOW synchronous_commit")) == used


def test_a_server_that_says_nothing_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setitem(postgresql._CONNECTION, "connect_timeout", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(RecordsError, match="timeout"):
            Records(f"postgresql+psycopg://me@127.0.0.1:{port}/records", tmp_path / "images")


def test_the_url_has_the_last_word(postgresql_url, open_records):
    records = open_records(f"{postgresql_url}&connect_timeout=77")
    with records._database._engine.connect() as connection:
        told = connection.connection.dbapi_connection.info.get_parameters()
    assert (told["connect_timeout"], told["tcp_user_timeout"]) == ("77", "15000")


def test_a_password_comes_from_its_file(tmp_path):
    file = tmp_path / "password"
    file.write_text("p@ss/w:rd \n")
    assert with_password(None, None) is None
    url = with_password("postgresql://arbiter@database/arbiter", file)
    assert (url.password, url.host, url.drivername) == ("p@ss/w:rd ", "database", "postgresql+psycopg")
    assert "p@ss" not in str(url)


@pytest.mark.parametrize(
    ("url", "content", "message"),
    [
        (None, b"secret", "SQLite has no password"),
        ("sqlite:///a.sqlite", b"secret", "SQLite has no password"),
        ("postgresql://me:secret@/a", b"secret", "leave one of them out"),
        ("postgresql://me@/a", b"", "holds no password"),
        ("postgresql://me@/a?password=shown-in-messages", b"secret", "password behind its"),
        ("postgresql://me@/a", b"secret\nsecret\n", "holds no password"),
        ("postgresql://me@/a", b"\xff", "cannot be read"),
        ("postgresql://me@/a", None, "cannot be read"),
    ],
)
def test_a_password_that_is_none(tmp_path, url, content, message):
    if content is not None:
        (tmp_path / "password").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        with_password(url, tmp_path / "password")
    assert "secret" not in str(error.value)
