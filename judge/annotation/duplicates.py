"""Near copies among collected images: one of each group is annotated (UnsafeBench, section 3.1, "removing duplicates").

No file is deleted or moved; the answer is three lists.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from judge.data.images import ImageLimits, read_header
from judge.data.perceptual_hash import hash_images, near_copies

from .images import Folder, Picture

_LIMITS = ImageLimits(frames="first")
"""Animations are compared by their first frame."""


@dataclass(frozen=True)
class Copy:
    """An image that need not be annotated."""

    picture: Picture
    of: str
    """Name of the image that is kept in its place; the two are compared directly, and not through a third one."""
    exact: bool
    """Whether all pixels are equal."""


@dataclass(frozen=True)
class Deduplicated:
    """Every image in one of three lists, in the order in which they were given."""

    kept: tuple[Picture, ...]
    copies: tuple[Copy, ...]
    unreadable: tuple[tuple[Picture, str], ...]
    """With the reason: what cannot be opened can neither be compared nor annotated."""


def find_copies(
    pictures: Sequence[Picture],
    folder: Folder,
    *,
    progress: Callable[[Iterable[Picture]], Iterable[Picture]] = iter,
) -> Deduplicated:
    """Keep one of each group of near copies (`judge.data.perceptual_hash`): that of most pixels, then the first name.

    Each image is compared with the larger ones that are kept, so a chain of small changes does not make copies of its
    ends. Nearly uniform pictures are copies only if all pixels are equal.

    Args:
        pictures: of one folder, each once.
        folder: that they are in.
        progress: passes images on, one by one as they are opened.
    """
    hashes = hash_images(
        ((picture.name, folder.path / picture.name) for picture in progress(pictures)), _LIMITS
    )
    sizes = {name: _pixels(folder, name) for name in hashes.ids}
    order = sorted(range(len(hashes)), key=lambda place: (-sizes[hashes.ids[place]], hashes.ids[place]))
    rank = {place: position for position, place in enumerate(order)}
    near: dict[int, list[int]] = {}
    for one, other in near_copies(hashes, hashes).tolist():
        if rank[other] < rank[one]:
            near.setdefault(one, []).append(other)
    first_with: dict[str, int] = {}
    kept: set[int] = set()
    copies: dict[str, tuple[str, bool]] = {}
    for place in order:
        name, pixels = hashes.ids[place], hashes.pixels[place]
        twin = first_with.get(pixels)
        larger = [other for other in near.get(place, []) if other in kept]
        if twin is not None:
            copies[name] = (hashes.ids[twin], True)
        elif larger:
            copies[name] = (hashes.ids[min(larger, key=rank.__getitem__)], False)
        else:
            kept.add(place)
            first_with[pixels] = place
    names = {hashes.ids[place] for place in kept}
    reasons = {skipped.id: f"{skipped.status}: {skipped.reason}" for skipped in hashes.skipped}
    return Deduplicated(
        tuple(picture for picture in pictures if picture.name in names),
        tuple(Copy(picture, *copies[picture.name]) for picture in pictures if picture.name in copies),
        tuple((picture, reasons[picture.name]) for picture in pictures if picture.name in reasons),
    )


def _pixels(folder: Folder, name: str) -> int:
    width, height = read_header(folder.path / name, _LIMITS).size
    return width * height
