"""Image files as inputs."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import SupportsBytes

from judge.data.images import DEFAULT_LIMITS, ImageLimits

from .files import FileImage, Skip, is_url
from .ids import file_id, storable
from .shards import InputRow, Shard

_AHEAD = 16
"""Images that are fetched at the same time from behind a URL, where each takes a while to arrive."""


def read_images(shard: Shard, skip: Skip, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[InputRow | None]:
    """The image files of a shard; None for those to skip. Each is read when its image is asked for."""
    images = [FileImage(shard.root, path, limits) for path in shard.paths]
    ahead = _Ahead(images, skip) if is_url(shard.root) else None
    for index, path in enumerate(shard.paths):
        if skip(index):
            yield None
        else:
            image: SupportsBytes = images[index] if ahead is None else _Fetched(ahead, index)
            place = (index + 1) / len(images)
            yield InputRow(file_id(path), storable(path), image, place=place)


class _Ahead:
    """Fetches the images behind one that is asked for, too, as they will be asked for next."""

    def __init__(self, images: Sequence[FileImage], skip: Skip) -> None:
        self._images, self._skip = images, skip
        self._pool = ThreadPoolExecutor(_AHEAD, "fetch")  # its threads start with the first image
        self._fetching = dict[int, Future[bytes]]()
        self._lock = Lock()
        self._started = 0
        """Images before this one were fetched already, or are being fetched."""

    def fetch(self, index: int) -> bytes:
        """An image; raises ImageError."""
        end = min(index + _AHEAD, len(self._images))
        with self._lock:
            for number in range(max(index, self._started), end):
                if not self._skip(number):
                    self._fetching[number] = self._pool.submit(bytes, self._images[number])
            self._started = max(self._started, end)
            waiting = self._fetching.pop(index, None)
        return bytes(self._images[index]) if waiting is None else waiting.result()


@dataclass(frozen=True)
class _Fetched:
    """An image behind a URL; `bytes()` waits for it, and raises ImageError where it cannot be had."""

    ahead: _Ahead
    index: int

    def __bytes__(self) -> bytes:
        return self.ahead.fetch(self.index)
