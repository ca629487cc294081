"""A server that is killed while moderators decide: whatever it has answered is there."""

from fixtures_moderators import Crew, killed_server

from judge.records.records import Records


def test_a_killed_server_loses_nothing_that_it_answered(tmp_path):
    crew = Crew(16)
    with killed_server(tmp_path) as address:
        crew.work_at(address, 20)
    crew.stop()
    records = Records.in_folder(tmp_path / "state")
    crew.check(records)
    assert crew.problems.keys() <= {"gone"}
    records.close()
