"""Run folders: what is written comes back, damage is named, and a killed run leaves whole files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from judge.errors import CheckpointError
from judge.runs import machine
from judge.runs.folder import FORMAT, RunDir
from judge.runs.machine import environment
from prompts import load_taxonomy


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "runs" / "demo", kind="vlm", base="tiny-llava")


def test_a_new_run_says_what_it_is(run):
    assert run.manifest["kind"] == "vlm"
    assert run.manifest["format"] == FORMAT
    assert run.manifest["base"] == "tiny-llava"
    assert RunDir.open(run.path, kind="vlm").manifest == run.manifest


def test_everything_written_comes_back(run):
    run.write_config({"lora": {"r": 16, "targets": ("q", "v")}, "out": run.path})
    run.write_metrics({"after": {"f1": np.float64(0.95), "auc": float("nan"), "rows": np.int64(3)}})
    run.write_rows("after", [{"id": "ä", "unsafe": None}, {"id": "b", "unsafe": 0.25}])
    assert run.config == {"lora": {"r": 16, "targets": ["q", "v"]}, "out": str(run.path)}
    assert run.metrics == {"after": {"f1": 0.95, "auc": None, "rows": 3}}
    assert list(run.read_rows("after")) == [{"id": "ä", "unsafe": None}, {"id": "b", "unsafe": 0.25}]
    assert run.write_skipped([("x", "truncated: 3 bytes")]) == 1
    assert json.loads((run.path / "skipped.jsonl").read_text()) == {"id": "x", "reason": "truncated: 3 bytes"}
    assert run.plots.is_dir()


def test_no_skipped_data_leaves_an_empty_list(run):
    assert run.write_skipped([]) == 0
    assert (run.path / "skipped.jsonl").read_text() == ""


def test_taxonomy_is_kept_with_its_hash(run):
    taxonomy = load_taxonomy("digits")
    run.write_taxonomy(taxonomy)
    assert run.manifest["taxonomy"]["hash"] == taxonomy.hash
    assert RunDir.open(run.path).taxonomy == taxonomy


def test_an_edited_taxonomy_is_noticed(run):
    run.write_taxonomy(load_taxonomy("digits"))
    path = run.path / "taxonomy.yaml"
    path.write_text(path.read_text().replace("the digit 0", "the digit O"))
    with pytest.raises(CheckpointError, match="edited after the run"):
        _ = run.taxonomy
    run.update_manifest(taxonomy=None)
    with pytest.raises(CheckpointError, match="edited after the run"):
        _ = run.taxonomy


def test_a_run_is_never_overwritten_by_accident(run, tmp_path):
    with pytest.raises(CheckpointError, match="already holds a run of kind 'vlm'"):
        RunDir.create(run.path)
    with pytest.raises(CheckpointError, match="already holds a run of kind 'vlm'"):
        RunDir.create(run.path, kind="student", resume=True)
    before = run.manifest
    assert RunDir.create(run.path, resume=True, step=7).manifest == before | {"step": 7}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="exists and is no run folder"):
        RunDir.create(tmp_path / "photos")
    with pytest.raises(CheckpointError, match="exists and is no run folder"):
        RunDir.create(tmp_path / "photos" / "a.png")


def test_an_empty_folder_may_become_a_run(tmp_path):
    assert RunDir.create(tmp_path).kind == "vlm"


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        (None, r"holds no run\.json; give the folder that a recipe wrote"),
        ("{", r"is not JSON .* damaged"),
        ("\xff\xfe", r"is not JSON .* damaged"),
        ("[" * 100_000, r"is not JSON .* damaged"),
        ("[]", "holds list, not an object"),
        ("{}", "names no kind and format version"),
        ('{"kind": "vlm", "format": 999}', "has run format 999, this version reads up to 1; update"),
        ('{"kind": "student", "format": 1}', "is a run of kind 'student', not 'vlm'"),
    ],
)
def test_folders_that_cannot_be_opened(tmp_path, manifest, text):
    if manifest is not None:
        (tmp_path / "run.json").write_text(manifest, encoding="latin-1")
    with pytest.raises(CheckpointError, match=text):
        RunDir.open(tmp_path, kind="vlm")


def test_a_missing_folder_and_missing_files_are_named(tmp_path, run):
    with pytest.raises(CheckpointError, match="does not exist; give the folder"):
        RunDir.open(tmp_path / "nowhere")
    for name, read in {
        "metrics.json": lambda: run.metrics,
        "config.yaml": lambda: run.config,
        "taxonomy.yaml": lambda: run.taxonomy,
        "rows/after.jsonl": lambda: list(run.read_rows("after")),
    }.items():
        with pytest.raises(CheckpointError, match=f"has no {name}"):
            read()


def test_identity_cannot_be_changed(run):
    with pytest.raises(CheckpointError, match="kind cannot be changed"):
        run.update_manifest(kind="student")


def test_a_write_that_dies_leaves_the_old_file(run, monkeypatch):
    run.write_metrics({"f1": 0.5})

    def die(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(OSError, match="no space"):
        run.write_metrics({"f1": 0.9})
    assert run.metrics == {"f1": 0.5}


def test_environment_names_versions_machine_and_commit(run):
    run.write_environment()
    found = json.loads((run.path / "environment.json").read_text())
    assert found["packages"]["numpy"] == np.__version__
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["cpu"]
    assert found["machine"]["memory_gib"] > 0
    assert found["git"] is None or len(found["git"]["commit"]) == 40


def git(folder, *arguments):
    subprocess.run(
        ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        check=True,
        capture_output=True,
    )


def test_commit_and_changes_are_those_of_our_own_checkout(tmp_path):
    assert machine._git(tmp_path) is None
    git(tmp_path, "init")
    assert machine._git(tmp_path) is None  # no commit yet
    (tmp_path / "inside").mkdir()
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    clean = machine._git(tmp_path)
    assert clean["dirty"] is False
    (tmp_path / "new").write_text("untracked files do not count")
    assert machine._git(tmp_path) == clean
    (tmp_path / "file").write_text("two")
    assert machine._git(tmp_path) == clean | {"dirty": True}
    # Installed into a folder of somebody else's repository: their commit says nothing about us.
    assert machine._git(tmp_path / "inside") is None


def test_environment_survives_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment()["git"] is None


def test_the_module_and_the_environment_need_no_torch():
    program = "import sys, judge.runs.folder as r; r.environment(); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_a_run_goes_on_only_under_its_own_taxonomy_and_base(tmp_path):
    run = RunDir.create(tmp_path / "run", kind="vlm", base="tiny-llava", template="policy_first")
    digits = load_taxonomy("digits")
    run.write_taxonomy(digits)
    same = {"base": "tiny-llava", "template": "policy_first"}
    RunDir(run.path).check_resumable(digits, **same)
    RunDir(tmp_path / "none").check_resumable(digits, **same)
    with pytest.raises(CheckpointError, match="started with taxonomy"):
        RunDir(run.path).check_resumable(digits.drop(["one"]), **same)
    with pytest.raises(CheckpointError, match=r"started with base 'tiny-llava', not 'other'.*output_dir"):
        RunDir(run.path).check_resumable(digits, base="other")


def test_a_run_that_saved_nothing_is_withdrawn(tmp_path):
    run = RunDir.create(tmp_path / "run")
    run.write_config({"seed": 1})
    run.write_text("skipped-train.jsonl", "")
    assert run.withdraw()
    assert not run.path.exists()

    run = RunDir.create(tmp_path / "run")
    run.write_text("skipped-train.jsonl", '{"id": "a"}\n')
    assert run.withdraw()
    assert [path.name for path in run.path.iterdir()] == ["skipped-train.jsonl"]

    run = RunDir.create(tmp_path / "run")  # the list is in nobody's way
    run.write_metrics({"f1": 1.0})
    assert not run.withdraw()
    assert run.metrics == {"f1": 1.0}


def test_a_token_of_the_command_is_not_kept(tmp_path, monkeypatch):
    words = ["x.py", "--hub_token", "hf_one", "--push_to_hub_token=hf_two", "--seed", "1"]
    monkeypatch.setattr("sys.argv", words)
    run = RunDir.create(tmp_path / "run")
    run.write_environment()
    assert run.environment["command"] == [
        *("x.py", "--hub_token", "...", "--push_to_hub_token=...", "--seed", "1")
    ]
