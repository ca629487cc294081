"""recipes/robust_encoder.py and robust_student.py as files: what they leave behind, refuse, and never look at."""

import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from adversarial.errors import AttackError
from eval.predict import predict_questions
from eval.questions import draw_evaluation
from eval.recipe import parse_options
from judge import load_classifier
from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError
from judge.protocol import Scores
from judge.runs.checkpoint import CHECKPOINT, TrainingState
from judge.runs.folder import RunDir
from judge.standins.digits import digits_examples
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student, save_student
from judge.student.teacher_scores import write_teacher_scores
from prompts import FlipOptions, draw_groups, load_taxonomy
from prompts.errors import ArbiterError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "recipes" / "configs"
NAMES = ("robust_encoder", "robust_student")
LIMIT = 120
DRAWN = {
    "dataset": "digits",
    "held_out": ["four", "eight"],
    "flip": {"restyle": 0.0, "reprompt": 0.0},
    "limit": LIMIT,
    "seed": 42,
    "eval_rows": 16,
    "test_rows": 16,
}


@pytest.fixture(scope="module")
def recipes():
    return {name: runpy.run_path(str(ROOT / "recipes" / f"{name}.py"), run_name="recipe") for name in NAMES}


@pytest.fixture
def parse(recipes):
    """`parse(name)` -> a recipe's options, from `sys.argv`."""
    return lambda name: parse_options(recipes[name]["OPTIONS"], recipes[name]["CONFIG"])


@pytest.fixture
def start(recipes, monkeypatch):
    """`start(name, *options)` runs a recipe in this process."""

    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        recipes[name]["main"]()

    return run


class Knowing:
    """A teacher that knows the labels and is never quite sure."""

    name = "knowing"
    supports_multilabel = True

    def __init__(self, groups):
        self.known = {row.example.image.tobytes(): row.example for group in groups for row in group.rows}

    def score(self, images, prompts, taxonomy, *, multilabel=False):
        labels = [taxonomy.label(self.known[image.tobytes()]) for image in images]
        sure = np.where(np.array(labels, dtype=bool), 0.9, 0.1)
        return Scores(sure.max(axis=1), sure, (None,) * len(images))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of kind `student` as recipes/distill_cross_attention.py leaves it: head, lessons, options, answers."""
    run = RunDir.create(tmp_path_factory.mktemp("first") / "student", kind="student", teacher="knowing")
    taxonomy = load_taxonomy("digits")
    run.write_taxonomy(taxonomy)
    run.write_config(DRAWN)
    flip = FlipOptions(held_out=frozenset(DRAWN["held_out"]), **DRAWN["flip"])
    groups = draw_groups(
        digits_examples("train", count=LIMIT), taxonomy, replace(flip, focus=0.0), seed=42, epoch=0, groups=6
    )
    write_teacher_scores(
        Knowing(groups), groups, run.path / "lessons", about={"teacher": "knowing", "seed": 42}
    )
    encoder = DualEncoder.load("tiny-clip")
    torch.manual_seed(0)
    student = Student(
        encoder, CrossAttentionHead(HeadConfig(encoder.width, 32, 2, 1, 8)), default_taxonomy=taxonomy
    )
    save_student(run, student)
    final = draw_evaluation(digits_examples("test", count=LIMIT), taxonomy, flip, seed=42, rows=16)
    run.write_rows("test", (row.to_dict() for row in predict_questions(student, final.questions)))
    return run


ENCODER = ("--limit", 48, "--epochs", 2, "--train_batch_size", 16, "--learning_rate", "1e-4")
ENCODER += ("--test_images", 16, "--attack_steps", 2, "--attack_epsilons", "2/255", "8/255")
STUDENT = ("--max_steps", 2, "--per_device_train_batch_size", 2, "--steps", 1, "--use_cpu", "true")
STUDENT += ("--obedience_rows", 4)
STUDENT += ("--attack_rows", 8, "--attack_steps", 2, "--attack_epsilons", "4/255", "--disable_tqdm", "true")


def stop_after_one_save(monkeypatch):
    """Let one of our own training loops be stopped when it has saved its state for the first time."""
    save, saved = TrainingState.save, []

    def stopping(state, **progress):
        save(state, **progress)
        saved.append(state)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingState, "save", stopping)


@pytest.mark.parametrize("name", NAMES)
def test_configs_say_how_to_use_them(parse, monkeypatch, name):
    path = CONFIGS / f"{name}.yaml"
    assert path.read_text().startswith(f"# accelerate launch recipes/{name}.py")
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    merged = {key: value for part in parse(name) for key, value in vars(part).items()}
    given = yaml.safe_load(path.read_text())
    assert given["output_dir"] == f"runs/{name}"
    for key in given.keys() - {"lr_scheduler_type", "eval_strategy", "save_strategy", "report_to"}:
        assert merged[key] == given[key], key


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_stops_the_run(parse, monkeypatch, tmp_path, name):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((CONFIGS / f"{name}.yaml").read_text() + "epsilom: 3\n")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--config", str(wrong)])
    with pytest.raises(ValueError, match="epsilom"):
        parse(name)


def test_an_encoder_is_trained_without_labels_and_explains_itself(
    start, tmp_path, monkeypatch, capsys, recipes
):
    start("robust_encoder", *ENCODER, "--output_dir", tmp_path / "one")
    shown = capsys.readouterr().out
    run = RunDir.open(tmp_path / "one", kind="encoder")
    metrics = run.metrics
    assert {"before", "after", "seconds", "seconds_training", "machine", "versions", "commit"} <= set(metrics)
    assert metrics["before"]["cosine_pooled"]["0/255"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["before"]["cosine_pooled"]["8/255"] < metrics["before"]["cosine_pooled"]["2/255"] < 1
    assert metrics["before"]["accuracy"]["8/255"] < metrics["before"]["accuracy"]["0/255"]
    assert metrics["images"] == 48
    assert run.config["epsilon"] == "8/255"
    assert [entry["epoch"] for entry in run.read_rows("history")] == [1, 2]
    assert not (run.path / CHECKPOINT).exists()
    assert "accuracy of the nearest text" in shown
    assert f"--encoder {tmp_path / 'one' / 'encoder'}" in shown
    robust, original = DualEncoder.load(run.path / "encoder"), DualEncoder.load("tiny-clip")
    assert robust.fingerprint == run.manifest["encoder_fingerprint"] != original.fingerprint
    assert run.manifest["made_from"] == original.fingerprint
    weights = robust.model.state_dict()
    changed = [k for k, tensor in original.model.state_dict().items() if not torch.equal(weights[k], tensor)]
    assert changed
    assert all(key.startswith(("vision_model.", "visual_projection.")) for key in changed)
    with pytest.raises(CheckpointError, match="already holds a run of kind 'encoder'"):
        start("robust_encoder", *ENCODER, "--output_dir", tmp_path / "one")

    # Every label turned into another one, and a stop after the first epoch: the weights are the same to the last bit.
    scope = recipes["robust_encoder"]["main"].__globals__
    honest = scope["load_examples"]

    def lying(*arguments, **options):
        found = honest(*arguments, **options)
        wrong = tuple(replace(one, violates=frozenset({"nine"}) - one.violates) for one in found.examples)
        return replace(found, examples=wrong)

    monkeypatch.setitem(scope, "load_examples", lying)
    two = (*ENCODER, "--output_dir", tmp_path / "two")
    stop_after_one_save(monkeypatch)
    with pytest.raises(SystemExit):
        start("robust_encoder", *two)
    assert f"Saved: {tmp_path / 'two' / CHECKPOINT}" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"started with learning_rate 0.0001, not 0.5"):
        start("robust_encoder", *two, "--resume_from_checkpoint", "true", "--learning_rate", "0.5")
    start("robust_encoder", *two, "--resume_from_checkpoint", "true")
    other = RunDir.open(tmp_path / "two")
    assert list(other.read_rows("history")) == list(run.read_rows("history"))
    assert other.manifest["encoder_fingerprint"] == run.manifest["encoder_fingerprint"]
    assert other.metrics["before"]["accuracy"] != metrics["before"]["accuracy"]


def test_a_student_is_trained_saved_and_loaded(start, first, tmp_path, capsys):
    out = tmp_path / "robust"
    start("robust_student", *STUDENT, "--student", first.path, "--encoder", "tiny-clip", "--output_dir", out)
    shown = capsys.readouterr().out
    run = RunDir.open(out, kind="student")
    metrics = run.metrics
    assert {"f1", "heldout_f1", "clean_f1_loss", "undefended", "seconds_training", "machine"} <= set(metrics)
    assert metrics["clean_f1_loss"] == pytest.approx(metrics["undefended"]["f1"] - metrics["f1"])
    assert set(metrics["robust_accuracy"]) == set(metrics["undefended"]["robust_accuracy"]) == {"4/255"}
    assert all(0 <= each["robust_accuracy"]["4/255"] <= 1 for each in (metrics, metrics["undefended"]))
    assert run.config["test_rows"] == 16
    assert run.config["student"] == str(first.path)
    assert run.manifest["teacher"] == "knowing"
    assert "robust accuracy under PGD" in shown
    started, trained = (load_file(path / "head.safetensors") for path in (first.path, out))
    assert any(not torch.equal(trained[name], tensor) for name, tensor in started.items())

    moved = shutil.move(out, tmp_path / "moved")
    student = load_classifier(moved, device="cpu")
    assert student.encoder.fingerprint != DualEncoder.load("tiny-clip").fingerprint
    final = draw_evaluation(
        digits_examples("test", count=LIMIT),
        load_taxonomy("digits"),
        FlipOptions(held_out=frozenset(DRAWN["held_out"])),
        seed=42,
        rows=16,
    )
    again = [row.unsafe for row in predict_questions(student, final.questions)]
    kept = [row["unsafe"] for row in RunDir.open(moved).read_rows("test")]
    np.testing.assert_allclose(again, kept, atol=1e-5)


def test_a_head_alone_keeps_its_encoder(start, first, tmp_path):
    out = tmp_path / "head"
    options = ("--train_blocks", 0, "--student", first.path, "--encoder", "tiny-clip", "--output_dir", out)
    start("robust_student", *STUDENT, *options)
    run = RunDir.open(out, kind="student")
    assert run.manifest["encoder"] == "tiny-clip"
    assert not (out / "encoder").exists()
    assert load_classifier(out, device="cpu").name == "head"


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("robust_encoder", ["--epsilon", "8"], AttackError, "for 8 grey levels write 8/255"),
        ("robust_encoder", ["--attack_epsilons", "two"], AttackError, "'two' is no epsilon"),
        ("robust_encoder", ["--encoder", "/nowhere"], CheckpointError, "'/nowhere' could not be loaded"),
        ("robust_encoder", ["--blocks", "9"], ArbiterError, "1 to 4"),
        ("robust_encoder", ["--steps", "0"], ArbiterError, "must all be positive"),
        ("robust_student", ["--epsilon", "8"], AttackError, "for 8 grey levels write 8/255"),
        ("robust_student", ["--student", "/nowhere"], CheckpointError, "/nowhere does not exist"),
        ("robust_student", ["--train_blocks", "9"], ArbiterError, "1 to 4"),
    ],
)
def test_what_cannot_work_is_refused(start, first, tmp_path, name, options, error, message):
    common = (
        ENCODER if name == "robust_encoder" else (*STUDENT, "--student", first.path, "--encoder", "tiny-clip")
    )
    with pytest.raises(error, match=message):
        start(name, *common, "--output_dir", tmp_path / "out", *options)
