import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adversarial.edits.base import SEVERITIES
from adversarial.edits.corruptions import CORRUPTIONS
from adversarial.errors import AttackError


def picture(width=64, height=48):
    down, across = np.mgrid[0:height, 0:width]
    red = 127 + 100 * np.sin(across / 2) * np.sin(down / 2)
    green = np.where(across > width / 2, 180, 50) + 0 * down
    blue = np.where(np.hypot(across - width / 3, down - height / 2) < min(width, height) / 4, 200, 30)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def distance(one, other):
    return float(np.sqrt(((np.asarray(one, dtype=float) - np.asarray(other, dtype=float)) ** 2).mean()))


def test_there_are_fifteen() -> None:
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize("size", [(40, 40), (96, 64)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_more_severity_is_more_distortion(name: str, size: tuple[int, int]) -> None:
    image = picture(*size)
    sizes = [distance(CORRUPTIONS[name](image, severity), image) for severity in SEVERITIES]
    assert sizes[0] > 1.0
    assert all(after > before for before, after in itertools.pairwise(sizes)), sizes


@pytest.mark.parametrize("name", CORRUPTIONS)
@given(st.integers(8, 64), st.integers(8, 64), st.sampled_from(SEVERITIES))
@settings(max_examples=15)
def test_any_size_is_damaged_alike_each_time(name: str, width: int, height: int, severity: int) -> None:
    image = picture(width, height)
    before = image.tobytes()
    np.random.seed(width)
    once = CORRUPTIONS[name](image, severity)
    again = CORRUPTIONS[name](image.copy(), severity)
    assert image.tobytes() == before
    assert once.mode == "RGB"
    assert once.size == image.size
    assert once.tobytes() == again.tobytes()
    assert once.tobytes() != before


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_one_pixel_and_plain_pictures_are_no_error(name: str) -> None:
    for image in (
        Image.new("RGB", (1, 1)),
        Image.new("RGB", (1, 9), (255, 255, 255)),
        Image.new("RGB", (9, 9)),
    ):
        for severity in SEVERITIES:
            assert CORRUPTIONS[name](image, severity).size == image.size


def test_pictures_do_not_share_their_noise() -> None:
    grey = [Image.new("RGB", (32, 32), (level,) * 3) for level in (120, 130)]
    one, other = (np.asarray(CORRUPTIONS["gaussian_noise"](image, 1), dtype=float).ravel() for image in grey)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_noise_has_the_size_it_claims() -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    noisy = np.asarray(CORRUPTIONS["gaussian_noise"](grey, 1)) / 255.0
    assert noisy.std() == pytest.approx(0.08, rel=0.05)
    shot = np.asarray(CORRUPTIONS["shot_noise"](grey, 1)) / 255.0
    assert shot.std() == pytest.approx(np.sqrt(0.5 / 60), rel=0.07)
    hit = np.asarray(CORRUPTIONS["impulse_noise"](grey, 5)) != 128
    assert hit.mean() == pytest.approx(0.27, abs=0.02)


def test_blurs_keep_the_light() -> None:
    image = picture()
    for name in ("defocus_blur", "glass_blur", "motion_blur"):
        blurred = np.asarray(CORRUPTIONS[name](image, 2), dtype=float)
        assert blurred.mean() == pytest.approx(np.asarray(image, dtype=float).mean(), abs=4)
        if name == "glass_blur":  # frosted glass is grainy
            continue
        edges = np.abs(np.diff(blurred, axis=1)).mean()
        assert edges < np.abs(np.diff(np.asarray(image, dtype=float), axis=1)).mean()


def test_brightness_keeps_the_hue() -> None:
    pixel = Image.new("RGB", (2, 2), (100, 50, 0))
    assert CORRUPTIONS["brightness"](pixel, 2).getpixel((0, 0)) == (151, 76, 0)
    assert CORRUPTIONS["brightness"](Image.new("RGB", (2, 2)), 1).getpixel((0, 0)) == (26, 26, 26)


def test_what_cannot_be_damaged_is_refused() -> None:
    with pytest.raises(AttackError, match="RGB"):
        CORRUPTIONS["fog"](Image.new("RGBA", (8, 8)), 1)
    with pytest.raises(AttackError, match="severity"):
        CORRUPTIONS["fog"](picture(), 6)
