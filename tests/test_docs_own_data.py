"""docs/own-data.md: its commands lead from the wheel and sixty images to a merged judge; its columns are the reader's."""

import re
import runpy
from pathlib import Path

import pytest

from judge.data.sources import COLUMNS

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def path():
    return runpy.run_path(str(ROOT / "scripts" / "new_user_path.py"))


def test_the_columns_are_those_of_the_reader():
    listed = PAGE.split("| column |")[1].split("\n\n")[0]
    assert set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in listed.splitlines()[2:]))
    ) == set(COLUMNS)


def test_the_first_section_has_the_whole_way(path):
    commands = path["page_commands"]()
    assert [words[1] for words in commands] == ["init", "data", "train", "judge", "merge"]
    project = commands[0][2]
    assert all(any(project in word for word in words[2:]) for words in commands)


@pytest.mark.slow
def test_from_the_wheel_to_a_merged_judge_by_the_commands_of_the_page(path, tmp_path):
    found = path["walk"](tmp_path, 60, quick=True)
    assert found["learned"].endswith(".")
    assert 0 < found["test_images"] <= 12
    merged = tmp_path / "runs" / "my_project-merged"
    assert list(merged.glob("*.safetensors"))
    assert "my_images/00000.png" in (tmp_path / "verdicts.html").read_text(encoding="utf-8")
