"""The input of models that are trained on canvases of digits: image processor and normalisation."""

from typing import TYPE_CHECKING, Any

from .digits import CANVAS

if TYPE_CHECKING:
    from torch import Tensor

MEAN, DEVIATION = 0.5, 0.25
"""Of every channel, for pixels in [0, 1]."""


def canvas_processor() -> Any:
    """The image processor that resizes to a canvas, scales to [0, 1] and normalises."""
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"height": CANVAS, "width": CANVAS},
        crop_size={"height": CANVAS, "width": CANVAS},
        do_center_crop=False,
        image_mean=[MEAN] * 3,
        image_std=[DEVIATION] * 3,
    )


def normalise(pixels: "Tensor") -> "Tensor":
    """Pixels (N, 3, H, W) in [0, 255] as the processor normalises them, without resizing."""
    return (pixels.float() / 255.0 - MEAN) / DEVIATION
