"""`arbiter doctor`: what is missing or broken is said, with what to do; secrets never are."""

import json
import tomllib
from pathlib import Path

import pytest

from judge.runs.folder import RunDir
from judge.serve import doctor
from judge.serve.cli import main
from prompts import load_taxonomy

ROOT = Path(__file__).parents[1]


def run(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, list[dict[str, str]]]]:
    code = main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == sum(one["health"] == "problem" for one in told["findings"])
    topics: dict[str, list[dict[str, str]]] = {}
    for one in told["findings"]:
        topics.setdefault(one["topic"], []).append(one)
    return code, topics


def test_a_sound_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, found = run(capsys)
    assert code == 0
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert found["packages"][0]["found"] == f"all {len(wanted['dependencies'])} as required"
    extras = {one["found"].partition(":")[0] for one in found["extras"]}
    assert extras == set(wanted["optional-dependencies"]) - {"dev"}
    assert {one["found"] for one in found["environment"]} >= {"HF_HUB_OFFLINE=1", "OPENAI_API_KEY is set"}
    assert any(one["found"].startswith("tiny-student: student of 10 categories") for one in found["runs"])
    assert any("make demo" in one["fix"] for one in found["runs"])
    assert main(["doctor"]) == 0
    shown = capsys.readouterr()
    assert "very-secret" not in shown.out + shown.err
    assert shown.err == "0 problems\n"


def test_what_is_wrong_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("ARBITER_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(doctor, "OLDEST_PYTHON", (9, 1))
    monkeypatch.setattr(
        doctor,
        "_declared",
        lambda: {
            "": ["pillow>=999", "no-such-package>=1", "gone; python_version < '3'"],
            "onnx": ["no-such-onnx"],
        },
    )
    taxonomy = load_taxonomy("digits")
    for name, kind in {"empty": "student", "cascade": "cascade", "odd": "obedience"}.items():
        RunDir.create(tmp_path / "runs" / name, kind=kind).write_taxonomy(taxonomy)
    RunDir(tmp_path / "runs" / "cascade").update_manifest(student={"path": "../lost", "sha256": "0"})
    edited = RunDir.create(tmp_path / "runs" / "edited", kind="student")
    edited.write_taxonomy(taxonomy)
    edited.write_text("taxonomy.yaml", taxonomy.drop(["one"]).to_yaml())
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "run.json").write_text("{")
    code, found = run(capsys)
    assert code == 1
    assert found["python"][0]["fix"] == "needs Python 9.1 or newer"
    assert [one["fix"] for one in found["packages"]] == [
        "pip install 'pillow>=999'",
        "pip install 'no-such-package>=1'",
    ]
    assert found["extras"][0]["fix"] == "pip install 'arbiter-vision[onnx]'"
    assert found["cache"][0]["health"] == "problem"
    runs = {one["found"].partition(":")[0]: one for one in found["runs"]}
    assert "student without *.safetensors" in runs["runs/empty"]["found"]
    assert "cascade without ../lost" in runs["runs/cascade"]["found"]
    assert (runs["runs/odd"]["health"], "no classifier" in runs["runs/odd"]["fix"]) == ("note", True)
    assert "edited after the run" in runs["runs/edited"]["found"]
    assert "not JSON" in runs["runs/torn"]["found"]


def test_a_check_that_fails_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_declared", lambda: 1 / 0)
    code, found = run(capsys)
    assert code == 1
    assert found["packages"][0]["found"] == "ZeroDivisionError: division by zero"


def test_requirements_of_an_installed_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel has no pyproject.toml beside it; its metadata say the same."""
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "judge" / "serve" / "doctor.py"))
    lines = [
        "a>=1",
        'b[x]>=2; python_version >= "3"',
        "c; extra == 'onnx'",
        'd>=3; (os_name == "x") and extra == "onnx"',
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    assert doctor._declared() == {
        "": ["a>=1", 'b[x]>=2; python_version >= "3"'],
        "onnx": ["c", 'd>=3; (os_name == "x")'],
    }
