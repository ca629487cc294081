"""Bytes or a path -> the RGB pixels that are judged, or an `ImageError` with the reason.

The judge must get the same picture as a person who views the file; every difference is a way to bypass the judge:

- **Hidden colours.** Transparent images are composed on white, as a web page shows them (`ImageLimits.background`).
  White writing on a transparent ground appears on a dark page only, so `judge.data.frames` opens such images on the
  opposite ground, too; `open_image` does not. Colours under full transparency are judged on neither: nobody sees them,
  but for those of BMP, whose viewers disagree on alpha; a transparent one is refused.
- **Later frames.** `open_image` refuses an animation (`animated`); `judge.data.frames` opens several of its frames.
  With `frames="first"` only the first frame is judged, and only that frame may then be shown. The additional images of
  a multi-picture JPEG (gain maps, previews of cameras) are ignored, because no viewer shows them.
- **Depth.** 16-bit grey is scaled to 8 bits; Pillow's own conversion saturates, which turns it white. Colour keys of
  PNG (tRNS) that Pillow compares at the wrong depth are rescaled, or refused where 8 bits cannot represent them.
- **Orientation.** The EXIF (or XMP) orientation is applied.
- **Missing parts.** A truncated file is an error; nothing is padded.
- **Colours.** Profiles (ICC, and the chunks of PNG) are applied: `judge.data.colours`.
- **Size.** Images above `MAX_JUDGED_PIXELS` are reduced to a half, a quarter ... of their size, each pixel the mean of
  those it replaces (JPEG: by its decoder). CLIP, SigLIP and LLaVA resize to 0.05 to 0.5 megapixels, so their input does
  not change (Qwen's towers, which take up to 12, get 1 to 4); and neither an image nor a batch can exhaust the memory.
"""

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, SupportsBytes

from PIL import Image, ImageFile

from judge.errors import ConfigError, ImageError, first_line

from .colours import conversion
from .modes import Ground, colour_mode, flatten

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""The decoders that untrusted bytes may reach; Pillow registers more than forty."""

MAX_JUDGED_PIXELS = 2048 * 2048
"""Width x height up to which an image is judged at its own size: 16 MB in memory."""
MAX_WEBP_PIXELS = 12_500_000
"""Largest width x height of a WebP: its decoder holds the canvas four times, and cannot decode at a smaller size."""
MAX_JPEG_SCANS = 100
"""Most scans of a progressive JPEG; cameras and browsers write about ten."""

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
    """Limits on images; checked from the header, before anything is decoded."""

    max_bytes: int = 32 * 2**20
    """Largest file, in bytes."""
    max_pixels: int = 24_000_000
    """Largest width x height; WebP may have half of it and animations a third, as their decoders hold several."""
    max_aspect: float = 50.0
    """Longest side over shortest. Models scale the short side up: 10 x 50,000 pixels become 500 million."""
    frames: Literal["single", "first"] = "single"
    """`single` refuses animations; `first` judges their first frame only."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Colour (RGB, 0-255) that transparent images are composed on; the opposite one is judged by `open_frames`."""

    def __post_init__(self) -> None:
        if self.frames not in ("single", "first"):
            raise ConfigError(f"ImageLimits.frames is {self.frames!r}; use 'single' or 'first'.")
        if min(self.max_bytes, self.max_pixels) < 1 or self.max_aspect < 1:
            raise ConfigError("ImageLimits: max_bytes, max_pixels and max_aspect must be at least 1.")

    @property
    def grounds(self) -> tuple[Ground, Ground]:
        """`background`, and the corner of the colour cube that is farthest from it."""
        red, green, blue = (0 if level > 127 else 255 for level in self.background)
        return self.background, (red, green, blue)


DEFAULT_LIMITS = ImageLimits()


def open_image(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode an image into what is judged: a new RGB image without metadata, upright and opaque.

    Args:
        source: a path, an encoded image, an object whose `bytes()` is one, or a PIL image. The format list
            and `max_bytes` do not apply to a PIL image, which is opened already; all other checks do.
        limits: sizes, and how animations and transparency are treated.

    Raises:
        ImageError: with one of these statuses:
            `missing`, `unreadable` (no permission, a folder, damaged data), `not_an_image`,
            `unsupported_format` (an image, but not JPEG, PNG, WEBP, GIF or BMP), `truncated`,
            `too_large` (bytes), `too_many_pixels`, `too_narrow` (shape), `animated`, `unknown_colours` (colours that
            viewers show in different ways, see `judge.data.colours`), `out_of_memory` (where the process is limited).
        ConfigError: Pillow is configured to pad truncated images, so damage would go unnoticed.
        TypeError: `source` is none of the above.
    """
    image = read_header(source, limits)
    if limits.frames == "single" and frame_count(image) > 1:
        raise ImageError("animated", "more than one frame, and only one would be judged")
    # The default image of an animated PNG is what old viewers show; the animation starts behind it.
    first = 1 if limits.frames == "first" and getattr(image, "default_image", False) else 0
    return decode_frame(image, first, limits, (limits.background,))[0]


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
    """SHA-256 (64 hexadecimal digits) of an RGB image's size and pixels; equal for equal pixels, in any file format."""
    # The size is hashed too: 2 x 8 and 4 x 4 pixels may have the same bytes.
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
        # Checked first: opening a pipe or a device could block for ever.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError("unreadable", kind)
        with open(path, "rb") as file:
            # One byte more than allowed is enough to know that the file is too large.
            return file.read(max_bytes + 1)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("missing", "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError("unreadable", first_line(error)) from error


def _identify(data: bytes, limits: ImageLimits) -> Image.Image:
    """Read format and size without decoding."""
    if not data:
        raise ImageError("not_an_image", "0 bytes")
    announced = format_of(data)
    _check_cost(data, announced, limits)
    try:
        # Pillow's bomb *warning* needs no filter here (filters are not safe across threads): `_check_shape`
        # refuses far smaller images before anything is decoded.
        image = Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_many_pixels(first_line(error), limits.max_pixels) from error
    except MemoryError as error:
        raise _decoding_error(error) from error
    except Exception as error:  # on malformed bytes, decoders raise errors of any class
        if announced in FORMATS:
            raise ImageError("unreadable", f"starts like {announced}, but its header is damaged") from error
        if announced:
            raise ImageError(
                "unsupported_format", f"{announced}; convert it to one of {', '.join(FORMATS)}"
            ) from error
        raise ImageError("not_an_image", f"the first bytes are {data[:8]!r}") from error
    _check_shape(image, limits)
    if image.format in ("JPEG", "MPO") and (factor := shrink_by(image)) > 1:
        # libjpeg decodes at an eighth, a quarter or half, in a fraction of the memory and the time.
        image.draft(None, (image.width // factor, image.height // factor))
    return image


def _check_cost(data: bytes, announced: str | None, limits: ImageLimits) -> None:
    """Refuse costly files that Pillow's own header check does not detect, or detects too late."""
    if announced == "WEBP":
        width, height = _canvas(data)
        # From the raw header, as Pillow allocates the canvas when it opens the file.
        most = min(MAX_WEBP_PIXELS, limits.max_pixels)
        if width * height > most:  # opening it makes the canvas
            raise too_many_pixels(f"{width} x {height}", most)
    if announced == "JPEG" and data.count(b"\xff\xda") > MAX_JPEG_SCANS:  # each may pass over all pixels
        raise ImageError("unsupported_format", f"a JPEG of more than {MAX_JPEG_SCANS} scans")


def _canvas(data: bytes) -> tuple[int, int]:
    """Width and height in the header of a WebP (RFC 9649, sections 2.5 to 2.7)."""
    # After `RIFF`, a length, `WEBP`, and the first chunk's name and length.
    kind, head = data[12:16], data[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        # Lossless: 14 bits of width - 1, then 14 bits of height - 1, after a signature byte.
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    # Lossy: 14 bits each, behind a frame tag and a start code; the upper two bits are a scaling hint.
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF


def _check_shape(image: Image.Image, limits: ImageLimits) -> None:
    width, height = size = image.size
    if min(size) < 1:
        raise ImageError("unreadable", f"{width} x {height} pixels")
    # The decoder of an animation holds several canvases.
    most = limits.max_pixels // 3 if frame_count(image) > 1 else limits.max_pixels
    if width * height > most:
        raise too_many_pixels(f"{width} x {height}", most)
    if max(size) > limits.max_aspect * min(size):
        raise ImageError(
            "too_narrow", f"{width} x {height} pixels; at most {limits.max_aspect:g} times as long as wide"
        )


def read_header(source: ImageSource, limits: ImageLimits) -> Image.Image:
    """Header read and size checked, nothing decoded."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on: cut images would be padded with grey and judged. "
            "Set it to False."
        )
    image = source if isinstance(source, Image.Image) else _identify(read_bytes(source, limits), limits)
    _check_shape(image, limits)
    return image


def frame_count(image: Image.Image) -> int:
    """Number of frames that viewers show; 1 for a multi-picture JPEG, of which they show the main image only."""
    if image.format == "MPO":
        return 1
    try:
        return int(getattr(image, "n_frames", 1)) if getattr(image, "is_animated", False) else 1
    except Exception as error:  # a damaged second frame
        raise _decoding_error(error) from error


def decode_frame(
    image: Image.Image, frame: int, limits: ImageLimits, grounds: Sequence[Ground]
) -> list[Image.Image]:
    """Decode a frame into what is judged: RGB, upright, opaque, at most `MAX_JUDGED_PIXELS`.

    Returns:
        An image for each ground, or one where nothing is visibly transparent, as `judge.data.modes.flatten`.
    """
    try:
        if getattr(image, "is_animated", False) and image.format != "MPO":
            image.seek(frame)
        _check_shape(image, limits)  # a GIF frame may be larger than its header says
        depth = _rawmode(image)
        # Before decoding: Pillow would also read colour chunks that follow the pixels, which viewers ignore.
        deep = image.mode.startswith("I;16") or "16" in depth
        convert = conversion(image, colour_mode(image.mode, depth), deep=deep)
        image.load()
        _check_shape(image, limits)
        _check_alpha(image)
        views = flatten(image, depth, grounds, convert, shrink_by(image))
    except ImageError:
        raise
    except Exception as error:  # on malformed bytes, decoders raise errors of any class
        raise _decoding_error(error) from error
    orientation = _orientation(image)
    return [_upright(view, orientation) for view in views]


def _check_alpha(image: Image.Image) -> None:
    """Refuse a transparent BMP: one viewer composes it, the next ignores its alpha, a third does so if it is all 0."""
    if (
        image.format == "BMP"
        and image.mode == "RGBA"
        and image.getchannel("A").histogram()[255] < image.width * image.height
    ):
        raise ImageError("unknown_colours", "a BMP with transparency, which viewers show in different ways")


def shrink_by(image: Image.Image) -> int:
    """The smallest power of two that reduces an image to `MAX_JUDGED_PIXELS`."""
    factor = 1
    # Rounded up, as `reduce` makes a last, narrower column of what is left.
    while -(-image.width // factor) * -(-image.height // factor) > MAX_JUDGED_PIXELS:
        factor *= 2
    return factor


def _rawmode(image: Image.Image) -> str:
    """How the file stores its pixels, such as `L;4` or `RGB;16B`; empty once they have been decoded."""
    # Pillow keeps the decoder's arguments in `tile` until the pixels are loaded; the first one is the raw mode.
    tiles = getattr(image, "tile", None) or [None]
    arguments = getattr(tiles[0], "args", None)
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments or "")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata is ignored, as viewers do
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Apply an EXIF orientation, and remove the metadata so that it is not applied twice."""
    method = _TRANSPOSE.get(orientation)
    result = image if method is None else image.transpose(method)
    # `info` may still hold the EXIF, a transparent colour and a profile, all of them applied by now.
    result.info = {}
    return result


def _decoding_error(error: Exception) -> ImageError:
    reason = first_line(error)
    # -9 of Pillow's decoders
    if isinstance(error, MemoryError) or "out of memory" in reason.lower():
        return ImageError("out_of_memory", "decoding takes more memory than there is")
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return ImageError("too_many_pixels", reason)
    if isinstance(error, EOFError) or "truncated" in reason.lower():
        return ImageError("truncated", reason)
    return ImageError("unreadable", reason)


def too_many_pixels(found: str, most: int) -> ImageError:
    """The error for an image with more than `most` pixels."""
    return ImageError("too_many_pixels", f"{found}; at most {most:,} pixels are decoded")
