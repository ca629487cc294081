"""recipes/diffusion_detector.py on a pipeline, prompts and categories of one's own: whole, stopped, gone on with, refused."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from eval.diffusion import collecting
from eval.diffusion.collecting import Making, collect
from judge.diffusion.looks_promise import LooksPromise
from judge.diffusion.pairs import Pair, PairStore
from judge.diffusion.saved import load_detector
from judge.errors import CheckpointError, ConfigError
from judge.protocol import Scores
from judge.runs.folder import RunDir
from judge.serve import cli
from judge.standins.random_pipelines import random_pipeline

CATEGORIES = [
    {"name": "fire", "definition": "flames or a burning house"},
    {"name": "flood", "definition": "water in a street"},
    {"name": "storm", "definition": "wind and rain in the dark"},
]
SCENES = ("a street", "a house at night", "flames of water", "a burning street in rain", "wind on the water")
PROMPTS = [(f"{scene}{end}", "scene") for scene in SCENES for end in ("", ", a storm")]
PROMPTS += [(f"the {word}", "vague") for word in ("weather", "night", "dark", "outside")]


class Labeller:
    """Calls pictures violating by their pixels alone, and counts them; one picture in 40 it cannot judge."""

    name = "by pixels"
    seen = 0

    def score(self, images, prompts, taxonomy):
        Labeller.seen += len(images)
        drawn = [
            np.random.default_rng(list(hashlib.sha256(image.tobytes()).digest()[:4])) for image in images
        ]
        scores = np.stack([np.where(rng.random(len(taxonomy)) < 0.4, 0.9, 0.1) for rng in drawn])
        unjudged = np.array([rng.random() < 0.025 for rng in drawn])
        scores[unjudged] = np.nan
        return Scores(scores.max(axis=1), scores, tuple("too dark" if row else None for row in unjudged))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The user's files: `pipeline`, `taxonomy`, `prompts`."""
    home = tmp_path_factory.mktemp("own files")
    torch.set_num_threads(1)
    random_pipeline("sd1").save_pretrained(home / "pipeline")
    (home / "weather.yaml").write_text(
        yaml.safe_dump({"name": "weather", "version": "1", "categories": CATEGORIES})
    )
    lines = [json.dumps({"prompt": prompt, "kind": kind}) for prompt, kind in PROMPTS]
    (home / "prompts.jsonl").write_text("\n".join(lines))
    return SimpleNamespace(
        home=home, pipeline=home / "pipeline", taxonomy=home / "weather.yaml", prompts=home / "prompts.jsonl"
    )


@pytest.fixture(scope="module", autouse=True)
def labeller():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "load_classifier", lambda *_, **__: Labeller())
        yield


SMALL = {
    "labeller": "tiny-student",
    "training_pairs": 36,
    "test_pairs": 42,
    "seeds_per_prompt": 6,
    "steps": 3,
    "at": [1, 2],
    "epochs": 1,
    "batch_size": 16,
    "train_batch_size": 32,
    "promises": [0.4],
    "attacked_prompts": 1,
    "processes": 1,
}


@pytest.fixture(scope="module")
def train(own, run_recipe):
    """`train(out, **options)` runs the recipe on the user's files."""

    def run(out, **options):
        files = {"pipeline": own.pipeline, "taxonomy": own.taxonomy, "prompts": own.prompts}
        return run_recipe("diffusion_detector", **{**files, **SMALL, "output_dir": out, **options})

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """A run with everything in it."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    corpus = RunDir.create(out.parent / "corpus", kind="corpus")
    counts = {"rows": 12, "in_shards": 11, "duplicates": 1, "lost": 0, "doubled": 0, "damaged": 0}
    corpus.write_metrics({**counts, "shards": {}})
    printed = train(out, held_out=["storm"], corpus=corpus.path)
    return SimpleNamespace(run=RunDir.open(out, kind="diffusion"), printed=printed, out=out)


def test_every_number_is_there(whole):
    found = whole.run.metrics
    assert set(found["auc"]) == set(found["auc_vague"]) == set(found["auc_equal_prompt"]) == {"1", "2"}
    assert 0 <= found["baselines"]["text"] <= 1
    assert set(found["baselines"]["decoded"]) == set(found["families"]["flowguard"]) == {"1", "2"}
    assert set(found["families"]) == {"flowguard", "ndm"}
    assert found["areas"]["text"]["1"]["equal_prompt"]["auc"] == 0.5
    assert set(found["heldout_auc"]) == set(found["trained_auc"]) == {"1", "2"}
    assert found["held_out_names"] == ["storm"]
    assert found["look_overhead"] > 0
    assert [record["pictures"] for record in found["overheads"]] == [1, 8, 16]
    assert "idle_overhead" in found
    assert set(found["cost"]["designs"]["0.4"]) >= {"student on everything", "detector, student"}
    assert found["attacks"]["goals"] == 1
    assert found["corpus"] == {
        "rows": 12,
        "in_shards": 11,
        "duplicates": 1,
        "lost": 0,
        "doubled": 0,
        "damaged": 0,
    }
    assert found["log_snr"]["1"] < found["log_snr"]["2"]
    assert found["pairs"]["train"] + found["pairs"]["test"] == 78
    assert (
        found["pairs"]["unlabelled"] == np.isnan(PairStore(whole.out / "pairs").labels).all(axis=1).sum() > 0
    )
    text = json.dumps(found) + (whole.out / "config.yaml").read_text()
    assert '"three"' not in text
    assert "digits" not in text.replace('"changed"', "").split("changed:")[0]


def test_the_report_shows_it(whole):
    page = (whole.out / "report.html").read_text()
    for title in ("AUC, vague prompts", "Adversarial prompts", "Cost at 40% missed", "Corpus", "held out"):
        assert title in page
    prompts = {pair.prompt for pair in PairStore(whole.out / "pairs").pairs}
    assert f"78 pictures of {len(prompts)} prompts" in whole.printed
    assert "report.html" in whole.printed


def test_what_it_leaves_guards_a_pipeline(whole, own):
    from judge.diffusion.guard import DiffusionGuard
    from judge.diffusion.guarded import guarded
    from judge.diffusion.pipelines import load_pipeline

    pipeline = load_pipeline(str(own.pipeline))
    detector = load_detector(whole.out / "detectors" / "detector", pipeline)
    promise = LooksPromise.from_json((whole.out / "looks_promise.json").read_text())
    assert (promise.at, promise.promise) == ((1, 2), 0.4)
    guard = DiffusionGuard(detector, whole.run.taxonomy, promise)
    call = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": 32, "width": 32}
    guarded(pipeline, guard)("a street", **call)
    [verdict] = guard.verdicts
    assert verdict.looks[0].verdict.status in ("safe", "unsafe")
    assert "at most 40.0% missed" in verdict.looks[0].verdict.promise


@pytest.fixture
def untimed(monkeypatch):
    """Nothing is timed, and no costs are compared: that was done once."""
    nothing = {"overheads": [], "look_overhead": 0.0, "idle_overhead": 0.0}
    monkeypatch.setattr("eval.diffusion.overheads.batch_overheads", lambda *_, **__: nothing)
    monkeypatch.setattr("eval.diffusion.savings.measure_savings", lambda *_, **__: {"reason": "not asked"})


def test_a_finished_run_only_reports_anew(whole, train, untimed, monkeypatch, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(whole.out, again)
    monkeypatch.setattr("eval.diffusion.contestants.train_detector", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr("eval.diffusion.scored.score_rows", lambda *_, **__: pytest.fail("scored"))
    before = Labeller.seen
    train(again, held_out=["storm"], resume="true", attacked_prompts=0, promises=[0.4, 0.5])
    found = RunDir.open(again).metrics
    for name in ("auc", "areas", "gains", "baselines", "heldout_auc"):
        assert found[name] == whole.run.metrics[name]
    assert "attacks" not in found
    assert len(found["promises"]) == 2
    assert Labeller.seen == before
    with pytest.raises(CheckpointError, match=r"was started with epochs 1, not 2"):
        train(again, held_out=["storm"], resume="true", epochs=2)
    with pytest.raises(CheckpointError, match="already holds a run"):
        train(again, held_out=["storm"])


def test_stopped_at_any_stage_it_goes_on(train, whole, untimed, monkeypatch, tmp_path):
    """Killed while it draws, while it trains, while it scores: nothing is made twice, and the numbers are the same."""
    out, score, made = tmp_path / "stopped", Labeller.score, []

    def killed_at(count):
        def stopped(self, images, prompts, taxonomy):
            if len(made) == count:
                raise KeyboardInterrupt
            made.append(len(images))
            return score(self, images, prompts, taxonomy)

        return stopped

    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "score", killed_at(2))
        with pytest.raises(KeyboardInterrupt):
            train(out, held_out=["storm"])
    assert PairStore(out / "pairs").done.sum() == 32
    with monkeypatch.context() as patch:
        patch.setattr("eval.diffusion.contestants.save_detector", _killed)
        with pytest.raises(KeyboardInterrupt):
            train(out, held_out=["storm"], resume="true")
    assert PairStore(out / "pairs").done.all()
    assert not (out / "detectors").exists()
    with monkeypatch.context() as patch:
        patch.setattr("eval.diffusion.scored.write_atomically", _killed)
        with pytest.raises(KeyboardInterrupt):
            train(out, held_out=["storm"], resume="true")
    assert len(list((out / "detectors").iterdir())) == 5
    train(out, held_out=["storm"], resume="true", attacked_prompts=0)
    found = RunDir.open(out).metrics
    for name in ("auc", "baselines", "families", "heldout_auc"):
        for one, other in zip(_numbers(found[name]), _numbers(whole.run.metrics[name]), strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def _killed(*_):
    raise KeyboardInterrupt


def _numbers(value):
    return [one for part in value.values() for one in (_numbers(part) if isinstance(part, dict) else [part])]


def test_pairs_that_were_collected_before(whole, train, own, untimed, monkeypatch, tmp_path):
    monkeypatch.setattr(collecting, "collect_pairs", lambda *_, **__: pytest.fail("made pictures"))
    pairs = whole.out / "pairs"
    train(tmp_path / "run", pairs=pairs, prompts="none", steps=9, at=[2], detector_only="true")
    found = RunDir.open(tmp_path / "run")
    assert set(found.metrics["areas"]) == {"detector"}
    assert set(found.metrics["auc"]) == {"2"}
    assert "cost" not in found.metrics
    assert (found.config["steps"], found.config["guidance"]) == (3, 5.0)
    with pytest.raises(ConfigError, match=r"at names step 3; .* holds looks after the steps 1, 2"):
        train(tmp_path / "other", pairs=pairs, at=[3])
    with pytest.raises(ConfigError, match="was labelled under 'weather'"):
        train(tmp_path / "other", pairs=pairs, taxonomy="digits")
    with pytest.raises(CheckpointError, match="holds no readable store"):
        train(tmp_path / "other", pairs=own.home)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labeller": "none"}, "labeller is none; name a classifier"),
        ({"labeller": "tiny-studnt"}, "tiny-student"),
        ({"prompts": "none"}, "prompts is none; give a file of prompts that fit 'weather'"),
        ({"prompts": "digits"}, "prompts is digits; give a file of prompts that fit 'weather'"),
        ({"prompts": "nowhere.txt"}, "nowhere.txt cannot be read"),
        ({"at": [0]}, r"at is \[0\]; steps are numbered from 1 to 3"),
        ({"at": [4]}, r"at is \[4\]"),
        ({"learn_at": [9]}, r"learn_at is \[9\]"),
        ({"seeds_per_prompt": 1}, "seeds_per_prompt is 1"),
        ({"held_out": ["hail"]}, "held_out names 'hail', which 'weather' lacks; it has fire, flood, storm"),
        ({"held_out": ["fire", "flood", "storm"]}, "names every category"),
        ({"processes": 0}, "processes is 0; it is 1 or more"),
        ({"promises": [0.1, 1.5]}, r"promises is \[0.1, 1.5\]; give numbers between 0 and 1"),
        ({"unsafe_share": 0.0}, "unsafe_share is 0.0"),
        ({"pipeline": "nowhere"}, "'nowhere' cannot be opened as a diffusion pipeline"),
        ({"guidence": 3.0}, r"unknown option '--guidence' \(did you mean 'guidance'"),
        (
            {"layers": ["mid_block.attentions.1"]},
            "layers names 'mid_block.attentions.1', which the pipeline lacks",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(options, says, train, tmp_path):
    before = Labeller.seen
    with pytest.raises((ConfigError, CheckpointError), match=says):
        train(tmp_path / "run", **options)
    assert Labeller.seen == before
    assert not (tmp_path / "run" / "pairs").exists()


def test_the_command(monkeypatch):
    handed = []
    monkeypatch.setattr("judge.serve.recipe_files.subprocess.call", lambda words: handed.append(words) or 0)
    assert cli.main(["detector", "my.csv", "--pipeline", "mine", "--steps=30"]) == 0
    assert handed[0][3].endswith("diffusion_detector.py")
    assert handed[0][4:] == ["--prompts", "my.csv", "--pipeline", "mine", "--steps=30"]


class Process:
    """A process that does its work in this one when it starts."""

    def __init__(self, target, args, daemon):
        self.work, self.exitcode, self.pid = (target, args), None, None

    def start(self):
        self.pid = 1
        try:
            self.work[0](*self.work[1])
            self.exitcode = 0
        except RuntimeError:
            self.exitcode = 1

    def join(self):
        pass

    terminate = join


@pytest.fixture
def making(own, monkeypatch):
    from prompts import load_taxonomy

    monkeypatch.setattr(collecting.multiprocessing, "get_context", lambda _: SimpleNamespace(Process=Process))
    return Making(
        str(own.pipeline), "tiny-student", load_taxonomy(str(own.taxonomy)), 2, (1,), 5.0, batch_size=4
    )


def test_processes_share_the_work_and_make_the_same(making, tmp_path):
    pairs, loaded = [Pair("a street", seed) for seed in range(9)], making.load()
    alone = collect(making, pairs, tmp_path / "alone", loaded)
    shared = collect(making, pairs, tmp_path / "shared", loaded, processes=3)
    assert shared.done.all()
    np.testing.assert_allclose(shared.array("final"), alone.array("final"), rtol=1e-2, atol=1e-2)
    assert torch.get_num_threads() == 1


def test_a_process_that_fails_stops_the_others(making, monkeypatch, tmp_path):
    loaded = making.load()
    monkeypatch.setattr(Making, "load", lambda _: (_ for _ in ()).throw(RuntimeError("no memory")))
    with pytest.raises(
        CheckpointError, match=r"ended with code 1; .* the same command with --resume true goes on"
    ):
        collect(
            making, [Pair("a street", seed) for seed in range(9)], tmp_path / "store", loaded, processes=2
        )
    assert PairStore(tmp_path / "store").done.sum() in range(1, 9)
