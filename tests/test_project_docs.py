"""What README, CONTRIBUTING and docs/ name has to exist: files, folders, modules and what is in them."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
)
PACKAGES = {"prompts", "judge", "adversarial", "eval", "recipes", "scripts", "tests"}
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?:prompts|judge|adversarial|eval|recipes|scripts|tests|docs|deploy)/[\w./-]*")
DOTTED = re.compile(r"(?:prompts|judge|adversarial|eval)(?:\.\w+)+")


def quoted(page: str) -> list[str]:
    """What stands in backticks, outside of blocks of code."""
    return QUOTED.findall(FENCE.sub("", (ROOT / page).read_text(encoding="utf-8")))


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(thing, attribute):
                return False
            thing = getattr(thing, attribute)
        return True
    return False


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str) -> None:
    named = {path for text in quoted(page) for path in [text.split("::")[0]] if PATH.fullmatch(path)}
    assert not sorted(path for path in named if "*" not in path and not (ROOT / path).exists())


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_exist(page: str) -> None:
    named = {text for text in quoted(page) if DOTTED.fullmatch(text) and not text.endswith((".py", ".yaml"))}
    assert not sorted(name for name in named if not resolves(name))


def test_commands_name_files_that_exist() -> None:
    commands = set()
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        commands |= set(re.findall(r"(?:recipes|scripts)/[\w/]+\.(?:py|yaml|json)", text))
    assert len(commands) > 10
    assert not sorted(path for path in commands if not (ROOT / path).exists())


@pytest.mark.parametrize("page", PAGES)
def test_no_section_stands_twice(page: str) -> None:
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    headings = re.findall(r"^#{1,2} .+$", text, re.MULTILINE)
    assert headings
    assert len(headings) == len(set(headings))


def test_no_sentence_stands_twice() -> None:
    """One subject in one place: the others lead there."""
    places: dict[str, list[str]] = {}
    for page in PAGES:
        text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
        for paragraph in re.split(r"\n\s*\n|\n(?=[-|#] )", text):
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                places.setdefault(sentence, []).append(page)
    assert len(places) > 500
    assert not {
        sentence: pages for sentence, pages in places.items() if len(sentence) > 70 and len(pages) > 1
    }
