"""Two processes on CPU, plainly and under ZeRO, train exactly as one process does on the same batches."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

CONFIGS = Path(__file__).resolve().parent.parent / "recipes" / "configs"
PROFILES = {"single", "ddp", "zero2", "zero3", "zero3_offload", "cpu_ddp", "cpu_zero2", "cpu_zero3"}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed: pip install '.[deepspeed]'",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "options"),
    [
        ("cpu_ddp", ("--eval_strategy", "steps", "--eval_steps", "3")),
        pytest.param("cpu_zero2", ("--gradient_accumulation_steps", "2"), marks=needs_deepspeed),
        pytest.param("cpu_zero3", ("--activation_checkpointing", "true"), marks=needs_deepspeed),
    ],
)
def test_two_processes_give_the_curve_of_one(launch, single_run, step_losses, tmp_path, profile, options):
    out = tmp_path / profile
    each = 3 if "--gradient_accumulation_steps" in options else 6
    done = launch(out, "--per_device_train_batch_size", str(each), *options, profile=profile)
    assert "2 processes, 48 rows in a step" in done.stdout
    alone = step_losses(single_run)
    assert len(alone) == 6
    assert step_losses(out) == pytest.approx(alone, abs=1e-4)
    left, right = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (out, single_run))
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].shape == right[name].shape
        assert (left[name] - right[name]).abs().max() < 1e-4, name
    found, alone = (json.loads((run / "metrics.json").read_text()) for run in (out, single_run))
    assert found["parameters"] == alone["parameters"], "of the whole model, not of one process's share"
    after, expected = found["after"], alone["after"]
    assert after["unjudged"] == expected["unjudged"] == 0
    assert after["f1"] == pytest.approx(expected["f1"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("profile", [pytest.param("cpu_zero2", marks=needs_deepspeed)])
def test_a_run_goes_on_under_deepspeed(launch, single_run, step_losses, tmp_path, profile):
    """As after a machine went away behind the fourth step: the newest checkpoint is all that is left."""
    out, options = tmp_path / profile, ("--per_device_train_batch_size", "6")
    launch(out, *options, "--test_rows", "4", profile=profile)
    for path in ("checkpoint-6", "adapter"):
        shutil.rmtree(out / path)
    launch(out, *options, "--test_rows", "4", "--resume_from_checkpoint", "true", profile=profile)
    assert step_losses(out) == pytest.approx(step_losses(single_run), abs=1e-4)
    assert (out / "adapter" / "adapter_model.safetensors").is_file()


def test_profiles_are_complete():
    found = {path.stem: yaml.safe_load(path.read_text()) for path in (CONFIGS / "accelerate").glob("*.yaml")}
    assert found.keys() == PROFILES
    for name, profile in found.items():
        if "zero" in name:
            assert "mixed_precision" not in profile, "accelerate refuses it beside a DeepSpeed file"
            file = CONFIGS.parent.parent / profile["deepspeed_config"]["deepspeed_config_file"]
            stage = json.loads(file.read_text())["zero_optimization"]["stage"]
            assert str(stage) in name
            assert profile["deepspeed_config"]["zero3_init_flag"] == (stage == 3)


def test_deepspeed_leaves_what_the_recipe_knows_to_it():
    files = sorted((CONFIGS / "deepspeed").glob("*.json"))
    assert [file.stem for file in files] == ["zero2", "zero3", "zero3_offload"]
    for file in files:
        settings = json.loads(file.read_text())
        for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
            assert settings[key] == "auto"
        assert settings["gradient_clipping"] == settings["bf16"]["enabled"] == "auto"
    assert "offload_param" in json.loads(files[2].read_text())["zero_optimization"]
