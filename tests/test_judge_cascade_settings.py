"""The settings of a cascade as text, and the cascade that comes back from a folder with its stages."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from judge.calibration.envelope import Envelope
from judge.cascade.cascade import Cascade
from judge.cascade.saved import load_cascade, save_cascade
from judge.cascade.settings import SETTINGS, CascadeSettings
from judge.cascade.similarity import Platt
from judge.cascade.stages import Cutoffs
from judge.errors import CheckpointError, ConfigError
from judge.runs.folder import RunDir
from prompts import load_taxonomy

DIGITS = load_taxonomy("digits").select(["zero", "one", "two"])
PLAIN = Cutoffs(0.8, 0.1, 0.9, 0.3, 0.6, 0.5)
CALIBRATED = CascadeSettings(
    Platt(8, -4), Platt(8, -4), PLAIN, True, 0.02, 0.1, 400, calibrated_for=Envelope.from_policies([DIGITS])
)


def named(name):
    """A stage that answers nothing."""
    return SimpleNamespace(name=name, encoder=None)


def test_settings_come_back_from_their_text():
    chosen = CALIBRATED
    assert SETTINGS == "cascade.json"
    plain = CascadeSettings(Platt(8, -4), Platt(8, -4), PLAIN, True, 0.02, 0.1, 400)
    assert plain.calibrated_for is None
    assert CascadeSettings.from_json(plain.to_json()) == plain
    made = Cascade(named("student"), plain)
    assert (made.name, made.batch_size, made.default_taxonomy) == ("cascade", 32, None)
    assert CascadeSettings.from_json(chosen.to_json()) == chosen


def test_a_text_filter_of_an_older_version_is_never_sure_of_safe():
    data = json.loads(CALIBRATED.to_json())
    data["cutoffs"]["text_safe"] = 0.2
    assert CascadeSettings.from_json(json.dumps(data)) == CALIBRATED


def test_stages_that_a_prompt_could_talk_over_make_no_cascade():
    talked_over = SimpleNamespace(name="student", encoder=None, prompt_mode="use")
    with pytest.raises(ConfigError, match="student reads prompts by 'use'"):
        Cascade(talked_over, CALIBRATED)
    judge = SimpleNamespace(name="judge", prompt_mode="ignore")
    with pytest.raises(ConfigError, match="judge reads prompts by 'ignore'"):
        Cascade(named("student"), CALIBRATED, judge)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("cutoffs"),
        lambda d: d.update(level=None),
        lambda d: d.update(level=float("nan")),
        lambda d: d.update(with_judge=1),
        lambda d: d.update(more=1),
        lambda d: d["cutoffs"].update(judge=7),
        lambda d: d["text"].update(slope="steep"),
    ],
)
def test_damaged_settings_are_refused(change):
    data = json.loads(CALIBRATED.to_json())
    change(data)
    with pytest.raises(CheckpointError, match="no settings of a cascade"):
        CascadeSettings.from_json(json.dumps(data))


@pytest.mark.parametrize("change", [{"promise": float("inf")}, {"with_judge": 0}])
def test_numbers_that_are_none_are_told(change):
    data = json.loads(CALIBRATED.to_json()) | change
    with pytest.raises(CheckpointError, match=r"\(a number is not finite, or with_judge is neither"):
        CascadeSettings.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "null", '"x"'])
def test_settings_that_are_no_object_are_refused(text):
    with pytest.raises(CheckpointError, match="no settings"):
        CascadeSettings.from_json(text)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A cascade's run beside a student's and a judge's, whose loading is faked."""
    for kind in ("student", "vlm"):
        made = RunDir.create(tmp_path / kind, kind=kind)
        (made.path / f"{kind}.safetensors").write_bytes(kind.encode())
    made = RunDir.create(tmp_path / "cascade", kind="cascade")
    made.write_taxonomy(DIGITS)
    save_cascade(made, CALIBRATED, student=tmp_path / "student", judge=tmp_path / "vlm")
    monkeypatch.setattr("judge.student.student.load_student", lambda run, **_: named(run.path.name))
    monkeypatch.setattr("judge.classifiers.load_classifier", lambda path, **_: named(path.name))
    return made


def test_a_cascade_comes_back_with_its_student_and_judge_also_when_all_were_moved(runs, tmp_path):
    there = tmp_path / "elsewhere"
    there.mkdir()
    for name in ("student", "vlm", "cascade"):
        (tmp_path / name).rename(there / name)
    found = load_cascade(RunDir.open(there / "cascade"), device="cpu")
    assert (found.name, found.student.name, found.judge.name) == ("cascade", "student", "vlm")
    assert found.settings == CALIBRATED
    assert found.default_taxonomy == DIGITS


def test_a_cascade_without_a_judge_loads_none(runs, tmp_path):
    alone = replace(CALIBRATED, with_judge=False, cutoffs=PLAIN.without_judge())
    save_cascade(runs, alone, student=tmp_path / "student", judge=None)
    assert load_cascade(runs).judge is None


@pytest.mark.parametrize("kind", ["student", "vlm"])
def test_a_stage_that_was_trained_again_is_refused(runs, tmp_path, kind):
    (tmp_path / kind / f"{kind}.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"is not what .* was calibrated with"):
        load_cascade(runs)


def test_a_stage_that_is_gone_or_not_named_is_refused(runs, tmp_path):
    (tmp_path / "vlm").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_cascade(runs)
    runs.update_manifest(judge=None)
    with pytest.raises(CheckpointError, match="names no judge"):
        load_cascade(runs)
    (runs.path / SETTINGS).unlink()
    with pytest.raises(CheckpointError, match=SETTINGS):
        load_cascade(runs)
