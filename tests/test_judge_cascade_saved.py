"""A cascade's folder may be a stranger's: no host, no other stages than the calibrated, no impossible cutoffs."""

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from judge import load_classifier
from judge.cascade.cascade import Cascade
from judge.cascade.saved import check_settings, load_cascade, save_cascade
from judge.cascade.settings import SETTINGS, CascadeSettings
from judge.cascade.similarity import Platt
from judge.cascade.stages import NEVER, Cutoffs, StageScores
from judge.cascade.tuning import CascadeShape, CutoffFamily
from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError, ConfigError
from judge.runs.folder import MANIFEST, RunDir
from judge.runs.references import fingerprint
from judge.serve import cli
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student, save_student
from judge.vlm.remote import RemoteJudge
from prompts import load_taxonomy

DIGITS = load_taxonomy("digits")
GOOD = CascadeSettings(
    Platt(0.0, 0.0), Platt(14.0, -2.0), Cutoffs(NEVER, 0.3, 0.9, 0.4, 0.6, 0.5), True, 0.05, 0.05, 99
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained student on the encoder that ships."""
    torch.manual_seed(0)
    run = RunDir.create(tmp_path_factory.mktemp("runs") / "student", kind="student")
    run.write_taxonomy(DIGITS)
    encoder = DualEncoder.load("tiny-clip")
    save_student(run, Student(encoder, CrossAttentionHead(HeadConfig(encoder.width, 32, 2, 1, 4))))
    return run.path


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server that notes who asks it for what, with which key."""
    asked: list[str] = []

    class Noting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Authorization')}")
            self.send_error(404)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Noting)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}/v1", asked
    listening.shutdown()
    listening.server_close()


def calibrated(path: Path, student: Path, judge: "str | Path | None", kept: CascadeSettings = GOOD) -> RunDir:
    run = RunDir.create(path, kind="cascade")
    run.write_taxonomy(DIGITS)
    save_cascade(run, kept, student=student, judge=judge)
    return run


# --- no host -----------------------------------------------------------------------------------------------


def test_a_run_that_names_a_server_posts_nothing_there(
    tiny: Path,
    tmp_path: Path,
    server: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, asked = server
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    run = calibrated(tmp_path / "cascade", tiny, f"{url}#model")
    assert cli.main(["judge", str(tmp_path / "a.png"), "--judge", str(run.path)]) == 2
    shown = capsys.readouterr().err
    assert "--stage-judge" in shown
    assert url in shown
    with pytest.raises(CheckpointError, match="contacts no host"):
        load_classifier(run.path)
    assert asked == []


def test_a_served_judge_is_the_one_that_the_caller_names(
    tiny: Path, tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    url, asked = server
    run = calibrated(tmp_path / "cascade", tiny, "http://elsewhere.example/v1#model")
    for named in (url, f"{url}#model"):
        found = load_classifier(run.path, stage_judge=named)
        assert isinstance(found, Cascade)
        assert isinstance(found.judge, RemoteJudge)
        assert (found.judge.base_url, found.judge.model) == (url, "model")
    with pytest.raises(CheckpointError, match="served model 'model', not 'other'"):
        load_classifier(run.path, stage_judge=f"{url}#other")
    with pytest.raises(CheckpointError, match="is no URL"):
        load_classifier(run.path, stage_judge="runs/demo")
    mine = RemoteJudge(url, "model", api_key="sk-for-this-host")
    assert load_cascade(run, judge=mine).judge is mine
    alone = load_classifier(run.path, stage_judge="none")
    assert isinstance(alone, Cascade)
    assert alone.judge is None
    assert alone.cutoffs == GOOD.cutoffs.without_judge()
    assert asked == []  # nobody is asked before there is a picture


def test_a_stages_judge_is_for_cascades_with_one(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no cascade"):
        load_classifier(tiny, stage_judge="none")
    alone = replace(GOOD, with_judge=False, cutoffs=GOOD.cutoffs.without_judge())
    run = calibrated(tmp_path / "cascade", tiny, None, alone)
    with pytest.raises(ConfigError, match="calibrated without a judge"):
        load_classifier(run.path, stage_judge="http://localhost:8000/v1")
    assert load_classifier(run.path, stage_judge="none").name == "cascade"
    local = calibrated(tmp_path / "local", tiny, tiny)
    with pytest.raises(CheckpointError, match="not with one on a server"):
        load_classifier(local.path, stage_judge="http://localhost:8000/v1")


@pytest.mark.parametrize(
    "where",
    ["http://evil.example/x", "//evil.example/share", "\\\\evil\\share", "/etc", "C:\\runs", "", None, 7],
)
def test_a_stages_path_is_relative_and_no_address(tiny: Path, tmp_path: Path, where: object) -> None:
    run = calibrated(tmp_path / "cascade", tiny, tiny)
    run.update_manifest(student={"path": where, "sha256": "0" * 64})
    with pytest.raises(CheckpointError, match=r"names no path|is relative"):
        load_cascade(run)


def test_a_cascade_is_no_stage_of_another(tiny: Path, tmp_path: Path) -> None:
    first = calibrated(tmp_path / "first", tiny, tiny)
    with pytest.raises(ConfigError, match="cannot be a stage"):
        calibrated(tmp_path / "second", tiny, first.path)


# --- the calibrated stages ---------------------------------------------------------------------------------


def copy_of(tiny: Path, to: Path) -> Path:
    import shutil

    shutil.copytree(tiny, to)
    return to


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "head.safetensors").write_bytes(b"other"),
        lambda path: (path / "head.json").write_text((path / "head.json").read_text() + " "),
        lambda path: (path / "taxonomy.yaml").write_text(load_taxonomy("unsafebench").to_yaml()),
        lambda path: RunDir(path).update_manifest(encoder_fingerprint="0" * 64),
        lambda path: RunDir(path).update_manifest(encoder="somebody/else"),
        lambda path: (path / "encoder").mkdir() or (path / "encoder" / "config.json").write_text("{}"),
    ],
)
def test_whatever_changes_a_students_answers_is_noticed(tiny: Path, tmp_path: Path, change) -> None:
    student = copy_of(tiny, tmp_path / "student")
    run = calibrated(tmp_path / "cascade", student, student)
    load_cascade(run)
    change(student)
    with pytest.raises(CheckpointError, match="calibrated with"):
        load_cascade(run)


@pytest.mark.parametrize(
    "file", ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", MANIFEST]
)
def test_whatever_changes_a_judges_answers_is_noticed(tiny: Path, tmp_path: Path, file: str) -> None:
    made = RunDir.create(
        tmp_path / "judge", kind="vlm", base="tiny-llava", dtype="float32", template="policy_first"
    )
    made.write_text("adapter/adapter_model.safetensors", "weights")
    made.write_text("adapter/adapter_config.json", "{}")
    run = calibrated(tmp_path / "cascade", tiny, made.path)
    same = fingerprint(made.path)
    made.write_metrics({"f1": 1.0})  # changes no answer
    assert fingerprint(made.path) == same
    if file == MANIFEST:
        made.update_manifest(base="somebody/else")
    else:
        made.write_text(file, "{ }")
    with pytest.raises(CheckpointError, match="is not what"):
        load_cascade(run)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "merges.txt", "tokenizer.model"])
@pytest.mark.parametrize("tuned", [True, False])
def test_whatever_changes_a_base_in_a_folder_is_noticed(
    tiny: Path, tmp_path: Path, file: str, tuned: bool
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name in ("model.safetensors", "config.json", "merges.txt", "tokenizer.model"):
        (base / name).write_text("{}")
    made = RunDir.create(tmp_path / "judge", kind="vlm", base=str(base), dtype="float32")
    stage = made.path if tuned else base
    run = calibrated(tmp_path / "cascade", tiny, stage)
    before = fingerprint(stage)
    (base / "README.md").write_text("changes no answer")
    assert fingerprint(stage) == before
    (base / file).write_text("{ }")
    with pytest.raises(CheckpointError, match="is not what"):
        load_cascade(run)


def test_a_judge_that_moved_is_found_where_the_caller_says(tiny: Path, tmp_path: Path) -> None:
    judge = copy_of(tiny, tmp_path / "judge")
    run = calibrated(tmp_path / "cascade", tiny, judge)
    moved = judge.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_cascade(run)
    found = load_cascade(run, judge=moved)
    assert found.judge is not None
    RunDir(moved).update_manifest(more=1)
    with pytest.raises(CheckpointError, match="is not what"):
        load_cascade(run, judge=moved)


def test_changed_cutoffs_and_runs_of_older_versions_are_refused(tiny: Path, tmp_path: Path) -> None:
    run = calibrated(tmp_path / "cascade", tiny, tiny)
    run.write_text(SETTINGS, replace(GOOD, level=0.06).to_json())
    with pytest.raises(CheckpointError, match=r"changed after the calibration.*recipes/cascade\.py again"):
        load_cascade(run)
    run.write_text(SETTINGS, GOOD.to_json())
    load_cascade(run)
    kept = {name: value for name, value in run.manifest.items() if name != "settings"}
    (run.path / MANIFEST).write_text(json.dumps(kept))
    with pytest.raises(CheckpointError, match=r"older version.*recipes/cascade\.py again"):
        load_cascade(run)


# --- cutoffs that a calibration can give -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"image_safe": 2.0}, "image_safe is 2"),
        ({"image_unsafe": 1.5}, "image_unsafe is 1.5"),
        ({"text_unsafe": 0.9}, "text_unsafe is 0.9, and that filter gives 0.5 to 0.5"),
        ({"student_safe": 2.0, "student_unsafe": 2.0}, "student_safe is 2"),
        ({"student_safe": 0.7}, "student_safe is 0.7 and student_unsafe 0.6"),
        ({"student_unsafe": 1.5}, "student_unsafe is 1.5"),
        ({"judge": 2.0}, "the judge's cutoff is 2"),
        ({"promise": 0.0}, "promised miss rate is 0"),
        ({"promise": 1.0}, "promised miss rate is 1"),
        ({"promise": 0.001}, "99 unsafe rows cannot support"),
        ({"unsafe_rows": 0}, "0 unsafe rows"),
        ({"unsafe_rows": 99.5}, "99.5 unsafe rows"),
        ({"level": 1.5}, "level is 1.5"),
        ({"level": -0.1}, "level is -0.1"),
        ({"level": 0.0}, "called safe at level 0"),
        ({"with_judge": False}, "no judge behind it"),
        ({"image": Platt(-14.0, 2.0)}, "slope is -14"),
        ({"image": Platt(0.0, -100.0)}, "image_safe is 0.3, and that filter gives"),
    ],
)
def test_impossible_settings_are_refused(tiny: Path, tmp_path: Path, change, why: str) -> None:
    check_settings(GOOD, "x")
    cuts = {name: value for name, value in change.items() if name in asdict(GOOD.cutoffs)}
    others = {name: value for name, value in change.items() if name not in cuts}
    with pytest.raises(CheckpointError, match=f"no calibration.*{why}"):
        check_settings(replace(GOOD, cutoffs=replace(GOOD.cutoffs, **cuts), **others), "x")


def test_a_run_whose_cutoffs_call_everything_safe_does_not_load(tiny: Path, tmp_path: Path) -> None:
    """As in the report: whoever wrote the folder wrote its hashes too."""
    safe = replace(GOOD, cutoffs=Cutoffs(NEVER, NEVER, NEVER, NEVER, NEVER, NEVER))
    run = calibrated(tmp_path / "cascade", tiny, tiny, safe)
    with pytest.raises(CheckpointError, match="given by no calibration"):
        load_cascade(run)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.builds(
        CascadeShape,
        *[st.floats(0, 1)] * 3,
        *[st.sampled_from([0.5, 0.9, 0.99, NEVER])] * 2,
        st.floats(0, 1),
    ),
    level=st.floats(0, 1),
    with_judge=st.booleans(),
    noise=st.floats(0, 3),
)
def test_what_a_calibration_gives_is_accepted(
    seed: int, shape: CascadeShape, level: float, with_judge: bool, noise: float
) -> None:
    """Any shape at any level, on filters that know much, little or nothing."""
    rng = np.random.default_rng(seed)
    unsafe = rng.random(60) < 0.5
    unsafe[:2] = True, False
    cosines = np.clip(0.2 * unsafe + noise * rng.normal(0, 0.1, (2, 60)), -1, 1)
    text, image = (Platt.fit(unsafe, cosine) for cosine in cosines)
    scores = StageScores(
        text(cosines[0]),
        image(cosines[1]),
        rng.random(60),
        rng.integers(0, 2, 60) * 1.0 if with_judge else None,
    )
    cutoffs = CutoffFamily(scores, unsafe, shape).at(level)
    check_settings(CascadeSettings(text, image, cutoffs, with_judge, 0.05, level, 100), "x")
