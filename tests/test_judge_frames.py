"""Frames of an animation: which are judged, and which of the others they stand for."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from judge.data import frames
from judge.data.frames import MAX_DIFFERENCE, MAX_FRAMES, open_frames
from judge.data.images import pixels_hash
from judge.errors import ConfigError, ImageError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def animation(*colours: tuple[int, int, int], kind: str = "GIF", size: int = 4, **options: object) -> bytes:
    made = [Image.new("RGB", (size, size), colour) for colour in colours]
    return encoded(made[0], kind, save_all=True, append_images=made[1:], **options)


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in pixel) for pixel in np.asarray(image).reshape(-1, 3)]


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_one_other_frame_among_many_is_found(kind: str) -> None:
    """Frames 0, 8, 16 ... of 41 would miss it."""
    options = {"lossless": True} if kind == "WEBP" else {}
    colours = [(0, 200 + number, 0) for number in range(41)]
    colours[13] = RED
    found = open_frames(animation(*colours, kind=kind, **options), max_frames=4)
    assert found.total == 41
    assert len(found.images) == len(found.numbers) == 4
    assert found.numbers[0] == 0
    red = found.images[found.numbers.index(13)]
    assert set(pixels(red)) == {RED}
    assert {image.mode for image in found.images} == {"RGB"}


def test_frames_of_a_still_and_of_an_animation_that_stands_still() -> None:
    still = open_frames(encoded(photo()))
    assert (still.numbers, still.total) == ([0], 1)
    assert pixels_hash(still.images[0]) == pixels_hash(photo())
    moving = open_frames(animation(GREEN, RED, GREEN, RED, kind="WEBP", lossless=True))
    assert (moving.numbers, moving.total) == ([0, 1], 4)


def test_the_hidden_default_image_of_an_animated_png_is_one_of_its_frames() -> None:
    found = open_frames(animation(BLUE, GREEN, RED, kind="PNG", default_image=True))
    assert [set(pixels(image)) for image in found.images] == [{BLUE}, {GREEN}, {RED}]


def test_long_animations_and_damaged_frames_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = animation(GREEN, RED, BLUE)
    with pytest.raises(ImageError, match=r"^(truncated|unreadable): "):
        open_frames(data[: len(data) - 12])
    monkeypatch.setattr(frames, "MAX_ANIMATION_PIXELS", 47)
    with pytest.raises(ImageError, match="too_many_pixels: 3 frames of 4 x 4"):
        open_frames(data)
    with pytest.raises(ConfigError, match="at least 1"):
        open_frames(data, max_frames=0)


colour = st.tuples(*[st.integers(0, 255)] * 3)


@settings(max_examples=40)
@given(st.lists(colour, min_size=2, max_size=12, unique=True), st.integers(1, 6))
def test_every_frame_is_judged_or_like_one_that_is_or_counted(colours, max_frames) -> None:
    found = open_frames(animation(*colours, kind="PNG", size=2), max_frames=max_frames)
    assert found.total == len(colours)
    assert len(found.images) <= max_frames
    judged = np.array([pixels(image)[0] for image in found.images], dtype=float)
    nearest = [np.abs(judged - np.array(one)).sum(axis=1).min() / 3 for one in colours]
    assert found.unrepresented == sum(distance > MAX_DIFFERENCE for distance in nearest)
    assert found.unrepresented == 0 or len(found.images) == max_frames


def test_few_frames_are_all_judged_and_large_ones_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = [(0, 0, level) for level in range(0, 250, 5)]
    assert open_frames(animation(*colours[:MAX_FRAMES], kind="PNG")).numbers == list(range(MAX_FRAMES))
    monkeypatch.setattr(frames, "MAX_HELD_PIXELS", 3 * 16)
    found = open_frames(animation(*colours, kind="PNG"))
    assert (len(found.images), found.unrepresented) == (
        3,
        0,
    )  # blue is a third of a colour: 245 / 4 / 3 is under 24
