"""What every report page is made of: one template, its pictures inside, and values as a reader wants them."""

import base64
from typing import Any

import jinja2

from prompts.printable import printable


def show(value: Any) -> str:
    """A value as a reader wants it: three decimals for fractions, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return " – ".join(map(show, value))
    return printable(value)


def shown_text(value: Any) -> Any:
    """What a page's template puts out: text of data without what could turn or hide a line; the rest as it is."""
    return printable(value) if type(value) is str else value


def inline(png: bytes) -> str:
    """A PNG picture as an address that holds the picture itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def page_template(name: str) -> jinja2.Template:
    """The template `name` of this folder; it escapes all it is given, and refuses names that it is not given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eval.reports", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown_text,
    )
    return environment.get_template(name)
