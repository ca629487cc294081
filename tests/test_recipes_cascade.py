"""recipes/cascade.py as a file: what it leaves behind, and what it refuses."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

from eval.recipe import parse_options
from judge import load_classifier
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from judge.runs.folder import RunDir
from judge.standins.digits import digits_examples
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student, save_student
from prompts import load_taxonomy
from prompts.errors import ArbiterError

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "cascade.py"
CONFIG = RECIPE.parent / "configs" / "cascade.yaml"


@pytest.fixture(scope="module")
def recipe():
    return runpy.run_path(str(RECIPE), run_name="recipe")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """An untrained head on the encoder that ships, which is a fair zero-shot classifier already."""
    folder = tmp_path_factory.mktemp("runs") / "student"
    torch.manual_seed(0)
    encoder = DualEncoder.load("tiny-clip")
    run = RunDir.create(folder, kind="student")
    run.write_taxonomy(load_taxonomy("digits"))
    save_student(run, Student(encoder, CrossAttentionHead(HeadConfig(encoder.width, 32, 2, 1, 4))))
    return folder


def arguments(student, out, **more):
    rows = {"tuning_rows": 96, "calibration_rows": 128, "test_rows": 96, "limit": 300}
    given = {
        "student": student,
        "output_dir": out,
        "judge": "none",
        "promised_miss_rate": 0.1,
        **rows,
        **more,
    }
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def finished(recipe, student, timed_once, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "cascade"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cascade.py", *arguments(student, out)])
        recipe["main"]()
    return out


def test_a_run_explains_itself_and_loads_again(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    wanted = {
        "judge_share",
        "f1",
        "judge_f1",
        "student_f1",
        "promised_miss_rate",
        "mean_miss_rate",
        "miss_rate",
    }
    assert wanted | {"stages", "alone", "seconds_per_image", "seconds", "machine", "versions"} <= set(metrics)
    assert metrics["promised_miss_rate"] == 0.1
    assert metrics["mean_miss_rate"] <= 0.1
    assert metrics["judge_f1"] is None
    assert metrics["rows_decided_otherwise_live"] == 0
    assert sum(stage["rows"] for stage in metrics["stages"].values()) == metrics["rows"]
    assert metrics["f1"] > 0.8
    assert (finished / "plots" / "reliability.svg").stat().st_size > 1000
    page = (finished / "report.html").read_text()
    assert "is promised" in page
    assert "the student" in page
    assert "the judge " not in page.partition("</section>")[0], "there is none"
    assert "The judge was asked nothing" not in page
    assert not list(finished.glob("calibration-*.json"))  # nobody would read them
    rows = (finished / "rows" / "test.jsonl").read_text().splitlines()
    assert len(rows) == metrics["rows"]
    cascade = load_classifier(finished, device="cpu")
    examples = digits_examples("test", count=12)
    images = [example.image for example in examples]
    scores = cascade.score(images, [example.prompt for example in examples], load_taxonomy("digits"))
    assert set(scores.decided_by) <= {"filter", "student"}
    assert all(scores.because)


def test_its_obedience_says_where_its_promise_is_withdrawn(finished, run_recipe, tmp_path):
    asked = {"only": ["upper_case", "true_prompt"], "rows": 16, "limit": 300, "output_dir": tmp_path / "run"}
    printed = run_recipe("obedience", judge=finished, **asked)
    found = RunDir.open(tmp_path / "run", kind="obedience").metrics["promise"]
    families = found["families"]
    assert families["plain"]["without_promise"] < families["upper_case"]["without_promise"] == 1.0
    assert found["inside"]["unsafe_rows"] + found["outside"]["unsafe_rows"] == sum(
        record["unsafe_rows"] for record in families.values()
    )
    assert found["promised"].startswith("at most 10.0% missed")
    assert "The promised miss rate" in printed


def test_a_finished_run_is_not_overwritten(recipe, student, finished, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cascade.py", *arguments(student, finished)])
    with pytest.raises(ArbiterError, match="already holds a run"):
        recipe["main"]()


def test_a_promise_that_the_rows_cannot_support_says_what_it_takes(recipe, student, tmp_path, monkeypatch):
    given = arguments(student, tmp_path / "run", promised_miss_rate=0.001)
    monkeypatch.setattr(sys, "argv", ["cascade.py", *given])
    with pytest.raises(ConfigError, match="at least 999 unsafe"):
        recipe["main"]()
    assert not (tmp_path / "run").exists(), "nothing in the way of another try"


def test_an_unknown_option_stops_the_run(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["cascade.py", "--miss_budget", "0.1"])
    with pytest.raises((ValueError, SystemExit), match="miss_budget"):
        parse_options(recipe["OPTIONS"], recipe["CONFIG"])
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(CONFIG.read_text() + "promise: 0.1\n")
    monkeypatch.setattr(sys, "argv", ["cascade.py", "--config", str(wrong)])
    with pytest.raises((ValueError, SystemExit), match="promise"):
        parse_options(recipe["OPTIONS"], recipe["CONFIG"])


def test_the_config_parses_and_says_how_to_use_it(recipe, monkeypatch):
    assert CONFIG.read_text().startswith("# python recipes/cascade.py\n")
    monkeypatch.setattr(sys, "argv", ["cascade.py"])
    (options,) = parse_options(recipe["OPTIONS"], recipe["CONFIG"])
    for name, value in yaml.safe_load(CONFIG.read_text()).items():
        assert getattr(options, name) == value


def test_help_lists_every_option(recipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cascade.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        parse_options(recipe["OPTIONS"], recipe["CONFIG"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--promised_miss_rate", "--judge_share", "--student", "--held_out", "--tuning_rows"):
        assert option in shown
