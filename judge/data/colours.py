"""The colour profile of a file -> sRGB, so that the judge gets the colours that a viewer shows.

A profile decides what stored numbers look like: under a gamma of 24 a clear picture is stored as an almost white
rectangle. So colours are converted with littleCMS (Pillow's `ImageCms`), in the order of the PNG specification, third
edition, section 4.3: `cICP`, `iCCP`, `sRGB`, then `gAMA` and `cHRM`.

Where viewers would show different pictures, none of them is the right one to judge, and the image is refused
(`unknown_colours`):

- a profile that littleCMS cannot read: another viewer may apply what we would ignore;
- one whose perceptual and colorimetric tables, or whose tables and matrix, disagree by more than `MAX_DISAGREEMENT`;
- one for another colour space than the picture's (a grey picture with an RGB profile), unless it changes nothing;
- colour chunks that are repeated or stand behind the palette; a JPEG's profile behind its frame header;
- PQ and HLG, which every screen maps in its own way;
- 16-bit files under a curve so steep that 8 bits, which is all Pillow keeps, would hide what it shows.

Once Pillow has decoded a PNG, `cICP` and the order of its chunks are lost, and cannot be applied to such a PIL image.
Give the path or the bytes of untrusted files.

The intent is perceptual, as in browsers, with black point compensation, which littleCMS has there for sRGB anyway.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import IO, TYPE_CHECKING

from PIL import Image, ImageCms

from judge.errors import ImageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Convert = Callable[[Image.Image], Image.Image]
"""An image of mode L, RGB or CMYK -> RGB in sRGB."""

MAX_PROFILE_BYTES = 4 * 2**20
"""Bytes; profiles of printing presses have up to 3 MB."""
MAX_UNCHANGED = 2
"""Levels of 0-255 up to which a profile changes nothing: sRGB's own, in its many versions."""
MAX_DISAGREEMENT = 48
"""Levels up to which two ways to apply one profile may differ; real ones differ by their intents."""
MAX_STEP = 16
"""Levels between neighbouring greys, above which 8 of 16 bits are not enough; linear light has 13."""
_COLOUR_CHUNKS = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")
_SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))

_D65 = (0.3127, 0.3290)
_REC709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_PRIMARIES = {  # ITU-T H.273, table 2; 2 stands for "unspecified"
    1: _REC709,
    2: _REC709,
    5: ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060)),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_REC709_CURVE = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_CURVES: dict[int, tuple[float, ...]] = {  # table 3: gamma alone, or gamma, a, b, c, d of (ax + b)^gamma
    **dict.fromkeys((1, 6, 14, 15), _REC709_CURVE),
    **dict.fromkeys((2, 13), _SRGB_CURVE),
    4: (2.2,),
    5: (2.8,),
    8: (1.0,),
}


def conversion(image: Image.Image, mode: str, *, deep: bool) -> Convert | None:
    """The conversion from the stored numbers to sRGB; None where they are sRGB. Must be called before decoding.

    Args:
        image: an image that Pillow has opened, or one made by a program (then only its `info` is used).
        mode: L, RGB or CMYK, the mode in which the colours will be converted.
        deep: whether the file has 16 bits.

    Raises:
        ImageError: `unknown_colours`.
    """
    chunks = _png_chunks(image)
    if b"cICP" in chunks:
        profile = _profile_of_code_points(chunks[b"cICP"])
    elif getattr(
        image, "icclist", None
    ):  # behind the frame header, where Pillow ignores it and browsers apply it
        raise _refused("a colour profile behind the frame header")
    elif "icc_profile" in image.info:
        profile = image.info["icc_profile"]
        if not isinstance(profile, bytes):
            raise _refused("the colour profile is damaged")
        if len(profile) > MAX_PROFILE_BYTES:
            raise _refused(f"a profile of {len(profile):,} bytes; at most {MAX_PROFILE_BYTES:,} are read")
        if profile:
            return _checked(_convert_embedded(profile, mode), deep)
    else:
        profile = _profile_of_gamma(image)
    return _checked(_convert_own(profile, mode), deep) if profile else None


def _checked(found: tuple[Convert | None, int], deep: bool) -> Convert | None:
    convert, steepest = found
    if deep and steepest > MAX_STEP:
        raise _refused("16-bit colours under a curve that is too steep for 8 bits")
    return convert


def _png_chunks(image: Image.Image) -> dict[bytes, bytes]:
    """The colour chunks of a PNG that is still open; of several, Pillow would take the last and viewers the first."""
    file: IO[bytes] | None = getattr(image, "fp", None)
    if image.format != "PNG" or file is None:
        return {}
    found: dict[bytes, bytes] = {}
    place = file.tell()
    try:
        # After the signature: length, name, data and checksum of each chunk.
        file.seek(8)
        palette = False
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            # Colour chunks behind the pixels are ignored by viewers.
            if name in (b"IDAT", b"IEND"):
                break
            if name not in _COLOUR_CHUNKS:
                palette |= name == b"PLTE"
                file.seek(length + 4, 1)
            elif name in found or palette:
                where = "behind the palette" if palette else "twice"
                raise _refused(f"the PNG chunk {name.decode()} comes {where}")
            else:
                found[name] = file.read(length)
                file.seek(4, 1)
    finally:
        file.seek(place)
    return found


def _check_bitmap(image: Image.Image) -> None:
    """Refuse a BMP of version 4 or 5 with colours of its own, which some viewers apply."""
    file: IO[bytes] | None = getattr(image, "fp", None)
    if file is None:
        return
    place = file.tell()
    file.seek(0)
    head = file.read(122)
    file.seek(place)
    # Versions 4 and 5 have headers of 108 and 124 bytes; shorter ones have no colours of their own.
    if len(head) < 122 or struct.unpack_from("<I", head, 14)[0] < 108:
        return
    # The colour space is stored as a little-endian number, so its four letters are reversed.
    space = head[70:74][::-1]
    if space not in (b"sRGB", b"Win ") and (space != bytes(4) or any(head[74:122])):
        raise _refused("a BMP with colours of its own, which some viewers apply")


def _profile_of_code_points(data: bytes) -> bytes | None:
    """`cICP`: primaries, transfer curve, matrix and range as numbers of ITU-T H.273."""
    if len(data) != 4:
        raise _refused("the PNG chunk cICP is damaged")
    primaries, curve, matrix, full = data
    if primaries not in _PRIMARIES or curve not in _CURVES or matrix != 0 or full != 1:
        raise _refused(
            f"cICP {primaries}/{curve}/{matrix}/{full}, such as HDR, looks different on every screen"
        )
    if _PRIMARIES[primaries] == _REC709 and _CURVES[curve] == _SRGB_CURVE:
        return None
    return _matrix_profile(_PRIMARIES[primaries], _D65, _CURVES[curve])


def _profile_of_gamma(image: Image.Image) -> bytes | None:
    """`gAMA` (a sample is light to the power of it) and `cHRM` (x and y of white, red, green and blue)."""
    if image.format == "BMP":
        _check_bitmap(image)
    gamma, points = image.info.get("gamma"), image.info.get("chromaticity")
    # An sRGB chunk overrides gAMA and cHRM.
    if "srgb" in image.info:
        return None
    curve: tuple[float, ...] = _SRGB_CURVE
    if gamma is not None:
        if not isinstance(gamma, int | float) or not 0.01 <= gamma <= 100:
            raise _refused(f"a gamma of {gamma!r}")
        # Within five percent of 1 / 2.2 libpng changes nothing either, and sRGB is meant.
        if abs(gamma * 2.2 - 1) >= 0.05:
            curve = (1 / gamma,)
    white, primaries = _D65, _REC709
    if points is not None:
        try:
            pairs = [(float(points[i]), float(points[i + 1])) for i in range(0, 8, 2)]
        except (TypeError, ValueError, IndexError):
            raise _refused("the PNG chunk cHRM is damaged") from None
        standard = (_D65, *_REC709)
        apart = [
            abs(a - b)
            for pair, own in zip(pairs, standard, strict=True)
            for a, b in zip(pair, own, strict=True)
        ]
        if max(apart) >= 0.005:
            white, primaries = pairs[0], (pairs[1], pairs[2], pairs[3])
    if curve == _SRGB_CURVE and primaries == _REC709:
        return None
    return _matrix_profile(primaries, white, curve)


def _matrix_profile(
    primaries: tuple[tuple[float, float], ...], white: tuple[float, float], curve: tuple[float, ...]
) -> bytes:
    """An ICC profile (ICC.1:2004-10, version 4.2) of three primaries and one curve; white is adapted by Bradford."""
    import numpy as np

    def light(point: tuple[float, float]) -> "NDArray[np.float64]":
        if point[1] <= 0:
            raise ValueError
        return np.array([point[0], point[1], 1 - point[0] - point[1]]) / point[1]

    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    try:
        # Scale the primaries so that equal parts of all three make the white point (3 x 3, XYZ by RGB).
        columns = np.stack([light(point) for point in primaries], axis=1)
        columns = columns * np.linalg.solve(columns, light(white))
        # Von Kries adaptation in Bradford's cone space, from the file's white to D50, which ICC profiles use.
        adapt = np.linalg.solve(bradford, np.diag(bradford @ d50 / (bradford @ light(white))) @ bradford)
        numbers = (adapt @ columns).T
        if not np.isfinite(numbers).all() or np.abs(numbers).max() > 100:
            raise ValueError
    except (ValueError, np.linalg.LinAlgError):
        raise _refused("colours whose primaries make no colour space") from None
    tags = {
        name: b"XYZ \0\0\0\0" + _fixed(*row)
        for name, row in zip((b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt"), [*numbers, d50], strict=True)
    }
    # Function type 0 is gamma alone, type 3 the five parameters of sRGB's curve (`parametricCurveType`).
    shape = b"para\0\0\0\0" + struct.pack(">HH", 0 if len(curve) == 1 else 3, 0) + _fixed(*curve)
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), shape)
    # Header (128 bytes), number of tags, table of tags, and their data one after the other.
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"", 0x04200000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + _fixed(*d50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


@lru_cache(maxsize=16)
def _convert_own(profile: bytes, mode: str) -> tuple[Convert | None, int]:
    """As `_convert_embedded`, for a profile of `_matrix_profile`, which applies to colours and to greys."""
    if mode == "CMYK":
        raise _refused("a gamma on a picture in CMYK")
    transform = _transform(profile, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
    if transform is None:
        raise _refused("colours whose primaries make no colour space")
    sample = _apply_to_sample(transform)  # (256 + N, 3)
    if _changes_nothing("RGB", sample):
        return None, 1
    return lambda image: transform.apply(image.convert("RGB")), _largest_step(sample)


@lru_cache(maxsize=16)
def _convert_embedded(profile: bytes, mode: str) -> tuple[Convert | None, int]:
    """The conversion by an ICC profile, None if it changes nothing; and the largest step between greys."""
    space = _space(profile)
    own = next(name for name, kind in _SPACES.items() if kind == space)
    perceptual, colorimetric = ImageCms.Intent.PERCEPTUAL, ImageCms.Intent.RELATIVE_COLORIMETRIC
    if "CMYK" in (own, mode) and own != mode:
        raise _refused(f"a colour profile for {space.strip()} on a picture in {mode}")
    # As browsers apply it; below, the other ways in which viewers apply the same profile.
    judged = _transform(profile, own, perceptual)
    if judged is None:
        raise _refused("the colour profile is damaged")
    sample = _apply_to_sample(judged)
    # Viewers that do not support tables use matrix and curves, where a profile has both.
    for bytes_, intent in ((profile, colorimetric), (_without_tables(profile), perceptual)):
        other = _transform(bytes_, own, intent)
        if other is not None and _difference(sample, _apply_to_sample(other)) > MAX_DISAGREEMENT:
            raise _refused("a colour profile that viewers apply in different ways")
    nothing = _changes_nothing(own, sample)
    if own != mode and not nothing:
        raise _refused(f"a colour profile for {space.strip()} on a picture in {mode}")
    return None if nothing else judged.apply, _largest_step(sample)


def _without_tables(profile: bytes) -> bytes:
    """The profile with its look-up tables renamed, so that littleCMS uses matrix and curves."""
    data = bytearray(profile)
    for entry in range(132, min(132 + 12 * int.from_bytes(data[128:132], "big"), len(data) - 11), 12):
        if data[entry : entry + 3] in (bytearray(b"A2B"), bytearray(b"D2B")):
            data[entry : entry + 3] = b"no2"
    return bytes(data)


def _space(profile: bytes) -> str:
    """GRAY, `RGB ` or CMYK."""
    if len(profile) < 132 or profile[36:40] != b"acsp":
        raise _refused("the colour profile is damaged")
    kind, space = profile[12:16], profile[16:20].decode("latin-1")
    if kind not in (b"scnr", b"mntr", b"prtr", b"spac") or space not in _SPACES.values():
        raise _refused(f"a colour profile of kind {kind!r} for {space!r}")
    # A cicp tag makes an ICC profile an HDR one for viewers that know it, and is ignored by the others.
    if b"cicp" in profile[128:4096]:
        raise _refused("a colour profile with code points, such as HDR, looks different on every screen")
    return space


def _transform(profile: bytes, mode: str, intent: ImageCms.Intent) -> ImageCms.ImageCmsTransform | None:
    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        return ImageCms.ImageCmsTransform(opened, _SRGB, mode, "RGB", intent, flags=flags)
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return None


@lru_cache(maxsize=3)
def _sample(mode: str) -> Image.Image:
    """An image of 1 x (256 + N) pixels: all greys, then N random colours."""
    import numpy as np

    ramp = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(ramp[None])
    greys = np.repeat(ramp[:, None], len(mode), axis=1)
    if mode == "CMYK":
        # Greys of CMYK are shades of black ink alone.
        greys[:, :3] = 0
    drawn = np.random.default_rng(0).integers(0, 256, (4096, len(mode)), dtype=np.uint8)
    values = np.concatenate([greys, drawn])
    return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(band)[None]) for band in values.T])


def _apply_to_sample(transform: ImageCms.ImageCmsTransform) -> "NDArray[np.int16]":
    """(256 + N, 3) sRGB values of `_sample` after the transform."""
    import numpy as np

    found: NDArray[np.int16] = np.asarray(transform.apply(_sample(transform.input_mode)), dtype=np.int16)
    return found.reshape(-1, 3)


def _difference(one: "NDArray[np.int16]", other: "NDArray[np.int16]") -> int:
    return int(abs(one - other).max())


def _changes_nothing(mode: str, sample: "NDArray[np.int16]") -> bool:
    import numpy as np

    stored = np.asarray(_sample(mode).convert("RGB"), dtype=np.int16)[0]
    return mode != "CMYK" and _difference(stored, sample) <= MAX_UNCHANGED


def _largest_step(sample: "NDArray[np.int16]") -> int:
    return int(abs(sample[1:256] - sample[:255]).max())


def _refused(why: str) -> ImageError:
    return ImageError("unknown_colours", why)
