"""Encoded images -> pixels in worker processes, so that no image can stop, crash or fill the process that judges.

Decoders are C code that reads what strangers wrote. `judge.data.images` refuses what it can foresee; a worker's death
is the answer to the rest: too much time, too much memory, a crash. It costs that one image, and is never "safe".

The workers (`judge.intake.worker`) are fresh interpreters and not forks, which would copy the memory of the models and
the locks of torch's threads; they import Pillow, numpy and `judge.data`. Each has pipes of its own. A pool with queues
that are shared, such as those of `concurrent.futures` and pebble, stands still or ends as a whole when a worker is
killed at the wrong moment; and it unpickles what a worker sends, who may by then be the image's.
"""

import asyncio
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast, get_args

from judge.errors import ImageError, ImageStatus, first_line

from .worker import OUT_OF_MEMORY, READY

if TYPE_CHECKING:
    from judge.data.frames import Frames
    from judge.data.images import ImageLimits

SECONDS = 2.0
"""Processor time that one image may take by default; the slowest valid stills take about one second."""
MEMORY = 300 * 10**6
"""Bytes that a worker may hold by default, Python included."""
PATIENCE = 5
"""A worker is also killed after this many times its processor time: it waits, for whatever reason."""
START_SECONDS = 60
"""How long a worker may take until it can decode; half a second, where nothing else is to be done."""
_MAX_TEXT = 2**20
_PIPE_BYTES = 2**20
"""What a pipe may hold without privileges."""
_NO_ANSWER = (OSError, EOFError, ValueError, LookupError, TypeError)
"""A worker has ended, or says what no worker says."""
_START = """import sys, json
settings = json.loads(sys.argv[1])
sys.path[:] = settings["path"]
from judge.intake.worker import main
main(settings)"""
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT", "TMPDIR")
"""Variables of the environment that a worker gets; keys and passwords are in others."""
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # each thread would hold a stack
    # glibc then gives blocks from 8 MB on back, so that no image finds the holes of others. By default it does so until
    # it has seen one freed; from 1 MB on, images would take half as long again.
    "MALLOC_MMAP_THRESHOLD_": str(8 * 2**20),
    # With that set, glibc would also give back the end of its heap after every image from 128 KB on, and fault it in
    # again for the next: twice the time of a 512 x 512 JPEG.
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20),
}


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
        from judge.data.frames import MAX_FRAMES
        from judge.data.images import DEFAULT_LIMITS

        self.limits = limits or DEFAULT_LIMITS
        self.seconds = seconds
        self._settings = json.dumps(
            {
                "path": sys.path,
                "limits": asdict(self.limits),
                "max_frames": max_frames or MAX_FRAMES,
                "seconds": seconds,
                "memory": memory,
            }
        )
        self._free = asyncio.Semaphore(workers)
        self._threads = ThreadPoolExecutor(workers, "arbiter-decoding")
        self._closed = False
        self._idle = [_Worker(self._settings) for _ in range(workers)]
        self._busy: list[_Worker] = []

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
                future = self._threads.submit(worker.ask, data)
                async with asyncio.timeout(PATIENCE * self.seconds):
                    found: Decoded | ImageError = await asyncio.wrap_future(future)
            except TimeoutError:
                raise self._problem(None, started=worker.ready) from None
            except _NO_ANSWER:
                raise self._problem(worker.kill()) from None
            finally:
                self._busy.remove(worker)
                self._give_back(worker, future)
        if isinstance(found, ImageError):
            raise found
        return found

    def _choose(self) -> "_Worker":
        """A worker that runs."""
        if self._closed:
            raise ImageError("crashed", "the decoder was closed")
        while self._idle:
            worker = self._idle.pop()
            if worker.process.poll() is None:
                return worker
            worker.close()  # it ended while it had nothing to do
        try:
            return _Worker(self._settings)
        except OSError as error:
            raise ImageError("crashed", f"no worker can be started: {first_line(error)}") from error

    def _give_back(self, worker: "_Worker", future: Future[Any]) -> None:
        """Keep a worker that has answered; start another in place of any other."""
        if not future.done() or worker.owes_answer:
            worker.kill()
            # Its thread may still read: until it sees the end of the pipe.
            future.add_done_callback(lambda _: worker.close())
            if not self._closed:
                with suppress(OSError):  # `_choose` tries again
                    self._idle.append(_Worker(self._settings))
        else:
            self._idle.append(worker)

    def _problem(self, status: int | None, *, started: bool = True) -> ImageError:
        """Why a worker gave no answer: its exit status, None if it still ran; `started` if it could decode by then."""
        if self._closed:
            return ImageError("crashed", "the decoder was closed")
        if not started:
            return ImageError("crashed", f"no worker could decode within {START_SECONDS} s")
        if status is None or status == -getattr(signal, "SIGPROF", 0):
            return ImageError("timeout", f"decoding took more than {self.seconds:g} s")
        if status == OUT_OF_MEMORY:
            return ImageError("out_of_memory", "decoding takes more memory than there is")
        return ImageError("crashed", f"the decoder ended its process ({status})")

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


class _Worker:
    """One process, asked by one thread at a time."""

    def __init__(self, settings: str) -> None:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _ENVIRONMENT
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, settings],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._give = cast("BinaryIO", self.process.stdin)
        self._take = cast("BinaryIO", self.process.stdout)
        _widen(self._take)
        self.ready = False
        self.owes_answer = False

    def wait_until_ready(self) -> None:
        """Return when the worker can decode.

        Raises:
            EOFError, OSError, ValueError: it has ended, or says something else.
        """
        if not self.ready:
            self.owes_answer = True
            if self._read(1) != READY:
                raise ValueError
            self.ready, self.owes_answer = True, False

    def ask(self, data: bytes) -> Decoded | ImageError:
        """What the worker finds in an image.

        Raises:
            EOFError, OSError: it has ended.
            ValueError, LookupError, TypeError: its answer is none.
        """
        self.owes_answer = True
        self._write(struct.pack(">Q", len(data)))
        self._write(data)
        sha256 = hashlib.sha256(data).hexdigest()  # while the worker decodes
        [length] = struct.unpack(">I", self._read(4))
        if length > _MAX_TEXT:
            raise ValueError
        fields = json.loads(self._read(length))
        if "error" in fields:
            status, reason = fields["error"]
            if status not in get_args(ImageStatus):
                raise ValueError
            self.owes_answer = False
            return ImageError(status, str(reason))
        frames = self._frames(**fields)
        self.owes_answer = False
        return Decoded(frames, sha256)

    def _frames(
        self,
        sizes: list[list[int]],
        numbers: list[int],
        grounds: list[str],
        total: int,
        unrepresented: int,
        **_: Any,
    ) -> "Frames":
        """Read the pixels of all views, of these sizes."""
        from PIL import Image

        from judge.data.frames import MAX_HELD_PIXELS, Frames
        from judge.data.images import MAX_JUDGED_PIXELS

        sane = len(sizes) == len(numbers) == len(grounds) > 0
        sane &= all(type(number) is int for number in (*numbers, total, unrepresented, *chain(*sizes)))
        sane &= all(0 < width * height <= MAX_JUDGED_PIXELS for width, height in sizes)
        if not sane or sum(width * height for width, height in sizes) > MAX_HELD_PIXELS + MAX_JUDGED_PIXELS:
            raise ValueError
        images = [
            Image.frombytes("RGB", (width, height), self._read(3 * width * height)) for width, height in sizes
        ]
        return Frames(images, numbers, total, unrepresented, [str(ground) for ground in grounds])

    def _read(self, size: int) -> bytearray:
        """Exactly so many bytes."""
        found = bytearray(size)
        place = memoryview(found)
        while place:
            count = self._take.readinto(place)  # type: ignore[attr-defined]
            if not count:
                with suppress(subprocess.TimeoutExpired):  # it is about to end, and its status says why
                    self.process.wait(1)
                raise EOFError
            place = place[count:]
        return found

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._give.write(left) :]

    def kill(self) -> int:
        """End the process if it still runs; returns its exit status."""
        self.process.kill()
        return self.process.wait()

    def close(self) -> None:
        """Close the pipes; by the thread that uses them."""
        self._give.close()
        self._take.close()


def _widen(pipe: BinaryIO) -> None:
    """Let a pipe hold a megabyte instead of 64 KB, on Linux.

    Pixels then cross it in a few steps. After each one the thread that reads has to wait for the interpreter's lock,
    which a thread that scores may hold for milliseconds.
    """
    with suppress(
        ImportError, AttributeError, OSError
    ):  # another system, or no more such pipes for this user
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
