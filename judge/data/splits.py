"""Splits for images that come without: training, validation and test.

Drawn so that each split has its share of every category and of the safe images, copies of a picture stay together, and
rows that are appended to a table move no earlier one (unless they are copies of earlier ones). Each picture, in the
table's order, goes to a split drawn by its own pixels, as long as no category gets out of proportion there; else to the
split that lacks it most. Such sequential allocation comes from clinical trials: minimisation (Pocock and Simon,
Biometrics 31, 1975) with the "big stick" of Soares and Wu (Communications in Statistics 12, 1983).
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.errors import ImageError
from prompts.errors import ArbiterError
from prompts.example import Example

from .images import DEFAULT_LIMITS, ImageLimits
from .perceptual_hash import ImageHash, ImageHashes, gather_hashes, hash_image, near_copies

SHARES: Mapping[str, float] = {"train": 0.7, "test": 0.15, "validation": 0.15}
"""Of the images. Below a few hundred, the test split is what limits every number, so it gets more than a tenth. The
first images of a category go to the splits in this order, so that three are enough for one in each."""
SEED = 0
"""Of the splits; not that of a training, so that two trainings are tested on the same images."""
_LADDER = ((10, 0.95), (6, 0.98), (2, 0.995))
"""Bits and correlation of near copies, stricter and stricter for pictures that are all much alike."""
_LARGEST = 0.05
"""Of all images, in one group of near copies; a larger group says that the pictures only look alike."""
_SMALLEST = 10
"""Images that may be near copies of each other in any case."""


@dataclass(frozen=True)
class DrawnSplits:
    """Which image is in which split."""

    splits: Mapping[str, str]
    """Id -> split, of all images that could be opened."""
    groups: tuple[tuple[str, ...], ...]
    """Ids of pictures that are copies of each other, exact or near; each group is in one split."""
    hashes: ImageHashes
    """Of the images; `hashes.skipped` are those that could not be opened, which are in no split."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Images of each split."""
        return Counter(self.splits.values())


def draw_splits(
    examples: Sequence[Example],
    *,
    seed: int = SEED,
    shares: Mapping[str, float] = SHARES,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> DrawnSplits:
    """Draw splits, stratified by what the examples violate, with copies together.

    Args:
        examples: labelled images, in the order of their table; their own `split` is ignored.
        seed: another one, another draw.
        shares: split -> share of the images; together 1.
        limits: passed to `open_image`.

    Raises:
        ArbiterError: shares that are not positive or do not sum to 1.
    """
    if not shares or min(shares.values()) <= 0 or not math.isclose(sum(shares.values()), 1.0):
        raise ArbiterError(f"Shares of splits are {dict(shares)}; give positive ones that sum to 1.")
    hashes = hash_examples(examples, limits)
    group = copy_groups(hashes)
    by_id = {example.id: example for example in examples}
    members: dict[int, list[int]] = {}
    for place, number in enumerate(group.tolist()):
        members.setdefault(number, []).append(place)
    labels = [
        Counter(label for place in places for label in _labels(by_id[hashes.ids[place]]))
        for places in members.values()
    ]
    draws = [_uniform(f"{seed}/{hashes.pixels[places[0]]}") for places in members.values()]
    drawn: dict[str, str] = {}
    for places, split in zip(members.values(), _allocate(labels, draws, shares), strict=True):
        drawn |= {hashes.ids[place]: split for place in places}
    groups = tuple(tuple(hashes.ids[p] for p in places) for places in members.values() if len(places) > 1)
    return DrawnSplits(drawn, groups, hashes)


def hash_examples(examples: Iterable[Example], limits: ImageLimits = DEFAULT_LIMITS) -> ImageHashes:
    """Hash the images of examples; of a file that did not change, a second time in the same process costs nothing."""
    return gather_hashes((example.id, partial(_hash, example.image, limits)) for example in examples)


def copy_groups(hashes: ImageHashes) -> NDArray[np.int64]:
    """(N,) number of the group of copies that each image belongs to, in the order of first members.

    Copies of copies are in one group. Where that joins more than 5 % of all images, they are only similar (digits,
    screenshots of one program), and what counts as a copy is narrowed for them until it does not.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(hashes)
    allowed = max(_SMALLEST, _LARGEST * count)
    first = {pixels: place for place, pixels in reversed(list(enumerate(hashes.pixels)))}
    twins = [(place, first[pixels]) for place, pixels in enumerate(hashes.pixels)]
    exact = np.array(twins, dtype=np.int64).reshape(-1, 2)
    group = np.zeros(count, dtype=np.int64)
    crowded = np.ones(count, dtype=bool)
    for distance, correlation in (*_LADDER, (0, 2.0)):
        places = np.flatnonzero(crowded)
        near = places[near_copies(part := hashes.take(places), part, distance, correlation)]
        # Exact copies count everywhere, as flat pictures have no near ones.
        pairs = np.concatenate([near, exact[crowded[exact].all(axis=1)]]).astype(np.int64)
        graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
        found = connected_components(graph, directed=False)[1]
        group[places] = found[places] + (group.max(initial=-1) + 1)
        crowded = np.bincount(group)[group] > allowed
        if not crowded.any():
            break
    return _renumbered(group)


def _renumbered(group: NDArray[np.int64]) -> NDArray[np.int64]:
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[inverse], dtype=np.int64)


def _allocate(
    labels: Sequence[Counter[str]], draws: Sequence[float], shares: Mapping[str, float]
) -> list[str]:
    """The split of each of G groups.

    Args:
        labels: how many of a group's images have which label.
        draws: a number in [0, 1) for each group.
        shares: of the splits.
    """
    seen, groups = Counter[str](), Counter[str]()
    held = {split: Counter[str]() for split in shares}
    chosen: list[str] = []
    for own, draw in zip(labels, draws, strict=True):
        seen.update(own)
        groups.update(own.keys())
        rarest = min(own, key=lambda label: (groups[label], label))
        lacking = [split for split in shares if not held[split][rarest]]
        split = lacking[0] if lacking else _picked(draw, shares)
        if not lacking and not _in_proportion(split, own, seen, held, shares):
            split = max(shares, key=lambda one: _lack(one, own, seen, held, shares))
        held[split].update(own)
        chosen.append(split)
    return chosen


def _in_proportion(
    split: str,
    own: Counter[str],
    seen: Counter[str],
    held: Mapping[str, Counter[str]],
    shares: Mapping[str, float],
) -> bool:
    """Whether a group may go to a split: no label of it gets far too frequent there, or too rare elsewhere."""
    for label, number in own.items():
        # One image at first; later a quarter of what chance alone would do, so that an image's split depends on the
        # image more than on those before it.
        slack = max(1.0, math.sqrt(seen[label]) / 4)
        for one, share in shares.items():
            has = held[one][label] + (number if one == split else 0)
            if has > share * seen[label] + slack or has < share * seen[label] - slack:
                return False
    return True


def _lack(
    split: str,
    own: Counter[str],
    seen: Counter[str],
    held: Mapping[str, Counter[str]],
    shares: Mapping[str, float],
) -> float:
    """Images of a group's labels that a split lacks, relative to how many there are."""
    return sum((shares[split] * seen[label] - held[split][label]) / seen[label] for label in own)


def _picked(draw: float, shares: Mapping[str, float]) -> str:
    total = 0.0
    for split, share in shares.items():
        total += share
        if draw < total:
            return split
    return list(shares)[-1]  # a sum of 0.999999


def _labels(example: Example) -> tuple[str, ...]:
    """What an image is counted as: one of all, and of each category it violates, or of the safe ones."""
    return ("all", *(sorted(f"violates {key}" for key in example.violates) or ("safe",)))


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56


def _hash(image: Any, limits: ImageLimits) -> ImageHash:
    if not isinstance(image, str | Path):
        return hash_image(image, limits)
    try:
        about = Path(image).stat()
    except OSError:
        return hash_image(image, limits)  # which says what is wrong with it
    found = _hash_file(str(image), about.st_size, about.st_mtime_ns, limits)
    if isinstance(found, ImageError):
        raise ImageError(found.status, found.reason)
    return found


@lru_cache(maxsize=2**18)
def _hash_file(path: str, size: int, changed: int, limits: ImageLimits) -> ImageHash | ImageError:
    """Kept, as each split of a data set asks for all images; about 500 bytes a file."""
    try:
        return hash_image(path, limits)
    except ImageError as error:
        return ImageError(error.status, error.reason)
