"""Every recipe on data that is not digits: a folder of pictures with a table, and categories of one's own."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from judge import load_classifier, load_examples, open_image
from judge.heads.encoder import DualEncoder
from judge.rundir import RunDir
from prompts import load_taxonomy

RECIPES = {path.stem for path in (Path(__file__).resolve().parent.parent / "recipes").glob("*.py")}
TRAINER = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "disable_tqdm": True}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def on_shapes(shapes):
    return {"dataset": shapes.dataset, "taxonomy": shapes.taxonomy}


@pytest.fixture
def answers(shapes):
    """`answers(run)` checks that a finished run of any kind judges pictures of this data and speaks of no other."""
    taxonomy = load_taxonomy(shapes.taxonomy)
    few = load_examples(shapes.dataset, split="test", taxonomy=taxonomy, limit=5).examples

    def check(run):
        scores = load_classifier(run, device="cpu").score(
            [open_image(example.image) for example in few], [example.prompt for example in few], taxonomy
        )
        assert not np.isnan(scores.unsafe).any()
        assert names_no_digit(run)

    return check


def names_no_digit(run):
    """What a run says of itself, its numbers and its rows is about its own data."""
    kept = [run / "run.json", run / "metrics.json", run / "taxonomy.yaml", *run.glob("rows/*.jsonl")]
    text = "".join(path.read_text() for path in kept)
    return not any(f'"{word}"' in text for word in ("three", "four", "seven", "eight", "digits"))


def test_there_is_a_test_for_every_recipe():
    tested = {name.removeprefix("test_recipe_") for name in globals() if name.startswith("test_recipe_")}
    assert tested == RECIPES


def test_recipe_lora_llava(shapes, shapes_judge, answers):
    run = RunDir.open(shapes_judge.run, kind="vlm")
    assert run.taxonomy.names == load_taxonomy(shapes.taxonomy).names
    assert run.metrics["after"]["rows"] == 16
    assert run.metrics["after"]["heldout_rows"] == 8
    assert run.config["held_out"] == ["corner"]
    assert run.config["changed"]["dataset"] == {"recipe": "digits", "here": shapes.dataset}
    assert "held_out" in shapes_judge.printed
    answers(run.path)


def test_recipe_distill_cross_attention(shapes_student, shapes_judge, answers):
    run = RunDir.open(shapes_student.run, kind="student")
    assert run.metrics["rows"] == 16
    assert run.metrics["baselines"] == {}, "the heads of the digits have no say here"
    assert run.manifest["teacher"] == str(shapes_judge.run)
    answers(run.path)


def test_recipe_cascade(on_shapes, shapes_student, shapes_judge, run_recipe, answers, tmp_path):
    out = tmp_path / "a cascade"
    run_recipe(
        "cascade",
        **on_shapes,
        student=shapes_student.run,
        judge=shapes_judge.run,
        output_dir=out,
        promised_miss_rate=0.1,
        tuning_rows=48,
        calibration_rows=96,
        test_rows=48,
    )
    run = RunDir.open(out, kind="cascade")
    assert run.config["held_out"] == []
    assert run.metrics["rows_decided_otherwise_live"] == 0
    answers(out)


@pytest.fixture
def train_head(on_shapes, run_recipe, cache, answers, tmp_path):
    def train(name, **more):
        out = tmp_path / "a head"
        small = {"epochs": 2, "test_rows": 16, "train_batch_size": 16, "cache": cache, "output_dir": out}
        run_recipe(name, **on_shapes, **small, **more)
        run = RunDir.open(out, kind=name)
        assert run.metrics["rows"] == 16
        assert run.taxonomy.keys == ("ring", "bars", "cross", "corner")
        answers(out)

    return train


def test_recipe_linear_probe(train_head, shapes_judge):
    train_head("linear_probe", teacher="judge", judge=shapes_judge.run)


def test_recipe_prompt_learning(train_head):
    train_head("prompt_learning")


def test_recipe_pooled_attention(train_head):
    train_head("pooled_attention")


@pytest.mark.parametrize("held_out", [[], ["corner"]])
def test_recipe_own_head(on_shapes, run_recipe, cache, held_out):
    printed = run_recipe("own_head", **on_shapes, cache=cache, steps=4, rows=32, held_out=held_out)
    assert "pair score" in printed
    assert ("no training policy held (corner)" in printed) == bool(held_out)


@pytest.fixture(scope="module")
def robust_encoder(shapes, run_recipe, tmp_path_factory):
    """The folder of a run, and what it printed."""
    out = tmp_path_factory.mktemp("robust") / "an encoder"
    few = {"limit": 24, "epochs": 1, "train_batch_size": 12, "steps": 1, "test_images": 12}
    attacks = {"attack_steps": 1, "attack_epsilons": "4/255"}
    data = {"dataset": shapes.dataset, "taxonomy": shapes.taxonomy}
    return out, run_recipe("robust_encoder", **data, **few, **attacks, output_dir=out)


def test_recipe_robust_encoder(robust_encoder):
    out, _ = robust_encoder
    run = RunDir.open(out, kind="encoder")
    assert run.metrics["images"] == 24
    assert set(run.metrics["after"]["accuracy"]) == {"0/255", "4/255"}
    assert DualEncoder.load(out / "encoder").fingerprint == run.manifest["encoder_fingerprint"]
    assert names_no_digit(out)


def test_recipe_robust_student(shapes, shapes_student, robust_encoder, run_recipe, answers, tmp_path):
    out = tmp_path / "a robust student"
    run_recipe(
        "robust_student",
        student=shapes_student.run,
        encoder=robust_encoder[0] / "encoder",
        output_dir=out,
        steps=1,
        attack_rows=8,
        attack_steps=1,
        attack_epsilons="4/255",
        **TRAINER,
    )
    run = RunDir.open(out, kind="student")
    assert run.config["dataset"] == shapes.dataset
    assert set(run.metrics["robust_accuracy"]) == {"4/255"}
    answers(out)


def test_recipe_adversarial_lora(shapes, shapes_judge, run_recipe, answers, tmp_path):
    out = tmp_path / "a robust judge"
    run_recipe(
        "adversarial_lora",
        judge=shapes_judge.run,
        output_dir=out,
        test_rows=8,
        attacked_rows=8,
        measured_steps=1,
        attack_steps=1,
        feature_images=16,
        feature_epochs=1,
        feature_batch_size=8,
        tower_rank=4,
        learn_answers=True,
        groups_per_epoch=4,
        **TRAINER,
    )
    run = RunDir.open(out, kind="vlm")
    assert run.config["dataset"] == shapes.dataset
    assert run.config["held_out"] == ["corner"]
    answers(out)


def test_recipe_attack(on_shapes, shapes_student, run_recipe, tmp_path):
    out, flip = tmp_path / "an attack", tmp_path / "small.yaml"
    flip.write_text("flip: {group_size: 4}\n")
    few = {
        "rows": 8,
        "unsafe_rows": 4,
        "clean_rows": 16,
        "steps": 2,
        "restarts": 1,
        "queries": 4,
        "severities": 3,
    }
    # Two steps are too few for the honesty checks; the exit code says so, and nothing else may fail.
    with suppress(SystemExit):
        run_recipe(
            "attack",
            **on_shapes,
            **few,
            victims=shapes_student.run,
            output_dir=out,
            config=flip,
            epsilons=["2/255", "32/255"],
        )
    metrics = RunDir.open(out, kind="attack").metrics
    assert set(metrics["pixels"]) == {"a student"}
    assert metrics["deployments"] == {}, "the cascades of the digits have no say here"
    assert names_no_digit(out)
