"""What opens images for the service: worker processes, or threads."""

import asyncio
import hashlib
from typing import Protocol

from judge.intake.decoding import Decoded


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


def _open(data: bytes) -> Decoded:
    from judge.data.frames import open_frames

    return Decoded(open_frames(data), hashlib.sha256(data).hexdigest())
