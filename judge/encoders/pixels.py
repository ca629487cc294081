"""Image preprocessing as a differentiable function of pixels in [0, 1].

Attacks change pixels of the posted image; resizing, cropping and normalising belong to the model. All numbers are the
processor's own settings, so the result equals the processor's except for Pillow's rounding to 8 bits while resizing.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from judge.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TILED = ("GotOcr2ImageProcessor", "GotOcr2ImageProcessorPil")
"""Image processors that cut an image into tiles: InternVL's."""
SUPPORTED = (
    *("CLIPImageProcessor", "CLIPImageProcessorPil", "SiglipImageProcessor", "SiglipImageProcessorPil"),
    *("Gemma3ImageProcessor", "Gemma3ImageProcessorPil", *TILED),
)
"""Supported image processors: those of LLaVA-1.5, CLIP, SigLIP, Gemma-3 and InternVL."""
_MODES = {2: "bilinear", 3: "bicubic"}
_NEUTRAL_STEPS = ("do_pad", "do_pan_and_scan")


def preprocess(processor: Any, pixels: Tensor) -> Tensor:
    """Resize, crop and normalise as `processor` does it.

    Args:
        processor: an image processor of a class in `SUPPORTED`.
        pixels: (B, 3, H, W) floats in [0, 1], at the images' own size.

    Returns:
        (B, 3, h, w) in the tower's range, differentiable in `pixels`; (B * T, 3, h, w) for a class in `TILED`, the T
        tiles of an image one after the other, as many as its size asks for.

    Raises:
        CheckpointError: another class of processor, or an unsupported setting.
        ValueError: pixels of another shape or type.
    """
    kind = type(processor).__name__
    if kind not in SUPPORTED:
        raise CheckpointError(
            f"Gradients to pixels need a supported image processor: {', '.join(SUPPORTED)} "
            f"(LLaVA-1.5 and tiny-llava, Gemma-3, InternVL); this base has {kind}."
        )
    turned_on = [step for step in _NEUTRAL_STEPS if getattr(processor, step, None)]
    if turned_on:
        raise CheckpointError(
            f"{kind} pads or cuts images here, which gradients to pixels do not cover; turn {turned_on[0]} off."
        )
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise ValueError(f"Expected floats (B, 3, H, W) in [0, 1], got {pixels.dtype} {tuple(pixels.shape)}.")
    if kind in TILED:
        pixels = _tiles(processor, pixels)
    elif processor.do_resize:
        pixels = _resize(processor, pixels, _target(dict(processor.size), pixels.shape[2:]))
    if processor.do_center_crop:
        pixels = _centre_crop(pixels, processor.crop_size["height"], processor.crop_size["width"])
    if processor.do_rescale:
        pixels = pixels * 255.0 * processor.rescale_factor
    if processor.do_normalize:
        mean, deviation = (
            pixels.new_tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std)
        )
        pixels = (pixels - mean) / deviation
    return pixels


def look_up(levels: Tensor, values: "NDArray[np.float32]") -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32: each level as `values` (3, 256) says, on the levels' device."""
    table = torch.from_numpy(values).to(levels.device)
    # One channel after the other, as an index takes four times the memory of a level.
    return torch.stack([table[channel][levels[..., channel].int()] for channel in range(3)], dim=1)


def _tiles(processor: Any, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B * T, 3, h, w): the tiles of the grid that fits best, by rows, and behind several the whole.

    InternVL's processor always asks for them, whatever its image processor does by itself.
    """
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    height, width = _target(dict(processor.size), pixels.shape[2:])
    columns, rows = get_optimal_tiled_canvas(
        tuple(pixels.shape[2:]), (height, width), processor.min_patches, processor.max_patches
    )
    grid = _resize(processor, pixels, (rows * height, columns * width))
    places = [(row * height, column * width) for row in range(rows) for column in range(columns)]
    parts = (grid[:, None, :, y : y + height, x : x + width] for y, x in places)
    tiles = torch.cat([*parts], dim=1)  # (B, R * C, 3, h, w)
    if rows * columns > 1:
        tiles = torch.cat([tiles, _resize(processor, pixels, (height, width))[:, None]], dim=1)
    return tiles.flatten(0, 1)


def _resize(processor: Any, pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) -> (B, 3, h, w), in two passes as Pillow does it."""
    mode = _MODES.get(int(processor.resample))
    if mode is None:
        raise CheckpointError(f"Resampling filter {processor.resample} is not bilinear (2) or bicubic (3).")
    height, width = (int(side) for side in pixels.shape[2:])
    first = (size[0], width) if _vertical_first((height, width), size) else (height, size[1])
    for shape in (first, size):
        if shape != tuple(pixels.shape[2:]):
            # Bicubic overshoots [0, 1]; Pillow clips it when it stores 8 bits, after each pass.
            pixels = F.interpolate(pixels, shape, mode=mode, antialias=True).clamp(0.0, 1.0)
    return pixels


def _vertical_first(shape: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether Pillow shrinks the height before it changes the width: from version 13 on, where that is much more."""
    import PIL

    less_height, less_width = shape[0] - size[0], shape[1] - size[1]
    return int(PIL.__version__.split(".")[0]) >= 13 and less_height > max(0, 2 * less_width)


def _target(size: dict[str, int | None], shape: Sequence[int]) -> tuple[int, int]:
    """Height and width after resizing an image of `shape` (height, width)."""
    wanted = {key: value for key, value in size.items() if value}
    if set(wanted) == {"height", "width"}:
        return int(wanted["height"] or 0), int(wanted["width"] or 0)
    if set(wanted) != {"shortest_edge"}:
        raise CheckpointError(
            f"The processor resizes to {wanted}; supported are height and width, or shortest_edge."
        )
    edge, shorter = int(wanted["shortest_edge"] or 0), min(shape)
    height, width = (edge if side == shorter else int(edge * side / shorter) for side in shape)
    return height, width


def _centre_crop(pixels: Tensor, height: int, width: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, height, width); smaller images are padded with black."""
    missing = [max(wanted - has, 0) for wanted, has in zip((height, width), pixels.shape[2:], strict=True)]
    if any(missing):
        # An odd pixel goes to the top and left, as in transformers.
        top, left = ((gap + 1) // 2 for gap in missing)
        pixels = F.pad(pixels, (left, missing[1] - left, top, missing[0] - top))
    top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
    return torch.narrow(torch.narrow(pixels, 2, top, height), 3, left, width)
