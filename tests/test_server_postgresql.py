"""A server on a real PostgreSQL, with sixteen moderators: either is killed, and whatever was answered is there."""

import json
import urllib.error
import urllib.request

import pytest
from fixtures_moderators import Crew, killed_server
from fixtures_server import PATIENCE, colour_service, data_url, listening, picture, wait_until

from judge.records.records import Records

WRITERS = 16


@pytest.fixture
def mortal_postgresql(postgresql_server):
    """The server of all tests, which runs again afterwards."""
    yield postgresql_server
    postgresql_server.kill()
    postgresql_server.start()


def ask(address, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, data), timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_servers_that_are_killed_lose_nothing_that_they_answered(postgresql_url, tmp_path):
    """Two at a time on one database, and the second goes on while the first dies."""
    crew = Crew(WRITERS)
    with killed_server(tmp_path, "--database", postgresql_url) as first:
        crew.work_at(first, WRITERS)
        (tmp_path / "second").mkdir()
        with killed_server(
            tmp_path / "second", "--state", "../state", "--database", postgresql_url
        ) as second:
            for moderator in crew.moderators[::2]:
                moderator.address = second
            crew.wait_for(WRITERS)
        crew.work_at(first, WRITERS)
    with killed_server(tmp_path, "--database", postgresql_url) as third:
        crew.work_at(third, WRITERS)
    crew.stop()
    assert crew.problems.keys() <= {"gone"}
    records = Records.in_folder(tmp_path / "state", postgresql_url)
    crew.check(records)
    records.close()


def test_a_database_that_is_killed_loses_nothing_and_is_found_again(mortal_postgresql, open_records):
    url = mortal_postgresql.new_url()
    records, crew = open_records(url), Crew(WRITERS)
    with listening(colour_service(), records) as address:
        for end in (mortal_postgresql.kill, mortal_postgresql.stop):
            crew.work_at(address, WRITERS)
            end()
            refused = crew.problems[503, "records_unavailable"]
            wait_until(lambda so_far=refused: crew.problems[503, "records_unavailable"] > so_far + WRITERS)
            # What needs no database goes on, and what needs it never looks like an empty one.
            assert ask(address, "/readyz")[0] == 200
            status, answer = ask(address, "/v1/verdicts", {"images": [{"data": data_url(picture(red=255))}]})
            assert (status, json.loads(answer)["verdicts"][0]["status"]) == (200, "unsafe")
            for path in ("/v1/queue", "/v1/decisions", "/v1/decisions.csv", "/v1/decisions/training.zip"):
                status, answer = ask(address, path)
                assert (status, json.loads(answer)["error"]["code"]) == (503, "records_unavailable")
            mortal_postgresql.start()
        crew.work_at(address, WRITERS)
        crew.stop()
        metrics = ask(address, "/metrics")[1]
    assert f"arbiter_records_errors_total {crew.problems[503, 'records_unavailable'] + 8}.0" in metrics
    assert crew.problems.keys() == {(503, "records_unavailable")}
    crew.check(records)
