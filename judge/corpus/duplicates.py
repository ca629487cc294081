"""Near-duplicate pictures of a corpus (`judge.data.perceptual_hash`): of each group the first row is kept.

A generator draws much the same picture for different prompts and seeds. One of them in training and another in testing
would measure memory; so they are removed before the corpus is split, and the ledger says of which row each is a copy.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.data.perceptual_hash import CORRELATION, DISTANCE, SIDE, ImageHashes, hash_images, near_copies
from judge.errors import ConfigError

from .rows import CorpusRow

_BLOCK = 4096
"""Rows that are compared with all before them at a time."""
_HASHED_AT_ONCE = 256
"""Pictures whose hashes are kept at a time: what a killed process has to do again."""
_RECORD = np.dtype(
    [("file", "V32"), ("pixels", "V32"), ("perceptual", "<u8"), ("thumbnail", "u1", (SIDE, SIDE))]
)
"""Of a picture: SHA-256 of its file, hash of its pixels, perceptual hash, thumbnail."""


@dataclass(frozen=True)
class NearDuplicates:
    """The stage that finds near-duplicates, across prompts, seeds and variants.

    Each row is compared with those before it that are kept, so a chain of small changes makes no copies of its ends.
    Nearly uniform pictures are copies only where all pixels are equal. An adversarial variant is no copy of the row
    that it was made from, nor of that row's other variants; it goes where that row goes.

    Pictures are hashed once, in O(N). Then every two are compared: a million in about an hour on one core.

    Args:
        distance: most of 64 bits in which the hashes of copies differ.
        correlation: least correlation of their thumbnails, in [-1, 1].
        cache: file of hashes, from which a build that was killed goes on; None to hash again.
    """

    distance: int = DISTANCE
    correlation: float = CORRELATION
    cache: Path | None = None
    name: str = field(default="duplicates", init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= 64 or not -1 <= self.correlation <= 1:
            raise ConfigError(
                f"distance is {self.distance} and correlation {self.correlation}; give 0 to 64 bits, and -1 to 1."
            )

    @property
    def about(self) -> Mapping[str, Any]:
        """What counts as a copy."""
        return {"distance": self.distance, "correlation": self.correlation}

    def __call__(self, rows: Sequence[CorpusRow], read: Callable[[CorpusRow], bytes]) -> Iterator[CorpusRow]:
        """The rows that are copies, each with the id of the row that is kept in its place."""
        records, unreadable = _hash_all(rows, read, self.cache)
        for row in unreadable:
            yield row
        failed = {row.id for row in unreadable}
        compared = [row for row in rows if row.id not in failed]
        copies = _find_copies(compared, records, self.distance, self.correlation)
        for row in compared:
            if row.id in copies:
                yield replace(row, duplicate_of=copies[row.id])


def family(row: CorpusRow) -> str:
    """Id of the row that a variant was made from; of any other row its own."""
    return row.id if row.variant is None else row.variant.of


def _find_copies(
    rows: Sequence[CorpusRow], records: NDArray[Any], distance: int, correlation: float
) -> dict[str, str]:
    """Id of each copy -> id of the row that is kept in its place."""
    copies: dict[str, str] = {}
    kept: list[int] = []
    first_with: dict[bytes, list[int]] = {}
    for start in range(0, len(rows), _BLOCK):
        places = np.arange(start, min(start + _BLOCK, len(rows)))
        before = np.array([*kept, *places.tolist()], dtype=np.int64)
        near: dict[int, list[int]] = {}
        pairs = near_copies(_hashes(records[places]), _hashes(records[before]), distance, correlation)
        for one, other in zip(places[pairs[:, 0]].tolist(), before[pairs[:, 1]].tolist(), strict=True):
            if other < one:
                near.setdefault(one, []).append(other)
        for place in places.tolist():
            row, pixels = rows[place], bytes(records["pixels"][place])
            if family(row) in copies:
                copies[row.id] = copies[family(row)]
                continue
            found = [
                other
                for other in (*first_with.get(pixels, ()), *near.get(place, ()))
                if rows[other].id not in copies and family(rows[other]) != family(row)
            ]
            if found:
                copies[row.id] = rows[min(found)].id
            else:
                kept.append(place)
                first_with.setdefault(pixels, []).append(place)
    return copies


def _hashes(records: NDArray[Any]) -> ImageHashes:
    """What near copies are found by; without names."""
    return ImageHashes((), (), records["perceptual"], records["thumbnail"])


def _hash_all(
    rows: Sequence[CorpusRow], read: Callable[[CorpusRow], bytes], cache: Path | None
) -> tuple[NDArray[Any], list[CorpusRow]]:
    """Records of the rows that can be opened, in their order; and the others, as failed rows."""
    known = {bytes(record["file"]): record for record in _load(cache)}
    found, unreadable, fresh = [], [], []
    for row in rows:
        file = bytes.fromhex(row.sha256 or "")
        record = known.get(file)
        if record is None:
            hashes = hash_images([(row.id, read(row))])
            if hashes.skipped:
                skipped = hashes.skipped[0]
                unreadable.append(row.failed("duplicates", skipped.status, skipped.reason))
                continue
            pixels = bytes.fromhex(hashes.pixels[0])
            record = np.array((file, pixels, hashes.perceptual[0], hashes.thumbnails[0]), dtype=_RECORD)
            known[file] = record
            fresh.append(record)
            if len(fresh) == _HASHED_AT_ONCE:
                _append(cache, fresh)
                fresh = []
        found.append(record)
    _append(cache, fresh)
    return np.array(found, dtype=_RECORD), unreadable


def _load(cache: Path | None) -> NDArray[Any]:
    """The records of a cache; of one that a killed process left half written, those that are whole."""
    if cache is None or not cache.is_file():
        return np.zeros(0, dtype=_RECORD)
    whole = cache.stat().st_size // _RECORD.itemsize
    with cache.open("r+b") as file:
        file.truncate(whole * _RECORD.itemsize)
    return np.fromfile(cache, dtype=_RECORD)


def _append(cache: Path | None, records: list[Any]) -> None:
    if cache is not None and records:
        with cache.open("ab") as file:
            file.write(np.array(records, dtype=_RECORD).tobytes())
