"""Variations of an image: painted in six strengths, tiled in three grids (UnsafeBench, section 4.1, Figure 6).

The paper reconstructs an image "with 2x2, 3x3, and 4x4 grids, with each smaller image serving as a part of the grid",
after pictures of generators that show four or nine smaller ones. That can be read in two ways: the picture cut into
pieces, or the whole picture repeated. Here it is repeated, each copy smaller, on a canvas of the same size; a cut
picture put together again would be the same picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from adversarial.edits.platform import EDITS
from judge.data.images import open_image
from judge.errors import ConfigError
from prompts.example import Example

STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Of the style, as in the paper."""
GRIDS = (2, 3, 4)
"""Copies a side, as in the paper."""
LONGEST_SIDE = 512
"""Images are made smaller to this many pixels, the size of Stable Diffusion, before they are varied; never larger."""

Kind = Literal["original", "style", "grid"]


@dataclass(frozen=True)
class Variation:
    """A picture of the case study."""

    id: str
    """Of the example that it shows."""
    kind: Kind
    level: float
    """Strength of the style, copies a side of the grid, 0 of the original."""
    image: Image.Image

    @property
    def name(self) -> str:
        """`original`, `style-0.1`, `grid-2` and so on; unique among the variations of one image."""
        return "original" if self.kind == "original" else f"{self.kind}-{self.level:g}"


class Style(Protocol):
    """Turns a photograph into a painting, more or less."""

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON types: `kind`, and a sentence `said` for tables."""
        ...

    def paint(self, image: Image.Image, strength: float) -> Image.Image:
        """An RGB picture of the same size; `strength` in [0, 1], and 0 changes nothing."""
        ...


@dataclass(frozen=True)
class PainterlyFilter:
    """A plain filter that looks like brush strokes; it knows nothing of what it paints, and so adds nothing to it.

    Kuwahara's: of the four windows that meet at a pixel the smoothest gives its mean colour (1976), so surfaces become
    even and edges stay. The result is blended with the picture by strength.
    """

    strokes: float = 1 / 24
    """Width of a window, as a share of the picture's shorter side; at least 3 pixels."""

    def describe(self) -> dict[str, Any]:
        """What it is."""
        return {
            "kind": "painterly",
            "said": "a plain painterly filter (Kuwahara), blended by strength, as no diffusion model was given; "
            "weaker than the oil paintings of the paper",
        }

    def paint(self, image: Image.Image, strength: float) -> Image.Image:
        """An RGB picture of the same size; `strength` in [0, 1], and 0 changes nothing."""
        pixels = np.asarray(image, dtype=np.float64)
        painted = kuwahara(pixels, max(3, round(self.strokes * min(image.size))))
        mixed = (1 - strength) * pixels + strength * painted
        return Image.fromarray(mixed.round().astype(np.uint8))


def kuwahara(pixels: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Kuwahara's filter of an RGB picture (H, W, 3), mirrored at its borders.

    The four windows of `width` x `width` pixels of which a pixel is a corner are compared by the variance of their
    mean grey.
    """
    reach = width - 1
    padded = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    grey = padded.mean(axis=2)
    # Sums over the window that ends at each pixel, below and to the right.
    means = np.stack([_window_means(padded[..., channel], width) for channel in range(3)], axis=2)
    variances = _window_means(grey**2, width) - _window_means(grey, width) ** 2
    height, length = pixels.shape[:2]
    corners = [(top, left) for top in (0, reach) for left in (0, reach)]
    choices = np.stack([variances[top : top + height, left : left + length] for top, left in corners])
    colours = np.stack([means[top : top + height, left : left + length] for top, left in corners])
    best = choices.argmin(axis=0)  # (H, W)
    chosen: NDArray[np.float64] = np.take_along_axis(colours, best[None, :, :, None], axis=0)[0]
    return chosen


def _window_means(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Means of all windows within (H, W), (H - width + 1, W - width + 1), by their upper left corner."""
    means: NDArray[np.float64] = ndimage.uniform_filter(values, width, mode="constant")
    start = width // 2
    return means[start : start + len(values) - width + 1, start : start + values.shape[1] - width + 1]


def tile(image: Image.Image, copies: int) -> Image.Image:
    """`copies` x `copies` smaller copies of an RGB picture on a canvas of its size; 2 to 6 of them a side."""
    return EDITS["grid"](image, copies - 1)


def draw_variations(
    examples: Sequence[Example],
    style: Style,
    *,
    strengths: Sequence[float] = STRENGTHS,
    grids: Sequence[int] = GRIDS,
) -> list[Variation]:
    """Each example as it is (at most `LONGEST_SIDE` pixels a side), painted and tiled; those of one example in a row.

    Raises:
        ConfigError: a strength or a grid that does not exist.
        ImageError: an example that cannot be opened.
    """
    if not all(0 < strength <= 1 for strength in strengths) or not all(2 <= copies <= 6 for copies in grids):
        raise ConfigError(
            f"Strengths are {list(strengths)} and grids {list(grids)}; strengths are over 0 and at most 1, grids are "
            "2 to 6 copies a side."
        )
    found = []
    for example in examples:
        image = open_image(example.image)
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        found.append(Variation(example.id, "original", 0, image))
        found += [Variation(example.id, "style", level, style.paint(image, level)) for level in strengths]
        found += [Variation(example.id, "grid", copies, tile(image, copies)) for copies in grids]
    return found
