"""Encoded bytes -> the frames that are judged, without blocking the event loop."""

import asyncio
import hashlib
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from judge.data.frames import Frames


class Opened(NamedTuple):
    """An image file that was decoded."""

    frames: "Frames"
    sha256: str
    """Of the encoded bytes, 64 hexadecimal digits."""


class Opener(Protocol):
    """What decodes images; its limits are its own."""

    async def open(self, data: bytes) -> Opened:
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

    async def open(self, data: bytes) -> Opened:
        """Decode an image."""
        return await asyncio.to_thread(_open, data)

    def close(self) -> None:
        """Nothing has to be stopped."""


def _open(data: bytes) -> Opened:
    from judge.data.frames import open_frames

    return Opened(open_frames(data), hashlib.sha256(data).hexdigest())
