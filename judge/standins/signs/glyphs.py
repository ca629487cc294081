"""Pictograms out of icon fonts: which there are, and how one is drawn.

The fonts are Font Awesome 6 Free, Material Design Icons 6, Phosphor and Remix Icon, in the wheel `qtawesome`. Nothing
of them ships with this package; `concepts.yaml` only names glyphs.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from judge.errors import CheckpointError
from judge.standins.wheels import FONTS, QTAWESOME, wheel_bytes, wheel_file

TRAINED_STYLES = ("fa", "mdi", "mdo", "phr", "phb", "phf")
"""Drawing styles of the splits train, validation and test."""
NEW_STYLES = ("phl", "pht", "rif", "ril")
"""Drawing styles of the split `new_styles` only: Phosphor light and thin, Remix filled and in lines."""
FILLED_STYLES = ("fa", "mdi", "phf")
"""Styles of solid shapes, which stay recognisable as an outline."""
VARIANTS = {"plain": 0.6, "bold": 0.15, "outline": 0.25}
"""Share of each way to draw a glyph of a trained style; what is not possible with a style is drawn plain."""
SIDE = 96
"""Pixels of a drawn glyph's side."""


@dataclass(frozen=True)
class Concept:
    """A thing that pictures show, such as a knife."""

    name: str
    group: str
    """Key of its category in the taxonomy `signs`."""
    words: tuple[str, ...]
    """Words for it, the plainest first."""
    glyphs: dict[str, tuple[str, ...]]
    """Style -> names of its glyphs in that style's font."""


@cache
def concepts() -> dict[str, Concept]:
    """All concepts by name, in the order of `concepts.yaml`."""
    found = yaml.safe_load((files(__package__) / "concepts.yaml").read_text(encoding="utf-8"))
    return {
        name: Concept(
            name,
            entry["group"],
            tuple(entry["words"]),
            {style: tuple(names) for style, names in entry["glyphs"].items()},
        )
        for name, entry in found.items()
    }


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """Group -> names of its concepts."""
    found: dict[str, list[str]] = {}
    for concept in concepts().values():
        found.setdefault(concept.group, []).append(concept.name)
    return {group: tuple(names) for group, names in found.items()}


@cache
def drawings(concept: str, styles: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(style, glyph name) of every drawing of a concept in these styles; `snake` and `shark` have none in some."""
    listed = concepts()[concept].glyphs
    return tuple((style, name) for style in styles for name in listed.get(style, ()))


@cache
def draw_glyph(style: str, name: str, variant: str = "plain") -> Image.Image:
    """A glyph as ink coverage: an `L` image of SIDE x SIDE, its longer side filled.

    Raises:
        CheckpointError: the wheel with the fonts is missing, another one, or its font lacks the glyph.
    """
    sign, font = _glyph(style, name)
    canvas = Image.new("L", (4 * SIDE, 4 * SIDE))
    ImageDraw.Draw(canvas).text((SIDE, SIDE), sign, font=font, fill=255)
    box = canvas.getbbox()
    if box is None:
        raise _lacks(style, name)
    ink = canvas.crop(box)
    scale = SIDE / max(ink.size)
    ink = ink.resize(
        (max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.LANCZOS
    )
    drawn = Image.new("L", (SIDE, SIDE))
    drawn.paste(ink, ((SIDE - ink.width) // 2, (SIDE - ink.height) // 2))
    if variant == "bold":
        return drawn.filter(ImageFilter.MaxFilter(5))
    if variant == "outline" and style in FILLED_STYLES:
        return ImageChops.subtract(drawn, drawn.filter(ImageFilter.MinFilter(7)))
    return drawn


@cache
def _font(family: str) -> tuple[ImageFont.FreeTypeFont, dict[str, str]]:
    """The font of a family of styles, and its chart of hexadecimal code points by glyph name."""
    font, chart = FONTS[family]
    loaded = ImageFont.truetype(str(wheel_file(QTAWESOME, font)), 2 * SIDE)
    return loaded, json.loads(wheel_bytes(QTAWESOME, chart))


def _glyph(style: str, name: str) -> tuple[str, ImageFont.FreeTypeFont]:
    family = next(family for family in FONTS if style[:2] == family[:2])
    font, chart = _font(family)
    if name not in chart:
        raise _lacks(style, name)
    return chr(int(chart[name], 16)), font


def _lacks(style: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"The font of style {style!r} lacks the glyph {name!r} that concepts.yaml names; take one that its chart "
        f"in the wheel {QTAWESOME.distribution} lists."
    )
