"""Naming the classifiers of a benchmark: words, mappings, labels, a user's own functions."""

from dataclasses import replace

import pytest

from eval.benchmark.choices import Choice, parse_choices
from eval.classifiers import CLASSIFIERS, GROUPS, load
from judge.errors import CheckpointError, ConfigError


def one(given):
    [choice] = parse_choices([given])
    return choice


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("nudenet", Choice("nudenet", "nudenet", {}, "conventional")),
        ("runs/demo/", Choice("runs/demo/", "demo", {}, "ours")),
        ("hf:org/model", Choice("hf:org/model", "model", {}, "ours")),
        ("http://localhost:1/v1#org/model", Choice("http://localhost:1/v1#org/model", "model", {}, "ours")),
        ("out/student.onnx", Choice("out/student.onnx", "student", {}, "ours")),
        ("predictions:a/gpt.csv", Choice("predictions:a/gpt.csv", "gpt", {}, "other")),
        (
            "Q16,weights=a.safetensors,label=Q16 (ours),price_per_1000=20",
            Choice("Q16", "Q16 (ours)", {"weights": "a.safetensors"}, "conventional", 20.0),
        ),
        (
            "chat_model,path=123,batch_size=4,dtype=auto,device=null,group=other",
            Choice(
                "chat_model",
                "chat_model",
                {"path": "123", "batch_size": 4, "dtype": "auto", "device": None},
                "other",
            ),
        ),
        (
            {"name": "shieldgemma", "path": "a,b", "price_per_1000": "0.5"},
            Choice("shieldgemma", "shieldgemma", {"path": "a,b"}, "policy_in_prompt", 0.5),
        ),
    ],
)
def test_what_a_word_or_mapping_says(given, expected):
    assert one(given) == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "no classifier to ask"),
        (["runs/demo", "old/runs/Demo"], r"both be called 'Demo'; give one another name, .*old/runs/Demo,label=NAME"),
        (["q16,weights"], "'weights' is no option=value"),
        (["q16,weights=a,weights=b"], "says weights twice"),
        ([{"path": "x"}], "names no classifier"),
        ([7], "7 names no classifier"),
        ([{"name": "q16", "label": "../q16"}], "cannot be the name of a file"),
        ([{"name": "q16", "label": ""}], "cannot be the name of a file"),
        ([{"name": "q16", "group": "zeroshot"}], r"did you mean 'zero_shot'"),
        (["q16,weights=a,price_per_1000=cheap"], "price_per_1000 is 'cheap'"),
        ([{"name": "q16", "price_per_1000": -1}], "price_per_1000 is -1"),
        ([{"name": "q16", "price_per_1000": True}], "price_per_1000 is True"),
        (["open_nsfv,threads=1"], "did you mean 'open_nsfw'"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood(given, says):
    with pytest.raises(ConfigError, match=says):
        parse_choices(given)


def test_they_are_looked_up_before_anything_is_loaded():
    with pytest.raises(ConfigError, match="did you mean 'tiny-student'"):
        one("tiny-studnt").find("default")
    with pytest.raises(CheckpointError, match="no 'runs/nothing_here'"):
        one("runs/nothing_here").find("default")
    with pytest.raises(ConfigError, match="has no option 'batchsize'"):
        one({"name": "nudenet", "batchsize": 3}).find("default")
    with pytest.raises(ConfigError, match=r"tiny-student has no option 'sise'.*it has: device"):
        one({"name": "tiny-student", "sise": 3}).find("default")


def test_nobody_gambles_but_under_the_papers_protocol():
    chat = one("chat_model,path=tiny-llava")
    assert chat.find("default").options["protocol"] == "strict"
    assert chat.find("paper").options["protocol"] == "paper"
    drawn = one("chat_model,path=tiny-llava,protocol=paper")
    assert drawn.find("paper").options["protocol"] == "paper"
    with pytest.raises(ConfigError, match=r"chat_model: with protocol=paper.*never gambles"):
        drawn.find("default")
    assert "protocol" not in one("nudenet").find("paper").options


def test_every_entry_has_a_group():
    assert {entry.group for entry in CLASSIFIERS.values()} <= set(GROUPS)
    assert {name: CLASSIFIERS[name].group for name in ("sd_filter", "served", "llavaguard")} == {
        "sd_filter": "conventional",
        "served": "zero_shot",
        "llavaguard": "policy_in_prompt",
    }


def test_a_fingerprint_is_of_all_files_that_are_named(tmp_path):
    weights = tmp_path / "a.safetensors"
    weights.write_bytes(b"1")
    choice = one(f"q16,weights={weights}")
    first = choice.fingerprint()
    assert first == choice.fingerprint()
    weights.write_bytes(b"2")
    assert len({first, choice.fingerprint(), one("tiny-student").fingerprint()}) == 3
    assert one("served,url=http://localhost:1/v1#m").fingerprint() is None


OWN = """
from dataclasses import dataclass
from own_helper import NAME
@dataclass
class Made:
    size: int = 1
    name: str = "made"
    def score(self, images, prompts, taxonomy): ...
def with_name(*, size: int = 1):
    return Made(size)
def nothing(): return 3
def fails(): raise KeyError("weights")
def any_option(kind, **options): return Made(options["size"])
text = "no function"
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text(OWN)
    (tmp_path / "own_helper.py").write_text("NAME = 'helper'")
    monkeypatch.setattr("sys.path", __import__("sys").path[:])
    return tmp_path / "own_module.py"


def test_a_function_of_ones_own_makes_a_classifier(own, monkeypatch):
    choice = one(f"python:{own}:with_name,size=7")
    assert (choice.label, choice.group, choice.options) == ("with_name", "other", {"size": 7})
    assert choice.load("default").size == 7
    assert load(f"python:{own}:Made").size == load(f"{own}:Made").size == 1
    assert one(f"{own}:with_name,size=7") == replace(choice, name=f"{own}:with_name")
    assert load(f"python:{own}:any_option", kind="x", size=2).size == 2
    monkeypatch.chdir(own.parent)
    assert load("python:own_module:Made", size=3).size == 3
    before = choice.fingerprint()
    own.write_text(OWN + "\n")
    assert choice.fingerprint() != before


def test_what_makes_a_classifier_of_ones_own_need_be_no_function(own, monkeypatch):
    own.write_text(OWN + "from functools import partial\nsmall = partial(Made, 3)\n")
    choice = one(f"python:{own}:small")
    assert choice.load("default").size == 3
    before = choice.fingerprint()
    own.write_text(own.read_text() + "\n")
    assert before is not None
    assert choice.fingerprint() not in (None, before)
    own.rename(own.parent / "own_partial.py")
    monkeypatch.chdir(own.parent)
    assert one("python:own_partial:small").fingerprint() is not None


def test_a_classifier_without_a_name_has_that_of_its_function(own):
    own.write_text("class Bare:\n    def score(self, images, prompts, taxonomy): ...\nmake = Bare\n")
    assert load(f"{own}:make").name == "make"
    own.write_text("class Bare:\n    __slots__ = ()\n    def score(self, *_): ...\n")
    with pytest.raises(ConfigError, match="gave back a Bare without `name`, and it takes none; give it one"):
        load(f"{own}:Bare")


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ("", "names no function; write FILE.py:FUNCTION or python:MODULE:FUNCTION"),
        (":with_nam", "'with_nam' does not exist.*did you mean 'with_name'"),
        (":text", "'text' is no function"),
        (":nothing", "gave back a int; expected a classifier"),
        (":fails", "failed: KeyError: 'weights'"),
        (":any_option", "needs kind: it has no default"),
    ],
)
def test_what_is_no_classifier_of_ones_own(own, end, says):
    with pytest.raises(ConfigError, match=says):
        load(f"python:{own if end else own.stem}{end}")


def test_modules_of_ones_own_that_cannot_be_imported(own):
    with pytest.raises(ConfigError, match=r"no file .*own_modul\.py \(did you mean .*own_module\.py"):
        load(f"python:{own.parent}/own_modul.py:make")
    with pytest.raises(ConfigError, match="ModuleNotFoundError: No module named 'nothing_like_this'"):
        load("python:nothing_like_this:make")
    own.write_text("1 / 0")
    with pytest.raises(ConfigError, match="cannot be imported: ZeroDivisionError"):
        load(f"python:{own}:make")
    own.write_text(
        "import sys\nsys.exit()"
    )  # a script without a guard must not end the run as if all were well
    with pytest.raises(ConfigError, match="cannot be imported: SystemExit"):
        load(f"python:{own}:make")
    own.write_text("import sys\ndef make(): sys.exit()")
    with pytest.raises(ConfigError, match="failed: SystemExit"):
        load(f"python:{own}:make")
    own.write_text("def make(): ...")
    with pytest.raises(ConfigError, match=r"has no option 'sise'.*it has none"):
        load(f"python:{own}:make", sise=3)
