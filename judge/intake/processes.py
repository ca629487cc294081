"""One worker process that decodes images (`judge.intake.worker`), and the pipes to it.

Workers are fresh interpreters and not forks, which would copy the memory of the models and the locks of torch's
threads; they import Pillow, numpy and `judge.data`. Each has pipes of its own. A pool with queues that are shared, such
as those of `concurrent.futures` and pebble, stands still or ends as a whole when a worker is killed at the wrong
moment; and it unpickles what a worker sends, who may by then be the image's.
"""

import json
import math
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from io import BufferedReader, RawIOBase
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast, get_args

from judge.errors import ImageError, ImageStatus

from .worker import OUT_OF_MEMORY, READY, REQUEST

if TYPE_CHECKING:
    from PIL.Image import Image

    from judge.data.frames import Frames
    from judge.data.images import ImageLimits
    from judge.data.preprocessing import ImagePreprocessing

SECONDS = 2.0
"""Processor time that one image may take by default; the slowest valid stills take about one second."""
MEMORY = 300 * 10**6
"""Bytes that a worker may hold by default, Python included."""
PATIENCE = 5
"""A worker is also killed after this many times its processor time: it waits, for whatever reason."""
START_SECONDS = 60
"""How long a worker may take until it can decode; half a second, where nothing else is to be done."""
NO_ANSWER = (OSError, EOFError, ValueError, LookupError, TypeError)
"""A worker has ended, or says what no worker says."""
PIPE_BYTES = 2**20
"""What a pipe may hold without privileges, on Linux."""
_MAX_TEXT = 2**20
_BUFFER_BYTES = 2**16
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

Places = Callable[[list[list[int]]], Sequence[Any]]
"""(width, height) of each view -> a writable buffer for the RGB bytes of each."""


class Answer(NamedTuple):
    """What a worker found in an image."""

    frames: "Frames"
    """Without its images."""
    sizes: list[list[int]]
    """Width and height of each view."""
    buffers: Sequence[Any]
    """The RGB bytes of each view, in the buffers that they were to be read into."""
    seconds: float
    """Processor time that it took, as the worker says."""


def settings_of(
    limits: "ImageLimits",
    *,
    seconds: float,
    memory: int,
    max_frames: int | None,
    preprocessing: "ImagePreprocessing | None" = None,
) -> dict[str, Any]:
    """What a worker is started with; see `judge.intake.worker.main`."""
    from judge.data.frames import MAX_FRAMES

    return {
        "path": sys.path,
        "limits": asdict(limits),
        "max_frames": max_frames or MAX_FRAMES,
        "seconds": seconds,
        "memory": memory,
        "preprocessing": preprocessing and asdict(preprocessing),
    }


def why_it_ended(status: int | None, seconds: float) -> ImageError:
    """What a worker's exit status says of the image that it had; None where it was killed as it took too long."""
    if status is None or status == -getattr(signal, "SIGPROF", 0):
        return ImageError("timeout", f"decoding took more than {seconds:g} s")
    if status == OUT_OF_MEMORY:
        return ImageError("out_of_memory", "decoding takes more memory than there is")
    return ImageError("crashed", f"the decoder ended its process ({status})")


def plain_buffers(sizes: list[list[int]]) -> list[bytearray]:
    """A buffer for the RGB bytes of each view."""
    return [bytearray(3 * width * height) for width, height in sizes]


def pil_images(answer: Answer) -> "list[Image]":
    """The views of an answer that was read into `plain_buffers`."""
    from PIL import Image

    return [
        Image.frombytes("RGB", (width, height), buffer)
        for (width, height), buffer in zip(answer.sizes, answer.buffers, strict=True)
    ]


class WorkerProcess:
    """One process, used by one thread at a time."""

    def __init__(self, settings: dict[str, Any], *, patience: float | None = None) -> None:
        """Start it.

        Args:
            settings: of `settings_of`.
            patience: raise TimeoutError where it begins no image for so many seconds, although it was sent one (POSIX);
                None where whoever waits for this thread kills the process.
        """
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _ENVIRONMENT
        theirs: int | None = None
        self._counter: int | None = None
        if patience is not None:
            self._counter, theirs = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps({**settings, "counter": theirs})],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                pass_fds=() if theirs is None else (theirs,),
            )
        except OSError:
            if self._counter is not None:
                os.close(self._counter)
            raise
        finally:
            if theirs is not None:
                os.close(theirs)
        self._give = cast("BinaryIO", self.process.stdin)
        take = cast("RawIOBase", self.process.stdout)
        self.room = min(_widen(self._give), _widen(take))
        """Bytes that can be sent to it while it does something else."""
        self._patience = patience
        if self._counter is not None:
            os.set_blocking(self._counter, False)
            os.set_blocking(self._give.fileno(), False)
            take = _Watched(take, self._wait)
        self._take = BufferedReader(take, _BUFFER_BYTES)
        self.ready = False
        self.owed = 1
        """How many answers it has yet to give; the first is that it is ready."""
        self._sent = self._begun = 0

    def wait_until_ready(self) -> None:
        """Return when the worker can decode.

        Raises:
            EOFError, OSError, ValueError: it has ended, or says something else.
        """
        if not self.ready:
            if self._read(1) != READY:
                raise ValueError
            self.ready = True
            self.owed -= 1

    def send(self, images: Sequence[bytes]) -> None:
        """Ask for encoded images, to be answered one by one, in order.

        While it owes answers, more than `room` bytes in all could stop both sides: each would wait for the other.

        Raises:
            OSError: it has ended.
        """
        self._count()  # also empties the pipe
        self.owed += len(images)
        self._sent += len(images)
        # The answers are kept back until the last one, so that few steps bring them all.
        heads = [REQUEST.pack(number == len(images), len(data)) for number, data in enumerate(images, 1)]
        pieces: list[bytes] = list(chain.from_iterable(zip(heads, images, strict=True)))
        for piece in [b"".join(pieces)] if sum(map(len, pieces)) < self.room else pieces:
            self._write(piece)

    def receive(self, places: Places = plain_buffers) -> Answer | ImageError:
        """The next answer, the pixels of its views read into `places(sizes)`.

        Raises:
            EOFError, OSError: it has ended.
            ValueError, LookupError, TypeError: its answer is none.
        """
        [length] = struct.unpack(">I", self._read(4))
        if length > _MAX_TEXT:
            raise ValueError
        fields = json.loads(self._read(length))
        if "error" in fields:
            status, reason = fields["error"]
            if status not in get_args(ImageStatus):
                raise ValueError
            self.owed -= 1
            return ImageError(status, str(reason))
        frames, sizes, seconds = _sane(**fields)
        buffers = places(sizes)
        for buffer in buffers:
            self._read_into(buffer)
        self.owed -= 1
        return Answer(frames, sizes, buffers, seconds)

    @property
    def working_on(self) -> int | None:
        """Which of the images that it owes it is at, from 0; None if it has begun none of them."""
        self._count()
        at = self._begun - (self._sent - self.owed) - 1
        return at if 0 <= at < self.owed else None

    def _count(self) -> int:
        """How many images it has begun, as it says."""
        if self._counter is not None:
            with suppress(BlockingIOError):
                self._begun = min(self._begun + len(os.read(self._counter, _BUFFER_BYTES)), self._sent)
        return self._begun

    def _wait(self, pipe: int, event: int) -> None:
        """Return when the pipe can be used; raises TimeoutError where the worker did not get on for too long."""
        poll = select.poll()
        poll.register(pipe, event)
        seconds = cast("float", self._patience) if self.ready else START_SECONDS
        before = self._begun
        while not poll.poll(1000 * seconds):
            if before == (before := self._count()):
                raise TimeoutError

    def _read(self, size: int) -> bytearray:
        """Exactly so many bytes."""
        found = bytearray(size)
        self._read_into(found)
        return found

    def _read_into(self, place: Any) -> None:
        """Fill a buffer."""
        if self._take.readinto(place) < memoryview(place).nbytes:
            with suppress(subprocess.TimeoutExpired):  # it is about to end, and its status says why
                self.process.wait(1)
            raise EOFError

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            count = cast("int | None", self._give.write(left))
            if count is None:  # full
                self._wait(self._give.fileno(), select.POLLOUT)
            else:
                left = left[count:]

    def kill(self) -> int:
        """End the process if it still runs; returns its exit status."""
        self.process.kill()
        return self.process.wait()

    def close(self) -> None:
        """Close the pipes; by the thread that uses them."""
        self._give.close()
        self._take.close()
        if self._counter is not None:
            os.close(self._counter)


class _Watched(RawIOBase):
    """A pipe that is read when something is in it, after a function that waits for that."""

    def __init__(self, pipe: RawIOBase, wait: Callable[[int, int], None]) -> None:
        self._pipe, self._wait = pipe, wait

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        self._wait(self._pipe.fileno(), select.POLLIN)
        return cast("int | None", self._pipe.readinto(buffer))

    def close(self) -> None:
        self._pipe.close()
        super().close()


def _sane(
    sizes: list[list[int]],
    numbers: list[int],
    grounds: list[str],
    total: int,
    unrepresented: int,
    seconds: float,
) -> "tuple[Frames, list[list[int]], float]":
    """The fields of an answer, if an honest worker could have sent them; else ValueError or TypeError."""
    from judge.data.frames import MAX_HELD_PIXELS, Frames
    from judge.data.images import MAX_JUDGED_PIXELS

    sane = len(sizes) == len(numbers) == len(grounds) > 0
    sane &= all(type(number) is int for number in (*numbers, total, unrepresented, *chain(*sizes)))
    sane &= all(min(size) > 0 and math.prod(size) <= MAX_JUDGED_PIXELS for size in sizes)
    sane &= type(seconds) is float and math.isfinite(seconds) and seconds >= 0
    if not sane or sum(width * height for width, height in sizes) > MAX_HELD_PIXELS + MAX_JUDGED_PIXELS:
        raise ValueError
    frames = Frames([], numbers, total, unrepresented, [str(ground) for ground in grounds])
    return frames, sizes, seconds


def _widen(pipe: Any) -> int:
    """Let a pipe hold a megabyte instead of 64 KB, on Linux; returns how much it holds.

    Pixels then cross it in a few steps. After each one the thread that reads has to wait for the interpreter's lock,
    which a thread that scores may hold for milliseconds.
    """
    if sys.platform != "linux":
        return 2**12
    import fcntl

    with suppress(OSError):  # no more such pipes for this user
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return fcntl.fcntl(pipe.fileno(), fcntl.F_GETPIPE_SZ)
