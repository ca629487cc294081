"""The process that decodes images for `judge.intake.processes`: encoded bytes come in, pixels go out.

It may be taken over by an image, so what it says is kept so simple that it cannot hurt who reads it: JSON and raw
pixels, no pickles. It has the variables of its environment that Python needs and no others, and writes no files.

Each request is a byte (whether the answers so far are waited for), 8 bytes of length and an encoded image. Each answer
is 4 bytes of length, a JSON object (`error`, or the fields of `Frames`, `sizes` and `seconds`), and the RGB bytes of
each view. One byte is sent before all, when it is ready. Where answers may be kept back, another pipe gets a byte when
an image is begun, so that it is known which one ended the process.
"""

import json
import os
import signal
import struct
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from judge.errors import ImageError

if TYPE_CHECKING:
    from judge.data.images import ImageLimits
    from judge.data.preprocessing import ImagePreprocessing

OUT_OF_MEMORY = 3
"""Exit status."""
READY = b"\1"
REQUEST = struct.Struct(">?Q")
"""Before each encoded image: whether the answers so far are waited for, and its length."""
_KEPT_BACK = 2**20
"""Most bytes of answers that are kept back."""


def main(settings: Mapping[str, Any]) -> None:
    """Decode what comes in, until nothing does.

    Args:
        settings: `limits` (the fields of `ImageLimits`), `max_frames`, `seconds` of processor time for an image and
            `memory`, bytes of this process; `preprocessing`, the fields of `ImagePreprocessing` where the views are to
            be resized, or None; and `counter`, the number of a pipe that gets a byte for every image begun, or None.
    """
    from judge.data.images import ImageLimits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
    limits = ImageLimits(**{**settings["limits"], "background": tuple(settings["limits"]["background"])})
    steps = _preprocessing(settings["preprocessing"])
    take, give = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", _KEPT_BACK)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints is no answer
    try:
        _answer(SMALLEST_PNG, limits, 1, steps, None)  # imports everything
        _limit_memory(settings["memory"])
        give.write(READY)
        give.flush()
        while len(head := take.read(REQUEST.size)) == REQUEST.size:
            if settings["counter"] is not None:
                os.write(settings["counter"], b".")
            waited_for, length = REQUEST.unpack(head)
            _start_clock(settings["seconds"])
            if len(data := take.read(length)) < length:
                return  # nobody is there any more
            _answer(data, limits, settings["max_frames"], steps, give)
            del data  # not held while the next one is waited for
            _start_clock(0)
            if waited_for:
                give.flush()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # and not an answer, which would need memory
    except BrokenPipeError:  # nobody is there any more
        os._exit(1)


def _preprocessing(fields: Mapping[str, Any] | None) -> "ImagePreprocessing | None":
    """As it was before it became JSON, which has no tuples."""
    if fields is None:
        return None
    from judge.data.preprocessing import ImagePreprocessing

    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return ImagePreprocessing(**known)


def _answer(
    data: bytes,
    limits: "ImageLimits",
    max_frames: int,
    preprocessing: "ImagePreprocessing | None",
    give: BinaryIO | None,
) -> None:
    """Decode an image, and write the answer to `give` if there is one."""
    from judge.data.frames import open_frames

    started = time.process_time()
    try:
        frames = open_frames(data, limits, max_frames=max_frames)
    except ImageError as error:
        if error.status == "out_of_memory":
            raise MemoryError from None
        return _write(give, {"error": [error.status, error.reason]})
    fields = frames._asdict()
    views: list[Any] = fields.pop("images")
    del frames
    if preprocessing is not None:
        views = [preprocessing.resized(views.pop(0)) for _ in range(len(views))]
    sizes = [view.shape[1::-1] if preprocessing else view.size for view in views]
    _write(give, {**fields, "sizes": sizes, "seconds": time.process_time() - started})
    while views:
        # One by one, so that no image is held twice.
        pixels = views.pop(0).tobytes()
        if give is not None:
            give.write(pixels)
    return None


def _write(give: BinaryIO | None, answer: dict[str, Any]) -> None:
    text = json.dumps(answer).encode()
    if give is not None:
        give.write(struct.pack(">I", len(text)) + text)


def _start_clock(seconds: float) -> None:
    """Let the system end this process after so much processor time; 0 for never."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory(memory: int) -> None:
    """On Linux, hold at most `memory` bytes; and leave nothing of an image on a disk, whatever happens."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        # Counted is what the process may write to, touched or not; so less is in memory than this allows.
        most = _status("VmData") + max(0, memory - _status("VmHWM"))
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _status(name: str) -> int:
    """Bytes in /proc/self/status: `VmHWM`, the most that was in memory, or `VmData`, what counts for RLIMIT_DATA."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return sys.maxsize // 4  # another system, without this limit


SMALLEST_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c"
    "020000000467414d41000186a031e8965f0000000b4944415478da6360600000"
    "000300012b094d840000000049454e44ae426082"
)
"""One transparent pixel and a gamma of 1, for which numpy's linear algebra takes its 32 MB of addresses."""
