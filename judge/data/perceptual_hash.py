"""Which images are copies of each other: equal pixel by pixel, or nearly so.

Two images are near copies if their perceptual hashes (pHash: signs of the lowest 8 x 8 frequencies of the grey picture,
through the library imagehash) differ in at most `DISTANCE` of 64 bits, and their grey thumbnails correlate by at least
`CORRELATION`. The hash finds candidates fast; the thumbnail throws out those that only have a similar layout. On digits
and signs (`scripts/measure_copies.py`) this finds 98 % of copies as JPEG of quality 30, of another size or brightness,
and 94 to 98 % of those cut by 2 % on each side, and takes 0 to 0.2 % of different images for copies. Hashes alone do so
for 5 to 25 %; at 4 bits for 0 to 0.6 %, but then a quarter to a half of the cut copies is missed. Copies that were
turned, mirrored or cut by 5 % are not found.

Nearly uniform pictures, such as an empty canvas, all have much the same hash, or one made of noise. They are near
copies of nothing (`ImageHashes.flat`); only exact ones of them are found.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from judge.errors import ImageError

from .images import DEFAULT_LIMITS, ImageLimits, ImageSource, open_image, pixels_hash
from .sources import Skipped

if TYPE_CHECKING:
    from PIL import Image

DISTANCE = 10
"""Most bits of 64 in which the hashes of near copies differ."""
CORRELATION = 0.95
"""Least correlation of the thumbnails of near copies."""
FLAT = 2.0
"""Standard deviation of a thumbnail, in grey levels of 255, below which a picture counts as uniform."""
SIDE = 16
"""Of a thumbnail, in pixels."""
_CHUNK = 2**22
"""Pairs of hashes compared at a time: 32 MB."""

Hashes = NDArray[np.uint64]
Pairs = NDArray[np.int64]


@dataclass(frozen=True)
class ImageHashes:
    """What copies of N images are found by."""

    ids: tuple[str, ...]
    pixels: tuple[str, ...]
    """`pixels_hash` of each."""
    perceptual: Hashes
    """(N,) pHash, the lowest frequency in the highest bit."""
    thumbnails: NDArray[np.uint8]
    """(N, 16, 16) grey levels."""
    skipped: tuple[Skipped, ...] = ()
    """Images that could not be opened; they are in none of the other fields."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, places: NDArray[np.int64]) -> "ImageHashes":
        """Those of some images, by their places."""
        chosen = places.tolist()
        return ImageHashes(
            tuple(self.ids[place] for place in chosen),
            tuple(self.pixels[place] for place in chosen),
            self.perceptual[places],
            self.thumbnails[places],
        )

    @property
    def flat(self) -> NDArray[np.bool_]:
        """(N,) whether the picture is nearly uniform, so that its perceptual hash says nothing."""
        return np.asarray(self.thumbnails.std(axis=(1, 2)) < FLAT)


@dataclass(frozen=True)
class ImageHash:
    """What copies of one image are found by: see `ImageHashes`."""

    pixels: str
    perceptual: int
    thumbnail: NDArray[np.uint8]


def hash_image(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> ImageHash:
    """Open an image and hash it.

    Raises:
        ImageError: it cannot be opened.
    """
    image = open_image(source, limits)
    return ImageHash(pixels_hash(image), perceptual_hash(image), _thumbnail(image))


def hash_images(
    images: Iterable[tuple[str, ImageSource]], limits: ImageLimits = DEFAULT_LIMITS
) -> ImageHashes:
    """Hash images one after another, so that only one of them is open at a time.

    Args:
        images: (id, image) pairs; a generator will do.
        limits: passed to `open_image`.
    """
    return gather_hashes((name, partial(hash_image, source, limits)) for name, source in images)


def gather_hashes(images: Iterable[tuple[str, Callable[[], ImageHash]]]) -> ImageHashes:
    """The hashes of images, of which those that cannot be opened are in `skipped`.

    Args:
        images: (id, what hashes the image or raises `ImageError`) pairs.
    """
    ids: list[str] = []
    hashes: list[ImageHash] = []
    skipped: list[Skipped] = []
    for name, hashed in images:
        try:
            hashes.append(hashed())
            ids.append(name)
        except ImageError as error:
            skipped.append(Skipped(name, error.status, error.reason))
    return ImageHashes(
        tuple(ids),
        tuple(one.pixels for one in hashes),
        np.array([one.perceptual for one in hashes], dtype=np.uint64),
        np.array([one.thumbnail for one in hashes], dtype=np.uint8).reshape(-1, SIDE, SIDE),
        tuple(skipped),
    )


def perceptual_hash(image: "Image.Image") -> int:
    """The 64-bit pHash of an image that `open_image` returned."""
    import imagehash

    bits = imagehash.phash(image).hash  # (8, 8) bool
    return int.from_bytes(np.packbits(bits.ravel()).tobytes())


def near(a: Hashes, b: Hashes, distance: int = DISTANCE) -> Pairs:
    """All pairs of hashes that differ in at most `distance` bits, found by comparing every two.

    Works in chunks: beside the answer, which takes 16 bytes a pair, it holds about 100 MB.

    Args:
        a: (N,) hashes.
        b: (M,) hashes.
        distance: from 0 to 64.

    Returns:
        (P, 2) places in `a` and in `b`, sorted.
    """
    return np.concatenate([np.zeros((0, 2), dtype=np.int64), *_near_chunks(a, b, distance)])


def exact_copies(a: ImageHashes, b: ImageHashes) -> Pairs:
    """(P, 2) places in `a` and in `b` of images with equal pixels; of several in `b`, the first."""
    places = {pixels: place for place, pixels in reversed(list(enumerate(b.pixels)))}
    found = [(place, places[pixels]) for place, pixels in enumerate(a.pixels) if pixels in places]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def near_copies(
    a: ImageHashes, b: ImageHashes, distance: int = DISTANCE, correlation: float = CORRELATION
) -> Pairs:
    """(P, 2) places in `a` and in `b` of near copies, exact ones among them; nearly uniform pictures are in no pair.

    Args:
        a: hashes of N images.
        b: hashes of M images; `a` itself to find copies within it, where each pairs with itself as well.
        distance: most bits in which their hashes differ.
        correlation: least correlation of their thumbnails, in [-1, 1].
    """
    from_a, from_b = np.flatnonzero(~a.flat), np.flatnonzero(~b.flat)
    one, two = _standardised(a.thumbnails[from_a]), _standardised(b.thumbnails[from_b])
    found = [np.zeros((0, 2), dtype=np.int64)]
    for pairs in _near_chunks(a.perceptual[from_a], b.perceptual[from_b], distance):
        left, right = pairs.T
        # In parts, as one chunk of hashes may be pairs throughout.
        for start in range(0, len(pairs), 2**16):
            part = slice(start, start + 2**16)
            alike = np.einsum("ij,ij->i", one[left[part]], two[right[part]]) >= correlation
            found.append(np.stack([from_a[left[part][alike]], from_b[right[part][alike]]], axis=1))
    return np.concatenate(found)


def _near_chunks(a: Hashes, b: Hashes, distance: int) -> Iterator[Pairs]:
    step = max(1, _CHUNK // max(1, len(b)))
    for start in range(0, len(a), step):
        different = np.bitwise_count(a[start : start + step, None] ^ b[None, :])  # (step, M)
        pairs = np.argwhere(different <= distance)
        pairs[:, 0] += start
        yield pairs


def _thumbnail(image: "Image.Image") -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _standardised(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 256) with mean 0 and length 1, so that a product of two rows is their correlation."""
    rows = thumbnails.reshape(len(thumbnails), SIDE * SIDE).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)  # never 0, as flat ones were left out
    return rows
