"""recipes/fixed_head.py as a file, with each head: what it leaves behind and refuses."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from eval.predict import predict_questions
from eval.questions import draw_evaluation
from eval.recipe import parse_options
from judge.baselines.classifier import WEIGHTS
from judge.classifiers import load_classifier
from judge.errors import CheckpointError, ConfigError
from judge.protocol import Scores
from judge.runs.folder import RunDir
from prompts import FlipOptions, load_taxonomy
from prompts.errors import ArbiterError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "recipes" / "configs"
NAMES = ("linear_probe", "prompt_learning", "pooled_attention")
SMALL = ("--limit", "240", "--epochs", "2", "--test_rows", "16", "--obedience_rows", "4")


@pytest.fixture(scope="module")
def recipe():
    """The recipe's functions, without running it."""
    return runpy.run_path(str(ROOT / "recipes" / "fixed_head.py"), run_name="recipe")


@pytest.fixture
def parse(recipe):
    """`parse(*words)` -> the recipe's options under a command line."""
    return lambda *words: parse_options(recipe["OPTIONS"], recipe["CONFIG"], words)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def start(recipe, monkeypatch, tmp_path, cache):
    """`start(name, *options)` trains a head on a few digits and gives its run folder back."""

    def run(name, *options):
        folder = tmp_path / name
        where = ("--output_dir", str(folder), "--cache", str(cache))
        monkeypatch.setattr(sys, "argv", ["fixed_head.py", "--head", name, *SMALL, *where, *options])
        recipe["main"]()
        return RunDir.open(folder, kind=name)

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_run_explains_itself_and_loads(start, name, capsys):
    run = start(name)
    metrics = run.metrics
    wanted = {"f1", "heldout_f1", "safe_to_unsafe", "unsafe_to_safe", "f1_everything", "f1_by_name"}
    wanted |= {"seconds", "parameters", "taxonomy_hash", "machine", "versions", "commit", "unjudged_share"}
    assert wanted <= set(metrics)
    assert metrics["rows"] == 16
    assert metrics["obedience"]["after"]["references"]["plain"]["rows"] == 4
    assert metrics["taxonomy_hash"] == run.taxonomy.hash == run.manifest["taxonomy"]["hash"]
    assert run.taxonomy.keys == load_taxonomy("digits").drop(["four", "eight"]).keys
    assert run.manifest["encoder"] == "tiny-clip"
    assert run.config["epochs"] == 2
    assert run.config["held_out"] == ["four", "eight"]
    assert [entry["epoch"] for entry in run.read_rows("history")] == [1, 2]
    rows = list(run.read_rows("rows"))
    assert len(rows) == 16 + metrics["heldout_rows"]
    if name == "pooled_attention":
        assert metrics["f1_by_name"] is metrics["by_name"] is None
    else:
        assert metrics["f1_by_name"] == metrics["by_name"]["f1"]
        assert len(list(run.read_rows("by_name"))) == len(rows)
        unjudged = [row["reason"] for row in rows if row["unsafe"] is None]
        assert all("does not cover: " in reason for reason in unjudged)
    shown = capsys.readouterr().out
    assert "F1, held-out categories" in shown
    assert "report.html" in shown

    loaded = load_classifier(run.path, device="cpu")
    assert loaded.name == name
    test = recipe_examples("test", 240)
    digits, options = load_taxonomy("digits"), FlipOptions(held_out=frozenset({"four", "eight"}))
    questions = draw_evaluation(test, digits, options, seed=42, rows=16).questions
    again = [row.unsafe for row in predict_questions(loaded, questions)]
    kept = [np.nan if row["unsafe"] is None else row["unsafe"] for row in rows]
    np.testing.assert_allclose(again, kept, atol=1e-6)


def recipe_examples(split, limit):
    from judge.data.examples import load_examples

    return load_examples("digits", split=split, taxonomy=load_taxonomy("digits"), limit=limit).examples


class Oracle:
    """A judge that knows the labels, is never quite sure, and cannot judge what has no prompt."""

    name = "oracle"
    supports_multilabel = True

    def __init__(self):
        pictures = recipe_examples("train", 240)
        self.known = {example.image.tobytes(): example for example in pictures}
        self.asked = []

    def score(self, images, prompts, taxonomy, *, multilabel=False):
        assert multilabel
        found = [self.known[image.tobytes()] for image in images]
        assert list(prompts) == [example.prompt for example in found]
        self.asked += [(example, taxonomy) for example in found]
        sure = np.array([[0.9 if label else 0.2 for label in taxonomy.label(e)] for e in found])
        sure[[prompt is None for prompt in prompts]] = np.nan
        return Scores(sure.max(axis=1), sure, (None,) * len(images))


@pytest.mark.parametrize("name", ["linear_probe", "pooled_attention"])
def test_learning_from_a_judge(start, name, monkeypatch, recipe):
    oracle, seen = Oracle(), {}

    def load(path, **options):
        seen["judge"] = path
        return oracle

    def fit(head, inputs, targets, options, **more):
        seen["targets"] = targets
        return plain(head, inputs, targets, options, **more)

    scope = recipe["main"].__globals__
    plain = scope["fit"]
    monkeypatch.setitem(scope, "load_classifier", load)
    monkeypatch.setitem(scope, "fit", fit)
    start(name, "--teacher", "judge", "--judge", "runs/mine")
    assert seen["judge"] == "runs/mine"
    targets = seen["targets"]
    assert len(targets) == len(oracle.asked)
    assert not any(example.violates & {"four", "eight"} for example, _ in oracle.asked)
    for row, (example, taxonomy) in zip(targets, oracle.asked, strict=True):
        assert taxonomy.keys == load_taxonomy("digits").drop(["four", "eight"]).keys
        labels = taxonomy.label(example)
        labels = labels if len(row) > 1 else [any(labels)]
        expected = [np.nan if example.prompt is None else 0.9 if label else 0.2 for label in labels]
        np.testing.assert_allclose(row, expected, rtol=1e-6)
    assert targets.isnan().any()


def test_the_evaluation_is_the_judges(parse):
    lora = yaml.safe_load((CONFIGS / "lora_llava.yaml").read_text())
    recipe = runpy.run_path(str(ROOT / "recipes" / "lora_llava.py"), run_name="recipe")
    _, _, judged, args = parse_options(recipe["OPTIONS"], recipe["CONFIG"], ["--use_cpu", "true"])
    for name in NAMES:
        data, options = parse("--head", name)
        assert data.head == name
        assert (data.dataset, data.taxonomy, data.held_out) == (
            judged.dataset,
            judged.taxonomy,
            judged.held_out,
        )
        assert data.flip == judged.flip == lora["flip"]
        assert (options.seed, data.test_rows, data.threshold) == (args.seed, args.test_rows, args.threshold)


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("linear_probe", "linear_probe", {"epochs": 30, "learning_rate": 2e-4, "optimizer": "adam"}),
        ("prompt_learning", "prompt_learning", {"epochs": 80, "learning_rate": 2e-4, "length": 8}),
        (
            "pooled_attention",
            "pooled_attention_published",
            {"optimizer": "sgd", "learning_rate": 1e-3, "momentum": 0.2, "weight_decay": 1e-3, "epochs": 10},
        ),
    ],
)
def test_the_papers_settings(parse, name, config, expected):
    data, options = parse("--config", str(CONFIGS / f"{config}.yaml"))
    assert data.head == name
    merged = {**vars(data), **vars(options)}
    assert {key: merged[key] for key in expected} == expected
    assert options.train_batch_size == 128


@pytest.mark.parametrize("config", [*NAMES, "pooled_attention_published"])
def test_configs_say_how_to_use_them(parse, config):
    path = CONFIGS / f"{config}.yaml"
    chosen = (
        f"--config recipes/configs/{config}.yaml" if config.endswith("_published") else f"--head {config}"
    )
    assert path.read_text().startswith(f"# accelerate launch recipes/fixed_head.py {chosen}\n")
    data, options = parse("--config", str(path))
    merged = {**vars(data), **vars(options)}
    given = yaml.safe_load(path.read_text())
    assert {key: merged[key] for key in given} == given
    assert data.output_dir == f"runs/{config}"


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_stops_the_run(parse, tmp_path, name):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((CONFIGS / f"{name}.yaml").read_text() + "epoch: 3\n")
    with pytest.raises(ValueError, match="epoch"):
        parse("--config", str(wrong))
    with pytest.raises(ValueError, match="epoch_count"):
        parse("--head", name, "--epoch_count", "3")


def test_a_head_has_its_own_defaults(parse, tmp_path):
    assert parse("--head", "prompt_learning")[1].epochs == 80
    mine = tmp_path / "mine.yaml"
    mine.write_text("head: pooled_attention\nlimit: 3\n")
    data, options = parse("--config", str(mine))
    assert (data.output_dir, data.limit, options.learning_rate) == ("runs/pooled_attention", 3, 1e-3)
    assert data.changed == {"limit": {"recipe": None, "here": 3}}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--head", "transformer"], ConfigError, "head is 'transformer'; use one of linear_probe"),
        (["--teacher", "me"], ConfigError, "teacher is 'me'; use one of labels, judge"),
        (["--encoder", "/nowhere"], CheckpointError, "'/nowhere' could not be loaded"),
        (["--held_out", "ten"], ArbiterError, "Cannot hold out 'ten'"),
        (["--teacher", "judge", "--judge", "/nowhere"], CheckpointError, "/nowhere"),
        (["--limit", "3"], ArbiterError, "No image violates"),
    ],
)
def test_what_cannot_work_is_refused(start, options, error, message):
    with pytest.raises(error, match=message):
        start("linear_probe", *options)


def test_a_folder_in_use_is_refused(start):
    start("linear_probe")
    with pytest.raises(CheckpointError, match="already holds a run of kind 'linear_probe'"):
        start("linear_probe")


@pytest.mark.slow
def test_processes_share_the_work(accelerate, start, tmp_path, cache):
    """Under `accelerate launch` on two processes: the same batches, so the same head and the same rows."""
    plain = ("--optimizer", "sgd", "--learning_rate", "0.5", "--epochs", "6", "--train_batch_size", "64")
    plain += ("--limit", "120", "--obedience_rows", "0")
    options = (*SMALL, "--cache", cache, *plain, "--output_dir", tmp_path / "two")
    done = accelerate("cpu_ddp", "recipes/fixed_head.py", "--head", "linear_probe", *options)
    assert done.wait() == 0, done.stderr[-3000:]
    assert done.stdout.count("F1, both together") == 1
    one, two = start("linear_probe", *plain), RunDir.open(tmp_path / "two")
    weights = [load_file(run.path / WEIGHTS) for run in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-4)
    losses = [[entry["loss"] for entry in run.read_rows("history")] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < 0.9 * losses[0][0]
    rows = [[row["id"] for row in run.read_rows("rows")] for run in (one, two)]
    assert rows[0] == rows[1]
