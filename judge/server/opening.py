"""Fetching and opening images for the service, with a limit on how many pixels wait to be scored."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from judge.data.frames import png_bytes
from judge.data.images import DEFAULT_LIMITS, pixels_hash
from judge.errors import ImageError
from judge.intake.decoding import Decoded

from .futures import run_to_end
from .metrics import Metrics
from .settings import ServerSettings

if TYPE_CHECKING:
    from judge.intake.fetch import ImageFetcher

MAX_HELD_PIXELS = 2**26
"""Pixels of opened images that may wait before further ones are opened: 200 MB. Each opener may exceed it by what it is
at."""


class Opener(Protocol):
    """Encoded bytes -> the frames that are judged, without blocking the event loop (`DecodePool`, `ThreadOpener`)."""

    async def open(self, data: bytes) -> Decoded:
        """Decode an image.

        Raises:
            ImageError: as `judge.data.frames.open_frames`.
        """
        ...

    def close(self) -> None:
        """Stop; what is being decoded is lost."""
        ...


class ThreadOpener:
    """Decodes in threads of this process: nothing to start, and no limits of time and memory beyond the door's own."""

    async def open(self, data: bytes) -> Decoded:
        """Decode an image."""
        return await asyncio.to_thread(_open, data)

    def close(self) -> None:
        """Nothing has to be stopped."""


class Intake:
    """Where images of questions come from: fetched if that is allowed, opened by as many workers as there are.

    Args:
        settings: workers, and hosts to fetch from.
        metrics: told of every image.
        opener: what decodes; by default worker processes, or threads for `decode_workers=0`.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics, opener: Opener | None = None) -> None:
        self._opener = opener or _opener(settings)
        self._fetcher = _fetcher(settings)
        self._metrics = metrics
        self._free = asyncio.Semaphore(max(1, settings.decode_workers))
        self._held = 0
        self._room = asyncio.Event()
        self._room.set()

    async def fetch(self, url: str) -> bytes:
        """The bytes behind an address of one of the allowed hosts.

        Raises:
            ImageError: it is not allowed, or nothing usable came from it.
        """
        if self._fetcher is None:
            raise ImageError(
                "url_refused",
                "this server fetches no addresses; send the image itself, as data:image/png;base64,...",
            )
        return await self._fetcher.fetch(url)

    @asynccontextmanager
    async def opened(self, data: bytes) -> AsyncIterator[Decoded]:
        """An image's frames, which count as held as long as they are needed.

        Raises:
            ImageError: it cannot be opened.
        """
        started = time.perf_counter()
        try:
            async with self._free:
                await self._room.wait()
                # To its end, whoever goes away: stopping a worker costs more than most images.
                opened = await run_to_end(self._opener.open(data))
        except ImageError as error:
            self._metrics.opened(error.status, time.perf_counter() - started)
            raise
        self._metrics.opened("ok", time.perf_counter() - started)
        pixels = sum(image.width * image.height for image in opened.frames.images)
        self._hold(pixels)
        try:
            yield opened
        finally:
            self._hold(-pixels)

    async def view(self, data: bytes) -> list[bytes]:
        """The pixels that are judged, as one PNG for each view: frame by frame, transparent ones on white and on black.

        Raises:
            ImageError: it cannot be opened.
        """
        async with self.opened(data) as opened:
            return await asyncio.to_thread(_as_png, opened)

    async def still_hash(self, data: bytes) -> str:
        """`pixels_hash` of what `open_image` gives of an image, which is no animation.

        Raises:
            ImageError: it cannot be opened, or has more than one frame (`animated`).
        """
        async with self.opened(data) as opened:
            if opened.frames.total > 1:
                raise ImageError("animated", f"{opened.frames.total} frames")
            # The first view of a transparent image is on the background of `open_image`.
            return await asyncio.to_thread(pixels_hash, opened.frames.images[0])

    def close(self) -> None:
        """Stop; what is being decoded is lost."""
        self._opener.close()

    def _hold(self, pixels: int) -> None:
        self._held += pixels
        if self._held < MAX_HELD_PIXELS:
            self._room.set()
        else:
            self._room.clear()


def _opener(settings: ServerSettings) -> Opener:
    if not settings.decode_workers:
        return ThreadOpener()
    from judge.intake.decoding import DecodePool

    return DecodePool(settings.decode_workers)


def _fetcher(settings: ServerSettings) -> "ImageFetcher | None":
    if not settings.image_hosts:
        return None
    from judge.intake.fetch import ImageFetcher

    return ImageFetcher(settings.image_hosts, max_bytes=DEFAULT_LIMITS.max_bytes)


def _open(data: bytes) -> Decoded:
    from judge.data.frames import open_frames

    return Decoded(open_frames(data), hashlib.sha256(data).hexdigest())


def _as_png(opened: Decoded) -> list[bytes]:
    return [png_bytes(image) for image in opened.frames.images]
