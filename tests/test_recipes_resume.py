"""recipes/lora_llava.py stops with one line, goes on as the run it was, and as no other."""

import errno
import json
import runpy
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from eval.recipe import clean_start, open_run, parse_options
from judge.errors import CheckpointError, ConfigError
from judge.vlm.training.trainer import JudgeTrainer
from prompts import load_taxonomy

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SAVED = {"save_strategy": "steps", "save_steps": 1}
GO_ON = SAVED | {"resume_from_checkpoint": "true"}


def stop_at(monkeypatch, step, error):
    """Let training run into `error` when it begins the step."""
    compute = JudgeTrainer.compute_loss

    def hindered(self, *given, **more):
        if self.state.global_step == step:
            raise error
        return compute(self, *given, **more)

    monkeypatch.setattr(JudgeTrainer, "compute_loss", hindered)


@pytest.fixture(scope="module")
def kept():
    """The run that nothing stops, the same beside every other."""
    return []


@pytest.mark.parametrize(
    ("error", "said", "status"),
    [
        (KeyboardInterrupt(), "Stopped by Ctrl-C.", 130),
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full:", 2),
    ],
    ids=["Ctrl-C", "full disk"],
)
def test_a_stopped_run_says_how_it_goes_on_and_does(
    kept, train_here, base_folder, monkeypatch, capsys, step_losses, error, said, status
):
    if not kept:
        kept.append(train_here(base_folder(), "straight", **SAVED).path)
    [straight] = kept
    with monkeypatch.context() as hindered:
        stop_at(hindered, 2, error)
        with pytest.raises(SystemExit) as stopped:
            train_here(base_folder(), "stopped", **SAVED)
    assert stopped.value.code == status
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(said)
    assert "stopped/checkpoint-2; the same command with --resume_from_checkpoint true continues" in line

    for changed, difference in (
        ({"seed": 1}, "seed 42, not 1"),
        ({"lora_r": 8, "learning_rate": 0.1}, "learning_rate 0.001, not 0.1; lora_r 4, not 8"),
        ({"load_in_4bit": True}, "load_in_4bit|quantization"),
    ):
        with pytest.raises(CheckpointError, match=difference):
            train_here(base_folder(), "stopped", **GO_ON | changed)
    found = train_here(base_folder(), "stopped", **GO_ON | {"logging_steps": 1, "eval_rows": 5}).path
    assert step_losses(found) == pytest.approx(step_losses(straight), rel=1e-5)
    numbers = [json.loads((run / "metrics.json").read_text())["after"] for run in (found, straight)]
    assert numbers[0] == numbers[1]


def test_a_student_goes_on_as_the_same_student_only(monkeypatch, tmp_path):
    recipe = runpy.run_path(str(RECIPES / "distill_cross_attention.py"), run_name="recipe")

    def begin(*words):
        words = ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--baselines", *words]
        monkeypatch.setattr(sys, "argv", ["distill_cross_attention.py", *words])
        options, data, args = parse_options(recipe["OPTIONS"], recipe["CONFIG"])
        taxonomy = load_taxonomy(data.taxonomy)
        open_run(args.output_dir, "student", taxonomy, (options, data, args), teacher=options.teacher)

    begin()
    again = ("--resume_from_checkpoint", "true")
    begin(*again, "--logging_steps", "3")
    with pytest.raises(CheckpointError, match=r"started with inner 128, not 64; seed \d+, not 1\."):
        begin(*again, "--seed", "1", "--inner", "64")


def test_a_failed_start_leaves_the_folder_of_another_that_may_be_at_work(tmp_path):
    args = TrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True)

    def start():
        open_run(tmp_path / "run", "student", load_taxonomy("digits"), (args,))

    def fail():
        start()
        raise ConfigError("out of memory")

    start()
    args.resume_from_checkpoint = "true"
    with pytest.raises(ConfigError, match="out of memory"):
        clean_start(fail)()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *("config.yaml", "environment.json", "run.json", "taxonomy.yaml")
    ]


def test_a_failed_start_leaves_no_folder_in_the_way(train_here, monkeypatch, tmp_path):
    def fails(base, **options):
        with pytest.raises((CheckpointError, SystemExit)):
            clean_start(lambda: train_here(base, "failed", **options))()
        assert not (tmp_path / "failed").exists()

    fails(tmp_path / "no such base")
    monkeypatch.setattr("judge.vlm.load.load_base", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    fails("tiny-llava")
