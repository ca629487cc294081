"""Scenes: up to four pictograms on a varied ground, and where each of them is.

Grounds, inks, sizes and places say nothing about what is shown: they are drawn before the concepts are looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .glyphs import SIDE, TRAINED_STYLES, VARIANTS, draw_glyph, drawings

CANVAS = 112
"""Side of a scene in pixels; models read it at half of that."""
SIZES = {1: (52, 78), 2: (44, 60), 3: (40, 52), 4: (40, 54)}
"""Signs in a scene -> smallest and largest side of each in pixels."""
CLUTTER = 0.15
"""Share of scenes with lines and discs that are no sign; every scene without signs has some."""

Floats = NDArray[np.float32]
_LUMINANCE = np.array([0.3, 0.59, 0.11], np.float32)
_ROWS, _COLUMNS = np.mgrid[-1 : 1 : CANVAS * 1j, -1 : 1 : CANVAS * 1j].astype(np.float32)
_CONTRAST = 0.38
"""Smallest difference of luminance, 0 to 1, between a sign and the ground under it."""


@dataclass(frozen=True)
class Sign:
    """A pictogram in a scene."""

    concept: str
    style: str
    left: int
    top: int
    side: int
    """Of its square, in pixels."""


@dataclass(frozen=True)
class Scene:
    """A picture and what it shows."""

    image: Image.Image
    """RGB, CANVAS x CANVAS."""
    signs: tuple[Sign, ...]
    coverage: Image.Image
    """The signs alone: an `L` image of the same size, 255 where there is ink."""


def compose(
    concepts: Sequence[str], rng: np.random.Generator, styles: tuple[str, ...] = TRAINED_STYLES
) -> Scene:
    """Draw up to four different concepts on one canvas; equal generators give equal scenes."""
    ground, tone = _ground(rng)
    if not concepts or rng.random() < CLUTTER:
        ground = _clutter(ground, tone, rng)
    signs, ink_of_all = [], np.zeros((CANVAS, CANVAS), np.float32)
    for concept, (left, top, side) in zip(concepts, _places(len(concepts), rng), strict=True):
        choices = drawings(concept, styles)
        style, name = choices[rng.integers(len(choices))]
        variant = (
            str(rng.choice(list(VARIANTS), p=list(VARIANTS.values()))) if style in TRAINED_STYLES else "plain"
        )
        coverage = _place(draw_glyph(style, name, variant), side, rng)
        region = ground[top : top + side, left : left + side]
        ink = _ink(region.mean((0, 1)), rng)
        region += (ink - region) * coverage[..., None]
        covered = ink_of_all[top : top + side, left : left + side]
        np.maximum(covered, coverage, out=covered)
        signs.append(Sign(concept, style, left, top, side))
    noise = rng.standard_normal((CANVAS, CANVAS, 1), np.float32) * rng.uniform(0.0, 0.03)
    pixels = np.clip((ground + noise) * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
    alone = Image.fromarray((ink_of_all * 255.0 + 0.5).astype(np.uint8))
    return Scene(Image.fromarray(pixels), tuple(signs), alone)


def _ground(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A ground (CANVAS, CANVAS, 3) in [0, 1] of one of six kinds, and its main colour (3,)."""
    tone = (rng.uniform(0, 1, 3) ** rng.choice([0.5, 1.0, 1.6])).astype(np.float32)
    angle, kind = rng.uniform(0, 2 * np.pi), rng.integers(6)
    tint = rng.uniform(-1, 1, 3).astype(np.float32)
    along = np.float32(np.cos(angle)) * _COLUMNS + np.float32(np.sin(angle)) * _ROWS
    if kind == 0:
        shade = np.zeros((CANVAS, CANVAS, 1), np.float32) * tint
    elif kind == 1:  # a ramp
        shade = along[..., None] * (0.25 * tint)
    elif kind == 2:  # stripes
        shade = np.sign(np.sin(along * rng.uniform(5, 16)))[..., None] * (0.06 * tint)
    elif kind == 3:  # grain
        shade = rng.standard_normal((CANVAS, CANVAS, 1), np.float32) * np.float32(0.06) + 0 * tint
    elif kind == 4:  # a glow
        x, y = rng.uniform(-1, 1, 2).astype(np.float32)
        shade = ((_COLUMNS - x) ** 2 + (_ROWS - y) ** 2)[..., None] * (0.15 * tint)
    else:  # two colours
        shade = (along > rng.uniform(-0.7, 0.7))[..., None] * (0.2 * tint)
    return np.clip(tone + shade, 0, 1).astype(np.float32), tone


def _clutter(ground: Floats, tone: Floats, rng: np.random.Generator) -> Floats:
    """Lines and discs near the ground's colour: ink that is no sign."""
    image = Image.fromarray((ground * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 4)):
        x, y, to_x, to_y = (int(v) for v in rng.integers(0, CANVAS, 4))
        colour = tuple(int(v) for v in np.clip(tone * 255 + rng.normal(0, 40, 3), 0, 255))
        if rng.random() < 0.5:
            draw.line((x, y, to_x, to_y), fill=colour, width=int(rng.integers(2, 8)))
        else:
            radius = 2 + to_x % 14
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return np.asarray(image, dtype=np.float32) / 255.0


def _places(count: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Squares (left, top, side) that overlap by four pixels at most."""
    if not count:
        return []
    low, high = SIZES[count]
    if count == 4:  # one in each quarter, in random order
        half, sides = CANVAS // 2, rng.integers(low, high + 1, 4)
        corners = np.stack(np.divmod(rng.permutation(4), 2), -1) * half
        corners += rng.integers(0, half - sides[:, None] + 1, (4, 2))
        return [(int(x), int(y), int(side)) for (x, y), side in zip(corners, sides, strict=True)]
    while True:
        for _ in range(60):
            sides = rng.integers(low, high + 1, count)
            corners = rng.integers(0, CANVAS - sides[:, None] + 1, (count, 2))
            if _apart(corners + sides[:, None] / 2, sides):
                return [(int(x), int(y), int(side)) for (x, y), side in zip(corners, sides, strict=True)]
        high = low = 40  # three of this side always fit somewhere


def _apart(centres: NDArray[Any], sides: NDArray[Any]) -> bool:
    for one in range(len(sides)):
        for two in range(one):
            if np.abs(centres[one] - centres[two]).max() < (sides[one] + sides[two]) / 2 - 4:
                return False
    return True


def _place(glyph: Image.Image, side: int, rng: np.random.Generator) -> Floats:
    """The glyph turned, sheared and perhaps mirrored, as coverage (side, side) in [0, 1]."""
    turn, shear = rng.uniform(-0.25, 0.25), rng.uniform(-0.12, 0.12)
    if rng.random() < 0.5:
        glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = 1.06 * SIDE / side
    cosine, sine = np.cos(turn) * scale, np.sin(turn) * scale
    a, b, d, e = cosine, -sine + shear * cosine, sine, cosine + shear * sine
    middle = side / 2  # of the square, which the glyph's middle is mapped to
    placed = glyph.transform(
        (side, side),
        Image.Transform.AFFINE,
        (a, b, SIDE / 2 - (a + b) * middle, d, e, SIDE / 2 - (d + e) * middle),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(placed, dtype=np.float32) / np.float32(255.0)


def _ink(under: Floats, rng: np.random.Generator) -> Floats:
    """A colour that stands out from the colour (3,) under it; black or white where none of 16 does."""
    colours = rng.uniform(0, 1, (16, 3)).astype(np.float32)
    brightness = float(under @ _LUMINANCE)
    clear = np.abs(colours @ _LUMINANCE - brightness) > _CONTRAST
    return colours[clear.argmax()] if clear.any() else np.full(3, float(brightness < 0.5), np.float32)
