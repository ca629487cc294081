"""A table of a report: as text, as Markdown, or as HTML by `table.html`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .page import align_columns, format_value

_MARKDOWN = re.compile(r"[\\|<>&`*\[\]]")
"""What could end a cell, or turn a name that a stranger gave into a link, an image or HTML."""


@dataclass(frozen=True)
class Table:
    """One table: each line is a name and a cell for each of `heads`."""

    title: str
    heads: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Any]]]
    note: str = field(default="", compare=False)

    def to_text(self) -> str:
        """The table as text for a terminal."""
        return "\n".join([format_value(self.title), *align_columns(self._rows())])

    def to_markdown(self) -> str:
        """The table in GitHub's Markdown: a heading, the table, and the note below it.

        Characters that mean something in Markdown are escaped in every cell, and control characters are shown as
        escapes, so no name can break the table or load anything.
        """
        head, *body = (f"| {' | '.join(map(_escape, row))} |" for row in self._rows())
        marks = "|".join(["", "---", *("---:" for _ in self.heads), ""])
        parts = [f"### {_escape(format_value(self.title))}", "\n".join([head, marks, *body])]
        return "\n\n".join([*parts, _escape(format_value(self.note))] if self.note else parts) + "\n"

    def _rows(self) -> list[list[str]]:
        """The heads and each line, as printable text."""
        return [
            list(map(format_value, row)) for row in (["", *self.heads], *([n, *c] for n, c in self.lines))
        ]


def _escape(text: str) -> str:
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", text)
