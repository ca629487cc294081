"""recipes/lora_llava.py as a file: what it leaves behind, what it refuses, and how it goes on after a kill."""

import hashlib
import json
import runpy
import signal
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from eval.recipe import parse_options
from prompts.errors import ArbiterError

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
CONFIGS = sorted(path for path in (RECIPES / "configs").glob("*.yaml") if "lora" in path.stem)


@pytest.fixture(scope="module")
def recipe():
    """The recipe's functions, without running it."""
    return runpy.run_path(str(RECIPES / "lora_llava.py"), run_name="recipe")


@pytest.fixture
def parse(recipe, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lora_llava.py", *arguments])
        return parse_options(recipe["OPTIONS"], recipe["CONFIG"])

    return run


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.slow
def test_a_run_explains_itself(single_run):
    files = {path.relative_to(single_run).as_posix() for path in single_run.rglob("*") if path.is_file()}
    wanted = {"run.json", "config.yaml", "taxonomy.yaml", "environment.json", "metrics.json", "report.html"}
    wanted |= {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"}
    wanted |= {"rows/before.jsonl", "rows/after.jsonl", "rows/history.jsonl"}
    assert not wanted - files
    assert not [
        name for name in files if name.startswith("adapter/") and name.endswith((".bin", ".pt", ".pth"))
    ]
    metrics = json.loads((single_run / "metrics.json").read_text())
    assert {
        "before",
        "after",
        "shortcut_auc",
        "image_shortcut_auc",
        "seconds",
        "taxonomy_hash",
        "machine",
        "versions",
        "commit",
    } <= set(metrics)
    keys = {"f1", "safe_to_unsafe", "unsafe_to_safe", "pair_score", "category_accuracy", "unjudged"}
    keys |= {"heldout_f1", "lying_prompt_f1", "auc"}
    assert keys <= set(metrics["before"])
    assert keys <= set(metrics["after"])
    assert metrics["after"]["unjudged"] == 0
    for stage in ("before", "after"):
        assert metrics["obedience"][stage]["families"]["upper_case"]["rows"] == 8
    page = (single_run / "report.html").read_text()
    for part in ("F1 under other wordings", "Held-out categories", "Shortcut check", "Training rows"):
        assert part in page
    assert metrics["taxonomy_hash"] == json.loads((single_run / "run.json").read_text())["taxonomy"]["hash"]
    assert {"torch", "transformers", "peft", "trl"} <= set(metrics["versions"])
    assert metrics["seconds"] > 0
    rows = [json.loads(line) for line in (single_run / "rows" / "after.jsonl").read_text().splitlines()]
    assert len(rows) >= 12
    config = yaml.safe_load((single_run / "config.yaml").read_text())
    assert config["flip"]["group_size"] == 4
    assert config["learning_rate"] == 1e-3
    assert config["dataset"] == "digits"
    assert config["lora_r"] == 4


@pytest.mark.slow
def test_the_adapter_names_its_base_as_it_was_given(single_run, base_folder):
    config = json.loads((single_run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base_folder())
    assert json.loads((single_run / "run.json").read_text())["base"] == str(base_folder())


@pytest.mark.slow
def test_loss_falls_and_every_adapter_tensor_moves_and_nothing_else_is_saved(
    single_run, step_losses, base_folder
):
    losses = step_losses(single_run)
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    assert losses[6] < losses[1] - 0.1
    early, late = weights(single_run / "checkpoint-2"), weights(single_run / "adapter")
    assert early.keys() == late.keys()
    assert len(late) == 2 * 7 * 2, "A and B of seven linear layers in each of two layers"
    for name, tensor in late.items():
        assert "language_model" in name
        assert "lora_" in name
        assert (tensor != early[name]).any(), f"{name} did not move"
        assert tensor.abs().max() > 0
    digest = hashlib.sha256((base_folder() / "model.safetensors").read_bytes()).hexdigest()
    import torch

    from judge.vlm.load import BaseOptions, load_base

    model, _ = load_base(BaseOptions(model_name_or_path=str(base_folder())))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert digest == hashlib.sha256((base_folder() / "model.safetensors").read_bytes()).hexdigest()


DYING = """
import os, runpy, signal, sys
from transformers import Trainer

kept = Trainer._save_rng_state

def dying(self, folder):
    kept(self, folder)
    if folder.endswith("checkpoint-4"):
        os.kill(os.getpid(), signal.SIGKILL)

Trainer._save_rng_state = dying
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Becomes the given recipe, and is killed in the middle of saving: trainer_state.json would come next."""


@pytest.mark.slow
def test_a_killed_run_goes_on_along_the_same_curve(
    start_script, recipe_config, single_run, step_losses, tmp_path
):
    out, dying = tmp_path / "killed", tmp_path / "dying.py"
    dying.write_text(DYING)
    command = [RECIPES / "lora_llava.py", "--config", recipe_config, "--output_dir", out]
    killed = start_script(dying, *command)
    assert killed.wait() == -signal.SIGKILL, killed.stderr[-3000:]
    assert (out / "checkpoint-2" / "trainer_state.json").is_file()
    assert (out / "checkpoint-4" / "adapter_model.safetensors").is_file()
    assert not (out / "checkpoint-4" / "trainer_state.json").exists()
    assert not (out / "metrics.json").exists()

    resumed = start_script(*command, "--resume_from_checkpoint", "true")
    assert resumed.wait() == 0, resumed.stderr[-3000:]
    assert step_losses(out) == pytest.approx(step_losses(single_run), rel=1e-5)
    resumed, straight = weights(out / "adapter"), weights(single_run / "adapter")
    for name in straight:
        assert (resumed[name] - straight[name]).abs().max() < 1e-5 * straight[name].abs().max(), name
    found, expected = (json.loads((run / "metrics.json").read_text()) for run in (out, single_run))
    assert found["after"]["f1"] == expected["after"]["f1"]


@pytest.mark.slow
def test_a_finished_run_is_not_overwritten(recipe, monkeypatch, single_run, recipe_config):
    arguments = ["--config", str(recipe_config), "--output_dir", str(single_run), "--use_cpu", "true"]
    monkeypatch.setattr(sys, "argv", ["lora_llava.py", *arguments])
    with pytest.raises(ArbiterError, match="already holds a run"):
        recipe["main"]()


def test_an_unknown_option_stops_the_run(parse, recipe_config, tmp_path):
    with pytest.raises((ValueError, SystemExit), match="lora_rank"):
        parse("--config", str(recipe_config), "--output_dir", "x", "--lora_rank", "4")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(recipe_config.read_text() + "learning_rat: 1\n")
    with pytest.raises((ValueError, SystemExit), match="learning_rat"):
        parse("--config", str(wrong), "--output_dir", "x")


def test_unknown_flip_options_stop_the_run(recipe, monkeypatch, recipe_config, tmp_path):
    options = yaml.safe_load(recipe_config.read_text()) | {"flip": {"groupsize": 4}}
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(options))
    arguments = ["--config", str(wrong), "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    monkeypatch.setattr(sys, "argv", ["lora_llava.py", *arguments])
    with pytest.raises((TypeError, ValueError), match="groupsize"):
        recipe["main"]()


def test_help_lists_every_option(parse, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for option in (
        "--lora_r",
        "--held_out",
        "--flip",
        "--load_in_4bit",
        "--train_projector",
        "--learning_rate",
    ):
        assert option in shown


def test_the_number_of_configs_is_known():
    assert [path.stem for path in CONFIGS] == [
        "lora_gemma3_4b",
        "lora_idefics3_8b",
        "lora_internvl3_8b",
        "lora_llava",
        "lora_llava_7b",
        "lora_llava_next_7b",
        "lora_onevision_7b",
        "lora_qwen2_5_vl_7b",
        "lora_qwen3_vl_8b",
        "lora_smolvlm_2b",
        "qlora_gemma3_12b_24gb",
        "qlora_llava_7b_24gb",
        "qlora_qwen3_vl_8b_24gb",
    ]
    assert len(list((RECIPES / "configs").glob("accelerate/*.yaml"))) == 8


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_parse_and_say_how_to_use_them(parse, path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("accelerate launch recipes/lora_llava.py" in line for line in header)
    base, lora, data, args = parse("--config", str(path), "--use_cpu", "true")
    given = yaml.safe_load(path.read_text())
    merged = {**vars(base), **vars(lora), **vars(data), **vars(args)}
    for key in given.keys() - {"lr_scheduler_type", "eval_strategy", "optim", "report_to"}:
        assert merged[key] == given[key], key
    from prompts import FlipOptions, load_taxonomy

    FlipOptions(**data.flip)
    load_taxonomy(data.taxonomy)


def test_the_papers_settings(parse):
    base, lora, data, args = parse(
        "--config", str(RECIPES / "configs" / "lora_llava_7b.yaml"), "--use_cpu", "true"
    )
    assert base.model_name_or_path == "llava-hf/llava-1.5-7b-hf"
    assert (lora.lora_r, lora.lora_alpha, args.learning_rate, args.num_train_epochs) == (128, 256, 2e-4, 1)
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * data.flip["group_size"]
    assert rows == 16
    assert data.dataset == data.taxonomy == "unsafebench"
