"""From pixels to the file that a row keeps, or to why it has none.

What is no picture (NaN, black, one colour, unreadable) is a failed row with its reason. It never becomes a black
picture with a label.
"""

import io
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from judge.data.images import DEFAULT_LIMITS, open_image
from judge.data.perceptual_hash import perceptual_hash
from judge.errors import ImageError

from .rows import CorpusRow


def encode_picture(row: CorpusRow, pixels: NDArray[Any]) -> tuple[CorpusRow, bytes | None]:
    """A row with its perceptual hash and the PNG of its picture; or the failed row, and None.

    Equal pixels give equal bytes with the same Pillow.

    Args:
        row: whose picture it is.
        pixels: (H, W, 3) in [0, 1], or of bytes.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        return row.failed("pictures", "bad_shape", f"pixels of shape {pixels.shape}, not (H, W, 3)"), None
    if not np.isfinite(pixels).all():
        share = 1 - np.isfinite(pixels).mean()
        return row.failed("pictures", "not_finite", f"{share:.0%} of the pixels are NaN or infinite"), None
    if pixels.dtype != np.uint8:
        pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    if pixels.min() == pixels.max():
        status, level = (
            ("black", "black") if pixels.max() == 0 else ("one_colour", f"of the value {pixels.max()}")
        )
        return row.failed("pictures", status, f"all pixels are {level}"), None
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return finish_picture(row, buffer.getvalue())


def finish_picture(row: CorpusRow, encoded: bytes) -> tuple[CorpusRow, bytes | None]:
    """A row with the perceptual hash of an encoded picture, and its bytes; or the failed row, and None."""
    try:
        image = open_image(encoded, DEFAULT_LIMITS)
    except ImageError as error:
        return row.failed("pictures", error.status, error.reason), None
    return replace(row, phash=f"{perceptual_hash(image):016x}"), encoded
