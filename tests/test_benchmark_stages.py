"""Finished stages of a run: kept, found again, and repeated where what they depend on has changed."""

import pytest

from eval.benchmark.stages import Stages
from judge.errors import CheckpointError


def test_a_stage_is_made_once_for_the_same(tmp_path):
    stages, made = Stages(tmp_path / "stages"), []

    def make():
        made.append(1)
        return {"ends": (0.5, None), 3: "three"}

    first = stages.once("policies/a b", [("x", 1)], make)
    assert first == {"ends": [0.5, None], "3": "three"}
    assert Stages(tmp_path / "stages").once("policies/a b", [["x", 1]], make) == first
    assert len(made) == 1
    stages.once("policies/a b", [["x", 2]], make)
    assert len(made) == 2
    assert stages.find("policies/a b", [["x", 1]]) is None
    assert stages.find("other", []) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"found": {}}'])
def test_a_damaged_stage_is_said(tmp_path, text):
    (tmp_path / "numbers.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"numbers\.json cannot be read .*; delete it"):
        Stages(tmp_path).find("numbers", [])
