"""A run that was pushed is loaded from the hub as it was; a stranger's that points elsewhere is refused."""

import json

import numpy as np
import pytest
from fixtures_hub_server import TOKEN
from fixtures_publish import edit_manifest, policy
from PIL import Image

from judge import load_classifier
from judge.calibration.envelope import category_hash
from judge.calibration.thresholds import FittedThreshold, Thresholds
from judge.cascade.cascade import Cascade
from judge.errors import CheckpointError
from judge.lessons.envelope import LessonsEnvelope
from judge.lessons.record import write_lessons
from judge.publish.details import Details
from judge.publish.hub import fetch
from judge.publish.push import push
from judge.runs.folder import RunDir
from judge.serve import cli

POLICY = policy()


@pytest.fixture
def base_on_hub(hub, base_folder, monkeypatch):
    """The tiny base as `org/tiny` of the hub, which transformers asks too."""
    from transformers.utils.hub import hf_api

    monkeypatch.setattr(hf_api(), "endpoint", hub.url)  # transformers keeps one client for good
    folder = base_folder()
    hub.commit("org/tiny", {path.name: path.read_bytes() for path in folder.iterdir()})
    return hub


def assert_same(one, other, images):
    first, second = (classifier.score(images, None, POLICY) for classifier in (one, other))
    assert np.isfinite(first.unsafe).all()
    assert second.unsafe == pytest.approx(first.unsafe, rel=1e-6)
    assert second.categories == pytest.approx(first.categories, rel=1e-6)


def fitted(**values):
    entries = {
        category.name: FittedThreshold(values[category.name], category_hash(category), 30, 30, 1.0, 0.0)
        for category in POLICY
        if category.name in values
    }
    return Thresholds("my_judge", "best F1", entries)


def test_a_pushed_judge_comes_back_as_it_was(finished_judge, base_on_hub, noise_image, caplog):
    run = RunDir(finished_judge)
    envelope = LessonsEnvelope.of([POLICY], ["a prompt"], lambda _: 900)
    write_lessons(run, envelope, ["contempt for a group"])
    fitted(blood=0.25).save(finished_judge / "thresholds.yaml")
    pushed = push(finished_judge, "user/mine", details=Details(base="org/tiny"))
    local, found = load_classifier(finished_judge), load_classifier(f"hf:user/mine@{pushed.commit}")
    assert_same(local, found, [noise_image(seed) for seed in range(2)])
    assert found.name == f"user/mine@{pushed.commit}"
    assert found.default_taxonomy == POLICY
    assert (found.template, found.envelope, found.evidence) == (local.template, envelope, local.evidence)
    assert found.thresholds == fitted(blood=0.25) == local.thresholds
    assert found.thresholds.for_known(POLICY) == {"blood": 0.25}


def test_only_files_of_a_run_are_fetched(shipped_judge, base_on_hub, tmp_path):
    push(shipped_judge, "user/mine")
    files = dict(base_on_hub.files("user/mine"))
    evil = {
        "adapter/training_args.bin": b"a pickle",
        "adapter/adapter_model.bin": b"a pickle",
        "modeling.py": b"import os",
        "checkpoint-1/optimizer.pt": b"a pickle",
        "rows/after.jsonl": b"{}",
    }
    base_on_hub.commit("user/mine", files | evil)
    folder = fetch("user/mine")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == set(files) - {".gitattributes"}
    assert not any(name in path for name in evil for _, path in base_on_hub.asked)


def test_the_command_line_judges_by_a_pushed_run(finished_judge, base_on_hub, tmp_path, capsys):
    fitted(blood=0.0).save(finished_judge / "thresholds.yaml")
    push(finished_judge, "user/mine", details=Details(base="org/tiny"))
    Image.new("RGB", (16, 16), "red").save(tmp_path / "photo.png")
    code = cli.main(["judge", str(tmp_path / "photo.png"), "--judge", "hf:user/mine", "--json"])
    said = capsys.readouterr()
    assert code == 1, said.err  # flagged, as the run's own threshold of blood is 0
    row = json.loads(said.out)
    assert row["thresholds"]["blood"] == 0.0
    assert "thresholds of user/mine itself (best F1): blood 0" in said.err
    assert TOKEN not in said.out + said.err
    given = ["--threshold", "1.0"]
    assert cli.main(["judge", str(tmp_path / "photo.png"), "--judge", "hf:user/mine", *given]) == 0
    assert "itself" not in capsys.readouterr().err


def test_a_pushed_student_and_cascade_come_back(
    tiny_cascade, finished_judge, base_on_hub, noise_image, tmp_path
):
    cascade = tiny_cascade(finished_judge)
    Details(base="org/tiny").save(finished_judge)
    push(cascade, "user/cascade")
    push(tmp_path / "runs" / "student", "user/student")
    images = [noise_image(seed) for seed in range(3)]
    assert_same(load_classifier(tmp_path / "runs" / "student"), load_classifier("hf:user/student"), images)
    local, found = load_classifier(cascade), load_classifier("hf:user/cascade")
    assert isinstance(found, Cascade)
    assert found.judge is not None
    assert found.name == "user/cascade"
    first, second = (one.score(images, None, POLICY) for one in (local, found))
    assert second.unsafe == pytest.approx(first.unsafe, rel=1e-6)
    assert second.decided_by == first.decided_by


def test_a_pushed_cascade_knows_its_judge_on_the_hub_again(
    tiny_cascade, finished_judge, base_on_hub, noise_image
):
    pinned = push(finished_judge, "user/judge", details=Details(base="org/tiny")).commit
    cascade = tiny_cascade(f"hf:user/judge@{pinned}")
    push(cascade, "user/cascade")
    images = [noise_image(seed) for seed in range(2)]
    first, second = (load_classifier(one).score(images, None, POLICY) for one in (cascade, "hf:user/cascade"))
    assert second.unsafe == pytest.approx(first.unsafe, rel=1e-6)


def test_a_changed_stage_of_a_fetched_cascade_is_refused(tiny_cascade, hub):
    push(tiny_cascade(), "user/cascade")
    files = dict(hub.files("user/cascade"))
    weights = bytearray(files["student/head.safetensors"])
    weights[-1] ^= 1
    hub.commit("user/cascade", files | {"student/head.safetensors": bytes(weights)})
    with pytest.raises(CheckpointError, match=r"is not what .* was calibrated with"):
        load_classifier("hf:user/cascade")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"base": "/home/victim/model"},
            "names the base '/home/victim/model'; a published run names a hub id",
        ),
        ({"base": "../../secret"}, "a published run names a hub id"),
        ({"base": "https://evil.example/model"}, "a published run names a hub id"),
        ({"base": None}, "names the base None"),
        ({"base": ["org/tiny"]}, "a published run names a hub id"),
        ({"encoder": "/home/victim"}, "names the encoder"),
        ({"format": 99}, "run format 99"),
        ({"kind": "benchmark"}, "kind 'benchmark', which cannot be published"),
    ],
)
def test_a_run_that_points_elsewhere_is_refused(shipped_judge, hub, changes, said):
    push(shipped_judge, "user/mine")
    files = dict(hub.files("user/mine"))
    manifest = json.loads(files["run.json"]) | changes
    hub.commit("user/mine", files | {"run.json": json.dumps(manifest).encode()})
    with pytest.raises(CheckpointError, match=said):
        load_classifier("hf:user/mine")


@pytest.mark.parametrize(
    "judge",
    [
        {"path": "../other", "sha256": "0"},
        {"path": "/home/victim/run", "sha256": "0"},
        {"path": "judge", "sha256": "0"},
        {"path": "student", "sha256": "0"},
        {"name": "/home/victim/run"},
        {"name": "../run"},
        {"path": "judge", "name": "tiny-llava"},
        "judge",
    ],
    ids=str,
)
def test_a_cascade_whose_stage_is_elsewhere_is_refused(tiny_cascade, hub, judge):
    push(tiny_cascade(), "user/cascade")
    files = dict(hub.files("user/cascade"))
    manifest = json.loads(files["run.json"]) | {"judge": judge}
    hub.commit("user/cascade", files | {"run.json": json.dumps(manifest).encode()})
    with pytest.raises(CheckpointError, match=r"names the judge|holds no judge"):
        load_classifier("hf:user/cascade")


def test_a_cascade_that_names_itself_as_its_judge_ends(tiny_cascade, hub):
    cascade = tiny_cascade("tiny-llava")
    edit_manifest(cascade, judge={"name": "hf:user/cascade"})
    push(cascade, "user/cascade")
    with pytest.raises(CheckpointError, match="is not the judge that"):
        load_classifier("hf:user/cascade")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b'{"kind": "vlm"}'])
def test_a_damaged_manifest_is_said(shipped_judge, hub, content):
    push(shipped_judge, "user/mine")
    hub.commit("user/mine", dict(hub.files("user/mine")) | {"run.json": content})
    with pytest.raises(CheckpointError, match="damaged"):
        load_classifier("hf:user/mine")


def test_what_is_missing_on_the_hub_is_one_line(shipped_judge, hub):
    push(shipped_judge, "user/mine")
    for name, said in (
        ("hf:user/gone", "There is no hf:user/gone on the hub, or it is private"),
        ("hf:user/mine@gone", "no such branch, tag or commit"),
        ("hf:user/mine@" + "0" * 40, "no such branch, tag or commit"),
    ):
        with pytest.raises(CheckpointError, match=said) as caught:
            load_classifier(name)
        assert "\n" not in str(caught.value)


def test_a_hub_that_fails_is_not_taken_for_one_without_runs(shipped_judge, hub):
    push(shipped_judge, "user/mine")
    hub.refuse = {("HEAD", "/user/mine/resolve/main/run.json"): 400}
    with pytest.raises(CheckpointError, match="could not be fetched"):
        fetch("user/mine")


def test_a_base_model_of_the_hub_is_judged_zero_shot(base_on_hub, noise_image):
    assert fetch("org/tiny") is None
    found = load_classifier("hf:org/tiny@main")
    assert found.name == "org/tiny"
    assert found.envelope is None
    assert np.isfinite(found.score([noise_image(0)], None, POLICY).unsafe).all()


def test_a_fetched_run_is_used_again_without_a_connection(shipped_judge, hub, monkeypatch):
    from huggingface_hub import constants

    push(shipped_judge, "user/mine")
    folder = fetch("user/mine")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert fetch("user/mine") == folder
    assert len(hub.asked) == asked


def test_without_a_connection_only_what_was_seen_to_be_a_base_is_one(base_on_hub, hub, monkeypatch):
    from huggingface_hub import constants

    assert fetch("org/tiny") is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("org/tiny") is None
    # It may be a judge, whose lessons say where it does not answer.
    with pytest.raises(
        CheckpointError, match=r"whether hf:user/unknown is a run or a base was never seen here"
    ):
        fetch("user/unknown")


def test_a_name_without_hf_is_never_looked_for_on_the_hub(hub):
    with pytest.raises(CheckpointError, match="There is no 'user/mine' here"):
        load_classifier("user/mine")
    assert hub.asked == []
