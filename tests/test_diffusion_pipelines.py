"""tiny-diffusion ships, opens by name, and draws what it is asked for."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from judge.diffusion.pipelines import load_pipeline
from judge.errors import CheckpointError
from judge.standins.shipped import SHIPPED_PIPELINES, checkpoint_path

ROOT = Path(__file__).parents[1]


def test_unchanged_pipeline_draws_the_digit_it_is_asked_for() -> None:
    import judge
    from prompts import load_taxonomy

    pipeline = load_pipeline("tiny-diffusion")
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    wanted = [0, 1, 2, 5, 6, 9]
    names = ("zero", "one", "two", "five", "six", "nine")
    images = pipeline(
        [f"a picture of {name}" for name in names],
        num_inference_steps=12,
        guidance_scale=6.0,
        height=40,
        width=40,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(wanted))],
    ).images
    scores = judge.load_classifier("tiny-student").score(images, None, load_taxonomy("digits")).categories
    found = [scores[row, digit] > 0.5 for row, digit in enumerate(wanted)]
    assert sum(found) >= len(wanted) - 2


@pytest.mark.parametrize("name", SHIPPED_PIPELINES)
def test_what_ships_is_small_and_names_no_folder_of_its_maker(name: str) -> None:
    files = [path for path in checkpoint_path(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 7e6
    assert not [
        path for path in files if path.suffix == ".json" and "_name_or_path" in path.read_text("utf-8")
    ]


def test_what_is_no_pipeline_is_refused_with_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"opened as a diffusion pipeline .*tiny-diffusion, a folder"):
        load_pipeline(str(tmp_path))


def test_the_script_that_trains_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(
        "build_tiny_diffusion", ROOT / "scripts/build_tiny_diffusion.py"
    )
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    out = tmp_path / "made"
    words = ["--out", out, "--pictures", 24, "--vae-steps", 2, "--unet-steps", 2, "--evaluate", 1]
    monkeypatch.setattr(sys, "argv", ["build_tiny_diffusion.py", *map(str, words)])
    script.main()
    shapes = {name: value.shape for name, value in load_pipeline("tiny-diffusion").unet.state_dict().items()}
    made = load_pipeline(str(out), dtype="float16")
    assert {name: value.shape for name, value in made.unet.state_dict().items()} == shapes
    assert made.unet.dtype == torch.float16


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    copy = tmp_path / "pickled"
    shutil.copytree(checkpoint_path("tiny-diffusion"), copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        load_pipeline(str(copy))
