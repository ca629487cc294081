"""Strangers' text in Markdown: names and definitions of a taxonomy, as they read and nothing else."""

import re
from collections.abc import Sequence

from prompts.printable import printable

_MARKUP = re.compile(r"([\\`*_\[\]|~$@]|:(?=//))")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_LINK = re.compile(r"(?<=[A-Za-z])\.(?=[A-Za-z])")


def escape(text: object) -> str:
    """The text on one line that Markdown shows as it is: no markup, no HTML, no link, no cell of a table ends in it."""
    line = " ".join(printable(text).split())
    plain = "".join(_ENTITIES.get(character, character) for character in line)
    return _LINK.sub("&#46;", _MARKUP.sub(r"\\\1", plain))


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The lines of a table; cells are Markdown already."""
    return [_row(head), _row(("---",) * len(head)), *map(_row, rows)]


def code(text: str, language: str = "") -> list[str]:
    """The lines of a block of code, whatever is in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *text.splitlines(), fence]


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
