"""recipes/signs.py: four sets of questions, for a student, for baselines and for the encoder alone; and its configs."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

from eval.recipe import parse_options
from eval.signs.conjunctions import KNOWN_TOPICS
from eval.signs.new_words import new_words
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from judge.runs.folder import RunDir
from judge.standins.signs.captions import TOPICS
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student, save_student
from prompts import load_taxonomy

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "signs.py"
CONFIGS = ROOT / "recipes" / "configs" / "signs"
RECIPES = {
    "signs": "signs",
    "judge": "signs",
    "lora_small_llava": "lora_llava",
    "cascade": "cascade",
    "obedience": "obedience",
    "distill_cross_attention": "distill_cross_attention",
    "linear_probe": "fixed_head",
    "prompt_learning": "fixed_head",
    "pooled_attention": "fixed_head",
    "pooled_attention_published": "fixed_head",
}


@pytest.mark.parametrize("name", RECIPES)
def test_configs_parse_and_name_their_command(name):
    path = CONFIGS / f"{name}.yaml"
    first = path.read_text().splitlines()[0]
    assert f" recipes/{RECIPES[name]}.py" in first
    assert name == "signs" or f"--config recipes/configs/signs/{name}.yaml" in first
    recipe = runpy.run_path(str(ROOT / "recipes" / f"{RECIPES[name]}.py"), run_name="recipe")
    more = ["--use_cpu", "true"] if name == "distill_cross_attention" else []
    groups = parse_options(recipe["OPTIONS"], recipe["CONFIG"], ["--config", str(path), *more])
    merged = {key: value for group in groups for key, value in vars(group).items()}
    given = yaml.safe_load(path.read_text())
    assert {key: merged[key] for key in given.keys() - {"eval_strategy"}} == {
        key: value for key, value in given.items() if key != "eval_strategy"
    }
    assert merged["held_out"] == ["gambling", "danger", "music"]
    assert merged["taxonomy"] == "signs"


def test_lessons_hold_the_known_topics_and_none_of_the_others():
    flip = yaml.safe_load((CONFIGS / "distill_cross_attention.yaml").read_text())["flip"]
    assert flip["topics"].keys() & TOPICS.keys() == set(KNOWN_TOPICS)
    written = " ".join(path.read_text().casefold() for path in CONFIGS.glob("*.yaml"))
    assert not [word for word in new_words() if re.search(rf"\b{word}\b", written)]
    ways = {way for found in flip["topics"].values() for way in found}
    for topic, known in TOPICS.items():
        assert len(ways.intersection(known)) == (2 if topic in KNOWN_TOPICS else 0)  # one is for measuring


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signs")
    torch.manual_seed(0)
    encoder = DualEncoder.load("tiny-clip")
    run = RunDir.create(folder / "student", kind="student")
    run.write_taxonomy(load_taxonomy("signs"))
    save_student(run, Student(encoder, CrossAttentionHead(HeadConfig(encoder.width, 32, 2, 1, 4))))
    options = {
        "student": folder / "student",
        "judge": folder / "student",
        "judge_rows": 16,
        "output_dir": folder / "out",
        "encoder": "tiny-clip",
        "cascade": "none",
        "cache": folder / "features",
        "dataset": "signs:140",
        "rows": 16,
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [RECIPE.name, *arguments, "--baselines"])
        runpy.run_path(str(RECIPE), run_name="recipe")["main"]()
    return folder / "out"


@pytest.mark.slow
def test_everything_is_asked_and_written(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    sets = {"f1", "heldout_f1", "new_words_f1", "conjunctions_f1"}
    wanted = {name + suffix for name in sets for suffix in ("", "_new_styles")}
    assert wanted <= metrics["student"].keys()
    assert wanted <= metrics["baselines"]["cosine"].keys()
    assert set(metrics["conjunctions"]) == {"student", "judge", "cosine", "cosine_pooled"}
    assert wanted <= metrics["judge"].keys()
    assert metrics["conjunctions"]["student"] == metrics["student"]["conjunctions_f1"]
    assert {"f1", "auc_listed", "auc_names", "auc_new_words", "f1_new_styles"} <= metrics["encoder"].keys()
    rows = [json.loads(line) for line in (finished / "rows" / "student.jsonl").read_text().splitlines()]
    assert {row["set"] for row in rows} == wanted
    assert "cascade" not in metrics


@pytest.mark.parametrize("wrong", [{"dataset": "digits"}, {"rows": 8}])
def test_wrong_options_are_named(wrong):
    recipe = runpy.run_path(str(RECIPE), run_name="recipe")
    given = [text for name, value in wrong.items() for text in (f"--{name}", str(value))]
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        parse_options(recipe["OPTIONS"], recipe["CONFIG"], given)
