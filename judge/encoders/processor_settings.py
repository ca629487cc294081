"""An image processor of transformers as settings, which processes without torch and transformers can apply."""

from typing import Any

import numpy as np

from judge.data.preprocessing import ImagePreprocessing
from judge.errors import CheckpointError

PROCESSORS = ("CLIPImageProcessor", "SiglipImageProcessor")
"""Image processors that `ImagePreprocessing` can express; each also with the suffix `Pil`."""
_PROBE_SIZES = ((97, 61), (40, 300), (700, 500))
"""Heights and widths of the noise that settings are compared on: smaller and larger than encoders take, both ways."""


def image_preprocessing(processor: Any, *, name: str) -> ImagePreprocessing:
    """The settings of an image processor.

    Args:
        processor: of transformers.
        name: of the encoder, for messages.

    Raises:
        CheckpointError: another kind of processor, or an unsupported setting.
    """
    kind = type(processor).__name__
    size, crop = (dict(getattr(processor, key, None) or {}) for key in ("size", "crop_size"))
    size = {key: int(value) for key, value in size.items() if value}
    square = {"height", "width"}
    known = set(size) in (square, {"shortest_edge"}) and not getattr(processor, "do_pad", None)
    cropped = bool(getattr(processor, "do_center_crop", None))
    # One output size, since graphs and batches have fixed heights and widths.
    fixed = cropped or (getattr(processor, "do_resize", None) and set(size) == square)
    if kind.removesuffix("Pil") not in PROCESSORS or not known or not fixed:
        raise CheckpointError(
            f"{name!r} prepares images by {kind} with size {size}, which cannot be written down as settings: supported "
            f"are {' and '.join(PROCESSORS)} with one fixed output size."
        )
    resize = size.get("shortest_edge") or (size["height"], size["width"])
    normalised = processor.do_normalize
    return ImagePreprocessing(
        resize=resize if processor.do_resize else None,
        resample=int(processor.resample),
        crop=(int(crop["height"]), int(crop["width"])) if cropped else None,
        scale=float(processor.rescale_factor) if processor.do_rescale else None,
        mean=tuple(map(float, processor.image_mean)) if normalised else None,
        deviation=tuple(map(float, processor.image_std)) if normalised else None,
    )


def exact_preprocessing(processor: Any) -> ImagePreprocessing | None:
    """The settings of an image processor, where they give what it gives to the last bit; else None.

    They do not for other kinds, and not for a processor that resizes by torchvision instead of Pillow.
    """
    from PIL import Image

    try:
        steps = image_preprocessing(processor, name="it")
    except CheckpointError:
        return None
    noise = np.random.default_rng(0)
    for size in _PROBE_SIZES:
        image = Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8))
        expected = np.asarray(processor(images=[image], return_tensors="np")["pixel_values"][0])
        found = steps(image)
        if found.shape != expected.shape or not np.array_equal(found, expected.astype(np.float32)):
            return None
    return steps
