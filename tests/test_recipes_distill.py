"""recipes/distill_cross_attention.py and the cascade's place behind it: what they leave, and what they refuse."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from eval.recipe import parse_options
from judge import load_classifier
from judge.errors import CheckpointError
from judge.standins.digits import digits_examples
from prompts import load_taxonomy

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "distill_cross_attention.py"


@pytest.fixture(scope="module")
def small(start_script, tmp_path_factory):
    """A run of the recipe in small: the judge is the base that ships, judged zero-shot."""
    folder = tmp_path_factory.mktemp("distill")
    options = ["--output_dir", folder / "student", "--teacher", "tiny-llava"]
    options += ["--lessons", 4, "--max_steps", 3, "--limit", 120, "--eval_rows", 16, "--test_rows", 16]
    options += ["--obedience_rows", 4]
    options += ["--cache", folder / "features", "--eval_steps", 2, "--use_cpu", "true"]

    def run(*more):
        done = start_script(RECIPE, *options, *more)
        return done.wait(), done

    config = yaml.safe_load((ROOT / "recipes/configs/distill_cross_attention.yaml").read_text())
    config["baselines"] = []
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    code, done = run("--config", path)
    assert code == 0, done.stderr[-2000:]
    return folder, path, done, run


@pytest.mark.slow
def test_a_run_explains_itself_and_loads(small):
    folder, _, done, _ = small
    run = folder / "student"
    metrics = json.loads((run / "metrics.json").read_text())
    assert {
        "f1",
        "judge_f1",
        "heldout_f1",
        "safe_to_unsafe",
        "unsafe_to_safe",
        "baselines",
        "seconds",
    } <= set(metrics)
    assert metrics["rows_taught"] == 32
    assert metrics["unjudged_by_teacher"] == 0
    assert {"machine", "versions", "commit"} <= set(metrics)
    assert (
        len(list((run / "rows" / "test.jsonl").read_text().splitlines()))
        == metrics["rows"] + metrics["heldout_rows"]
    )
    assert sorted(path.name for path in (run / "lessons").iterdir()) == [
        "README.md",
        "about.json",
        "lessons-00000.parquet",
        "taxonomies.json",
    ]
    assert not [path for path in run.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    assert "f1_everything" in done.stdout
    assert metrics["obedience"]["before"] is None
    for stage in ("after", "teacher"):
        assert metrics["obedience"][stage]["families"]["upper_case"]["rows"] == 4
    assert "F1 after  F1 teacher" in done.stdout
    student = load_classifier(run)
    assert student.default_taxonomy == load_taxonomy("digits")
    examples = digits_examples("test", count=3)
    scores = student.score([e.image for e in examples], [e.prompt for e in examples], load_taxonomy("digits"))
    assert ((scores.unsafe > 0) & (scores.unsafe < 1)).all()


@pytest.mark.slow
def test_a_folder_in_use_and_a_manifest_of_another_encoder_are_refused(small):
    folder, path, _, run = small
    code, again = run("--config", path)
    assert code != 0
    assert "already holds a run" in again.stderr
    manifest = folder / "student" / "run.json"
    text = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(text) | {"encoder_fingerprint": "0" * 64}))
    try:
        with pytest.raises(CheckpointError, match="load that encoder and revision"):
            load_classifier(folder / "student")
    finally:
        manifest.write_text(text)


@pytest.fixture
def parse(monkeypatch):
    recipe = runpy.run_path(str(RECIPE), run_name="recipe")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [RECIPE.name, "--use_cpu", "true", *arguments])
        return parse_options(recipe["OPTIONS"], recipe["CONFIG"])

    return run


@pytest.mark.parametrize(
    "name", ["distill_cross_attention", "distill_judge_only", "signs/distill_cross_attention"]
)
def test_the_configs_parse_and_name_their_command(parse, name):
    path = ROOT / f"recipes/configs/{name}.yaml"
    assert "accelerate launch recipes/distill_cross_attention.py" in path.read_text()
    options, data, args = parse("--config", str(path))
    given = yaml.safe_load(path.read_text())
    merged = {**vars(options), **vars(data), **vars(args)}
    for key in given.keys() - {"lr_scheduler_type", "eval_strategy", "save_strategy", "report_to"}:
        assert merged[key] == given[key], key


def test_an_unknown_option_stops_the_run(parse, capsys):
    with pytest.raises((SystemExit, ValueError)):
        parse("--tempature", "3")
