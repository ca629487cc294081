"""What all reports share: the frame of a page, HTML templates, embedded images, formatted values, aligned columns."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from PIL import Image

from judge.runs.folder import RunDir
from prompts.printable import printable

from .origin import origin_of


@dataclass(frozen=True)
class Verdict:
    """What a report says before anything else."""

    sentence: str
    good: bool | None = None
    """Whether it is good news; None for neither."""
    causes: Sequence[str] = ()
    """What it usually is where it is bad news."""
    limits: Sequence[str] = ()
    """What the numbers cannot show."""


def render(
    template: str, run: RunDir, *, verdict: Verdict | str, title: str | None = None, **values: Any
) -> Path:
    """Write `report.html` of a run, and return its path.

    Args:
        template: of this folder; it extends `base.html`, which shows the verdict first and where the numbers come from
            last: command, seed, commit.
        run: the run folder.
        verdict: the result, in a sentence that those understand who read no table.
        title: the heading; by default the folder's name.
        values: what the template names.
    """
    said = verdict if isinstance(verdict, Verdict) else Verdict(verdict)
    page = page_template(template).render(
        title=title or run.path.resolve().name, verdict=said, origin=origin_of(run), **values
    )
    return run.write_text("report.html", page)


def format_value(value: Any) -> str:
    """A value as text: three decimals for floats, thousands separated, a dash for None."""
    if value is None:
        return "–"
    # Before int, of which bool is a subclass.
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return " – ".join(map(format_value, value))
    return printable(value)


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text with the cells of `rows` in columns, the first aligned left and all others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]


def png_data_uri(png: bytes) -> str:
    """A PNG file as a `data:` URI, for pages that load no other file."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def picture_data_uri(image: Image.Image, side: int) -> str:
    """A copy of at most `side` pixels as a `data:` URI: its look alone, without metadata."""
    small = image.convert("RGB")
    small.thumbnail((side, side))  # in place; never enlarges
    saved = BytesIO()
    small.save(saved, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(saved.getvalue()).decode('ascii')}"


@cache
def page_template(name: str) -> jinja2.Template:
    """The template `name` of this folder; it escapes all values, and fails on undefined names.

    Pages extend `base.html` and take tables from `table.html`, figures and pictures from `figure.html`; `format_value`
    is known in all of them.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eval.reports", ""),
        autoescape=True,
        # A missing variable is an error, not an empty cell.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_control_characters,
    )
    environment.globals["format_value"] = format_value
    environment.filters["with_code"] = with_code
    return environment.get_template(name)


def with_code(text: str) -> Markup:
    """Text as markup, with what stands between backticks, such as a command, as code; everything is escaped."""
    parts = printable(text).split("`")
    # An odd one out is no pair.
    pairs = len(parts) - (len(parts) + 1) % 2
    shown = [
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts[:pairs])
    ]
    return Markup("").join([*shown, escape("`".join(["", *parts[pairs:]]))])


def _without_control_characters(value: Any) -> Any:
    """Text with control characters and bidi overrides shown as escapes; other values unchanged."""
    # `type`, not `isinstance`: markup that the template engine escaped already is a subclass of str.
    return printable(value) if type(value) is str else value
