"""Figures inside a page: SVG that follows the page's colours, light or dark, with captions in HTML.

Figures are drawn with the colours of `PALETTE`. A file in `plots/` keeps them; in a page each becomes a variable of
`base.html`, which has a second value for dark screens.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.figure import Figure

from .figures import PALETTE, svg_bytes

_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"font: ([\d.]+px) [^;]*")
_DROPPED = ("metadata", "style")
"""Elements that a figure in a page has no use for; a style in it would be one of the whole page."""


@dataclass(frozen=True)
class Chart:
    """One figure of a page."""

    title: str
    about: str
    """The caption below the title: how to read it."""
    svg: Markup


def chart(figure: Figure, title: str, about: str = "", *, file: Path | None = None) -> Chart:
    """A figure for a page; equal figures give equal charts.

    Args:
        figure: drawn with the colours of `PALETTE`; other colours stay the same on light and dark.
        title: what it shows; readers of the page without eyes for it hear title and caption.
        about: how to read it.
        file: an SVG file to write as well, with plain colours.
    """
    svg = svg_bytes(figure, letters=True)
    if file is not None:
        file.write_bytes(svg)
    return Chart(title, about, inline_svg(svg, f"{title}: {about}" if about else title))


def inline_svg(svg: bytes, label: str) -> Markup:
    """An SVG file as an element of a page: palette colours as variables, fonts of the page, ids of its own.

    Args:
        svg: of `svg_bytes(figure, letters=True)`.
        label: what those hear who do not see it.
    """
    root = ElementTree.fromstring(svg)
    name = "c" + re.sub(r"[^a-z0-9]+", "-", label.lower())[:60].strip("-")
    used = set(re.findall(r"#([A-Za-z_][\w-]*)", svg.decode()))
    for parent in list(root.iter()):
        for child in list(parent):
            if _tag(child) in _DROPPED:
                parent.remove(child)
    for element in root.iter():
        element.tag = _tag(element)
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        # Ids that nothing refers to, such as axes_1, would stand twice in a page of two figures.
        if attributes.get("id") in used:
            element.set("id", f"{name}-{attributes['id']}")
        for key, value in attributes.items():
            if key == "href":
                element.set(key, f"#{name}-{value.removeprefix('#')}")
            elif key != "id":
                element.set(key, _themed(value, name))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"class": "chart", "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # serialised, so texts are escaped


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _themed(value: str, name: str) -> str:
    coloured = _COLOUR.sub(lambda found: PALETTE.get(found[0], found[0]), value)
    own = re.sub(r"url\(#", f"url(#{name}-", coloured)
    return _FONT.sub(r"font: \1 system-ui, sans-serif", own)
