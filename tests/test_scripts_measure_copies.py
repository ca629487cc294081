"""scripts/measure_copies.py prints what share of changed copies is found."""

import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "measure_copies.py"


def test_a_line_for_each_change_and_one_of_false_alarms(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["measure_copies.py", "--dataset", "digits:30"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("30 test images against 30 training images")
    found = {line[:24].strip(): [float(cell.rstrip("%")) for cell in line[24:].split()] for line in lines}
    assert len(found) == 9
    assert found["JPEG 75"][0] >= 90
    assert found["mirrored"][0] == found["false alarms"][0] == 0
    assert found["cut by 5 %"][1] > found["cut by 5 %"][0]  # the hash alone finds more, and more false ones
