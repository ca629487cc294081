"""Encoded images -> pixels in worker processes, so that no image can stop, crash or fill the process that judges.

Decoders are C code that reads what strangers wrote. `judge.data.images` refuses what it can foresee; a worker's death
is the answer to the rest: too much time, too much memory, a crash. It costs that one image, and is never "safe".
"""

import asyncio
import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from judge.errors import ImageError, first_line

from .processes import (
    MEMORY,
    NO_ANSWER,
    PATIENCE,
    SECONDS,
    START_SECONDS,
    WorkerProcess,
    pil_images,
    settings_of,
    why_it_ended,
)

if TYPE_CHECKING:
    from judge.data.frames import Frames
    from judge.data.images import ImageLimits


class Decoded(NamedTuple):
    """An encoded image as it is judged."""

    frames: "Frames"
    sha256: str
    """64 hexadecimal digits, of the encoded bytes."""


class DecodePool:
    """Worker processes that open images; to be used from one event loop.

    Workers start when the pool is made, and take half a second; `ready` waits. One that was killed is replaced.
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
        """
        from judge.data.images import DEFAULT_LIMITS

        self.limits = limits or DEFAULT_LIMITS
        self.seconds = seconds
        self._settings = settings_of(self.limits, seconds=seconds, memory=memory, max_frames=max_frames)
        self._free = asyncio.Semaphore(workers)
        self._threads = ThreadPoolExecutor(workers, "arbiter-decoding")
        self._closed = False
        self._idle = [WorkerProcess(self._settings) for _ in range(workers)]
        self._busy: list[WorkerProcess] = []

    @property
    def pids(self) -> list[int]:
        """The processes, to watch them."""
        return [worker.process.pid for worker in (*self._idle, *self._busy)]

    async def ready(self) -> None:
        """Return as soon as a worker can decode.

        Raises:
            ImageError: none can.
        """
        from .worker import SMALLEST_PNG

        await self.open(SMALLEST_PNG)

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
        async with self._free:
            worker = self._choose()
            self._busy.append(worker)
            future: Future[Any] = self._threads.submit(worker.wait_until_ready)
            try:
                async with asyncio.timeout(START_SECONDS):  # the image has no part in how long that takes
                    await asyncio.wrap_future(future)
                future = self._threads.submit(_ask, worker, data)
                async with asyncio.timeout(PATIENCE * self.seconds):
                    found: Decoded | ImageError = await asyncio.wrap_future(future)
            except TimeoutError:
                raise self._problem(None, started=worker.ready) from None
            except NO_ANSWER:
                raise self._problem(worker.kill()) from None
            finally:
                self._busy.remove(worker)
                self._give_back(worker, future)
        if isinstance(found, ImageError):
            raise found
        return found

    def _choose(self) -> WorkerProcess:
        """A worker that runs."""
        if self._closed:
            raise ImageError("crashed", "the decoder was closed")
        while self._idle:
            worker = self._idle.pop()
            if worker.process.poll() is None:
                return worker
            worker.close()  # it ended while it had nothing to do
        try:
            return WorkerProcess(self._settings)
        except OSError as error:
            raise ImageError("crashed", f"no worker can be started: {first_line(error)}") from error

    def _give_back(self, worker: WorkerProcess, future: Future[Any]) -> None:
        """Keep a worker that has answered; start another in place of any other."""
        if not future.done() or worker.owed:
            worker.kill()
            # Its thread may still read: until it sees the end of the pipe.
            future.add_done_callback(lambda _: worker.close())
            if not self._closed:
                with suppress(OSError):  # `_choose` tries again
                    self._idle.append(WorkerProcess(self._settings))
        else:
            self._idle.append(worker)

    def _problem(self, status: int | None, *, started: bool = True) -> ImageError:
        """Why a worker gave no answer: its exit status, None if it still ran; `started` if it could decode by then."""
        if self._closed:
            return ImageError("crashed", "the decoder was closed")
        if not started:
            return ImageError("crashed", f"no worker could decode within {START_SECONDS} s")
        return why_it_ended(status, self.seconds)

    def close(self) -> None:
        """Kill the workers, whatever they do, and wait for their end; images under way are `crashed`."""
        self._closed = True
        for worker in self._busy:
            worker.kill()
        while self._idle:
            worker = self._idle.pop()
            worker.kill()
            worker.close()
        self._threads.shutdown()


def _ask(worker: WorkerProcess, data: bytes) -> Decoded | ImageError:
    """What a worker finds in an image; raises `NO_ANSWER`."""
    worker.send([data])
    sha256 = hashlib.sha256(data).hexdigest()  # while the worker decodes
    found = worker.receive()
    if isinstance(found, ImageError):
        return found
    return Decoded(found.frames._replace(images=pil_images(found)), sha256)
