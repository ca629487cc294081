"""Images decoded in bulk: order, completeness, and what one image may cost the others."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from judge.data.frames import open_frames
from judge.data.images import ImageLimits
from judge.data.preprocessing import ImagePreprocessing
from judge.errors import ImageError
from judge.intake.batches import BatchDecoder

STEPS = ImagePreprocessing((20, 24), 3, (18, 22), 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PATIENCE = 120
"""Seconds that a test waits for what takes far less."""


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@cache
def good(seed: int) -> bytes:
    """Images of one view, and of several."""
    image = photo(seed)
    if seed % 4 == 1:
        return encoded(image, "GIF", save_all=True, append_images=[image.rotate(90 * n) for n in (1, 2)])
    if seed % 4 == 2:
        image.putalpha(100)
        return encoded(image)
    return encoded(image, "JPEG" if seed % 4 else "PNG")


@cache
def slow() -> bytes:
    """An animation of many frames: some seconds of work in 3 MB."""
    frames = [Image.new("P", (1500, 1500), level) for level in range(120)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


@cache
def hungry() -> bytes:
    return encoded(Image.new("RGBA", (6000, 4000)), compress_level=1)


@dataclass
class Source:
    """An image as a reader gives it; may do something when it is read."""

    data: bytes
    when_read: Callable[[], object] = field(default=lambda: None)

    def __bytes__(self) -> bytes:
        self.when_read()
        return self.data


def fail_with(error: BaseException) -> Source:
    def fail() -> None:
        raise error

    return Source(b"", fail)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def decoder() -> Iterator[BatchDecoder]:
    """Two workers that give up soon."""
    with BatchDecoder(
        2, ImageLimits(max_bytes=10**7), preprocessing=STEPS, seconds=0.5, memory=150 * 10**6
    ) as decoder:
        yield decoder


def test_blocks_come_in_order_with_the_pixels_of_the_one_image_path(decoder: BatchDecoder) -> None:
    files = [good(seed) for seed in range(37)]
    bounds = [0, 1, 1, 20, 22, 37]
    blocks = [(n, [Source(data) for data in files[slice(*bounds[n : n + 2])]]) for n in range(5)]
    found = list(decoder.open_blocks(blocks))
    assert [key for key, _ in found] == list(range(5))
    assert [len(block.rows) for _, block in found] == [1, 0, 19, 2, 15]
    images = np.concatenate([block.images for _, block in found])
    wanted = [open_frames(data) for data in files]
    assert np.array_equal(images, [STEPS.resized(image) for frames in wanted for image in frames.images])
    rows = [row for _, block in found for row in block.rows]
    for row, frames, data in zip(rows, wanted, files, strict=True):
        assert row.problem is None
        assert row.sha256 == hashlib.sha256(data).hexdigest()
        assert row.frames == frames._replace(images=[])
        assert row.views == len(frames.images)
    assert sum(block.size for _, block in found) == sum(map(len, files))
    assert sum(block.decode_seconds for _, block in found) > 0


def test_without_preprocessing_images_come_as_they_are_judged() -> None:
    files = [good(1), good(2), encoded(photo(3, 1300, 1100), compress_level=0)]
    with BatchDecoder(1) as decoder:
        [(_, block)] = decoder.open_blocks([("", [Source(data) for data in files])])
    wanted = [image for data in files for image in open_frames(data).images]
    for one, other in zip(block.images, wanted, strict=True):
        assert (one.mode, one.info) == ("RGB", {})
        assert np.array_equal(np.asarray(one), np.asarray(other))


POISONS: dict[str, tuple[Callable[[], Source | ImageError], str]] = {
    "slow": (lambda: Source(slow()), "timeout"),
    "hungry": (lambda: Source(hungry()), "out_of_memory"),
    "cut": (lambda: Source(encoded(photo(), "JPEG")[:-200]), "truncated"),
    "text": (lambda: Source(b"text"), "not_an_image"),
    "nothing": (lambda: Source(b""), "not_an_image"),
    "large": (lambda: Source(bytes(10**7 + 1)), "too_large"),
    "vector": (lambda: Source(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "unsupported_format"),
    "known": (lambda: ImageError("missing", "no such file"), "missing"),
    "refused": (lambda: fail_with(ImageError("url_failed", "gone")), "url_failed"),
    "broken disk": (lambda: fail_with(OSError(5, "Input/output error")), "unreadable"),
    "broken library": (lambda: fail_with(KeyError("bucket")), "unreadable"),
}


@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    poisons=st.lists(
        st.tuples(st.sampled_from(sorted(POISONS)), st.integers(0, 30)), max_size=3, unique_by=lambda p: p[1]
    ),
    block_rows=st.integers(1, 40),
)
def test_a_poisoned_image_costs_its_own_row(
    decoder: BatchDecoder, poisons: list[tuple[str, int]], block_rows: int
) -> None:
    bad = {place: name for name, place in poisons}
    sources = [POISONS[bad[place]][0]() if place in bad else Source(good(place)) for place in range(31)]
    blocks = [(start, sources[start : start + block_rows]) for start in range(0, 31, block_rows)]
    found = list(decoder.open_blocks(blocks))
    rows = [row for _, block in found for row in block.rows]
    statuses = {place: row.problem.status for place, row in enumerate(rows) if row.problem}
    assert statuses == {place: POISONS[name][1] for place, name in bad.items()}
    wanted = [
        STEPS.resized(image)
        for place in range(31)
        if place not in bad
        for image in open_frames(good(place)).images
    ]
    images = np.concatenate([block.images for _, block in found])
    assert np.array_equal(images, wanted or np.empty((0, 18, 22, 3)))
    assert all(alive(pid) for pid in decoder.pids)
