"""Stored numbers are judged as a viewer shows them, or not at all; checked against littleCMS and the formulas."""

import struct
import zlib
from io import BytesIO
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageCms

from judge.data.colours import MAX_PROFILE_BYTES, MAX_UNCHANGED
from judge.data.images import open_image
from judge.errors import ImageError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
"""Adobe RGB (1998): red, green and blue as XYZ under D50, from its specification."""
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
"""Display P3, as in the profile that ICC publishes."""
REC709 = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def fixed(*numbers):
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def profile(space, kind, tags, lab=False):
    """An ICC profile of version 2.4, written by hand."""
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"test", 0x02400000, kind, space, b"Lab " if lab else b"XYZ "
    )
    head = (head + bytes(12) + b"acsp").ljust(68, b"\0") + fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def gamma_curve(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def matrix(columns, gamma, space=b"RGB ", kind=b"mntr", **more):
    names = zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)
    tags = {name: b"XYZ \0\0\0\0" + fixed(*column) for name, column in names}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma_curve(gamma))
    return profile(space, kind, {**tags, **{name.encode(): data for name, data in more.items()}})


def grey_profile(gamma):
    white = b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)
    return profile(b"GRAY", b"mntr", {b"wtpt": white, b"kTRC": gamma_curve(gamma)})


def table(channels, colour):
    """A `lut8` table (ICC.1:2001-04, 6.5.8) of five steps a channel; `colour` maps (N, channels) in [0, 1] to sRGB."""
    steps = np.array(list(product(np.linspace(0, 1, 5), repeat=channels)))
    rgb = Image.fromarray((colour(steps)[None] * 255).round().astype(np.uint8))
    lab = ImageCms.profileToProfile(
        rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    found = np.stack([np.asarray(band)[0] for band in lab.split()], axis=1)
    ramp = bytes(range(256))
    head = b"mft1\0\0\0\0" + bytes([channels, 3, 5, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return head + ramp * channels + found.astype(np.uint8).tobytes() + ramp * 3


def press(ink):
    return (1 - ink[:, :3]) * (1 - ink[:, 3:])


def cmyk_profile(**more):
    tags = {b"A2B0": table(4, press)} | {name.encode(): data for name, data in more.items()}
    return profile(b"CMYK", b"prtr", tags, lab=True)


def noise(bands, size=(31, 23), seed=0):
    shape = (size[1], size[0], bands)[: 2 if bands == 1 else 3]
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return (
        Image.merge("CMYK", [Image.fromarray(v) for v in np.moveaxis(values, 2, 0)])
        if bands == 4
        else Image.fromarray(values)
    )


def stored(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **{"lossless": True} if kind == "WEBP" else {}, **options)
    return file.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunks(image, *chunks, after_pixels=()):
    data = stored(image)
    end = data.index(b"IEND") - 4
    return data[:33] + b"".join(chunks) + data[33:end] + b"".join(after_pixels) + data[end:]


def gama(gamma):
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))


def by_littlecms(image, profile_bytes, intent=ImageCms.Intent.PERCEPTUAL):
    opened = ImageCms.ImageCmsProfile(BytesIO(profile_bytes))
    return ImageCms.profileToProfile(
        image, opened, ImageCms.createProfile("sRGB"), renderingIntent=intent, outputMode="RGB"
    )


def by_formula(levels, columns, gamma):
    """sRGB levels of stored ones under a matrix and a gamma, in float64."""
    light = (np.asarray(levels) / 255.0) ** gamma @ np.array(columns) @ np.linalg.inv(np.array(REC709))
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255


def apart(one, other):
    return np.abs(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)).max()


def refused(data):
    with pytest.raises(ImageError) as caught:
        open_image(data)
    assert caught.value.status == "unknown_colours"
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    ("columns", "gamma"), [(ADOBE, 2.19921875), (P3, 2.2), (REC709, 24.0), (REC709, 0.2)]
)
def test_matrix_profiles_are_applied(kind, columns, gamma):
    icc = matrix(columns, gamma)
    data = stored(noise(3), kind, icc_profile=icc)
    plain = Image.open(BytesIO(data)).convert("RGB")
    opened = open_image(data)
    assert apart(opened, by_littlecms(plain, icc)) == 0
    assert apart(opened, by_formula(plain, columns, gamma)) <= 2
    assert apart(opened, plain) > 10
    assert opened.info == {}


@pytest.mark.parametrize("how", ["PNG", "WEBP", "gAMA", "PIL"])
def test_a_picture_hidden_under_gamma_24_is_judged_as_it_is_shown(how):
    """The stored numbers are nearly one white sheet; a viewer shows a black square on white."""
    levels = np.full((24, 24, 3), 255, np.uint8)
    levels[6:18, 6:18] = 220  # 220 / 255 to the power of 24 is 0.03, which is shown as level 48
    image = Image.fromarray(levels)
    icc = matrix(REC709, 24.0)
    if how == "gAMA":
        data = with_chunks(image, gama(1 / 24))
    elif how == "PIL":
        data = image
        image.info["icc_profile"] = icc
    else:
        data = stored(image, how, icc_profile=icc)
    opened = np.asarray(open_image(data))
    assert opened[0, 0].tolist() == [255] * 3
    assert apart(opened[12, 12], by_formula([220] * 3, REC709, 24.0)) <= 2
    assert opened[12, 12].max() < 60


def test_grey_profiles_and_transparency():
    grey = noise(1)
    icc = grey_profile(1.0)
    expected = by_littlecms(grey, icc)
    assert apart(expected, grey.convert("RGB")) > 40
    assert apart(open_image(stored(grey, icc_profile=icc)), expected) == 0
    both = grey.copy()
    both.putalpha(255)
    assert apart(open_image(stored(both, icc_profile=icc)), expected) == 0
    clear = grey.copy()
    clear.putalpha(0)
    assert np.asarray(open_image(stored(clear, icc_profile=icc))).min() == 255
    palette = noise(3).quantize(16)
    icc = matrix(ADOBE, 2.2)
    assert apart(open_image(stored(palette, icc_profile=icc)), by_littlecms(palette.convert("RGB"), icc)) == 0


def test_cmyk_profiles_are_applied():
    icc = cmyk_profile()
    data = stored(noise(4), "JPEG", icc_profile=icc, quality=95)
    plain = Image.open(BytesIO(data))
    opened = open_image(data)
    assert apart(opened, by_littlecms(plain, icc)) == 0
    inks = np.asarray(plain).reshape(-1, 4) / 255
    # Five steps and eight bits of Lab are coarse; without the profile Pillow's conversion is another picture.
    assert np.abs(np.asarray(opened).reshape(-1, 3) - press(inks) * 255).mean() < 8


def test_srgb_in_any_version_changes_nothing():
    image = noise(3)
    for icc in (SRGB, matrix(REC709, 2.2)[:0]):
        assert apart(open_image(stored(image, icc_profile=icc)), image) == 0
    assert apart(open_image(with_chunks(image, gama(1 / 2.2))), image) == 0
    assert MAX_UNCHANGED < 3


def test_large_pictures_are_converted_in_strips():
    image = noise(3, (2100, 2100))
    icc = matrix(P3, 1.0)
    assert (
        apart(
            open_image(stored(image, icc_profile=icc, compress_level=1)), by_littlecms(image, icc).reduce(2)
        )
        == 0
    )


# --- PNG's own chunks ----------------------------------------------------------------------------------------


def chrm(points):
    return chunk(
        b"cHRM", struct.pack(">8I", *(round(value * 100_000) for point in points for value in point))
    )


WIDE = ((0.3127, 0.3290), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060))


@pytest.mark.parametrize("gamma", [1.0, 0.3, 1 / 24])
def test_gamma_is_applied(gamma):
    image = noise(3)
    assert apart(open_image(with_chunks(image, gama(gamma))), by_formula(image, REC709, 1 / gamma)) <= 2
    grey = noise(1)
    expected = by_formula(np.repeat(np.asarray(grey)[..., None], 3, axis=2), REC709, 1 / gamma)
    assert apart(open_image(with_chunks(grey, gama(gamma))), expected) <= 2


def test_chromaticities_and_code_points_are_applied():
    image = noise(3)
    expected = by_formula(image, P3, 1.0)
    assert apart(open_image(with_chunks(image, gama(1.0), chrm(WIDE))), expected) <= 2
    assert apart(open_image(with_chunks(image, chunk(b"cICP", bytes([12, 8, 0, 1])))), expected) <= 2
    assert apart(open_image(with_chunks(image, chunk(b"cICP", bytes([1, 13, 0, 1])))), image) == 0
    standard = ((0.3127, 0.3290), (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
    assert apart(open_image(with_chunks(image, gama(0.45455), chrm(standard))), image) == 0


def test_the_order_of_the_specification():
    image = noise(3)
    linear = by_formula(image, REC709, 1.0)
    code_points, srgb = chunk(b"cICP", bytes([1, 8, 0, 1])), chunk(b"sRGB", b"\0")
    iccp = chunk(b"iCCP", b"x\0\0" + zlib.compress(matrix(ADOBE, 1.8)))
    assert apart(open_image(with_chunks(image, srgb, gama(0.1), iccp, code_points)), linear) <= 2
    by_profile = by_littlecms(image, matrix(ADOBE, 1.8))
    assert apart(open_image(with_chunks(image, gama(0.1), iccp)), by_profile) == 0
    assert apart(open_image(with_chunks(image, srgb, gama(0.1))), image) == 0


def test_chunks_that_viewers_pass_over_hide_nothing():
    """Behind the pixels no viewer looks; of two some take the first and some the last."""
    image = noise(3)
    shown = by_formula(image, REC709, 1.0)
    late = with_chunks(image, gama(1.0), after_pixels=[chunk(b"sRGB", b"\0"), gama(0.45455)])
    assert apart(open_image(late), shown) <= 2
    assert "gAMA comes twice" in refused(with_chunks(image, gama(1.0), gama(0.45455)))
    behind = stored(image.quantize(8))
    start = behind.index(b"IDAT") - 4
    assert "behind the palette" in refused(behind[:start] + gama(1.0) + behind[start:])


@pytest.mark.parametrize("opened", [False, True])
def test_code_points_of_an_image_that_pillow_opened(opened):
    """Pillow does not know the chunk; as long as the file is open, we read it."""
    image = noise(3)
    data = with_chunks(image, chunk(b"cICP", bytes([1, 8, 0, 1])))
    assert (
        apart(open_image(Image.open(BytesIO(data)) if opened else data), by_formula(image, REC709, 1.0)) <= 2
    )


def test_a_profile_behind_the_frame_header_of_a_jpeg_is_refused():
    """Pillow passes over it; libjpeg, and so browsers, collect markers up to the pixels."""
    data = stored(noise(3), "JPEG")
    scan = data.index(b"\xff\xda")
    icc = b"ICC_PROFILE\0\1\1" + matrix(REC709, 24.0)
    marker = b"\xff\xe2" + struct.pack(">H", len(icc) + 2) + icc
    assert "behind the frame header" in refused(data[:scan] + marker + data[scan:])
    assert open_image(data[:2] + marker + data[2:]).mode == "RGB"


# --- what is refused -----------------------------------------------------------------------------------------


def test_profiles_that_cannot_be_applied_are_refused():
    image = noise(3)
    assert "damaged" in refused(stored(image, icc_profile=b"nonsense"))
    assert "damaged" in refused(stored(image, icc_profile=SRGB[:200]))
    assert "damaged" in refused(with_chunks(image, chunk(b"iCCP", b"x\0\0not deflated")))
    assert "kind b'link'" in refused(stored(image, icc_profile=matrix(ADOBE, 2.2, kind=b"link")))
    assert "for 'HSV '" in refused(stored(image, icc_profile=matrix(ADOBE, 2.2, space=b"HSV ")))
    assert "bytes; at most" in refused(
        stored(image, "WEBP", icc_profile=matrix(ADOBE, 2.2) + bytes(MAX_PROFILE_BYTES))
    )
    assert "cicp" in str(matrix(ADOBE, 2.2, cicp=b"cicp\0\0\0\0\t\x10\0\1"))
    assert "HDR" in refused(stored(image, icc_profile=matrix(ADOBE, 2.2, cicp=b"cicp\0\0\0\0\t\x10\0\1")))
    for points in (b"\t\x10\0\1", b"\t\x12\0\1", b"\1\1\1\1", b"\1\1\0\0", b"\3\1\0\1", b"\1\1\0"):
        assert "cICP" in refused(with_chunks(image, chunk(b"cICP", points)))
    assert "gamma" in refused(with_chunks(image, gama(0)))
    assert "primaries" in refused(with_chunks(image, chrm(((0.3, 0.3), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5)))))
    assert "primaries" in refused(with_chunks(image, chrm(((0.3, 0), (0.6, 0.3), (0.3, 0.6), (0.1, 0)))))


def test_profiles_for_another_colour_space_are_refused_unless_they_change_nothing():
    grey, colour = noise(1), noise(3)
    assert apart(open_image(stored(grey, icc_profile=SRGB)), grey.convert("RGB")) == 0
    assert "for RGB on a picture in L" in refused(stored(grey, icc_profile=matrix(REC709, 24.0)))
    assert "for GRAY on a picture in RGB" in refused(stored(colour, icc_profile=grey_profile(24.0)))
    assert "for CMYK on a picture in RGB" in refused(stored(colour, icc_profile=cmyk_profile()))


def test_profiles_with_two_meanings_are_refused():
    """One table for one intent and another for the next, or a table and a matrix: each viewer takes its own."""
    ink = noise(4)
    agree = cmyk_profile(A2B1=table(4, press))
    assert open_image(stored(ink, "JPEG", icc_profile=agree)).mode == "RGB"
    negative = cmyk_profile(A2B1=table(4, lambda inks: 1 - press(inks)))
    assert "different ways" in refused(stored(ink, "JPEG", icc_profile=negative))
    white = matrix(REC709, 2.2, A2B0=table(3, lambda rgb: 1 - rgb))
    assert "different ways" in refused(stored(noise(3), icc_profile=white))


def test_sixteen_bits_under_a_steep_curve_are_refused():
    """All that eight bits keep of 0 to 255 of 65,535 is black; a gamma of 0.1 shows it in bright greys."""
    deep = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16))
    assert "too steep" in refused(with_chunks(deep, gama(10.0)))
    assert "too steep" in refused(stored(deep, icc_profile=grey_profile(0.1)))
    assert open_image(with_chunks(deep, gama(1.0))).mode == "RGB"


def test_bitmaps_with_colours_of_their_own_are_refused():
    plain = stored(noise(3), "BMP")
    pixels, (width, height) = plain[54:], noise(3).size

    def bitmap(space, rest=bytes(48)):
        head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 24, 0, len(pixels), 0, 0, 0, 0)
        head += bytes(16) + space[::-1] + rest
        return b"BM" + struct.pack("<IHHI", 122 + len(pixels), 0, 0, 122) + head + pixels

    for harmless in (b"sRGB", b"Win ", bytes(4)):
        assert apart(open_image(bitmap(harmless)), noise(3)) == 0
    assert "BMP" in refused(bitmap(b"MBED"))
    assert "BMP" in refused(bitmap(bytes(4), bytes(36) + fixed(24, 24, 24)))
