"""What a hostile or a merely large file may cost: memory, time, and how much of it stays behind."""

import struct
import subprocess
import sys
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from judge.data.frames import open_frames
from judge.data.images import MAX_JPEG_SCANS, MAX_JUDGED_PIXELS, MAX_WEBP_PIXELS, ImageLimits, open_image
from judge.errors import ImageError
from judge.inputs import open_input


def stored(image, kind, **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def webp_header(width, height):
    """A lossless WebP of 36 bytes that claims any size."""
    bits = (width - 1) | (height - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes(11)
    return b"RIFF" + struct.pack("<I", 4 + 8 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


MEASURE = """
import resource, sys
from pathlib import Path
from judge.data.frames import open_frames
from judge.data.images import open_image
from judge.errors import ImageError
held = []
for path in sys.argv[1:]:
    try:
        held += open_frames(path).images if "moving" in path else [open_image(path)]
    except ImageError as error:
        print(path.rpartition("/")[2], error.status)
# Linux counts the parent, before this program was loaded, in ru_maxrss; not in VmHWM.
own = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(own[0] if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(*paths):
    """Most memory (MB) that an interpreter held which opened these files, Python, numpy and results included."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True, check=True
    )
    *said, last = done.stdout.split("\n")[:-1]
    return said, int(last) / 1024


LARGE = {
    "clear.png": lambda: stored(Image.new("RGBA", (6000, 4000), (9, 9, 9, 99)), "PNG", compress_level=1),
    "inks.jpg": lambda: stored(Image.new("CMYK", (6000, 4000)), "JPEG", progressive=True, subsampling=0),
    "small.webp": lambda: stored(
        Image.new("RGBA", (4080, 3056), (9, 9, 9, 99)), "WEBP", lossless=True, quality=0, method=0
    ),
    "moving.webp": lambda: stored(
        Image.new("RGB", (3200, 2500)),
        "WEBP",
        save_all=True,
        append_images=[Image.new("RGB", (3200, 2500), (20 * number, 0, 0)) for number in (1, 2)],
        method=0,
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_images_take_less_than_300_megabytes(tmp_path, name):
    (tmp_path / name).write_bytes(LARGE[name]())
    said, megabytes = peak(tmp_path / name)
    assert said == []
    assert megabytes < 300


def test_a_folder_of_small_webp_files_that_claim_to_be_large(tmp_path):
    """36 bytes each: they took 1.2 GB and 2.4 seconds, eight of them 3 GB."""
    data = webp_header(7000, 7000)
    assert len(data) == 36
    paths = [tmp_path / f"{number}.webp" for number in range(8)]
    for path in paths:
        path.write_bytes(data)
    said, megabytes = peak(*paths)
    assert said == [f"{number}.webp too_many_pixels" for number in range(8)]
    assert megabytes < 80


@pytest.mark.parametrize("kind", ["VP8L", "VP8X", "VP8 "])
def test_the_canvas_of_a_webp_is_counted_before_it_is_made(kind, monkeypatch):
    image = Image.new(
        "RGBA" if kind == "VP8X" else "RGB", (40, 30), (1, 2, 3, 4)[: 4 if kind == "VP8X" else 3]
    )
    data = stored(image, "WEBP", lossless=kind == "VP8L")
    assert data[12:16].decode() == kind
    assert open_image(data).size == (40, 30)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ImageError, match="too_many_pixels: 40 x 30; at most 1,199 pixels"):
        open_image(data, ImageLimits(max_pixels=1199))


def test_default_limits():
    assert ImageLimits().max_pixels == 24_000_000
    for size, kind in (((6001, 4000), "PNG"), ((5000, MAX_WEBP_PIXELS // 5000 + 1), "WEBP")):
        head = struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0)
        head = b"IHDR" + head
        png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        with pytest.raises(ImageError, match="too_many_pixels"):
            open_image(png + b"\0\0\0\0IDAT\x35\xaf\x06\x1e" if kind == "PNG" else webp_header(*size))


@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_bombs_are_refused_whatever_becomes_of_warnings(side, action):
    """Pillow warns of the first, which nothing may let pass, and refuses the others itself."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    data += b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        for opened in (open_image, open_frames):
            with pytest.raises(ImageError, match="too_many_pixels: "):
                opened(data)


def gradient(width, height):
    down = Image.linear_gradient("L").resize((width, height))
    across = Image.linear_gradient("L").rotate(90).resize((width, height))
    return Image.merge("RGB", [across, down, down])


def test_ordinary_sizes_are_judged_at_their_own():
    image = gradient(2048, 2048)
    assert np.array_equal(open_image(stored(image, "PNG", compress_level=1)), image)
    assert open_image(stored(image, "JPEG")).size == (2048, 2048)


@pytest.mark.parametrize("size", [(2049, 2048), (2600, 2000), (4100, 4100)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_larger_ones_in_a_fraction_of_theirs(size, kind):
    """Means of 2 x 2 or 4 x 4 pixels, whoever computes them; and what was reduced is not reduced again."""
    image = gradient(*size)
    options = {"quality": 95} if kind == "JPEG" else {"compress_level": 1}
    seen = open_image(stored(image, kind, **options))
    factor = 4 if size == (4100, 4100) else 2
    assert seen.size == (-(-size[0] // factor), -(-size[1] // factor))
    assert seen.width * seen.height <= MAX_JUDGED_PIXELS
    difference = np.abs(np.asarray(seen, dtype=int) - np.asarray(image.reduce(factor), dtype=int))
    assert difference.max() <= (6 if kind == "JPEG" else 0)
    assert open_input(seen) is seen
    assert open_image(seen).size == seen.size


def test_an_opened_jpeg_is_left_as_it_was():
    image = Image.open(BytesIO(stored(gradient(2600, 2000), "JPEG")))
    assert open_image(image).size == (1300, 1000)
    assert image.size == (2600, 2000)


def test_transparency_survives_the_reduction():
    image = Image.new("RGBA", (2600, 2000), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 1300, 2000))
    seen = np.asarray(open_image(stored(image, "PNG", compress_level=1)))
    assert seen.shape == (1000, 1300, 3)
    assert (seen[:, :650] == [255, 0, 0]).all()
    assert (seen[:, 650:] == 255).all()


def test_a_jpeg_of_endless_scans_is_refused():
    """Each passes over all coefficients, in 43 bytes: 32 MB of them would take hours."""
    data = stored(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert open_image(data[:-2] + last * 20 + data[-2:]).size == (64, 64)
    with pytest.raises(ImageError, match=f"more than {MAX_JPEG_SCANS} scans"):
        open_image(data[:-2] + last * MAX_JPEG_SCANS + data[-2:])


def test_animations_may_have_a_third_of_the_pixels():
    frames = [Image.new("L", (40, 30), level) for level in (0, 99)]
    data = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_frames(data, ImageLimits(max_pixels=3600)).total == 2
    with pytest.raises(ImageError, match="at most 1,199 pixels"):
        open_frames(data, ImageLimits(max_pixels=3599))
