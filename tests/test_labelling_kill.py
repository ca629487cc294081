"""`arbiter label` killed, poisoned and on a full disk, as `scripts/label_kill_test.py` does it, on a few images."""

import json

import pytest


@pytest.mark.slow
def test_rows_survive_kills_poisons_and_a_full_disk(start_script, tmp_path):
    words = ["--images", "240", "--shards", "24", "--kills", "2", "--workers", "1"]
    words += ["--judge", "tiny-student", "--taxonomy", "digits", "--out", str(tmp_path / "out")]
    run = start_script("scripts/label_kill_test.py", *words, OMP_NUM_THREADS="1")
    code = run.wait()
    assert code == 0, run.stdout + run.stderr
    found = json.loads(run.stdout)
    killed = found["killed"]
    assert None not in killed["parts_at_kills"]
    assert killed["parts_kept"] < killed["parts"]
    statuses = found["poisoned"]["statuses"]
    assert sorted(set(statuses.values())) == ["timeout", "too_large", "unreadable", "unsupported"]
    assert 0 < found["poisoned"]["lost_with_the_cut_tar"] < 10
    if "not_measured" not in found["full_disk"]:
        assert 0 < found["full_disk"]["parts_when_full"] < killed["parts"]
