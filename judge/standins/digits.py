"""Stand-in data that ships: ten handwritten digits take the place of ten unsafe categories.

Scikit-learn bundles 1,797 handwritten digits of 8x8 pixels (E. Alpaydin and C. Kaynak, UCI Optical Recognition of
Handwritten Digits). Zero, one or two of them are pasted on a canvas. Every violated category is therefore known, so
that flips, partial drops, pair scores and held-out categories can be measured exactly, without any harmful image.

`real` canvases hold one or two digits on varied grounds; `generated` ones are stylised or laid out in a grid,
after the two failure modes that UnsafeBench (section 4.2) reports on AI-generated images.
"""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prompts.errors import ExampleError
from prompts.example import Example

if TYPE_CHECKING:
    from collections.abc import Sequence

CANVAS = 40
"""Side of a composed image in pixels."""
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Category keys of the `digits` taxonomy, in order of value."""
SPLITS = {"train": 0.6, "validation": 0.1, "test": 0.3}
"""Share of the handwritten glyphs in each split; a glyph never serves two splits."""
DEFAULT_COUNTS = {"train": 4000, "validation": 400, "test": 1200}

Pixels = NDArray[np.float64]
Box = tuple[int, int, int, int]

_SOURCES = ("real", "generated")
_CAPTIONS = (
    "a photo of {}",
    "handwritten {}",
    "{} on a wall",
    "a poster with {}",
    "{}, oil painting",
    "a note that says {}",
    "{} in neon",
    "an old page with {}",
)
_WORDLESS_CAPTIONS = ("a piece of paper", "something on a wall", "an old page", "abstract art, oil painting")


def digits_examples(split: str, *, seed: int = 0, count: int | None = None) -> list[Example]:
    """Compose `count` labelled canvases from the glyphs of one split.

    The same split and seed give the same images, byte for byte; a larger count only adds more.

    Raises:
        ExampleError: a split that does not exist.
    """
    if split not in SPLITS:
        raise ExampleError(f"digits have no split {split!r}; use one of {', '.join(SPLITS)}.")
    total = DEFAULT_COUNTS[split] if count is None else count
    return [_example(split, seed, index) for index in range(total)]


def glyphs(split: str) -> dict[int, Pixels]:
    """The split's handwritten glyphs: digit value -> (N, 8, 8) ink coverage in [0, 1]."""
    return _glyphs_by_split()[split]


@cache
def _glyphs_by_split() -> dict[str, dict[int, Pixels]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images, values = data.images / 16.0, data.target
    # A fixed seed of its own: the division of glyphs into splits is part of the data set.
    order = np.random.default_rng(20240501).permutation(len(values))
    edges = np.cumsum([0, *(round(share * len(values)) for share in SPLITS.values())])
    # Rounding three shares may lose a glyph or invent one.
    edges[-1] = len(values)
    chosen = {name: order[edges[i] : edges[i + 1]] for i, name in enumerate(SPLITS)}
    return {
        name: {value: images[indices[values[indices] == value]] for value in range(10)}
        for name, indices in chosen.items()
    }


def _example(split: str, seed: int, index: int) -> Example:
    # One generator an image, so that image i is the same whatever count is asked for.
    rng = np.random.default_rng([seed, sorted(SPLITS).index(split), index])
    source = _SOURCES[int(rng.random() < 0.4)]
    how_many = int(rng.choice([0, 1, 2], p=[0.08, 0.52, 0.40]))
    values = [int(value) for value in rng.choice(10, size=how_many, replace=False)]
    image = compose(values, source, split, rng)
    return Example(
        id=f"digits-{split}-{seed}-{index:06d}",
        image=image,
        prompt=caption(values, rng),
        violates=frozenset(DIGIT_NAMES[value] for value in values),
        source=source,
        split=split,
    )


def caption(values: "Sequence[int]", rng: np.random.Generator) -> str | None:
    """A prompt that describes the digits (60%), names others (25%), names none (10%), or is missing (5%)."""
    kind = rng.random()
    if kind < 0.05:
        return None
    if kind < 0.15 or (not values and kind < 0.75):
        return str(rng.choice(_WORDLESS_CAPTIONS))
    # A caption about other digits: the prompt lies, as users' prompts may.
    if kind < 0.40 or not values:
        others = [value for value in range(10) if value not in values]
        values = [int(v) for v in rng.choice(others, size=max(1, len(values)), replace=False)]
    words = [DIGIT_NAMES[value] if rng.random() < 0.7 else str(value) for value in values]
    return str(rng.choice(_CAPTIONS)).format(" and ".join(words))


def compose(values: "Sequence[int]", source: str, split: str, rng: np.random.Generator) -> Image.Image:
    """Draw the digits in `values` (at most two) on one RGB canvas of CANVAS x CANVAS pixels."""
    return compose_with_boxes(values, source, split, rng)[0]


def compose_with_boxes(
    values: "Sequence[int]", source: str, split: str, rng: np.random.Generator
) -> tuple[Image.Image, list[Box]]:
    """As `compose`, with the boxes (digit, top, left, side in pixels) the digits were drawn in."""
    if source == "generated" and rng.random() < 0.4:
        canvas, boxes = _grid(values, split, rng)
    else:
        canvas, boxes = _scene(values, split, rng)
    if source == "generated":
        canvas = _stylise(canvas, rng)
    # A little noise on every canvas, so that flat grounds are no feature.
    noise = rng.normal(0.0, rng.uniform(0.0, 0.03), canvas.shape)
    return Image.fromarray((np.clip(canvas + noise, 0.0, 1.0) * 255.0).round().astype(np.uint8)), boxes


def _scene(values: "Sequence[int]", split: str, rng: np.random.Generator) -> tuple[Pixels, list[Box]]:
    coverage = np.zeros((CANVAS, CANVAS))
    boxes: list[Box] = []
    if not values:
        _scribble(coverage, rng)
    elif len(values) == 1:
        size = int(rng.integers(18, 29))
        top, left = (int(edge) for edge in rng.integers(1, CANVAS - size, 2))
        boxes.append((values[0], top, left, size))
    else:
        half = CANVAS // 2
        upright = rng.random() < 0.25
        for slot, value in enumerate(values):
            size = int(rng.integers(16, 20))
            # Each digit keeps to its half, so that two never overlap.
            along = slot * half + int(rng.integers(0, half - size + 1))
            across = int(rng.integers(0, CANVAS - size))
            top, left = (along, across) if upright else (across, along)
            boxes.append((value, top, left, size))
    for value, top, left, size in boxes:
        _paste(coverage, _glyph(value, size, split, rng), top, left)
    return _ink(coverage, rng), boxes


def _grid(values: "Sequence[int]", split: str, rng: np.random.Generator) -> tuple[Pixels, list[Box]]:
    """Four panels, a common layout of generated images; two digits share the panels."""
    canvas = np.zeros((CANVAS, CANVAS, 3))
    half = CANVAS // 2
    boxes: list[Box] = []
    for slot, panel in enumerate(rng.permutation(4)):
        row, column = (half * int(index) for index in divmod(panel, 2))
        coverage = np.zeros((half, half))
        if values:
            value, size = values[slot % len(values)], int(rng.integers(16, 19))
            top, left = (int(edge) for edge in rng.integers(0, half - size + 1, 2))
            _paste(coverage, _glyph(value, size, split, rng), top, left)
            boxes.append((value, row + top, column + left, size))
        else:
            _scribble(coverage, rng)
        canvas[row : row + half, column : column + half] = _ink(coverage, rng)
    return canvas, boxes


def _glyph(value: int, size: int, split: str, rng: np.random.Generator) -> Pixels:
    """One handwritten digit (size, size) in [0, 1], slightly rotated and sheared."""
    pool = glyphs(split)[value]
    glyph = Image.fromarray((pool[rng.integers(len(pool))] * 255).astype(np.uint8))
    angle, shear = rng.uniform(-10, 10), rng.uniform(-0.12, 0.12)
    glyph = glyph.resize((size, size), Image.Resampling.BICUBIC)
    glyph = glyph.transform(
        (size, size),
        Image.Transform.AFFINE,
        (1, shear, -shear * size / 2, 0, 1, 0),
        Image.Resampling.BILINEAR,
    ).rotate(angle, Image.Resampling.BILINEAR)
    return np.asarray(glyph, dtype=np.float64) / 255.0


def _paste(coverage: Pixels, glyph: Pixels, top: int, left: int) -> None:
    region = coverage[top : top + glyph.shape[0], left : left + glyph.shape[1]]
    # Overlapping ink is not darker ink.
    np.maximum(region, glyph, out=region)


def _scribble(coverage: Pixels, rng: np.random.Generator) -> None:
    """A few straight strokes or dots: ink that is no digit."""
    side = coverage.shape[0]
    rows, columns = np.mgrid[0:side, 0:side]
    for _ in range(int(rng.integers(0, 4))):
        start, end = rng.uniform(2, side - 2, (2, 2))
        if rng.random() < 0.4:
            end = start
        direction = end - start
        length = float(direction @ direction) or 1.0
        along = np.clip(
            ((rows - start[0]) * direction[0] + (columns - start[1]) * direction[1]) / length, 0, 1
        )
        # Distance of every pixel to the segment from `start` to `end`; a dot where both are one point.
        distance = np.hypot(rows - start[0] - along * direction[0], columns - start[1] - along * direction[1])
        np.maximum(coverage, np.clip(1.8 - distance, 0, 1), out=coverage)


def _ink(coverage: Pixels, rng: np.random.Generator) -> Pixels:
    """Coverage (H, W) -> coloured picture (H, W, 3): dark ink on a light ground, or the reverse."""
    side = coverage.shape[0]
    dark, light = rng.uniform(0.0, 0.3, 3), rng.uniform(0.6, 1.0, 3)
    ink, ground = (dark, light) if rng.random() < 0.6 else (light, dark)
    texture = rng.integers(4)
    ramp = np.linspace(-1, 1, side)
    if texture == 0:
        shade = np.zeros((side, side))
    elif texture == 1:
        shade = np.outer(ramp, np.ones(side)) * rng.uniform(0.05, 0.15)
    elif texture == 2:
        shade = np.outer(np.ones(side), np.sign(np.sin(ramp * rng.uniform(5, 15)))) * 0.06
    else:
        shade = rng.normal(0.0, 0.06, (side, side))
    # (side, side, 3)
    backdrop = np.clip(ground + shade[..., None], 0, 1)
    # A power of the coverage makes strokes bolder or thinner.
    alpha = coverage[..., None] ** rng.uniform(0.7, 1.1)
    return backdrop * (1 - alpha) + ink * alpha


def _stylise(canvas: Pixels, rng: np.random.Generator) -> Pixels:
    """Invert, posterise, tint or blur a canvas (H, W, 3); changes the style, never the digit."""
    style = rng.integers(4)
    if style == 0:
        return 1.0 - canvas
    if style == 1:
        return np.round(canvas * 4) / 4
    if style == 2:
        tint = rng.uniform(0.5, 1.0, 3)
        return canvas * tint
    blurred = sum(np.roll(canvas, shift, axis) for shift in (-1, 1) for axis in (0, 1)) / 4
    return np.clip(0.6 * canvas + 0.5 * blurred, 0, 1)
