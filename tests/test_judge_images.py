"""Every way in which a file can show people one picture and the judge another (or none)."""

import os
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from judge.data.images import FORMATS, ImageLimits, format_of, open_image, pixels_hash
from judge.errors import ConfigError, ImageError, ImageStatus

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, depth: int, colour: int, row: bytes, *extra: bytes, height: int = 1) -> bytes:
    """A PNG with one (repeated) unfiltered row, written by hand: Pillow cannot write all of these."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress((b"\0" + row) * height)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(extra)
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def pixels(source: object, limits: ImageLimits | None = None) -> list[tuple[int, ...]]:
    image = open_image(source, limits or ImageLimits())
    assert image.mode == "RGB"
    return [tuple(int(v) for v in pixel) for pixel in np.asarray(image).reshape(-1, 3)]


def status(source: object, limits: ImageLimits | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source, limits or ImageLimits())
    assert caught.value.status in get_args(ImageStatus)
    assert caught.value.reason
    assert "\n" not in caught.value.reason
    return caught.value.status


def photo(width: int = 24, height: int = 16) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def animation(*colours: tuple[int, int, int], kind: str = "GIF", **options: object) -> bytes:
    frames = [Image.new("RGB", (4, 4), colour) for colour in colours]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


# --- sources -----------------------------------------------------------------------------------------------


def test_path_text_bytes_lazy_source_and_image_give_the_same_pixels(tmp_path: Path) -> None:
    data = encoded(photo())
    path = tmp_path / "photo.png"
    path.write_bytes(data)

    class Lazy:
        def __bytes__(self) -> bytes:
            return data

    hashes = {pixels_hash(open_image(s)) for s in (path, str(path), data, Lazy(), photo())}
    assert hashes == {pixels_hash(photo())}


def test_other_sources_are_a_programming_error() -> None:
    with pytest.raises(TypeError, match="not int"):
        open_image(3)  # type: ignore[arg-type]


def test_the_result_is_a_new_image_without_metadata() -> None:
    image = photo()
    image.info["comment"] = "x"
    opened = open_image(image)
    opened.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) != (1, 2, 3)
    assert opened.info == {}
    assert image.info == {"comment": "x"}


def test_missing_folder_pipe_and_forbidden_names(tmp_path: Path) -> None:
    assert status(tmp_path / "nothing.png") == "missing"
    assert status(tmp_path) == "unreadable"
    assert status("a\0b.png") == "unreadable"
    os.mkfifo(tmp_path / "pipe.png")
    assert status(tmp_path / "pipe.png") == "unreadable"
    with pytest.raises(ImageError, match=r"^unreadable: not a regular file$"):
        open_image(tmp_path / "pipe.png")


# --- what it is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_allowed(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = photo().quantize(16).convert("RGB") if kind == "GIF" else photo()
    opened = open_image(encoded(image, kind, **options))
    assert opened.size == image.size
    if kind != "JPEG":
        assert pixels_hash(opened) == pixels_hash(image)


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "JPEG2000", "AVIF", "PDF"])
def test_formats_refused_by_name(kind: str) -> None:
    try:
        data = encoded(photo(32, 32), kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {kind}")
    assert status(data) == "unsupported_format"


@pytest.mark.parametrize("data", [b"", b"<html>", b"hello", b"PK\3\4", b"RIFF1234WAVE", b"\0" * 100])
def test_not_an_image(data: bytes) -> None:
    assert status(data) == "not_an_image"


def test_svg_is_never_rendered_and_postscript_never_run() -> None:
    assert status(b'<svg xmlns="http://www.w3.org/2000/svg"/>') == "unsupported_format"
    assert status(b"%!PS-Adobe-3.0 EPSF-3.0\n") == "unsupported_format"


def test_a_name_does_not_make_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "TIFF"))
    (tmp_path / "b.txt").write_bytes(encoded(photo()))
    assert status(tmp_path / "a.jpg") == "unsupported_format"
    assert open_image(tmp_path / "b.txt").size == photo().size


def test_format_of_reads_heads() -> None:
    assert format_of(encoded(photo(), "WEBP")[:16]) == "WEBP"
    assert format_of(b"\0\0\0\x1cftypheic\0\0\0\0") == "HEIF or AVIF"
    assert format_of(b"text") is None


# --- size --------------------------------------------------------------------------------------------------


def test_too_many_bytes_in_memory_and_on_disk(tmp_path: Path) -> None:
    data = encoded(photo())
    (tmp_path / "photo.png").write_bytes(data)
    small = ImageLimits(max_bytes=len(data) - 1)
    assert status(data, small) == status(tmp_path / "photo.png", small) == "too_large"
    assert pixels(data, ImageLimits(max_bytes=len(data)))


def test_pixels_are_counted_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    bomb = png(9000, 1, 0, bytes(1125), height=9000)
    assert len(bomb) < 20_000
    assert status(bomb) == "too_many_pixels"


@pytest.mark.parametrize("side", [12_000, 40_000])
def test_bombs_by_pillows_own_measure_are_refused(side: int) -> None:
    """Above 89 million Pillow warns, above 179 million it raises an error that is no OSError."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    assert status(data) == "too_many_pixels"


def test_gif_frame_larger_than_its_screen_is_counted() -> None:
    data = bytearray(encoded(Image.new("L", (4, 4)), "GIF"))
    descriptor = data.index(b",\0\0\0\0\4\0\4\0")
    data[descriptor + 5 : descriptor + 9] = struct.pack("<HH", 8000, 8000)
    assert status(bytes(data)) == "too_many_pixels"


def test_slivers_are_refused() -> None:
    assert status(Image.new("RGB", (51, 1))) == "too_narrow"
    assert status(Image.new("RGB", (1, 51))) == "too_narrow"
    assert pixels(Image.new("RGB", (50, 1)))


def test_limits_hold_for_opened_images_too() -> None:
    assert status(photo(), ImageLimits(max_pixels=100)) == "too_many_pixels"


def test_limits_check_themselves() -> None:
    with pytest.raises(ConfigError, match="'single' or 'first'"):
        ImageLimits(frames="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1"):
        ImageLimits(max_pixels=0)


# --- frames ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused_unless_asked_for(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = animation(GREEN, RED, BLUE, kind=kind, **options)
    assert status(data) == "animated"
    assert set(pixels(data, ImageLimits(frames="first"))) == {GREEN}


def test_hidden_default_image_of_an_animated_png_is_not_taken_for_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED)]
    data = encoded(frames[0], save_all=True, append_images=frames[1:], default_image=True)
    assert status(data) == "animated"
    assert set(pixels(data, ImageLimits(frames="first"))) == {RED}


def test_single_frame_gif_is_no_animation() -> None:
    assert set(pixels(animation(GREEN))) == {GREEN}


def test_opened_animation_is_refused_too() -> None:
    assert status(Image.open(BytesIO(animation(GREEN, RED)))) == "animated"


def test_multi_picture_jpeg_of_a_camera_is_its_main_picture() -> None:
    data = encoded(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (24, 16), RED)])
    assert pixels_hash(open_image(data)) == pixels_hash(open_image(encoded(photo(), "JPEG")))


# --- depth and mode ----------------------------------------------------------------------------------------


def test_sixteen_bit_grey_is_scaled_not_saturated() -> None:
    data = png(3, 16, 0, struct.pack(">3H", 0, 0x7100, 0xFFFF))
    assert pixels(data) == [(0,) * 3, (113,) * 3, (255,) * 3]


def test_sixteen_bit_grey_with_a_colour_key() -> None:
    data = png(2, 16, 0, struct.pack(">2H", 0x8000, 0x7100), chunk(b"tRNS", struct.pack(">H", 0x8000)))
    assert pixels(data) == [WHITE, (113,) * 3]


@pytest.mark.parametrize(
    ("depth", "row", "key"), [(4, b"\x03", 0), (2, b"\x10", 0), (4, b"\x53", 5), (2, b"\x90", 2)]
)
def test_low_depth_grey_key_is_compared_at_its_own_depth(depth: int, row: bytes, key: int) -> None:
    """Key 5 of 4 bits is grey 85; Pillow alone would look for grey 5."""
    first, second = pixels(png(2, depth, 0, row, chunk(b"tRNS", struct.pack(">H", key))))
    assert first == WHITE
    assert second == ((51,) * 3 if depth == 4 else (85,) * 3)


def test_sixteen_bit_colour() -> None:
    assert pixels(png(1, 16, 2, struct.pack(">3H", 0x7575, 0, 0xFFFF))) == [(0x75, 0, 255)]


def test_sixteen_bit_colour_key_cannot_be_told_apart() -> None:
    """Pillow compares the key's low byte with the pixel's high byte: 0x8080 would vanish for key 0x0080."""
    row = struct.pack(">6H", *[0x8080] * 3, *[0x0080] * 3)
    data = png(2, 16, 2, row, chunk(b"tRNS", struct.pack(">3H", 0x80, 0x80, 0x80)))
    assert status(data) == "unsupported_format"


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "La", "RGBa"]
)
def test_every_mode_of_pillow_becomes_rgb(mode: str) -> None:
    base = Image.new("RGB", (4, 4), WHITE)
    image = {"LA": base.convert("LA"), "La": base.convert("LA"), "RGBa": base.convert("RGBA")}.get(mode, base)
    image = base.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    assert set(pixels(image)) == {WHITE}


def test_cmyk_jpeg() -> None:
    [pixel] = set(pixels(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)))
    assert np.abs(np.array(pixel) - RED).max() <= 3


def test_floats_and_wide_integers_have_a_declared_range() -> None:
    ramp = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert pixels(Image.fromarray(ramp)) == [(0,) * 3, (128,) * 3, (255,) * 3]
    assert pixels(Image.fromarray(ramp * 200)) == [(0,) * 3, (100,) * 3, (200,) * 3]
    assert pixels(Image.fromarray(np.array([[0, 0x7100, 65535]], dtype=np.int32))) == [
        (0,) * 3,
        (113,) * 3,
        (255,) * 3,
    ]
    assert pixels(Image.fromarray(np.array([[7, 200]], dtype=np.int32))) == [(7,) * 3, (200,) * 3]


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 300.0, 1e9])
def test_floats_outside_every_range_are_refused(value: float) -> None:
    assert status(Image.fromarray(np.full((2, 2), value, dtype=np.float32))) == "unsupported_format"


# --- transparency ------------------------------------------------------------------------------------------


def test_hidden_colours_are_not_judged_and_half_transparency_is_composed() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(*RED, 0), (*RED, 255), (0, 0, 0, 128)])
    assert pixels(encoded(image)) == [WHITE, RED, (127,) * 3]
    assert pixels(encoded(image, "WEBP", lossless=True, exact=True)) == [WHITE, RED, (127,) * 3]
    assert pixels(encoded(image), ImageLimits(background=(0, 0, 0)))[0] == (0, 0, 0)


def test_transparent_palette_entries_grey_alpha_and_keys() -> None:
    grey = Image.new("LA", (2, 1))
    grey.putdata([(10, 0), (10, 255)])
    assert pixels(encoded(grey)) == [WHITE, (10, 10, 10)]
    palette = (chunk(b"PLTE", bytes([*RED, *GREEN])), chunk(b"tRNS", b"\0\xff"))
    assert pixels(png(2, 8, 3, b"\0\1", *palette)) == [WHITE, GREEN]
    key = chunk(b"tRNS", struct.pack(">3H", *RED))
    assert pixels(png(2, 8, 2, bytes([*RED, *GREEN]), key)) == [WHITE, GREEN]
    assert pixels(png(2, 8, 0, b"\x0a\x14", chunk(b"tRNS", struct.pack(">H", 10)))) == [WHITE, (20,) * 3]


def test_opened_image_with_an_impossible_transparency_entry_is_an_error() -> None:
    image = Image.new("P", (2, 2))
    image.info["transparency"] = "none"
    assert status(image) == "unreadable"


# --- orientation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied_once(orientation: int, kind: str) -> None:
    upright = np.zeros((16, 24, 3), dtype=np.uint8)
    upright[:8, :8] = 255  # top left
    stored = {  # how a camera stores the upright picture under each orientation
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    once = open_image(data)
    twice = open_image(once)
    for opened in (once, twice):
        assert opened.size == (24, 16)
        assert np.abs(np.asarray(opened).astype(int) - upright).mean() < 8


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_damaged_orientation_is_ignored(exif: bytes) -> None:
    data = bytearray(encoded(photo(), "JPEG"))
    data[2:2] = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert open_image(bytes(data)).size == photo().size


# --- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@given(share=st.floats(0.0, 1.0))
def test_a_cut_file_never_gives_another_picture(kind: str, share: float) -> None:
    whole = encoded(photo(), kind)
    cut = whole[: int(share * len(whole))]
    try:
        opened = open_image(cut)
    except ImageError:
        return
    assert pixels_hash(opened) == pixels_hash(open_image(whole))


@pytest.mark.parametrize("kind", FORMATS)
def test_half_a_file_is_an_error(kind: str) -> None:
    whole = encoded(photo(64, 64), kind)
    assert status(whole[: len(whole) // 2]) in ("truncated", "unreadable")


def test_padding_switched_on_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES"):
        open_image(encoded(photo()))


_SEEDS = [
    *(encoded(photo(), kind) for kind in FORMATS),
    animation(GREEN, RED),
    animation(GREEN, RED, kind="PNG"),
    animation(GREEN, RED, kind="WEBP"),
    encoded(photo().convert("CMYK"), "JPEG"),
    encoded(photo(), "JPEG", progressive=True),
    encoded(photo().quantize(8), transparency=3),
    png(2, 16, 0, struct.pack(">2H", 1, 2), chunk(b"tRNS", b"\0\1")),
]
_MAGICS = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBPVP8 ", b"II*\0", b""]


def never_another_error(data: bytes, frames: str) -> None:
    with suppress(ImageError):
        limits = ImageLimits(max_pixels=1_000_000, frames=frames)  # type: ignore[arg-type]
        assert open_image(data, limits).mode == "RGB"


@given(
    head=st.sampled_from(_MAGICS), rest=st.binary(max_size=200), frames=st.sampled_from(["single", "first"])
)
def test_any_bytes_give_an_image_or_an_image_error(head: bytes, rest: bytes, frames: str) -> None:
    never_another_error(head + rest, frames)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(len(_SEEDS)))
@given(draw=st.data(), frames=st.sampled_from(["single", "first"]))
def test_damaged_images_give_an_image_or_an_image_error(seed: int, draw: st.DataObject, frames: str) -> None:
    data = bytearray(_SEEDS[seed])
    for _ in range(draw.draw(st.integers(1, 6))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    never_another_error(bytes(data), frames)


@given(
    mode=st.sampled_from(["1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "I", "F", "I;16", "LAB", "HSV"]),
    size=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    transparency=st.sampled_from([None, 0, 3, 300, b"\0", b"", (1, 2, 3), (1, 2), "x"]),
)
def test_any_opened_image_gives_an_image_or_an_image_error(
    mode: str, size: tuple[int, int], transparency: object
) -> None:
    image = Image.new(mode, size)
    if transparency is not None:
        image.info["transparency"] = transparency
    with suppress(ImageError):
        assert open_image(image).size == size


def test_image_errors_survive_pickling_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ImageError("truncated", "half of it")))
    assert (error.status, error.reason, str(error)) == ("truncated", "half of it", "truncated: half of it")
