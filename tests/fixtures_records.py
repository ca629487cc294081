"""Fixtures: databases for records, SQLite and a PostgreSQL server of our own, and what is stored in them."""

import pytest


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
    """A PostgreSQL server (`eval.serving.postgresql`), which ends with the tests."""
    from eval.serving.postgresql import temporary_postgresql, why_no_postgresql

    if reason := why_no_postgresql():
        pytest.skip(reason)
    with temporary_postgresql(sync=False) as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server):
    """URL of an empty schema on the server."""
    return postgresql_server.new_url()


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
