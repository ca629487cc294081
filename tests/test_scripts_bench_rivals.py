"""scripts/bench_rivals.py prints what its last line says."""

import json
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_rivals.py"


def test_speed_and_scores_of_every_rival(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_rivals.py", "--images", "3", "--repeats", "1"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    *_, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert list(found) == ["nudenet", "nudenet, rgb", "open_nsfw"]
    for row in found.values():
        assert row["images_per_cpu_second"] > 1
        assert 0 <= row["median"] <= row["highest"] < 0.5
        assert row["flagged"] == 0
