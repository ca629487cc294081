"""Edits that platforms and users make: recompressing, resizing, cropping, framing, stickers.

They happen to shared pictures without any attacker. They have no epsilon, so they are reported separately. Each edit
takes an RGB picture and a severity from 1 to 5 and returns an RGB picture, deterministically; those in `RESIZING`
change its size. `grid` is the paper's case study of tiled pictures (UnsafeBench, section on AI-generated images: 2x2,
3x3, 4x4); the other kinds follow what AugLy offers (Papakipos and Bitton 2022).

AugLy itself cannot be used: 1.0.0, the newest, needs Pillow below 9, and this project Pillow 12 or newer.
"""

from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from adversarial.storing import through_jpeg

from .base import Edit, registered

RESIZING = frozenset({"crop", "screenshot", "padding", "meme"})
"""Edits whose result has another size."""
EDITS: dict[str, Edit] = {}
"""Every platform edit by name."""

_LIGHT, _DARK = (240, 242, 245), (28, 30, 33)


@registered(EDITS)
def jpeg(image: Image.Image, severity: int) -> Image.Image:
    """Recompress at quality 80, 60, 40, 25, 10."""
    return through_jpeg(image, (80, 60, 40, 25, 10)[severity - 1])


@registered(EDITS)
def resize(image: Image.Image, severity: int) -> Image.Image:
    """Shrink both sides to 80, 60, 45, 30, 20% and enlarge again."""
    share = (0.8, 0.6, 0.45, 0.3, 0.2)[severity - 1]
    return image.resize(_scaled(image, share), Image.Resampling.BILINEAR).resize(
        image.size, Image.Resampling.BICUBIC
    )


@registered(EDITS)
def crop(image: Image.Image, severity: int) -> Image.Image:
    """Keep the middle 90, 80, 70, 60, 50% of both sides."""
    width, height = _scaled(image, (0.9, 0.8, 0.7, 0.6, 0.5)[severity - 1])
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


@registered(EDITS)
def grid(image: Image.Image, severity: int) -> Image.Image:
    """Tile copies on a canvas of the same size: 2x2, 3x3, 4x4 as UnsafeBench does, then 5x5 and 6x6."""
    count = severity + 1
    # Tiles of nearly equal size that cover the canvas exactly, whatever the remainder.
    columns, lines = _cuts(image.width, count), _cuts(image.height, count)
    canvas = Image.new("RGB", image.size)
    for left, right in columns:
        for top, bottom in lines:
            if right > left and bottom > top:
                tile = image.resize((right - left, bottom - top), Image.Resampling.BOX)
                canvas.paste(tile, (left, top))
    return canvas


@registered(EDITS)
def screenshot(image: Image.Image, severity: int) -> Image.Image:
    """Show the picture on a phone's screen, with bars above and below; it keeps 90, 80, 70, 60, 50% of the height."""
    share = (0.9, 0.8, 0.7, 0.6, 0.5)[severity - 1]
    height = max(image.height + 2, round(image.height / share))
    side = max(1, round(image.width * (1 - share) / 8))
    canvas = Image.new("RGB", (image.width + 2 * side, height), _LIGHT)
    draw, bar = ImageDraw.Draw(canvas), max(1, (height - image.height) // 2)
    draw.rectangle((0, 0, canvas.width, bar - 1), fill=_DARK)
    dot = max(1, bar // 3)
    for place in range(3):  # clock, signal, battery
        left = canvas.width - (place + 1) * 2 * dot
        draw.rectangle((left, bar // 3, left + dot - 1, bar // 3 + dot - 1), fill=_LIGHT)
    below = bar + image.height
    for place in range(5):  # buttons under the picture
        middle = (2 * place + 1) * canvas.width // 10
        draw.ellipse((middle - dot / 2, below + bar / 3, middle + dot / 2, below + bar / 3 + dot), fill=_DARK)
    canvas.paste(image, (side, bar))
    return canvas


@registered(EDITS)
def padding(image: Image.Image, severity: int) -> Image.Image:
    """Put the picture in the middle of a white square that is 1.1, 1.25, 1.5, 1.75, 2 times its longer side."""
    side = max(max(image.size) + 2, round(max(image.size) * (1.1, 1.25, 1.5, 1.75, 2.0)[severity - 1]))
    canvas = Image.new("RGB", (side, side), (255, 255, 255))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


@registered(EDITS)
def meme(image: Image.Image, severity: int) -> Image.Image:
    """Put a white band with a caption above the picture, of 15, 20, 25, 35, 50% of its height."""
    from .writing import place_text  # imported here, as writing.py imports edits

    band = max(1, round(image.height * (0.15, 0.2, 0.25, 0.35, 0.5)[severity - 1]))
    canvas = Image.new("RGB", (image.width, image.height + band), (255, 255, 255))
    caption = place_text((image.width, band), "when you see it", max(1, band * 2 // 3), "centre")
    canvas.paste((0, 0, 0), (0, 0), caption)
    canvas.paste(image, (0, band))
    return canvas


@registered(EDITS)
def blur(image: Image.Image, severity: int) -> Image.Image:
    """Gaussian blur of 0.5, 1, 1.5, 2, 3% of the shorter side, half a pixel at least."""
    share = (0.005, 0.01, 0.015, 0.02, 0.03)[severity - 1]
    # A floor in pixels, so that small pictures change at every severity.
    radius = max(share * min(image.size), 0.4 + 0.1 * severity)
    return image.filter(ImageFilter.GaussianBlur(radius))


@registered(EDITS)
def grayscale(image: Image.Image, severity: int) -> Image.Image:
    """Remove 20, 40, 60, 80, 100% of the colour."""
    return ImageEnhance.Color(image).enhance(1 - severity / 5)


@registered(EDITS)
def flip(image: Image.Image, severity: int) -> Image.Image:
    """Mirror left and right; every severity is the same."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@registered(EDITS)
def rotation(image: Image.Image, severity: int) -> Image.Image:
    """Turn by 3, 7, 12, 20, 30 degrees on a black ground."""
    return image.rotate((3, 7, 12, 20, 30)[severity - 1], Image.Resampling.BICUBIC)


@registered(EDITS)
def brightness(image: Image.Image, severity: int) -> Image.Image:
    """Darken to 85, 70, 55, 40, 25%, as a night filter does."""
    return ImageEnhance.Brightness(image).enhance((0.85, 0.7, 0.55, 0.4, 0.25)[severity - 1])


@registered(EDITS)
def contrast(image: Image.Image, severity: int) -> Image.Image:
    """Stretch contrast around the mean grey, 1.2, 1.5, 2, 2.75, 4 times; bright and dark parts saturate."""
    return ImageEnhance.Contrast(image).enhance((1.2, 1.5, 2.0, 2.75, 4.0)[severity - 1])


@registered(EDITS)
def stripes(image: Image.Image, severity: int) -> Image.Image:
    """Cover 10, 20, 30, 40, 50% of the height by eight black stripes from side to side, fewer on small pictures."""
    levels = np.asarray(image).copy()
    count = max(1, min(8, image.height // 10))
    line = np.arange(image.height)
    # Position of each line within its stripe period, in [0, 1).
    within = (line + 0.5) * count / image.height % 1
    levels[within >= 1 - severity / 10] = 0
    return Image.fromarray(levels)


@registered(EDITS)
def stickers(image: Image.Image, severity: int) -> Image.Image:
    """Put 1, 2, 3, 4, 5 round yellow faces on fixed places, each a fifth of the shorter side wide."""
    canvas = image.copy()
    draw = ImageDraw.Draw(canvas)
    size = max(2.0, min(image.size) / 5)
    places = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
    for across, down in places[:severity]:
        left, top = across * image.width - size / 2, down * image.height - size / 2
        draw.ellipse((left, top, left + size, top + size), fill=(255, 205, 50))
        for eye in (0.32, 0.68):
            draw.ellipse(
                (
                    left + (eye - 0.07) * size, top + 0.28 * size,
                    left + (eye + 0.07) * size, top + 0.45 * size,
                ),
                fill=(60, 40, 10),
            )  # fmt: skip
        mouth = (left + 0.25 * size, top + 0.3 * size, left + 0.75 * size, top + 0.8 * size)
        draw.arc(mouth, 20, 160, fill=(60, 40, 10), width=max(1, round(size / 16)))
    return canvas


def _scaled(image: Image.Image, share: float) -> tuple[int, int]:
    return max(1, round(image.width * share)), max(1, round(image.height * share))


def _cuts(length: int, count: int) -> list[tuple[int, int]]:
    """Split `length` pixels into `count` intervals (from, to) of nearly equal length."""
    edges = [round(place * length / count) for place in range(count + 1)]
    return list(pairwise(edges))
