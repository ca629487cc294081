"""Names that are nothing here are said at once, with the one that was probably meant; no hub is asked."""

import time
from pathlib import Path
from typing import Any

import pytest

from judge import load_classifier
from judge.errors import CheckpointError
from judge.runs.files import nearest_path
from judge.runs.folder import RunDir


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RunDir.create(tmp_path / "runs" / "demo")
    RunDir.create(tmp_path / "runs" / "cascade", kind="cascade")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/dmeo", r"There is no 'runs/dmeo' here \(did you mean 'runs/demo'\?\)"),
        ("rusn/demo", r"did you mean 'runs/demo'"),
        ("runs/demo/", r"."),
        ("demo", r"did you mean 'runs/demo'"),
        ("tiny-lava", r"did you mean 'tiny-llava'"),
        ("llava-hf/llava-1.5-7b-hf", r"There is no .*hf:ORGANISATION/MODEL of the hub"),
        ("notes.txt", r"notes.txt is a file, and no student.onnx"),
    ],
)
def test_a_name_that_is_nothing(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("notes.txt").touch()
    monkeypatch.setattr("judge.vlm.load.load_base", lambda *_, **__: pytest.fail("the hub would be asked"))
    start = time.process_time()
    with pytest.raises((CheckpointError, KeyError), match=message):
        load_classifier(name)
    assert time.process_time() - start < 5


def test_only_a_prefix_leads_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(options: Any, device: str) -> tuple[object, object]:
        asked.append(options.model_name_or_path)
        raise CheckpointError("not downloaded in a test")

    monkeypatch.setattr("judge.vlm.load.load_base", load)
    # The hub has no run of ours under this name.
    monkeypatch.setattr("judge.classifiers.fetch", lambda *_: None)
    for name in ("hf:llava-hf/llava-1.5-7b-hf", "tiny-llava"):
        with pytest.raises(CheckpointError, match="not downloaded"):
            load_classifier(name)
    assert asked == ["llava-hf/llava-1.5-7b-hf", "tiny-llava"]


def test_the_nearest_path() -> None:
    Path("photos").mkdir()
    Path("photos/cat.png").touch()
    assert nearest_path("photso/cta.png") == " (did you mean 'photos/cat.png'?)"
    assert nearest_path("photos/cat.jpg") == " (did you mean 'photos/cat.png'?)"
    assert nearest_path("photos/elephant.png") == ""
    assert nearest_path("photos/cat.png/x") == ""
