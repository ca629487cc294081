"""recipes/own_head.py: a head in 30 lines that runs, learns, and answers as every classifier does."""

import ast
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from judge.encoders.dual import DualEncoder
from judge.standins.digits import digits_examples
from prompts import load_taxonomy

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "own_head.py"


@pytest.fixture(scope="module")
def recipe():
    return runpy.run_path(str(RECIPE), run_name="recipe")


@pytest.fixture
def run(recipe, monkeypatch, tmp_path, capsys):
    """`run(*options)` -> what a small run prints."""

    def go(*options):
        small = [
            "--limit",
            "400",
            "--rows",
            "120",
            "--steps",
            "100",
            "--obedience_rows",
            "8",
            "--cache",
            str(tmp_path / "features"),
        ]
        monkeypatch.setattr(sys, "argv", ["own_head.py", *small, *options])
        recipe["main"]()
        return capsys.readouterr().out

    return go


def test_the_head_has_at_most_thirty_lines():
    classes = [node for node in ast.parse(RECIPE.read_text()).body if isinstance(node, ast.ClassDef)]
    [head] = [node for node in classes if node.name == "BestPatch"]
    assert head.end_lineno - head.lineno + 1 <= 30


def test_it_learns_and_beats_chance(run, tmp_path):
    printed = run()

    def values(label):
        [line] = [line for line in printed.splitlines() if line.startswith(f"{label}  ")]
        return [float(number) for number in re.findall(r"\d\.\d{3}", line)]

    before, after, low, _ = values("F1")
    assert after > 0.9
    assert low > 0.7, "flagging everything gives 0.667"
    assert values("Brier score")[1] < values("Brier score")[0]
    [line] = [line for line in printed.splitlines() if "no training policy held (four, eight)" in line]
    assert float(re.findall(r"(\d\.\d{3}) after", line)[0]) > 0.8
    assert before > 0.5
    assert list(tmp_path.glob("features/*/image/00000.safetensors")), "features were not kept"


def test_one_seed_gives_one_result(run):
    def table(seed):
        few = ("--limit", "120", "--rows", "24", "--steps", "5", "--obedience_rows", "4")
        return re.sub(r"\d+ s\b", "", run(*few, "--seed", seed))

    assert table("1") == table("1") != table("2")


def test_scores_follow_the_taxonomy(recipe):
    encoder = DualEncoder.load("tiny-clip")
    head = recipe["BestPatch"](encoder)
    torch.nn.init.orthogonal_(head.turn.weight)
    images = [example.image for example in digits_examples("test", count=5)]
    taxonomy = load_taxonomy("digits").select(["three", "one", "nine"])
    turned = taxonomy.select(["nine", "three", "one"])
    one, two = (head.score(images, None, t) for t in (taxonomy, turned))
    assert one.categories.shape == (5, 3)
    assert one.reasons == (None,) * 5
    assert ((one.categories >= 0) & (one.categories <= 1)).all()
    np.testing.assert_allclose(one.unsafe, one.categories.max(1))
    np.testing.assert_allclose(one.categories[:, [2, 0, 1]], two.categories, rtol=1e-5)
    reworded = head.score(images, None, taxonomy.reword({"three": "the digit 7"}))
    assert (np.abs(reworded.categories - one.categories) / one.categories).max(0)[0] > 0.01
    np.testing.assert_allclose(reworded.categories[:, 1:], one.categories[:, 1:], rtol=1e-5)


def test_a_wrong_name_stops_the_run(run):
    with pytest.raises(Exception, match="hold out 'fourr'"):
        run("--held-out", "fourr")
