"""What the image processor does, as a differentiable function of pixels in [0, 1].

Attacks and gradients live in pixels of the image as it was posted; resizing, cropping and normalising belong to the
model. Every number is the processor's own setting, so the tensors equal what it makes of the same image, but for
the rounding to 8 bits that Pillow does while it resizes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from judge.errors import CheckpointError

SUPPORTED = ("CLIPImageProcessor", "CLIPImageProcessorPil", "SiglipImageProcessor", "SiglipImageProcessorPil")
"""Image processors whose steps are known here: those of LLaVA-1.5, CLIP and SigLIP."""
_MODES = {2: "bilinear", 3: "bicubic"}
_NEUTRAL_STEPS = ("do_pad",)


def preprocess(processor: Any, pixels: Tensor) -> Tensor:
    """Resize, crop and normalise as `processor` does it.

    Args:
        processor: a CLIP image processor.
        pixels: (B, 3, H, W) floats in [0, 1], at the images' own size.

    Returns:
        (B, 3, h, w) in the tower's range, differentiable in `pixels`.

    Raises:
        CheckpointError: another kind of processor, or a setting that is not known here.
        ValueError: pixels of another shape or type.
    """
    kind = type(processor).__name__
    if kind not in SUPPORTED:
        raise CheckpointError(
            f"Gradients to pixels need an image processor whose steps are known: {', '.join(SUPPORTED)} "
            f"(LLaVA-1.5 and tiny-llava); this base has {kind}."
        )
    if any(getattr(processor, step, None) for step in _NEUTRAL_STEPS):
        raise CheckpointError(
            f"{kind} pads images here, which gradients to pixels do not cover; turn do_pad off."
        )
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise ValueError(f"Expected floats (B, 3, H, W) in [0, 1], got {pixels.dtype} {tuple(pixels.shape)}.")
    if processor.do_resize:
        pixels = _resize(processor, pixels)
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


def _resize(processor: Any, pixels: Tensor) -> Tensor:
    size = _target(dict(processor.size), pixels.shape[2:])
    mode = _MODES.get(int(processor.resample))
    if mode is None:
        raise CheckpointError(f"Resampling filter {processor.resample} is not bilinear (2) or bicubic (3).")
    for shape in ((pixels.shape[2], size[1]), size):  # Pillow: along rows first, then along columns
        if shape != tuple(pixels.shape[2:]):
            # Bicubic overshoots; Pillow cuts that off where it stores 8 bits, after each of the two.
            pixels = F.interpolate(pixels, shape, mode=mode, antialias=True).clamp(0.0, 1.0)
    return pixels


def _target(size: dict[str, int | None], shape: Sequence[int]) -> tuple[int, int]:
    """Height and width after resizing."""
    wanted = {key: value for key, value in size.items() if value}
    if set(wanted) == {"height", "width"}:
        return int(wanted["height"] or 0), int(wanted["width"] or 0)
    if set(wanted) != {"shortest_edge"}:
        raise CheckpointError(
            f"The processor resizes to {wanted}; known are height and width, or shortest_edge."
        )
    edge, shorter = int(wanted["shortest_edge"] or 0), min(shape)
    height, width = (edge if side == shorter else int(edge * side / shorter) for side in shape)
    return height, width


def _centre_crop(pixels: Tensor, height: int, width: int) -> Tensor:
    """The middle of the images; black is added where they are smaller."""
    missing = [max(wanted - has, 0) for wanted, has in zip((height, width), pixels.shape[2:], strict=True)]
    if any(missing):
        top, left = ((gap + 1) // 2 for gap in missing)
        pixels = F.pad(pixels, (left, missing[1] - left, top, missing[0] - top))
    top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
    return torch.narrow(torch.narrow(pixels, 2, top, height), 3, left, width)
