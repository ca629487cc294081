"""Every recipe on data that is not digits: a folder of pictures with a table, and categories of one's own."""

import csv
import hashlib
import io
import json
import re
import shlex
import shutil
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from eval.results.measured import read_measurements
from judge import load_classifier, load_examples, open_image
from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError, ConfigError
from judge.lessons.record import MEASURED, read_record
from judge.runs.checkpoint import CHECKPOINT
from judge.runs.folder import RunDir
from judge.serve import cli
from judge.vlm.training.trainer import JudgeTrainer
from prompts import load_taxonomy

RECIPES = {path.stem for path in (Path(__file__).resolve().parent.parent / "recipes").glob("*.py")}
TRAINER = {
    "max_steps": 1,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 2,
    "use_cpu": True,
    "disable_tqdm": True,
}
TRAINER["obedience_rows"] = 0


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def on_shapes(shapes):
    return {"dataset": shapes.dataset, "taxonomy": shapes.taxonomy}


CASCADE = {"promised_miss_rate": 0.1, "tuning_rows": 32, "calibration_rows": 64, "test_rows": 24}
PGD = {"steps": 1, "attack_steps": 1, "attack_epsilons": "4/255"}
ROBUST = {**PGD, "attack_rows": 8}
HEADS = ("linear_probe", "prompt_learning", "pooled_attention")
HEAD = {"epochs": 2, "test_rows": 16, "obedience_rows": 0, "train_batch_size": 16}
SMALL = {
    "cascade": CASCADE,
    "fixed_head": HEAD,
    "distill_cross_attention": {"lessons": 2, "eval_rows": 16, "test_rows": 16, "inner": 32, **TRAINER},
    "robust_encoder": {"limit": 24, "epochs": 1, "train_batch_size": 12, "test_images": 12, **PGD},
    "robust_student": ROBUST | TRAINER,
    "adversarial_lora": {
        "test_rows": 8,
        "attacked_rows": 8,
        "measured_steps": 1,
        "attack_steps": 1,
        "feature_images": 16,
        "feature_epochs": 2,
        "feature_batch_size": 8,
        "tower_rank": 4,
        "learn_answers": True,
        "groups_per_epoch": 4,
        **TRAINER,
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 1,
    },
}
"""The least that a recipe can do."""


@pytest.fixture(scope="module")
def train(request, shapes, shapes_judge, run_recipe, cache):
    """`train(name, out, **options)` runs a recipe on `shapes` in small, and gives back what it prints."""
    data = {"dataset": shapes.dataset, "taxonomy": shapes.taxonomy}

    def run(name, out, **options):
        student = request.getfixturevalue("shapes_student").run
        from_runs = {
            "cascade": {**data, "student": student, "judge": shapes_judge.run},
            "robust_student": {"student": student, "encoder": "tiny-clip"},
            "adversarial_lora": {"judge": shapes_judge.run},
            "distill_cross_attention": {
                **data,
                "teacher": shapes_judge.run,
                "encoder": "tiny-clip",
                "cache": cache,
            },
            "robust_encoder": data,
        }.get(name, {**data, "cache": cache})
        return run_recipe(name, **(from_runs | SMALL[name] | {"output_dir": out} | options))

    return run


@pytest.fixture(scope="module")
def finished(train, shapes_judge, shapes_student, timed_once, tmp_path_factory):
    """`finished(name)` -> `run`, the folder of a recipe that ran once here, and what it `printed`."""
    done = {"lora_llava": shapes_judge, "distill_cross_attention": shapes_student}
    home = tmp_path_factory.mktemp("finished runs")

    def once(name):
        if name not in done:
            encoder = {"encoder": once("robust_encoder").run / "encoder"} if name == "robust_student" else {}
            head = {"head": name} if name in HEADS else {}
            recipe = "fixed_head" if head else name
            done[name] = SimpleNamespace(
                printed=train(recipe, home / name, **encoder, **head), run=home / name
            )
        return done[name]

    return once


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


def keeps_its_lessons(run):
    """Which categories a run was trained and measured on, and how far it reaches."""
    record, taxonomy = read_record(run), load_taxonomy(run.path / "taxonomy.yaml")
    levels = {category.key: record.evidence.of_category(category) for category in taxonomy}
    assert levels.pop("corner").startswith("measured 0.")  # held out, and asked about at the end
    assert set(levels.values()) == {"trained"}
    assert record.envelope.categories == len(taxonomy)
    assert record.envelope.prompt_characters >= 16
    assert record.envelope.policy_scripts == record.envelope.prompt_scripts == ("Latin",)
    return record


def names_no_digit(run):
    """What a run says of itself, its numbers and its rows is about its own data."""
    kept = [run / "run.json", run / "metrics.json", run / "taxonomy.yaml", *run.glob("rows/*.jsonl")]
    text = "".join(path.read_text() for path in kept)
    return not any(f'"{word}"' in text for word in ("three", "four", "seven", "eight", "digits"))


def commands(printed):
    """What a recipe prints to be typed next, as a shell would part it."""
    _, found, after = printed.rpartition("Next:\n")
    assert found
    return [shlex.split(line) for line in after.splitlines() if line.startswith("  ")]


def test_there_is_a_test_for_every_recipe():
    tested = {name.removeprefix("test_recipe_") for name in globals() if name.startswith("test_recipe_")}
    # One asks about a data set of its own and trains nothing, one learns from texts, two make their own pictures.
    assert tested == RECIPES - {"signs", "response_classifier", "build_corpus", "diffusion_detector"}


def test_recipe_lora_llava(shapes, shapes_judge, answers):
    run = RunDir.open(shapes_judge.run, kind="vlm")
    assert run.taxonomy.names == load_taxonomy(shapes.taxonomy).names
    assert run.metrics["after"]["rows"] == 16
    assert run.metrics["after"]["heldout_rows"] == 8
    assert run.config["held_out"] == ["corner"]
    assert run.config["dataset"] == shapes.dataset
    assert "dataset" not in run.config["changed"]  # own_data.yaml names none to differ from
    assert "held_out" in shapes_judge.printed
    answers(run.path)
    assert keeps_its_lessons(run).envelope.policy_tokens > 20


def test_a_policy_that_no_lesson_of_ones_own_data_was_like_is_unjudged(shapes, shapes_judge, capsys):
    [picture, *_] = sorted(shapes.folder.glob("files/test *.png"))
    words = ["judge", str(picture), "--judge", str(shapes_judge.run), "--json"]
    assert cli.main([*words, "--custom", "Кольцо: круг"]) == 3
    out = capsys.readouterr()
    told = json.loads(out.out)
    assert (told["status"], told["evidence"]) == ("unjudged", "none")
    assert "it has 5 categories, lessons had at most 4" in told["reason"]
    assert "'Кольцо', worded so" in out.err


def test_recipe_distill_cross_attention(shapes, shapes_student, shapes_judge, answers):
    run = RunDir.open(shapes_student.run, kind="student")
    assert run.metrics["rows"] == 16
    assert run.metrics["baselines"] == {}, "the heads of the digits have no say here"
    assert run.manifest["teacher"] == str(shapes_judge.run)
    answers(run.path)
    keeps_its_lessons(run)
    lesson = pq.read_table(run.path / "lessons" / "lessons-00000.parquet").to_pylist()[0]
    data = (shapes.folder / "files" / lesson["image_path"]).read_bytes()
    assert lesson["image_sha256"] == hashlib.sha256(data).hexdigest()
    assert (lesson["taxonomy_name"], lesson["split"]) == ("shapes of ours", "train")


def test_recipe_cascade(finished, answers):
    run = RunDir.open(finished("cascade").run, kind="cascade")
    assert run.config["held_out"] == []
    assert run.metrics["rows_decided_otherwise_live"] == 0
    answers(run.path)


@pytest.mark.parametrize("held_out", [[], ["corner"]])
def test_recipe_own_head(on_shapes, run_recipe, cache, held_out):
    printed = run_recipe("own_head", **on_shapes, cache=cache, steps=4, rows=32, held_out=held_out)
    assert "pair score" in printed
    assert ("no training policy held (corner)" in printed) == bool(held_out)


def test_recipe_obedience(on_shapes, run_recipe, base_folder, shapes_judge, tmp_path):
    (tmp_path / "small.yaml").write_text("flip: {group_size: 4, max_categories: 2}\n")
    small = {"config": tmp_path / "small.yaml", "judge": base_folder(), "rows": 16, "batch_size": 32}
    small["only"] = ["bullets", "categories_20", "true_prompt"]

    run_recipe("obedience", **on_shapes, **small, output_dir=tmp_path / "bare")
    found = RunDir.open(tmp_path / "bare", kind="obedience").metrics
    assert found["families"]["bullets"]["rows"] > 8
    # What the recipe's YAML says is in no picture of digits may be in these.
    filled = found["families"]["categories_20"]
    assert filled["rows"] == 0
    assert "name taxonomies of which no image violates anything" in next(iter(filled["refused"]))
    assert found["references"]["plain"]["heldout_f1"] is None
    assert names_no_digit(tmp_path / "bare")

    shutil.copytree(shapes_judge.run, tmp_path / "a judge")
    small["judge"] = tmp_path / "a judge"
    printed = run_recipe(
        "obedience", **on_shapes, **small, output_dir=tmp_path / "filled", unrelated=["digits", "unsafebench"]
    )
    found = RunDir.open(tmp_path / "filled").metrics
    assert found["families"]["categories_20"]["rows"] == found["references"]["plain"]["rows"]
    # Asked and measured although no lesson was so long; 16 rows are too few to widen the envelope.
    assert found["families"]["categories_20"]["unjudged_share"] == 0
    assert found["left_unjudged"]["categories_20"]["policies"] == 1
    assert "Outside the lessons" in printed
    assert f"measured.json of {tmp_path / 'a judge'}" in printed
    kept = json.loads((tmp_path / "a judge" / MEASURED).read_text())
    assert kept["families"]["categories_20"]["envelope"]["categories"] == 20
    assert read_record(RunDir.open(tmp_path / "a judge")).envelope.categories == 4

    [asked] = read_measurements(tmp_path / "filled")
    plain = found["references"]["plain"]
    assert (asked.kind, asked.rows, asked.values["f1"].value) == ("obedience", plain["rows"], plain["f1"])
    assert [asked.values["f1"].low, asked.values["f1"].high] == plain["f1_interval"]
    assert "worst_prompt_recall_drop" in asked.values or found["worst_prompt_recall_drop"] is None


def test_recipe_unsafebench(on_shapes, run_recipe, shapes_student, finished, tmp_path):
    """A student and a head of this data: predictions, policy tests and causes; going on asks nobody."""
    heads = finished("linear_probe").run
    options = {
        "classifiers": [shapes_student.run, heads],
        "policies": "true",
        "policy_rows": 4,
        "causes": "true",
    }
    printed = run_recipe("unsafebench", **on_shapes, **options, output_dir=tmp_path / "run")
    run = RunDir.open(tmp_path / "run", kind="benchmark")
    student, head = shapes_student.run.name, heads.name
    metrics = run.metrics
    assert {label: record["rows"] for label, record in metrics["classifiers"].items()} == {
        student: 48,
        head: 48,
    }
    assert metrics["classifiers"][head]["covers"] == ["ring", "bars", "cross", "corner"]
    assert metrics["overlap"][student]["trained"] == 144
    assert set(metrics["policies"]) == {student, head}
    assert metrics["policies"][student]["pairs"] > 0
    assert metrics["causes"]["confidence"]
    assert names_no_digit(run.path)
    assert "Training images in the test set" in printed
    for one, name in zip(read_measurements(run.path), (student, head), strict=True):
        whole = metrics["classifiers"][name]["overall"]["all"]
        assert (one.part, one.rows, one.values["f1"].value) == (name, 48, whole["f1"])
        assert one.values["pair_score"].value == metrics["policies"][name]["pair_score"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.benchmark.choices.Choice.load", lambda *_: pytest.fail("loaded"))
        patch.setattr("eval.benchmark.overlap.hash_images", lambda *_: pytest.fail("hashed"))
        run_recipe("unsafebench", output_dir=tmp_path / "run", resume="true")
    again = RunDir.open(tmp_path / "run").metrics
    for key in ("classifiers", "policies", "overlap", "causes"):
        assert again[key] == metrics[key]


def check_head(run, kind, answers):
    run = RunDir.open(run, kind=kind)
    assert run.metrics["rows"] == 16
    assert run.taxonomy.keys == ("ring", "bars", "cross", "corner")
    answers(run.path)
    record = read_record(run)
    assert record.evidence.of_policy(run.taxonomy) == "trained"
    assert record.envelope is None  # it reads no policy


def test_recipe_fixed_head(train, finished, shapes_judge, answers, tmp_path):
    train("fixed_head", tmp_path / "a head", teacher="judge", judge=shapes_judge.run)
    check_head(tmp_path / "a head", "linear_probe", answers)
    for head in ("prompt_learning", "pooled_attention"):
        check_head(finished(head).run, head, answers)


def test_recipe_robust_encoder(finished):
    run = RunDir.open(finished("robust_encoder").run, kind="encoder")
    assert run.metrics["images"] == 24
    assert set(run.metrics["after"]["accuracy"]) == {"0/255", "4/255"}
    assert DualEncoder.load(run.path / "encoder").fingerprint == run.manifest["encoder_fingerprint"]
    assert names_no_digit(run.path)


def test_recipe_robust_student(shapes, finished, answers):
    run = RunDir.open(finished("robust_student").run, kind="student")
    assert run.config["dataset"] == shapes.dataset
    assert set(run.metrics["robust_accuracy"]) == {"4/255"}
    answers(run.path)
    keeps_its_lessons(run)


def test_recipe_adversarial_lora(shapes, finished, answers):
    run = RunDir.open(finished("adversarial_lora").run, kind="vlm")
    assert run.config["dataset"] == shapes.dataset
    assert run.config["held_out"] == ["corner"]
    answers(run.path)
    keeps_its_lessons(run)


REPORTED = (
    *("lora_llava", "distill_cross_attention", "linear_probe", "cascade"),
    *("robust_student", "adversarial_lora"),
)


def test_recipe_run_report(finished, run_recipe, capsys):
    """Every recipe writes its report, and it is written anew from the folder alone, with pictures of one's own data."""
    runs = [finished(name).run for name in REPORTED]
    pages = [(run / "report.html").read_text() for run in runs]
    for run in runs:
        (run / "report.html").unlink()
    printed = run_recipe("run_report", runs=runs)
    assert printed.count("Wrote ") == len(runs)
    for run, page in zip(runs, pages, strict=True):
        assert (run / "report.html").read_text() == page
        assert "One image, two policies" in page
        assert 'class="picture blurred"' in page
        assert "data:image/jpeg" in page
        assert "<dt>seed</dt><dd>42</dd>" in page
        assert "<dt>command</dt>" in page
    learned = RunDir.open(runs[0]).metrics["learned"]
    assert learned["sentence"] in pages[0]
    run_recipe("run_report", runs=runs[:1], dataset="none")
    assert "data:image" not in (runs[0] / "report.html").read_text()
    run_recipe("run_report", runs=runs[:1], dataset="folder:nowhere")
    assert "No pictures: " in capsys.readouterr().err
    (runs[0] / "report.html").write_text(pages[0])


ATTACK = {
    "rows": 4,
    "unsafe_rows": 2,
    "text_rows": 1,
    "clean_rows": 16,
    "epsilons": ["2/255", "8/255"],
    "steps": 1,
    "restarts": 1,
    "queries": 2,
    "severities": 1,
}


def test_recipe_results_table(finished, train, run_recipe, shapes_judge, shapes_student, tmp_path):
    """Real runs of several kinds: who was asked the same stands together, two seeds of one head in one line."""
    head = finished("linear_probe").run
    train("fixed_head", tmp_path / "linear_probe-seed2", seed=2)
    runs = [
        shapes_judge.run,
        shapes_student.run,
        head,
        tmp_path / "linear_probe-seed2",
        finished("cascade").run,
    ]
    printed = run_recipe("results_table", runs=runs, format="csv", metrics="f1,heldout_f1,miss_rate")
    found = {row["name"]: row for row in csv.DictReader(io.StringIO(printed))}
    assert [row["kind"] for row in found.values()] == ["judge", "student", "linear probe", "cascade"]
    metrics = [RunDir.open(run).metrics for run in runs]
    judge, student, both, cascade = found.values()
    assert float(judge["f1"]) == metrics[0]["after"]["f1"]
    assert float(student["f1_low"]) == metrics[1]["intervals"]["f1"][0]
    assert both["seeds"] == "2 42"
    assert float(both["f1"]) == pytest.approx(np.mean([each["f1"] for each in metrics[2:4]]))
    assert float(both["f1_deviation"]) == pytest.approx(np.std([each["f1"] for each in metrics[2:4]], ddof=1))
    assert float(cascade["miss_rate"]) == metrics[4]["miss_rate"]
    assert (judge["miss_rate"], cascade["heldout_f1"]) == ("", "")
    files = [(runs[0], "after"), (runs[1], "test"), (runs[4], "test")]
    asked = [
        {(row["id"], row["image"], row["truth"]) for row in RunDir.open(run).read_rows(name)}
        for run, name in files
    ]
    for (one, letter), (two, other) in combinations(zip(asked, (judge, student, cascade), strict=True), 2):
        assert (one == two) == (letter["asked"] == other["asked"])
    assert all(re.match(r"[0-9a-f]{7}(\+changes)?$", row["commits"]) for row in found.values())


@pytest.mark.slow
def test_recipe_attack(finished, run_recipe, monkeypatch, tmp_path):
    """As the recipe that hardens a judge prints it, in small."""
    [[program, *words]] = commands(finished("adversarial_lora").printed)
    assert (program, words[0]) == ("arbiter", "attack")
    handed = []
    monkeypatch.setattr("judge.serve.recipe_files.subprocess.call", lambda words: handed.append(words) or 0)
    assert cli.main(words) == 0
    monkeypatch.chdir(tmp_path)
    # Two steps are too few for the honesty checks; the exit code says so, and nothing else may fail.
    with suppress(SystemExit):
        run_recipe("attack", *handed[0][4:], **ATTACK)
    run = RunDir.open("runs/attack", kind="attack")
    assert set(run.metrics["pixels"]) == {"adversarial_lora"}
    assert run.metrics["deployments"] == {}, "the cascades of the digits have no say here"
    assert run.config["held_out"] == ["corner"]
    assert names_no_digit(run.path)
    [one] = read_measurements(run.path)
    found = run.metrics["pixels"]["adversarial_lora"]
    assert (one.part, one.rows, one.images) == ("adversarial_lora", found["rows"], found["images"])
    assert one.values["robust_accuracy@8/255"].value == found["by_epsilon"]["8/255"]["robust_accuracy"]
    [one] = read_measurements(finished("adversarial_lora").run)
    assert {"f1", "robust_accuracy"} <= one.values.keys()


@pytest.mark.parametrize(
    ("name", "fails"),
    [
        ("fixed_head", "eval.predict.summarise_evaluation"),
        ("distill_cross_attention", "judge.student.distill.calibrate_head"),
        ("robust_student", "judge.student.distill.calibrate_head"),
    ],
)
def test_a_training_outlives_its_measurement(name, fails, train, on_shapes, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise ConfigError("no row of one kind")

    monkeypatch.setattr(fails, fail)
    with pytest.raises(ConfigError, match="no row of one kind"):
        train(name, tmp_path / "cut short")
    assert load_classifier(tmp_path / "cut short", device="cpu").name == "cut short"


@pytest.mark.parametrize("name", ["lora_llava", "distill_cross_attention", "cascade"])
def test_the_closing_command_judges_an_image(name, finished, capsys):
    [[program, *words]] = commands(finished(name).printed)
    assert program == "arbiter"
    assert " " in words[1]
    assert cli.main([*words, "--json"]) in (0, 1)
    told = json.loads(capsys.readouterr().out)
    assert told["image"]["path"] == words[1]
    assert 0 <= told["unsafe"] <= 1


def test_the_closing_command_of_a_robust_encoder_trains_a_student(
    finished, shapes_student, run_recipe, monkeypatch, tmp_path
):
    [[*program, recipe, a, b, c, d]] = commands(finished("robust_encoder").printed)
    assert program == ["accelerate", "launch"]
    assert Path(recipe).is_file()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "student").symlink_to(shapes_student.run)
    run_recipe(Path(recipe).stem, a, b, c, d, **ROBUST, **TRAINER)
    assert RunDir.open("runs/robust_student", kind="student").metrics["rows"] == 16


def test_the_closing_command_of_a_robust_student_makes_its_cascade(finished, run_recipe):
    [[program, recipe, *words]] = commands(finished("robust_student").printed)
    assert program == "python"
    run_recipe(Path(recipe).stem, *words, **CASCADE)
    run = RunDir.open(finished("robust_student").run.parent / "robust_cascade", kind="cascade")
    assert run.config["held_out"] == ["corner"]
    assert run.metrics["rows_decided_otherwise_live"] == 0


@pytest.mark.parametrize("name", ["distill_cross_attention", "robust_student"])
def test_a_training_goes_on_where_it_stopped(name, train, tmp_path):
    saving = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 1}
    train(name, tmp_path / "straight", **saving)
    shutil.copytree(tmp_path / "straight", tmp_path / "stopped")
    for left in ("head.safetensors", "head.json", "metrics.json", "encoder", "rows", "checkpoint-3"):
        gone = tmp_path / "stopped" / left
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
    (tmp_path / "stopped" / "checkpoint-9").mkdir()  # killed while it saved
    train(name, tmp_path / "stopped", **saving, resume_from_checkpoint=True)
    straight, resumed = (load_file(tmp_path / each / "head.safetensors") for each in ("straight", "stopped"))
    for key, tensor in straight.items():
        torch.testing.assert_close(resumed[key], tensor, rtol=1e-5, atol=1e-6)
    steps = [
        [row["step"] for row in RunDir(tmp_path / each).read_rows("history")]
        for each in ("straight", "stopped")
    ]
    assert steps[0] == steps[1]
    one, two = (RunDir(tmp_path / each).metrics for each in ("straight", "stopped"))
    assert one["f1"] == two["f1"]
    with pytest.raises(CheckpointError, match=r"was started with learning_rate .*, not 0\.5"):
        train(name, tmp_path / "stopped", **saving, resume_from_checkpoint=True, learning_rate=0.5)


def test_a_hardening_goes_on_in_its_second_stage(finished, train, monkeypatch, tmp_path):
    compute = JudgeTrainer.compute_loss

    def stopped(self, *given, **more):
        if self.state.global_step == 1:
            raise KeyboardInterrupt
        return compute(self, *given, **more)

    with monkeypatch.context() as hindered:
        hindered.setattr(JudgeTrainer, "compute_loss", stopped)
        with pytest.raises(SystemExit):
            train("adversarial_lora", tmp_path / "stopped")
    assert [path.name for path in tmp_path.glob("stopped/checkpoint-*")] == ["checkpoint-1"]
    train("adversarial_lora", tmp_path / "stopped", resume_from_checkpoint=True)
    straight, resumed = finished("adversarial_lora").run, tmp_path / "stopped"
    weights = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (straight, resumed)]
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, rtol=1e-5, atol=1e-6)
    losses = [
        [
            row[key]
            for row in RunDir(run).read_rows("history")
            for key in row.keys() & {"matching_loss", "loss"}
        ]
        for run in (straight, resumed)
    ]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert not (resumed / CHECKPOINT).exists()


def test_a_head_starts_again_in_its_folder_and_comes_to_the_same_head(finished, train, tmp_path):
    straight, out = finished("linear_probe").run, tmp_path / "linear_probe"
    shutil.copytree(straight, out)
    for left in ("head.safetensors", "metrics.json"):
        (out / left).unlink()
    train("fixed_head", out, head="linear_probe", resume_from_checkpoint=True)
    weights = [load_file(run / "head.safetensors") for run in (straight, out)]
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_resumed_says_so(train, tmp_path):
    with pytest.raises(ConfigError, match="keeps no checkpoints"):
        train("cascade", tmp_path / "out", resume_from_checkpoint=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["distill_cross_attention", "linear_probe", "robust_student", "adversarial_lora"]
)
def test_a_training_says_whether_it_taught_anything(finished, name):
    metrics = RunDir.open(finished(name).run).metrics
    found = metrics["learned"]
    assert found["sentence"] in finished(name).printed
    assert any("test image" in limit for limit in found["limits"]), found


def test_a_batch_size_reaches_every_classifier(finished):
    for name in ("lora_llava", "distill_cross_attention", "cascade", "pooled_attention"):
        assert load_classifier(finished(name).run, device="cpu", batch_size=3).batch_size == 3
    cascade = load_classifier(finished("cascade").run, device="cpu", batch_size=3)
    assert (cascade.student.batch_size, cascade.judge.batch_size) == (3, 3)
    usual = load_classifier(finished("cascade").run, device="cpu")
    assert (usual.batch_size, usual.student.batch_size, usual.judge.batch_size) == (32, 32, 8)
    assert load_classifier(finished("pooled_attention").run, device="cpu").batch_size == 64
