"""The ablation: which options each line trains with, and the table."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

from prompts import FlipOptions

PATH = Path(__file__).resolve().parent.parent / "scripts" / "ablate_lessons.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("ablate_lessons", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_line_leaves_one_part_out(script, tmp_path, monkeypatch, capsys):
    asked = []

    def pretend(recipe, *options):
        given = dict(zip(options[::2], options[1::2], strict=True))
        asked.append((recipe, given))
        families = {"lesson_families": {"mean_f1": 0.9, "worst_f1": 0.8}}
        found = {"after": {"f1": 0.98, "heldout_f1": 0.96}, **families}
        found["unseen_families"] = {"mean_f1": 0.7, "worst_f1": len(asked) / 100}
        given["--output_dir"].mkdir()
        (given["--output_dir"] / "metrics.json").write_text(json.dumps(found))

    monkeypatch.setattr(script, "_run", pretend)
    for _ in range(2):  # the second time, nothing is run again
        arguments = ["--out", str(tmp_path), "--parts", "nonsense", "odd", "--steps", "5"]
        monkeypatch.setattr(sys, "argv", ["ablate_lessons.py", *arguments])
        script.main()
    assert [recipe for recipe, _ in asked] == ["lora_llava.py", "obedience.py"] * 3
    configs = [yaml.safe_load(Path(given["--config"]).read_text()) for _, given in asked[::2]]
    flips = [FlipOptions(**config["flip"]) for config in configs]
    assert [(flip.nonsense > 0, flip.odd > 0) for flip in flips] == [
        (True, True),
        (False, True),
        (True, False),
    ]
    assert {config["max_steps"] for config in configs} == {5}
    table = capsys.readouterr().out.rstrip().split("\n")[-4:]
    assert [line.split()[0] for line in table] == ["without", "-", "nonsense", "odd"]
    assert table[-1].split()[1:] == ["0.980", "0.960", "0.900", "0.800", "0.700", "0.060"]


def test_parts_are_shares_of_the_options(script):
    assert all(isinstance(getattr(FlipOptions(), part), float) for part in script.PARTS[1:])
