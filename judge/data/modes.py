"""Decoded pixels of any mode -> RGB: colours converted, transparency composed, large images reduced, in strips.

What a transparent image shows depends on the ground behind it: colour * alpha + ground * (1 - alpha). The contrast of
two pixels is linear in the ground, so each channel has its largest contrast on one of two grounds, 0 and 255. Judged on
both, nothing can be seen on a third ground that was faint on each of these.

Strips keep the memory at one decoded image: every step below would otherwise hold another copy.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from judge.errors import ImageError, first_line

if TYPE_CHECKING:
    from .colours import Convert

VISIBLE = 8
"""Levels of 0-255 by which two grounds have to differ in one pixel to be two pictures; fainter ones look alike."""
Ground = tuple[int, int, int]
"""A colour (RGB, 0-255) behind transparent parts."""
STRIP = 256
"""Rows that are processed at a time; a multiple of every factor."""


def colour_mode(mode: str, depth: str = "") -> str:
    """The mode in which `flatten` converts colours: L, RGB or CMYK."""
    if mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;16") or depth.startswith("LA"):
        return "L"
    return "CMYK" if mode == "CMYK" else "RGB"


def flatten(
    image: Image.Image, depth: str, grounds: Sequence[Ground], convert: "Convert | None", factor: int
) -> list[Image.Image]:
    """A decoded image of any mode -> RGB, composed on each ground and shrunk by `factor`, a power of two.

    Args:
        image: decoded; its `info` may hold a transparent colour.
        depth: how the file stores its pixels, such as `L;4` or `RGB;16B`; empty if unknown.
        grounds: colours that transparent parts are composed on, at least one.
        convert: from the stored numbers to sRGB, or None.
        factor: means of `factor` x `factor` pixels, 1 to keep all; the last row or column may be of fewer.

    Returns:
        An image for each ground; for the first one alone where nothing is visibly transparent (`VISIBLE`).

    Raises:
        ImageError: `unreadable`, `unsupported_format`.
    """
    if image.mode in ("I", "F"):
        image = _wide_grey(image)
    if factor == 1:
        views, transparent = _flat(image, depth, grounds, convert)
        return views if transparent else views[:1]
    width, height = image.size
    # Rounded up: a last, incomplete block of pixels becomes a pixel of its own.
    size = -(-width // factor), -(-height // factor)
    found: list[Image.Image] = []
    visible = False
    for top in range(0, height, STRIP):
        strip = image.crop((0, top, width, min(top + STRIP, height)))
        views, transparent = _flat(strip, depth, grounds, convert)
        found = found or [Image.new("RGB", size) for _ in views]
        visible |= transparent
        for whole, view in zip(found, views, strict=True):
            whole.paste(view.reduce(factor), (0, top // factor))
    return found if visible else found[:1]


def _flat(
    image: Image.Image, depth: str, grounds: Sequence[Ground], convert: "Convert | None"
) -> tuple[list[Image.Image], bool]:
    """The image on each ground, the first alone if it has no alpha; and whether it is visibly transparent."""
    try:
        colours, alpha = _colours_and_alpha(image, depth)
        colours = colours.convert("RGB") if convert is None else convert(colours)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # a transparency entry that does not fit its mode, or an exotic mode
        raise ImageError("unreadable", f"mode {image.mode}: {first_line(error)}") from error
    if alpha is None:
        return [colours], False
    views = []
    for colour in grounds:
        # `paste` with a mask blends by alpha; full transparency leaves the ground alone.
        ground = Image.new("RGB", colours.size, colour)
        ground.paste(colours, mask=alpha)
        views.append(ground)
    return views, any(alpha.histogram()[: 256 - VISIBLE])


def _colours_and_alpha(image: Image.Image, depth: str) -> tuple[Image.Image, Image.Image | None]:
    """Colours in `colour_mode`, and alpha (L) where anything is transparent."""
    key = image.info.get("transparency")
    target = colour_mode(image.mode, depth)
    if image.mode.startswith("I;16"):
        return _sixteen_bit_grey(image, key)
    if key is not None and depth == "RGB;16B":
        raise ImageError(
            "unsupported_format", "16-bit colour with a transparent colour, which 8 bits cannot tell apart"
        )
    if key is not None and depth in ("L;2", "L;4"):
        # Pillow scales the greys to 0-255 but leaves the key as it was stored.
        image = image.copy()
        image.info["transparency"] = key * (85 if depth == "L;2" else 17)
    if key is None and not image.has_transparency_data:
        return image.convert(target), None
    # Pillow has no direct way from La to RGBA.
    colours = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return colours.convert("RGB").convert(target), colours.getchannel("A")


def _sixteen_bit_grey(image: Image.Image, key: Any) -> tuple[Image.Image, Image.Image | None]:
    """Mode I;16 -> 8-bit grey, and the alpha channel that a colour key stands for."""
    import numpy as np

    values = np.asarray(image).astype(np.uint32)
    # 65535 / 255 = 257; 128 rounds to the nearest level.
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if not isinstance(key, int):
        return grey, None
    return grey, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))


def _wide_grey(image: Image.Image) -> Image.Image:
    """Modes I (32-bit integers) and F (floats), which come from programs only, never from one of our formats.

    Floats up to 1 are read as 0-1, integers above 255 as 16 bits; all others as 0-255, Pillow's convention.
    """
    import numpy as np

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        raise ImageError("unsupported_format", f"mode {image.mode} with values outside every known range")
    if image.mode == "F" and values.max() > 255:
        raise ImageError("unsupported_format", "floats above 255; scale them to 0-1")
    scale = 255.0 if image.mode == "F" and values.max() <= 1 else 1 / 257 if values.max() > 255 else 1.0
    return Image.fromarray(np.rint(values * scale).astype(np.uint8))
