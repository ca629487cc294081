"""scripts/draw_docs.py: the README's pictures are whole, small and safe, whatever the words in them."""

import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

from eval.metrics.judged import JudgedRow
from eval.reports.flip_pair import flip_pair

ROOT = Path(__file__).resolve().parent.parent
EVIL = "</text><script>alert(1)</script>\u202e"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts" / "draw_docs.py"))


def rows(name):
    policies = {True: (name, "beer"), False: ("dice", "beer")}
    return [
        JudgedRow(
            f"pair-0-{truth}", truth, 0.9 if truth else 0.1, policies[truth][0], frozenset([name] if truth else []),
            policies[truth], pair="pair-0", direction="safe_to_unsafe", image="a",
        )
        for truth in (True, False)
    ]  # fmt: skip


def words(drawn):
    root = ElementTree.fromstring(drawn)
    assert "script" not in {element.tag.rpartition("}")[2] for element in root.iter()}
    return [element.text for element in root.iter() if element.tag.endswith("}text")]


def test_a_flip_says_both_verdicts_and_cannot_become_markup(script):
    shown = words(script["draw_flip"](flip_pair(rows("knives")), "data:image/jpeg;base64,AA=="))
    assert shown.index("unsafe: knives") < shown.index("safe")
    assert "p(unsafe) 0.900" in shown
    evil = words(script["draw_flip"](flip_pair(rows(EVIL)), "data:image/jpeg;base64,AA=="))
    assert any("<script>alert(1)</script>\\u202e" in text for text in evil)


@pytest.mark.parametrize("name", ["flip.svg", "arbiter.svg"])
def test_what_ships_is_whole_and_follows_both_schemes(name):
    path = ROOT / "docs" / name
    text = path.read_text(encoding="utf-8")
    assert words(text)
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert path.stat().st_size < 30_000
