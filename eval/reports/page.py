"""What all reports share: HTML templates, embedded images, formatted values and aligned columns."""

import base64
from collections.abc import Sequence
from typing import Any

import jinja2

from prompts.printable import printable


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


def page_template(name: str) -> jinja2.Template:
    """The template `name` of this folder; it escapes all values, and fails on undefined names.

    Pages extend `base.html` and take tables from `table.html`; `format_value` is known in all of them.
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
    return environment.get_template(name)


def _without_control_characters(value: Any) -> Any:
    """Text with control characters and bidi overrides shown as escapes; other values unchanged."""
    # `type`, not `isinstance`: markup that the template engine escaped already is a subclass of str.
    return printable(value) if type(value) is str else value
