"""What an image processor of CLIP or SigLIP does to images, recorded as settings and applied without torch.

The settings are part of an exported student's manifest, so field names are keys of a file. Resizing and cropping need
Pillow and can be done in any process; scaling and normalising are arithmetic on a whole batch.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = NDArray[np.float32]
Levels = NDArray[np.uint8]


@dataclass(frozen=True)
class ImagePreprocessing:
    """The steps of an image processor of CLIP or SigLIP on an RGB image, in this order."""

    resize: tuple[int, int] | int | None
    """Height and width, or the length of the shorter side."""
    resample: int
    """Pillow's number of the filter."""
    crop: tuple[int, int] | None
    """Height and width of the centre crop; smaller images are padded with black."""
    scale: float | None
    """Factor on pixels of 0 to 255."""
    mean: tuple[float, ...] | None
    deviation: tuple[float, ...] | None
    """Three values each, of the scaled pixels; both or neither."""

    def __call__(self, image: "Image") -> Floats:
        """An RGB image -> normalised (3, H, W) float32."""
        values: Floats = self.normalised(self.resized(image)[None])[0]
        return values

    def resized(self, image: "Image") -> Levels:
        """An RGB image -> (H, W, 3) uint8, resized and cropped."""
        if self.resize is not None:
            height, width = (
                self.resize if isinstance(self.resize, tuple) else _shorter_side(image, self.resize)
            )
            image = image.resize((width, height), resample=self.resample)
        pixels: Levels = np.asarray(image)
        return pixels if self.crop is None else _centre_crop(pixels, *self.crop)

    def normalised(self, pixels: Levels) -> Floats:
        """(B, H, W, 3) uint8, as `resized` gives them -> (B, 3, H, W) float32, scaled and normalised."""
        values: Floats = np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32)
        for channel, table in enumerate(self.values):
            np.take(table, pixels[..., channel], out=values[:, channel])
        return values

    @property
    def values(self) -> Floats:
        """(3, 256): what each level of each channel becomes, scaled and normalised."""
        return _values(self)


@lru_cache(maxsize=16)
def _values(steps: ImagePreprocessing) -> Floats:
    """There are 256 levels, so looking them up is the arithmetic on all pixels, in a seventh of the time."""
    levels = np.tile(np.arange(256, dtype=np.float64), (3, 1))
    # Scaled in float64 and rounded once, as transformers' Pillow processors do.
    values = (levels * (1.0 if steps.scale is None else steps.scale)).astype(np.float32)
    if steps.mean is not None and steps.deviation is not None:
        mean = np.array(steps.mean, dtype=np.float32)[:, None]
        deviation = np.array(steps.deviation, dtype=np.float32)[:, None]
        values = (values - mean) / deviation
    return np.ascontiguousarray(values)


def _shorter_side(image: "Image", edge: int) -> tuple[int, int]:
    """Height and width with `edge` as the shorter side, the longer one truncated as in transformers."""
    short, long = min(image.size), max(image.size)
    longer = int(edge * long / short)
    return (longer, edge) if image.width <= image.height else (edge, longer)


def _centre_crop(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Centre crop (H, W, 3) -> (height, width, 3); odd differences are split as in transformers."""
    missing = [max(wanted - has, 0) for wanted, has in zip((height, width), pixels.shape, strict=False)]
    before = [math.ceil(gap / 2) for gap in missing]
    if any(missing):  # pad first, then crop: one side may be too short and the other too long
        sides = [(first, gap - first) for first, gap in zip(before, missing, strict=True)]
        pixels = np.pad(pixels, [*sides, (0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
