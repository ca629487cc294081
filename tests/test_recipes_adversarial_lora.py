"""recipes/adversarial_lora.py as a file: it goes on with a judge's run, and leaves one that loads like any other."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from adversarial.errors import AttackError
from eval.recipe import parse_options
from judge.classifiers import load_classifier
from judge.runs.folder import RunDir

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "adversarial_lora.py"
CONFIG = ROOT / "recipes" / "configs" / "adversarial_judge.yaml"
SMALL = (
    "--max_steps",
    "2",
    "--limit",
    "200",
    "--test_rows",
    "16",
    "--attacked_rows",
    "4",
    "--measured_steps",
    "2",
)
SMALL += (
    "--per_device_train_batch_size",
    "2",
    "--attack_steps",
    "1",
    "--logging_steps",
    "1",
    "--use_cpu",
    "true",
)
SMALL += ("--obedience_rows", "4")
SMALL += (
    "--groups_per_epoch",
    "8",
    "--feature_images",
    "40",
    "--feature_epochs",
    "2",
    "--feature_batch_size",
    "20",
)
SMALL += ("--tower_rank", "8", "--learn_answers", "true")


@pytest.fixture(scope="module")
def recipe():
    return runpy.run_path(str(RECIPE), run_name="recipe")


@pytest.fixture
def parse(recipe, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["adversarial_lora.py", *arguments])
        return parse_options(recipe["OPTIONS"], recipe["CONFIG"])

    return run


@pytest.fixture(scope="module")
def judge_run(base_folder, tmp_path_factory):
    """A run as recipes/lora_llava.py leaves it: random adapters on a random base, which a folder's name names."""
    from judge.vlm.adapter import LoraOptions, add_lora, tidy_adapter
    from judge.vlm.load import BaseOptions, load_base
    from prompts import load_taxonomy

    base = str(base_folder())
    run = RunDir.create(
        tmp_path_factory.mktemp("judge") / "judge",
        kind="vlm",
        base=base,
        dtype="float32",
        template="policy_first",
    )
    run.write_taxonomy(load_taxonomy("digits"))
    flip = {"group_size": 4, "max_categories": 2, "custom": 0.0}
    run.write_config(
        {
            "model_name_or_path": base,
            "dataset": "digits",
            "taxonomy": "digits",
            "held_out": ["four"],
            "flip": flip,
        }
    )
    model, _ = add_lora(load_base(BaseOptions(base))[0], LoraOptions(lora_r=4), base=base)
    model.save_pretrained(run.path / "adapter")
    tidy_adapter(run.path / "adapter", base=base)
    return run


@pytest.mark.slow
def test_a_run_loads_like_any_judge_and_tells_its_price(start_script, judge_run, tmp_path, noise_image):
    done = start_script(RECIPE, "--judge", judge_run.path, "--output_dir", tmp_path / "robust", *SMALL)
    assert done.wait() == 0, done.stderr[-4000:]
    assert "robust accuracy at 8/255" in done.stdout

    moved = (tmp_path / "robust").rename(tmp_path / "elsewhere")
    run = RunDir.open(moved, kind="vlm")
    assert run.manifest["base"] == judge_run.manifest["base"]
    assert run.taxonomy.hash == judge_run.taxonomy.hash
    metrics = run.metrics
    assert {
        "clean_f1_loss",
        "undefended_robust_accuracy",
        "defended_robust_accuracy",
        "seconds",
    } <= metrics.keys()
    assert {"machine", "versions", "commit"} <= metrics.keys()
    for found in (metrics["before"], metrics["after"]):
        assert found["clean"]["rows"] == 16
        assert list(found["attacked"]["by_epsilon"]) == ["0/255", "2/255", "4/255", "8/255"]
    assert metrics["clean_f1_loss"] == pytest.approx(
        metrics["before"]["clean"]["f1"] - metrics["after"]["clean"]["f1"]
    )
    history = list(run.read_rows("history"))
    assert len([entry for entry in history if "loss" in entry]) == 2
    assert [entry["matching_epoch"] for entry in history if "matching_loss" in entry] == [1, 2]
    assert run.config["held_out"] == ["four"]
    named = json.loads((moved / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == judge_run.manifest["base"]

    hardened, plain = load_classifier(moved, device="cpu"), load_classifier(judge_run.path, device="cpu")
    asked = ([noise_image(0)], ["a photo"], run.taxonomy)
    assert abs(hardened.score(*asked).unsafe[0] - plain.score(*asked).unsafe[0]) > 1e-6
    assert any("vision_tower" in name and "lora" in name for name, _ in hardened.model.named_parameters())


def test_the_config_says_how_to_use_it_and_every_key_is_known(parse):
    lines = CONFIG.read_text().splitlines()
    assert any(
        "accelerate launch recipes/adversarial_lora.py" in line for line in lines if line.startswith("#")
    )
    options, args = parse("--use_cpu", "true")
    merged = {**vars(options), **vars(args)}
    given = yaml.safe_load(CONFIG.read_text())
    for key in given.keys() - {"lr_scheduler_type", "save_strategy", "report_to"}:
        assert merged[key] == given[key], key


def test_an_unknown_option_stops_the_run(parse):
    with pytest.raises((ValueError, SystemExit), match="lora_rank"):
        parse("--use_cpu", "true", "--lora_rank", "4")


def test_an_epsilon_in_grey_levels_stops_before_anything_is_measured(
    recipe, monkeypatch, judge_run, tmp_path
):
    arguments = ["--judge", str(judge_run.path), "--output_dir", str(tmp_path / "run"), "--epsilon", "8"]
    monkeypatch.setattr(sys, "argv", ["adversarial_lora.py", *arguments, *SMALL])
    with pytest.raises(AttackError, match="8/255"):
        recipe["main"]()
    assert not (tmp_path / "run").exists()
