"""Bytes or a path -> the RGB pixels that are judged, or an `ImageError` that says why not.

What a person sees and what the judge sees must be one picture; every difference is a way around the judge:

- **Hidden colours.** Transparent images are composed on white, as a page shows them. Colours that lie under
  full transparency are not judged, for nobody sees them on that ground. Who shows images on another ground
  sets `ImageLimits.background`: white writing on nothing appears on a dark page only.
- **Later frames.** `open_image` refuses an animation (`animated`); `open_frames` opens the frames that differ most.
  With `frames="first"` only the first frame is judged; whoever asks for that must show only that frame. The extra
  pictures of a multi-picture JPEG (gain maps, previews of cameras) are ignored, because no viewer shows them.
- **Depth.** 16-bit grey is scaled to 8 bits; Pillow's own conversion saturates, which turns it white. Colour
  keys of PNG (tRNS) that Pillow compares at the wrong depth are rescaled, or refused if 8 bits cannot tell.
- **Orientation.** The EXIF (or XMP) orientation is applied.
- **Missing parts.** A cut file is an error; nothing is padded.

Colour profiles are not applied: the stored numbers are read as sRGB.
"""

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsBytes

from PIL import Image, ImageFile

from .errors import ConfigError, ImageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""The decoders that strangers' bytes may reach; Pillow registers more than forty."""

ANIMATION_PIXELS = 1_000_000_000
"""Width x height x frames up to which an animation is looked through: about ten seconds of decoding."""

ImageSource = str | Path | bytes | SupportsBytes | Image.Image

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"8BPS", "PSD"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"qoif", "QOI"),
    (b"<svg", "SVG"),
)
_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageLimits:
    """What may be opened at all; checked from the header, before anything is decoded."""

    max_bytes: int = 32 * 2**20
    """Largest file, in bytes."""
    max_pixels: int = 50_000_000
    """Largest width x height. Pillow's own limits (179 million, an error) hold as well."""
    max_aspect: float = 50.0
    """Longest side over shortest. Models scale the short side up: 10 x 50,000 pixels become 500 million."""
    frames: Literal["single", "first"] = "single"
    """`single` refuses animations; `first` judges their first frame only."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Colour (RGB, 0-255) that transparent images are composed on."""

    def __post_init__(self) -> None:
        if self.frames not in ("single", "first"):
            raise ConfigError(f"ImageLimits.frames is {self.frames!r}; use 'single' or 'first'.")
        if min(self.max_bytes, self.max_pixels) < 1 or self.max_aspect < 1:
            raise ConfigError("ImageLimits: max_bytes, max_pixels and max_aspect must be at least 1.")


DEFAULT_LIMITS = ImageLimits()


def open_image(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """The pixels that are judged: a new image of mode RGB without metadata, upright and opaque.

    Args:
        source: a path, an encoded image, an object whose `bytes()` is one, or a PIL image. The format list
            and `max_bytes` do not apply to a PIL image, which somebody has opened already; all else does.
        limits: what is too large, and how animations and transparency are treated.

    Raises:
        ImageError: with one of these statuses:
            `missing`, `unreadable` (no permission, a folder, damaged data), `not_an_image`,
            `unsupported_format` (an image, but not JPEG, PNG, WEBP, GIF or BMP), `truncated`,
            `too_large` (bytes), `too_many_pixels`, `too_narrow` (shape), `animated`.
        ConfigError: Pillow was told to pad truncated images, so damage could not be seen.
        TypeError: `source` is none of the above.
    """
    image = _begin(source, limits)
    if limits.frames == "single" and _frame_count(image) > 1:
        raise ImageError("animated", "more than one frame, and only one would be judged")
    # The default image of an animated PNG is what old viewers show; the animation starts behind it.
    first = 1 if limits.frames == "first" and getattr(image, "default_image", False) else 0
    return _picture(image, first, limits)


class Frames(NamedTuple):
    """Some frames of an animation, or the one picture of any other image."""

    images: list[Image.Image]
    """What `open_image` gives, in the order of the file."""
    numbers: list[int]
    """Which frames they are, from 0."""
    total: int
    """Frames in the file; the hidden default image of an animated PNG is one of them."""


def open_frames(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS, *, at_most: int = 8) -> Frames:
    """Open an image and, if it is animated, the frames that differ most from each other.

    Every frame is looked at in small: the first is taken, then each time the one that is least like those taken,
    until `at_most` are there or the others are copies. Frames at even steps would let a single one pass between them.

    Args:
        source: as for `open_image`.
        limits: as for `open_image`; `frames` does not matter. Each frame must keep to them.
        at_most: how many frames to take, from 1.

    Raises:
        ImageError: as `open_image`, but never `animated`; `too_many_pixels` also if all frames together hold more
            than `ANIMATION_PIXELS`. One damaged frame refuses the file.
        ConfigError: `at_most` below 1.
    """
    if at_most < 1:
        raise ConfigError(f"open_frames: at_most is {at_most}; take at least 1 frame.")
    image = _begin(source, limits)
    total = _frame_count(image)
    if total == 1:
        return Frames([_picture(image, 0, limits)], [0], 1)
    if total * image.width * image.height > ANIMATION_PIXELS:
        raise _too_many_pixels(f"{total} frames of {image.width} x {image.height}", ANIMATION_PIXELS)
    numbers = _unlike([_glimpse(image, number, limits) for number in range(total)], at_most)
    return Frames([_picture(image, number, limits) for number in numbers], numbers, total)


def read_bytes(source: str | Path | bytes | SupportsBytes, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The encoded image behind a path or a lazy source, read at most up to `limits.max_bytes`.

    Raises:
        ImageError: `missing`, `unreadable` or `too_large`.
    """
    if isinstance(source, (str, Path)):
        data = _read_file(source, limits.max_bytes)
    elif isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "__bytes__"):
        data = bytes(source)
    else:
        raise TypeError(f"An image is a path, bytes or a PIL image, not {type(source).__name__}.")
    if len(data) > limits.max_bytes:
        raise ImageError("too_large", f"more than {limits.max_bytes:,} bytes")
    return data


def pixels_hash(image: Image.Image) -> str:
    """SHA-256 (hexadecimal) of an RGB image's size and pixels: equal for equal pictures, in any file."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def format_of(head: bytes) -> str | None:
    """The image format that a file's first 16 bytes (or more) announce, ours or not; None for no image."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"):
        return "HEIF or AVIF"
    return None


def _read_file(path: str | Path, max_bytes: int) -> bytes:
    try:
        # Asked first: opening a pipe or a device could block for ever.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError("unreadable", kind)
        with open(path, "rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise ImageError("missing", "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError("unreadable", _first_line(error)) from error


def _identify(data: bytes, limits: ImageLimits) -> Image.Image:
    """Open without decoding: which format, which size."""
    if not data:
        raise ImageError("not_an_image", "0 bytes")
    announced = format_of(data)
    try:
        # Pillow's bomb *warning* needs no filter here (filters are not safe across threads): `_check_shape`
        # refuses far smaller images before anything is decoded.
        return Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(_first_line(error), limits.max_pixels) from error
    except Exception as error:  # decoders of strangers' bytes raise whatever they like
        if announced in FORMATS:
            raise ImageError("unreadable", f"starts like {announced}, but its header is damaged") from error
        if announced:
            raise ImageError(
                "unsupported_format", f"{announced}; convert it to one of {', '.join(FORMATS)}"
            ) from error
        raise ImageError("not_an_image", f"the first bytes are {data[:8]!r}") from error


def _check_shape(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if min(size) < 1:
        raise ImageError("unreadable", f"{width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise _too_many_pixels(f"{width} x {height}", limits.max_pixels)
    if max(size) > limits.max_aspect * min(size):
        raise ImageError(
            "too_narrow", f"{width} x {height} pixels; at most {limits.max_aspect:g} times as long as wide"
        )


def _begin(source: ImageSource, limits: ImageLimits) -> Image.Image:
    """Header read and size checked, nothing decoded."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on: cut images would be padded with grey and judged. "
            "Set it to False."
        )
    image = source if isinstance(source, Image.Image) else _identify(read_bytes(source, limits), limits)
    _check_shape(image.size, limits)
    return image


def _frame_count(image: Image.Image) -> int:
    """How many frames there are to see; those beside the main picture of a multi-picture JPEG are not."""
    if image.format == "MPO":
        return 1
    try:
        return int(getattr(image, "n_frames", 1)) if getattr(image, "is_animated", False) else 1
    except Exception as error:  # a damaged second frame
        raise _decoding_error(error) from error


def _load(image: Image.Image, frame: int, limits: ImageLimits) -> str:
    """Decode a frame; gives how the file stores its pixels (`_rawmode`), which nobody can tell afterwards."""
    depth = _rawmode(image)
    try:
        if getattr(image, "is_animated", False) and image.format != "MPO":
            image.seek(frame)
        _check_shape(image.size, limits)  # a GIF frame may be larger than its header says
        image.load()
    except ImageError:
        raise
    except Exception as error:  # decoders of strangers' bytes raise whatever they like
        raise _decoding_error(error) from error
    _check_shape(image.size, limits)
    return depth


def _picture(image: Image.Image, frame: int, limits: ImageLimits) -> Image.Image:
    """A frame as it is judged."""
    depth = _load(image, frame, limits)
    return _upright(_opaque(image, depth, limits.background), _orientation(image))


def _glimpse(image: Image.Image, frame: int, limits: ImageLimits) -> "NDArray[np.int16]":
    """(16, 16, 4) colours and alpha of a frame, to compare it with others."""
    import numpy as np

    _load(image, frame, limits)
    return np.asarray(image.convert("RGBA").resize((16, 16), Image.Resampling.BOX), dtype=np.int16)


def _unlike(glimpses: "Sequence[NDArray[np.int16]]", at_most: int) -> list[int]:
    """Numbers, in order, of at most so many frames of which none is like another; the first is one of them."""
    import numpy as np

    every = np.stack(glimpses)
    taken, distance = [0], np.full(len(every), np.iinfo(np.int64).max)
    while len(taken) < at_most:
        new = np.abs(every - every[taken[-1]]).sum(axis=(1, 2, 3), dtype=np.int64)
        distance = np.minimum(distance, new)
        if not distance.any():
            break
        taken.append(int(distance.argmax()))
    return sorted(taken)


def _rawmode(image: Image.Image) -> str:
    """How the file stores its pixels, such as `L;4` or `RGB;16B`; empty once they have been decoded."""
    tiles = getattr(image, "tile", None) or [None]
    arguments = getattr(tiles[0], "args", None)
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments or "")


def _opaque(image: Image.Image, depth: str, background: tuple[int, int, int]) -> Image.Image:
    """A decoded image of any mode -> RGB, composed on `background`."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        grey, alpha = _sixteen_bit_grey(image, key)
        return _compose(grey.convert("RGB"), alpha, background)
    if image.mode in ("I", "F"):
        return _wide_grey(image).convert("RGB")
    if key is not None and depth == "RGB;16B":
        raise ImageError(
            "unsupported_format", "16-bit colour with a transparent colour, which 8 bits cannot tell apart"
        )
    try:
        if key is not None and depth in ("L;2", "L;4"):
            # Pillow spreads the greys over 0-255 but leaves the key as it was stored.
            image = image.copy()
            image.info["transparency"] = key * (85 if depth == "L;2" else 17)
        if key is None and not image.has_transparency_data:
            return image.convert("RGB")
        # Pillow has no direct way from La to RGBA.
        colours = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    except Exception as error:  # a transparency entry that does not fit its mode, or an exotic mode
        raise ImageError("unreadable", f"mode {image.mode}: {_first_line(error)}") from error
    return _compose(colours.convert("RGB"), colours.getchannel("A"), background)


def _compose(
    colours: Image.Image, alpha: Image.Image | None, background: tuple[int, int, int]
) -> Image.Image:
    if alpha is None:
        return colours
    ground = Image.new("RGB", colours.size, background)
    ground.paste(colours, mask=alpha)
    return ground


def _sixteen_bit_grey(image: Image.Image, key: Any) -> tuple[Image.Image, Image.Image | None]:
    """Mode I;16 -> 8-bit grey, and the alpha channel that a colour key stands for."""
    import numpy as np

    values = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if not isinstance(key, int):
        return grey, None
    return grey, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))


def _wide_grey(image: Image.Image) -> Image.Image:
    """Modes I (32-bit integers) and F (floats), which only a program hands over, never one of our formats.

    Floats up to 1 are taken for 0-1, integers above 255 for 16 bits; all else for 0-255, Pillow's own habit.
    """
    import numpy as np

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        raise ImageError("unsupported_format", f"mode {image.mode} with values outside every known range")
    if image.mode == "F" and values.max() > 255:
        raise ImageError("unsupported_format", "floats above 255; scale them to 0-1")
    scale = 255.0 if image.mode == "F" and values.max() <= 1 else 1 / 257 if values.max() > 255 else 1.0
    return Image.fromarray(np.rint(values * scale).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata is ignored, as viewers do
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Apply an EXIF orientation, and drop the metadata so that nobody applies it again."""
    method = _TRANSPOSE.get(orientation)
    result = image if method is None else image.transpose(method)
    result.info = {}
    return result


def _decoding_error(error: Exception) -> ImageError:
    reason = _first_line(error)
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return ImageError("too_many_pixels", reason)
    if isinstance(error, EOFError) or "truncated" in reason.lower():
        return ImageError("truncated", reason)
    return ImageError("unreadable", reason)


def _too_many_pixels(found: str, most: int) -> ImageError:
    return ImageError("too_many_pixels", f"{found}; at most {most:,} pixels are decoded")


def _first_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())[:200] or type(error).__name__
