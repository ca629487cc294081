"""`arbiter judge --html FILE`: what was judged as one page to look through, for people.

The page needs no network and no other file. Pictures are the pixels that were judged, encoded anew, and blurred until
they are held. Names and texts of others are escaped by the template engine, and shown without control characters; a
content security policy allows no script but the page's own.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from judge.verdicts.rows import Judging, package_version
from prompts.printable import printable

from .judging import JudgedFile

_HERE = Path(__file__).parent
PAGE_MARK = '<meta name="generator" content="arbiter judge">'
"""Among the first bytes of a page; another page is not overwritten."""


class Gallery:
    """A page that is written as images are judged: the head when it is entered, a card for each image, then the end.

    Args:
        file: to write to.
        judging: what was asked, and of whom.
        title: the heading.
        summary: gives the lines at the end.
    """

    def __init__(
        self, file: TextIO, judging: Judging, title: str, summary: Callable[[], Sequence[str]]
    ) -> None:
        from markupsafe import Markup

        self._file, self._cards, self._parts = file, 0, _template()
        self._judging, self._title, self._summary = judging, title, summary
        self._style, self._script = (
            Markup((_HERE / f"gallery.{end}").read_text("utf-8")) for end in ("css", "js")
        )

    def __enter__(self) -> "Gallery":
        self._write(
            "head",
            title=self._title,
            judging=self._judging,
            style=self._style,
            policy=f"default-src 'none'; img-src data:; style-src {_hash(self._style)}; "
            f"script-src {_hash(self._script)}; base-uri 'none'; form-action 'none'",
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        from judge.runs.machine import now

        about = {"time": now(), "version": package_version(), "script": self._script}
        self._write("tail", lines=self._summary(), finished=kind is None, **about)

    def write(self, judged: JudgedFile) -> None:
        """Write the card of an image."""
        row, picture = judged.row, judged.thumbnail
        self._cards += 1
        scores = [
            (name, score, row["thresholds"][name], row["flags"][name])
            for name, score in row["scores"].items()
        ]
        self._write(
            "card",
            row=row,
            place=self._cards,
            picture=None if picture is None else base64.b64encode(picture).decode(),
            scores=sorted(scores, key=lambda one: -one[1]),
        )

    def _write(self, part: str, **values: Any) -> None:
        self._file.write(str(getattr(self._parts, part)(**values)))
        self._file.flush()


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, finalize=_shown
    )
    return environment.get_template("gallery.html").module


def _shown(value: Any) -> Any:
    """Texts with what is hidden or turns the writing around shown as escapes; other values, and markup, as they are."""
    # `type`, not `isinstance`: markup that the template engine escaped already is a subclass of str.
    return printable(value) if type(value) is str else value


def _hash(text: str) -> str:
    """The source expression of an inline style or script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
