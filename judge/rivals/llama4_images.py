"""Llama 4's image processor on Pillow: transformers has it for torchvision only.

An image is resized without distortion onto the canvas of tiles that suits it best, padded with black on the right and
below, and cut into tiles; where there are several, a small copy of the whole image follows. Resizing is Pillow's, so
pixels differ from torchvision's by a grey level here and there.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import BaseImageProcessor, BatchFeature

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class Llama4ImagesPil(BaseImageProcessor):  # type: ignore[misc]
    """As `Llama4ImageProcessor`, for PIL images.

    Args:
        size: height and width of a tile, which are the same.
        max_patches: most tiles of an image, the small copy aside.
        resize_to_max_canvas: whether images are enlarged as far as the tiles allow.
        options: further settings of a checkpoint; `image_mean` and `image_std` are 0.5, as in all of Llama 4.
    """

    model_input_names = ("pixel_values",)

    def __init__(
        self,
        size: dict[str, int] | None = None,
        max_patches: int = 16,
        resize_to_max_canvas: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.size = size or {"height": 336, "width": 336}
        self.max_patches, self.resize_to_max_canvas = max_patches, resize_to_max_canvas

    def __call__(self, images: Any, **_: Any) -> BatchFeature:
        """Tiles of all images, (tiles, 3, S, S) in bfloat16, and the rows and columns of each."""
        import torch

        flat = [image for some in images for image in (some if isinstance(some, list | tuple) else [some])]
        found = [self._tiles(image.convert("RGB")) for image in flat]
        return BatchFeature(
            {
                "pixel_values": torch.cat([tiles for tiles, _ in found]),
                "aspect_ratios": [torch.tensor(ratio) for _, ratio in found],
            }
        )

    def _tiles(self, image: "Image") -> "tuple[Tensor, tuple[int, int]]":
        import torch
        from PIL import Image

        side = self.size["height"]
        rows, columns = best_canvas(
            image.height, image.width, side, self.max_patches, self.resize_to_max_canvas
        )
        height, width = rows * side, columns * side
        if not self.resize_to_max_canvas:
            height, width = min(max(image.height, side), height), min(max(image.width, side), width)
        canvas = Image.new("RGB", (columns * side, rows * side))
        canvas.paste(image.resize(_inside(image, height, width), Image.Resampling.BILINEAR))
        parts = [
            canvas.crop((x * side, y * side, (x + 1) * side, (y + 1) * side))
            for y in range(rows)
            for x in range(columns)
        ]
        if len(parts) > 1:
            parts.append(image.resize((side, side), Image.Resampling.BILINEAR))
        pixels = torch.from_numpy(np.stack([np.asarray(part) for part in parts])).permute(0, 3, 1, 2)
        # In bfloat16, as Llama 4 was trained.
        return (pixels.to(torch.bfloat16) * (1 / 255) - 0.5) / 0.5, (rows, columns)


def best_canvas(height: int, width: int, side: int, most: int, largest: bool) -> tuple[int, int]:
    """Rows and columns of tiles that an image is put onto.

    Of the canvases that hold the whole image, the one that enlarges it least (`largest`: most); if all are too small,
    the one that shrinks it least. Among equals, the smallest.
    """
    canvases = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]

    def scale(canvas: Sequence[int]) -> Fraction:
        return min(Fraction(canvas[0] * side, height), Fraction(canvas[1] * side, width))

    scales = {canvas: scale(canvas) for canvas in canvases}
    enlarging = [one for one in scales.values() if one >= 1]
    chosen = (max if largest else min)(enlarging) if enlarging else max(scales.values())
    return min((canvas for canvas in canvases if scales[canvas] == chosen), key=lambda one: one[0] * one[1])


def _inside(image: "Image", height: int, width: int) -> tuple[int, int]:
    """(width, height) of the image when it fills height and width as far as it can without distortion."""
    by_width, by_height = Fraction(width, image.width), Fraction(height, image.height)
    if by_width < by_height:
        return width, max(1, min(int(image.height * by_width), height))
    return max(1, min(int(image.width * by_height), width)), height
