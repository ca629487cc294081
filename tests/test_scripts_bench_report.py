"""scripts/bench_report.py runs and prints its JSON; no times are compared."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_report.py"


def test_the_report_is_timed_and_its_memory_measured(tmp_path):
    command = [sys.executable, SCRIPT, "--images", "40", "--classifiers", "3", "--keep", tmp_path]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(ran.stdout.splitlines()[-1])
    assert (found["images"], found["classifiers"]) == (40, 3)
    assert list(found["stages"]) == ["imports", "read", "measure", "report"]
    assert sum(found["stages"].values()) <= found["seconds"]
    assert found["cpu_seconds"] > 0
    assert 20 < found["peak_mib"] < 2000
    page = (tmp_path / "report.html").read_text()
    assert found["page_mb"] == (tmp_path / "report.html").stat().st_size / 1e6
    assert all(f"classifier {number}<br>" in page for number in (1, 2, 3))
    assert "data:image/jpeg;base64," in page
    assert {"machine", "versions", "load_average"} <= found.keys()
