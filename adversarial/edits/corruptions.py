"""Natural corruptions: 15 kinds of noise, blur, weather and digital damage, each at five severities.

The kinds are those of Hendrycks and Dietterich 2019 (Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations, section 3.2). Their constants were chosen for 224 pixels a side. Noise, brightness, contrast, pixelate
and jpeg use them as they are; what has a length is scaled by the shorter side, with a floor so that small pictures
change too; weather is synthesised (theirs lays photographs of frost over the picture), with constants of our own.
So figures compare models here, and do not compare with published ones.

imagecorruptions (1.1.2, the newest) cannot be used: it imports pkg_resources, which setuptools has dropped;
its fog uses `np.float_`, gone from NumPy 2; its glass blur passes an argument that scikit-image has dropped; it
refuses pictures below 32 pixels; its random numbers cannot be seeded apart from NumPy's global ones; and OpenCV,
scikit-image and numba come to about 450 MB.

Random numbers are seeded by the kind and the picture's pixels: the same picture gets the same corruption in any order,
and the severities of one kind share their draws.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, signal

from adversarial.storing import through_jpeg

from .base import Edit, registered

Array = NDArray[np.float64]
CORRUPTIONS: dict[str, Edit] = {}
"""Every corruption by name, in the order of the paper."""
_SIDE = 224
"""Pixels a side for which lengths are given."""


@registered(CORRUPTIONS)
def gaussian_noise(image: Image.Image, severity: int) -> Image.Image:
    """Normal noise of standard deviation 0.08, 0.12, 0.18, 0.26, 0.38: too little light."""
    pixels, random = _open(image, "gaussian_noise")
    return _close(
        pixels + random.standard_normal(pixels.shape) * (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    )


@registered(CORRUPTIONS)
def shot_noise(image: Image.Image, severity: int) -> Image.Image:
    """Poisson noise of 60, 25, 12, 5, 3 photons for a white value: light comes in pieces."""
    pixels, random = _open(image, "shot_noise")
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return _close(random.poisson(pixels * photons) / photons)


@registered(CORRUPTIONS)
def impulse_noise(image: Image.Image, severity: int) -> Image.Image:
    """Salt and pepper on 3, 6, 9, 17, 27% of the values: bit errors."""
    pixels, random = _open(image, "impulse_noise")
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    hit, salt = random.random(pixels.shape) < share, random.random(pixels.shape) < 0.5
    return _close(np.where(hit, salt.astype(np.float64), pixels))


@registered(CORRUPTIONS)
def defocus_blur(image: Image.Image, severity: int) -> Image.Image:
    """A disc of radius 3, 4, 6, 8, 10 at 224 pixels: out of focus."""
    pixels, _ = _open(image, "defocus_blur")
    radius = max((3, 4, 6, 8, 10)[severity - 1] * _scale(image), 0.5 + 0.2 * severity)
    # A disc with a soft edge, so that fractional radii differ.
    reach = np.arange(-int(radius + 1), int(radius + 1) + 1)
    disc = np.clip(radius + 0.5 - np.hypot(reach[:, None], reach[None]), 0.0, 1.0)
    return _close(_convolve(pixels, disc))


@registered(CORRUPTIONS)
def glass_blur(image: Image.Image, severity: int) -> Image.Image:
    """Slight blur, then every pixel is looked up up to 1, 1.5, 2.2, 3, 4 away, three times over: frosted glass."""
    pixels, random = _open(image, "glass_blur")
    scale = max(_scale(image), 0.3)
    reach = (1.0, 1.5, 2.2, 3.0, 4.0)[severity - 1] * scale
    moves = random.uniform(-reach, reach, (3, 2, *pixels.shape[:2])).sum(axis=0)
    return _close(_displace(_smooth(pixels, 0.7 * scale), moves))


@registered(CORRUPTIONS)
def motion_blur(image: Image.Image, severity: int) -> Image.Image:
    """A fading streak, up to 45 degrees off the horizontal: the camera moved."""
    pixels, random = _open(image, "motion_blur")
    length, fade = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    floor = max(_scale(image), 0.2)
    return _close(_convolve(pixels, _streak(length * floor, fade * floor, random.uniform(-45, 45))))


@registered(CORRUPTIONS)
def zoom_blur(image: Image.Image, severity: int) -> Image.Image:
    """The mean of enlargements from 1 to 1.11, 1.16, 1.21, 1.26, 1.33: the camera moves towards it."""
    pixels, _ = _open(image, "zoom_blur")
    zooms = np.linspace(1, (1.11, 1.16, 1.21, 1.26, 1.33)[severity - 1], 12)
    total = np.zeros_like(pixels)
    for zoom in zooms:
        inset = (image.width * (1 - 1 / zoom) / 2, image.height * (1 - 1 / zoom) / 2)
        box = (inset[0], inset[1], image.width - inset[0], image.height - inset[1])
        total += np.asarray(image.resize(image.size, Image.Resampling.BILINEAR, box=box)) / 255.0
    return _close(total / len(zooms))


@registered(CORRUPTIONS)
def snow(image: Image.Image, severity: int) -> Image.Image:
    """A paler picture, and white flakes that fall aslant over about 3, 6, 10, 14, 19% of it."""
    pixels, random = _open(image, "snow")
    cover, pale = ((0.03, 0.1), (0.06, 0.2), (0.1, 0.3), (0.14, 0.4), (0.19, 0.5))[severity - 1]
    length = max(3.0, 12 * _scale(image))
    # Sparse seeds, which the streak kernel turns into lines.
    flakes = (random.random(pixels.shape[:2]) < cover / (1.5 * length)).astype(np.float64)
    streak = _streak(length, length, random.uniform(50, 80))
    falling = np.clip(_convolve(flakes[..., None], streak) * streak.sum() / streak.max(), 0.0, 1.0)
    grey = pixels.mean(axis=2, keepdims=True)
    paler = (1 - pale) * pixels + pale * np.maximum(pixels, grey * 0.5 + 0.5)
    return _close(paler + falling)


@registered(CORRUPTIONS)
def frost(image: Image.Image, severity: int) -> Image.Image:
    """Crystals (ridges of fractal noise) that close in from the edges and lie over 25, 40, 55, 70, 85% of the light."""
    pixels, random = _open(image, "frost")
    height, width = pixels.shape[:2]
    # Crystals follow the ridges of fractal noise, where it crosses one half.
    ridges = 1 - np.abs(2 * _clouds(random, (height, width), 1.2) - 1)
    down, across = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    edge = np.clip(np.maximum(np.abs(down), np.abs(across)), 0.0, 1.0)
    cover = ((0.25, 0.4, 0.55, 0.7, 0.85)[severity - 1] * (0.35 + 0.65 * edge))[..., None]
    ice = ridges[..., None] ** 2 * np.array([0.35, 0.3, 0.25]) + np.array([0.6, 0.68, 0.75])
    return _close(pixels * (1 - cover) + ice * cover)


@registered(CORRUPTIONS)
def fog(image: Image.Image, severity: int) -> Image.Image:
    """Clouds of fractal noise, 0.6, 1, 1.5, 2, 3 times as bright as white, with the range brought back to [0, 1]."""
    pixels, random = _open(image, "fog")
    strength = (0.6, 1.0, 1.5, 2.0, 3.0)[severity - 1]
    clouds = 0.5 + 0.5 * _clouds(random, pixels.shape[:2], 1.7)[..., None]
    return _close((pixels + strength * clouds) / (1 + strength))


@registered(CORRUPTIONS)
def brightness(image: Image.Image, severity: int) -> Image.Image:
    """Raise the value (of hue, saturation, value) by 0.1, 0.2, 0.3, 0.4, 0.5: daylight."""
    pixels, _ = _open(image, "brightness")
    # (H, W, 1) the V of HSV.
    value = pixels.max(axis=2, keepdims=True)
    higher = np.minimum(value + severity / 10, 1.0)
    # Hue and saturation are ratios of the channels, so scaling all three keeps them; black becomes grey.
    return _close(np.where(value > 0, pixels * higher / np.maximum(value, 1e-9), higher))


@registered(CORRUPTIONS)
def contrast(image: Image.Image, severity: int) -> Image.Image:
    """Keep 40, 30, 20, 10, 5% of the distance to each channel's mean."""
    pixels, _ = _open(image, "contrast")
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    return _close(mean + (pixels - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1])


@registered(CORRUPTIONS)
def elastic_transform(image: Image.Image, severity: int) -> Image.Image:
    """Stretch and squeeze regions: a smooth field of moves, 1, 1.75, 2.5, 3.5, 5% of the shorter side on average."""
    pixels, random = _open(image, "elastic_transform")
    side = min(pixels.shape[:2])
    moves = random.standard_normal((2, *pixels.shape[:2]))
    moves = np.stack([ndimage.gaussian_filter(move, max(1.0, 0.05 * side), mode="reflect") for move in moves])
    size = max(float(np.sqrt((moves**2).sum(axis=0).mean())), 1e-12)
    moves *= (0.01, 0.0175, 0.025, 0.035, 0.05)[severity - 1] * side / size
    return _close(_displace(pixels, moves))


@registered(CORRUPTIONS)
def pixelate(image: Image.Image, severity: int) -> Image.Image:
    """Shrink both sides to 60, 50, 40, 30, 25% and show every pixel as a block."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    small = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


@registered(CORRUPTIONS)
def jpeg_compression(image: Image.Image, severity: int) -> Image.Image:
    """JPEG at quality 25, 18, 15, 10, 7."""
    return through_jpeg(image, (25, 18, 15, 10, 7)[severity - 1])


def _open(image: Image.Image, kind: str) -> tuple[Array, np.random.Generator]:
    """(H, W, 3) floats in [0, 1], and a generator seeded by the kind and the picture."""
    levels = np.asarray(image)
    digest = hashlib.sha256(f"{kind}/{levels.shape}/".encode() + levels.tobytes()).digest()
    return levels / 255.0, np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _close(pixels: Array) -> Image.Image:
    return Image.fromarray((np.clip(pixels, 0.0, 1.0) * 255.0).round().astype(np.uint8))


def _scale(image: Image.Image) -> float:
    return min(image.size) / _SIDE


def _smooth(pixels: Array, sigma: float) -> Array:
    smooth: Array = ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="reflect")
    return smooth


def _displace(pixels: Array, moves: Array) -> Array:
    """(H, W, 3) pixels resampled at offsets (2, H, W), in pixels down and across."""
    places = np.indices(pixels.shape[:2]) + moves
    channels = [ndimage.map_coordinates(pixels[..., i], places, order=1, mode="reflect") for i in range(3)]
    return np.stack(channels, axis=2)


def _convolve(pixels: Array, kernel: Array) -> Array:
    """(H, W, C) convolved with a kernel of odd sides, normalised to sum 1; edges are mirrored."""
    # FFT convolution, as the kernels are as wide as tens of pixels.
    down, across = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = np.pad(pixels, ((down, down), (across, across), (0, 0)), mode="symmetric")
    kernel = (kernel / kernel.sum())[..., None]
    convolved: Array = signal.fftconvolve(padded, kernel, mode="valid", axes=(0, 1))
    return convolved


def _streak(length: float, fade: float, degrees: float) -> Array:
    """A square kernel with a line from its centre, whose weight falls off as a Gaussian of deviation `fade`."""
    reach = int(np.ceil(length)) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for step in np.arange(0.0, length + 1e-9, 0.5):
        across = reach + step * np.cos(np.radians(degrees))
        down = reach + step * np.sin(np.radians(degrees))
        left, top = int(across), int(down)
        right_share, low_share = across - left, down - top
        # Bilinear: each point of the line is shared by the four pixels around it.
        weight = np.exp(-0.5 * (step / fade) ** 2)
        kernel[top, left] += weight * (1 - right_share) * (1 - low_share)
        kernel[top, left + 1] += weight * right_share * (1 - low_share)
        kernel[top + 1, left] += weight * (1 - right_share) * low_share
        kernel[top + 1, left + 1] += weight * right_share * low_share
    return kernel


def _clouds(random: np.random.Generator, shape: tuple[int, ...], slope: float) -> Array:
    """Fractal noise in [0, 1]: white noise whose amplitude falls with frequency to the power `slope`."""
    height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    # The mean has frequency 0; avoid the division, and remove it below.
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(random.standard_normal((height, width))) / frequency**slope
    spectrum[0, 0] = 0.0
    clouds = np.fft.irfft2(spectrum, s=(height, width))
    scaled: Array = (clouds - clouds.min()) / max(float(np.ptp(clouds)), 1e-12)
    return scaled
