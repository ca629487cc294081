"""Encoded images -> pixels in worker processes, so that no image can stop, crash or fill the process that judges.

Decoders are C code that reads what strangers wrote. `judge.data.images` refuses what it can foresee; a worker's death
is the answer to the rest: too much time, too much memory, a crash. It costs that one image, and is never "safe".

The workers are spawned, not forked: a fork would copy the memory of the models and the locks of torch's threads. They
import Pillow, numpy and `judge.data`, and no torch. As with every spawned process, a script that makes a `DecodePool`
needs `if __name__ == "__main__":`.
"""

import asyncio
import hashlib
import os
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from judge.errors import ImageError, MissingExtraError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from judge.data.frames import Frames
    from judge.data.images import ImageLimits

SECONDS = 2.0
"""Processor time that one image may take by default; the slowest valid ones take about one second."""
MEMORY = 300 * 10**6
"""Bytes that a worker may hold by default, Python included."""
PATIENCE = 5
"""A worker is also killed after this many times its processor time: it waits, for whatever reason."""
_M_MMAP_THRESHOLD = -3  # of malloc.h


class Decoded(NamedTuple):
    """An encoded image as it is judged."""

    frames: "Frames"
    sha256: str
    """64 hexadecimal digits, of the encoded bytes."""


class DecodePool:
    """Worker processes that open images; to be used from one event loop.

    Workers start in the background when the pool is made; `ready` waits for the first. One that was killed is replaced.
    """

    def __init__(
        self,
        workers: int = 2,
        limits: "ImageLimits | None" = None,
        *,
        seconds: float = SECONDS,
        memory: int = MEMORY,
        max_frames: int | None = None,
    ) -> None:
        """Start the workers.

        Args:
            workers: processes, and images decoded at a time; further ones wait in order.
            limits: as for `judge.data.frames.open_frames`; the default ones if None.
            seconds: processor time for one image, above 0; `PATIENCE` times as much by the clock.
            memory: bytes for a worker. On Linux; elsewhere the system may not enforce it.
            max_frames: of an animation; `judge.data.frames.MAX_FRAMES` if None.

        Raises:
            MissingExtraError: without the extra `serve`.
        """
        from judge.data.frames import MAX_FRAMES
        from judge.data.images import DEFAULT_LIMITS

        self.limits = limits or DEFAULT_LIMITS
        self.seconds = seconds
        self._workers, self._memory = workers, memory
        self._max_frames = max_frames or MAX_FRAMES
        self._free = asyncio.Semaphore(workers)
        self._under_way: set[Future[tuple[_Packed, str]]] = set()
        self._closed = False
        self._pool = self._start()

    def _start(self) -> Any:
        from multiprocessing import get_context

        try:
            from pebble import ProcessPool
        except ImportError as error:
            raise MissingExtraError(
                "Decoding in worker processes needs pebble; install with `pip install 'arbiter-vision[serve]'`."
            ) from error
        pool = ProcessPool(
            self._workers, initializer=_prepare, initargs=(self._memory,), context=get_context("spawn")
        )
        pool.active  # noqa: B018 - asking starts the workers, which takes them half a second
        return pool

    async def ready(self) -> None:
        """Return as soon as a worker can decode.

        Raises:
            ImageError: none can.
        """
        await self.open(_smallest_png())

    async def open(self, data: bytes) -> Decoded:
        """The frames to be judged of one encoded image; cancelling it kills the worker that decodes it.

        Raises:
            ImageError: as `judge.data.frames.open_frames`, or
                `timeout`: it took more than `seconds`;
                `out_of_memory`: it would have taken more than `memory`;
                `crashed`: the decoder ended its process, or the pool was closed.
        """
        if len(data) > self.limits.max_bytes:  # before they are copied anywhere
            raise ImageError("too_large", f"more than {self.limits.max_bytes:,} bytes")
        # Images wait here and not in the pool, where cancelling one that waits would cost a worker.
        async with self._free:
            try:
                packed, sha256 = await self._run(data)
            except BrokenProcessPool:
                # An idle worker died, such as one that the system killed for its memory; `_schedule` starts others.
                packed, sha256 = await self._run_again(data)
        return Decoded(await asyncio.to_thread(packed.unpack), sha256)

    async def _run_again(self, data: bytes) -> "tuple[_Packed, str]":
        try:
            return await self._run(data)
        except BrokenProcessPool:
            raise ImageError("crashed", "no worker that decodes images stays alive") from None

    async def _run(self, data: bytes) -> "tuple[_Packed, str]":
        from pebble import ProcessExpired

        future = self._schedule(data)
        self._under_way.add(future)
        try:
            return await asyncio.wrap_future(future)
        except ProcessExpired as error:
            if error.exitcode == -getattr(signal, "SIGPROF", 0):
                raise self._timeout() from None
            raise ImageError("crashed", f"the decoder ended its process ({error.exitcode})") from None
        except TimeoutError:
            raise self._timeout() from None
        finally:
            self._under_way.discard(future)

    def _schedule(self, data: bytes) -> "Future[tuple[_Packed, str]]":
        if self._closed:
            raise _closed()
        arguments = (data, self.limits, self._max_frames, self.seconds)
        try:
            return self._pool.schedule(_decode, arguments, timeout=PATIENCE * self.seconds)  # type: ignore[no-any-return]
        except RuntimeError:  # the pool broke
            _stop(self._pool)
            self._pool = self._start()
            return self._pool.schedule(_decode, arguments, timeout=PATIENCE * self.seconds)  # type: ignore[no-any-return]

    def _timeout(self) -> ImageError:
        return ImageError("timeout", f"decoding took more than {self.seconds:g} s")

    def close(self) -> None:
        """Kill the workers, whatever they do, and wait for their end; images under way are `crashed`."""
        self._closed = True
        _stop(self._pool)
        for future in self._under_way:
            if not future.done():
                future.set_exception(_closed())


def _closed() -> ImageError:
    return ImageError("crashed", "the decoder was closed")


def _stop(pool: Any) -> None:
    pool.stop()
    pool.join()


@dataclass
class _Packed:
    """`Frames` for the way between processes, in three quarters of the memory of Pillow's images."""

    frames: "Frames"
    """Without images."""
    pixels: list[tuple[tuple[int, int], bytes]]
    """Size and RGB bytes of each image."""

    def __reduce__(self) -> "tuple[type[_Packed], tuple[Frames, list[tuple[tuple[int, int], bytes]]]]":
        # Sent once: a worker of the pool keeps its last answer until the next one is there.
        pixels, self.pixels = self.pixels, []
        return _Packed, (self.frames, pixels)

    def unpack(self) -> "Frames":
        from PIL import Image

        return self.frames._replace(
            images=[Image.frombytes("RGB", size, pixels) for size, pixels in self.pixels]
        )


def _decode(data: bytes, limits: "ImageLimits", max_frames: int, seconds: float) -> tuple[_Packed, str]:
    """In a worker: open the image within `seconds` of processor time, or be killed by the system."""
    from judge.data.frames import open_frames

    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        frames = open_frames(data, limits, max_frames=max_frames)
        images, pixels = frames.images, []
        while images:
            # One by one, so that no image is held twice.
            image = images.pop(0)
            pixels.append((image.size, image.tobytes()))
        return _Packed(frames, pixels), hashlib.sha256(data).hexdigest()
    except MemoryError:
        raise ImageError("out_of_memory", "decoding takes more memory than there is") from None
    finally:
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_PROF, 0)


def _prepare(memory: int) -> None:
    """In a new worker: import and try everything, then limit its memory."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported; each thread would hold a stack
    import warnings

    warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
    # The pool asks workers to end, and waits for seconds; decoders would not notice, so the system shall act at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from judge.data.images import DEFAULT_LIMITS

    _return_memory()
    _decode(_smallest_png(), DEFAULT_LIMITS, 1, 10.0)
    if sys.platform != "win32":
        import resource

        # Counted is what the process may write to, touched or not; so less is in memory than this allows.
        most = _writable() + max(0, memory - _held())
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        # Nothing of an image is left on a disk, whatever happens.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _return_memory() -> None:
    """Let glibc give blocks from 8 MB on back when they are freed, so that no image finds the holes of others.

    By default it does so until it has seen a block freed. From 1 MB on, all images would take half as long again.
    """
    import ctypes

    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**23)


def _smallest_png() -> bytes:
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.new("RGBA", (1, 1)).save(file, "PNG")
    return file.getvalue()


def _held() -> int:
    """Most bytes that this process has had in memory."""
    return _status("VmHWM")


def _writable() -> int:
    """Bytes that count for RLIMIT_DATA."""
    return _status("VmData")


def _status(name: str) -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0
