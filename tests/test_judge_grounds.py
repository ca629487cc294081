"""Transparent images: what shows on white only, on black only, or nowhere."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from judge.data.frames import Frames, open_frames, png_bytes
from judge.data.images import ImageLimits, open_image, pixels_hash
from judge.data.modes import VISIBLE, flatten
from judge.errors import ImageError
from judge.verdicts.from_scores import verdict_of_frames
from prompts import Verdict

SIZE = (96, 64)
BOTH = ["white", "black"]


def stored(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def writing():
    """A mask (L): 255 where something is written."""
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).text((8, 8), "SIGN", fill=255, font_size=30)
    return mask.point(lambda level: 255 * (level > 127))


def written(colour, around):
    """RGBA: `colour` where something is written, `around` elsewhere."""
    image = Image.new("RGBA", SIZE, around)
    image.paste(colour, mask=writing())
    return image


WHITE_TEXT = (255, 255, 255, 255), (255, 255, 255, 0)


def white_on_nothing(mode):
    image = written(*WHITE_TEXT)
    if mode == "RGBA":
        return image
    if mode == "LA":
        return Image.merge("LA", [Image.new("L", SIZE, 255), image.getchannel("A")])
    # Index 0 is transparent, index 1 white.
    made = writing().point(lambda level: level // 255).convert("L")
    made = Image.frombytes("P", SIZE, made.tobytes())
    made.putpalette([255, 255, 255] * 2)
    return made


def shown(image):
    """How far an image is from one colour: its contrast, 0-255."""
    values = np.asarray(image, dtype=int).reshape(-1, 3)
    return int((values.max(0) - values.min(0)).max())


FILES = {
    "PNG RGBA": lambda: stored(white_on_nothing("RGBA")),
    "PNG LA": lambda: stored(white_on_nothing("LA")),
    "PNG P": lambda: stored(white_on_nothing("P"), transparency=0),
    "PNG P with alphas": lambda: stored(white_on_nothing("P"), transparency=bytes([0, 255])),
    "PNG L with a key": lambda: stored(writing().point(lambda v: 255 if v else 254), transparency=254),
    "PNG RGB with a key": lambda: stored(
        Image.merge("RGB", [writing().point(lambda v: 255 if v else 254)] * 3), transparency=(254,) * 3
    ),
    "GIF": lambda: stored(white_on_nothing("P"), "GIF", transparency=0),
    "WebP": lambda: stored(white_on_nothing("RGBA"), "WEBP", lossless=True, exact=True),
}


@pytest.mark.parametrize("name", FILES)
def test_white_writing_on_nothing_is_judged_on_black(name):
    """On white alone, the image would be a blank page."""
    data = FILES[name]()
    found = open_frames(data)
    assert (found.grounds, found.numbers, found.total) == (BOTH, [0, 0], 1)
    on_white, on_black = found.images
    assert shown(on_white) <= 1
    assert shown(on_black) == 255
    assert np.array_equal(np.asarray(on_black)[..., 0] > 127, np.asarray(writing()) > 127)
    assert pixels_hash(open_image(data)) == pixels_hash(on_white)


def test_black_writing_is_judged_on_white_and_hidden_colours_nowhere():
    found = open_frames(stored(written((0, 0, 0, 255), (0, 0, 0, 0))))
    assert [shown(image) for image in found.images] == [255, 0]
    found = open_frames(stored(written((255, 0, 0, 0), (0, 99, 0, 0))))
    assert found.grounds == BOTH
    assert [shown(image) for image in found.images] == [0, 0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_a_later_frame_on_black(kind):
    blank, text = Image.new("RGBA", SIZE, (255, 255, 255, 0)), written(*WHITE_TEXT)
    options = (
        {"lossless": True, "exact": True} if kind == "WEBP" else {"disposal": 2} if kind == "GIF" else {}
    )
    found = open_frames(
        stored(blank, kind, save_all=True, append_images=[blank, text], duration=50, **options)
    )
    views = dict(zip(zip(found.numbers, found.grounds, strict=True), map(shown, found.images), strict=True))
    last = found.total - 1
    assert {(0, "white"), (0, "black"), (last, "white"), (last, "black")} == views.keys()
    assert views[last, "white"] <= 1
    assert views[last, "black"] == 255
    verdicts = [Verdict("unsafe", 0.9) if shown(i) > 200 else Verdict("safe", 0.1) for i in found.images]
    verdict, place = verdict_of_frames(found, verdicts)
    assert verdict.status == "unsafe"
    assert place == f"frame {found.total} of {found.total} on black, the worst of 4 judged"


@pytest.mark.parametrize(("alpha", "grounds"), [(255, [""]), (256 - VISIBLE, [""]), (255 - VISIBLE, BOTH)])
@pytest.mark.parametrize("size", [(8, 8), (2600, 2000)])
def test_grounds_that_look_alike_are_judged_once(alpha, grounds, size):
    image = Image.new("RGBA", size, (10, 200, 30, 255))
    image.putpixel((5, size[1] - 1), (10, 200, 30, alpha))
    assert open_frames(stored(image, compress_level=1)).grounds == grounds


def test_opaque_files_have_one_view():
    for mode in ("1", "L", "P", "RGB"):
        found = open_frames(stored(writing().convert(mode)))
        assert (found.grounds, found.numbers) == ([""], [0])
    assert open_frames(stored(writing(), "JPEG")).grounds == [""]


def bitmap(alpha):
    """A BMP of version 4 with masks for four channels, which Pillow reads and cannot write."""
    pixels = bytes([10, 20, 200, alpha] * 4)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = (
        struct.pack("<IiiHHIIiiII", 108, 2, 2, 1, 32, 3, len(pixels), 0, 0, 0, 0)
        + masks
        + b" niW"
        + bytes(48)
    )
    return b"BM" + struct.pack("<IHHI", 14 + 108 + len(pixels), 0, 0, 14 + 108) + head + pixels


def test_bitmaps_may_have_an_alpha_channel_and_no_transparency():
    """A browser shows the last one as if it were opaque."""
    assert open_frames(bitmap(255)).images[0].getpixel((0, 0)) == (200, 20, 10)
    for alpha in (254, 0):
        for opened in (open_image, open_frames):
            with pytest.raises(ImageError, match=r"^unknown_colours: a BMP with transparency"):
                opened(bitmap(alpha))


def test_another_background_has_an_opposite_too():
    data = stored(Image.new("RGBA", (2, 2), (0, 0, 0, 0)))
    for background, opposite in (
        ((0, 0, 0), (255,) * 3),
        ((127, 128, 20), (255, 0, 255)),
        ((127,) * 3, (255,) * 3),
    ):
        limits = ImageLimits(background=background)
        found = open_frames(data, limits)
        assert [image.getpixel((0, 0)) for image in found.images] == [background, opposite]
        assert open_image(data, limits).getpixel((0, 0)) == background
    assert open_frames(data, ImageLimits(background=(127, 128, 20))).grounds == ["#7f8014", "#ff00ff"]


level = st.integers(0, 255)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(level, level, level, level), min_size=2, max_size=2), st.tuples(level, level, level)
)
def test_no_third_ground_shows_what_both_hide(pixels, ground):
    image = Image.new("RGBA", (2, 1))
    image.putdata(pixels)
    views = flatten(image, "", [(255, 255, 255), (0, 0, 0), ground], None, 1)
    if len(views) == 1:  # hardly transparent
        views *= 3
    apart = [np.abs(np.diff(np.asarray(view, dtype=int), axis=1)) for view in views]
    assert (apart[2] <= np.maximum(apart[0], apart[1]) + 2).all()  # two roundings


def test_transparent_animations_have_half_the_frames():
    frames = [Image.new("RGBA", (4, 4), (0, level, 0, 200)) for level in range(0, 200, 20)]
    data = stored(frames[0], save_all=True, append_images=frames[1:])
    found = open_frames(data, max_frames=5)
    assert (len(found.images), len(set(found.numbers))) == (4, 2)
    assert found.grounds == BOTH * 2
    assert len(open_frames(data, max_frames=1).images) == 2
    assert len(open_frames(data).images) == 20


def test_a_blank_frame_does_not_stand_for_writing_that_only_black_shows():
    """Compared by RGBA, these two differ by 17 levels; on black, by 51."""
    blank, part = (
        Image.new("RGBA", (10, 10), (255, 255, 255, 0)),
        Image.new("RGBA", (10, 10), (255, 255, 255, 0)),
    )
    part.paste((255, 255, 255, 255), (0, 0, 10, 2))
    data = stored(blank, save_all=True, append_images=[part])
    assert open_frames(data, max_frames=2).unrepresented == 1
    assert open_frames(data, max_frames=4).unrepresented == 0


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def animated_png(depth, kind, frames, key=None):
    """An animated PNG of 4 x 4 pixels, each frame of one value, which Pillow cannot write."""
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, depth, kind, 0, 0, 0))
    out += chunk(b"acTL", struct.pack(">II", len(frames), 0)) + (chunk(b"tRNS", key) if key else b"")
    count = 0
    for number, row in enumerate(frames):
        out += chunk(b"fcTL", struct.pack(">IIIIIHHBB", count, 4, 4, 0, 0, 1, 10, 0, 0))
        count += 1
        pixels = zlib.compress((b"\0" + row) * 4)
        out += chunk(b"fdAT", struct.pack(">I", count) + pixels) if number else chunk(b"IDAT", pixels)
        count += bool(number)
    return out + chunk(b"IEND", b"")


def test_frames_of_deep_greys_are_told_apart():
    """Compared after Pillow's own conversion, which saturates, they were all white, and only the first was judged."""
    data = animated_png(16, 0, [struct.pack(">H", value) * 4 for value in (30000, 1000, 65000)])
    found = open_frames(data)
    assert [image.getpixel((0, 0))[0] for image in found.images] == [117, 4, 253]
    keyed = open_frames(animated_png(16, 0, [struct.pack(">H", v) * 4 for v in (30000, 1000)], b"\x03\xe8"))
    assert [image.getpixel((0, 0))[0] for image in keyed.images] == [117, 255, 0]
    assert keyed.grounds == ["", "white", "black"]


def test_transparent_colours_of_later_frames_have_the_depth_of_the_file():
    """The depth was asked for once the pixels had been decoded, when Pillow has forgotten it."""
    found = open_frames(animated_png(4, 0, [bytes([17 * value]) * 2 for value in (3, 5, 9)], b"\0\x05"))
    assert [image.getpixel((0, 0))[0] for image in found.images] == [51, 255, 0, 153]
    with pytest.raises(ImageError, match=r"^unsupported_format: 16-bit colour with a transparent colour"):
        open_frames(animated_png(16, 2, [bytes([0, value] * 12) for value in (3, 5)], b"\0\5\0\5\0\5"))


def test_the_verdict_says_on_which_ground():
    still = Frames([], [0, 0], 1, 0, BOTH)
    verdict, place = verdict_of_frames(still, [Verdict("safe", 0.2), Verdict("unsafe", 0.7, because="sure")])
    assert (verdict.status, place) == ("unsafe", "on black, the worst of 2 judged")
    assert verdict.because == "on black, the worst of 2 judged: sure"
    verdict, place = verdict_of_frames(still, [Verdict("safe", 0.2), Verdict("unjudged", reason="too dark")])
    assert (verdict.status, verdict.reason, place) == ("unjudged", "on black: too dark", "")
    verdict, place = verdict_of_frames(still, [Verdict("safe", 0.2), Verdict("safe", 0.1)])
    assert (verdict.status, place) == ("safe", "on white, the worst of 2 judged")
    moving = Frames([], [0, 0, 3], 9, 2, ["white", "black", ""])
    verdict, _ = verdict_of_frames(moving, [Verdict("safe", 0.1)] * 3)
    assert verdict.reason == "2 of 9 frames resemble none of the 2 that were judged safe"


def test_what_is_shown_to_a_moderator_is_what_was_judged():
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    data = stored(written((200, 10, 10, 255), (0, 0, 0, 0)), exif=exif) + b"<script>"
    for image in open_frames(data).images:
        shown_png = png_bytes(image)
        opened = Image.open(BytesIO(shown_png))
        assert (opened.format, opened.mode, opened.info) == ("PNG", "RGB", {})
        assert np.array_equal(opened, image)
        assert b"secret" not in shown_png
        assert b"script" not in shown_png
