"""Fuzz the opening of images (`judge.data.images`): each file gives an image or an `ImageError`, in time and memory.

    python scripts/fuzz_images.py                                        # 2,000 mutated files
    python scripts/fuzz_images.py --files 0 --folder Pillow/Tests/images # and a collection of others

Pillow's test images, 25 of which once crashed it and 19 of which once hung it, are in its source distribution:
`pip download --no-binary :all: --no-deps pillow`, then unpack `Tests/images`.

Seeds are files of each format and mode, with profiles, chunks and frames; mutations flip, cut, repeat, swap and
splice bytes, write extreme sizes, and repair PNG checksums half of the time, as nothing after a wrong one is read.
A worker process opens them (`open_image` and `open_frames`), so that a crash is counted and the next file follows.
Prints a table and each failure; the exit code is 1 after any crash, hang, or use of too much memory.
"""

import argparse
import multiprocessing
import resource
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageCms

from judge.data.frames import open_frames
from judge.data.images import MAX_JUDGED_PIXELS, open_image
from judge.errors import ImageError

ADDRESS_SPACE = 4 * 2**30
"""Bytes of address space of a worker, a hard limit beyond the memory that is measured."""
EXTREMES = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\x40\0",
    b"\x00\x01\x86\xa0",
    b"\x10\x27\0\0",
)
FAILURES = ("crash", "hang", "memory")


def main() -> int:
    """Open all files and print the table; returns the exit code."""
    options = parse()
    counts: Counter[str] = Counter()
    failures: list[str] = []
    most, slowest, started = 0.0, 0.0, time.time()
    worker = Worker()
    try:
        for name, data in sources(options):
            status, seconds, megabytes = worker.open(data, options.seconds)
            if status.startswith("opened") and megabytes > options.megabytes:
                status = f"memory: {megabytes:.0f} MB"
            most, slowest = max(most, megabytes), max(slowest, seconds)
            counts[status.split(":")[0]] += 1
            if status.startswith(FAILURES):
                failures.append(f"{name}: {status}")
                if options.keep is not None:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / f"{len(failures)}.bin").write_bytes(data)
    finally:
        worker.stop()
    for name in (*FAILURES, *sorted(set(counts) - set(FAILURES))):
        print(f"{name:<20} {counts[name]:>6}")
    print(
        f"{counts.total()} files in {time.time() - started:.0f} s; at most {most:.0f} MB and {slowest:.1f} s a file"
    )
    print("\n".join(failures))
    return 1 if failures else 0


class Worker:
    """A process that opens files one by one, and is replaced when it dies or does not answer."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        # Not a fork, whose memory would include that of this process.
        context = multiprocessing.get_context("spawn")
        self.line, other = context.Pipe()
        self.process = context.Process(target=work, args=(other,), daemon=True)
        self.process.start()
        other.close()
        self.line.recv()  # imported and ready

    def open(self, data: bytes, seconds: float) -> tuple[str, float, float]:
        """Status (`opened`, a status of ImageError, `crash: why`, `hang`), seconds, and peak memory (MB)."""
        started = time.time()
        try:
            self.line.send_bytes(data)
            if self.line.poll(seconds):
                status, megabytes = self.line.recv()
                return status, time.time() - started, megabytes
            status = f"hang: no answer in {seconds:g} s"
        except (EOFError, OSError):
            self.process.join(5)
            status = f"crash: the process ended with {self.process.exitcode}"
        self.stop()
        self._start()
        return status, time.time() - started, 0.0

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.line.close()


def work(line: Connection) -> None:
    """The loop of the worker: receives bytes, sends status and peak memory."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    warnings.simplefilter("ignore")  # Pillow warns of damaged metadata, which is no failure
    line.send("ready")
    while True:
        try:
            data = line.recv_bytes()
        except EOFError:
            return
        with suppress(OSError):  # elsewhere than on Linux the peak is that of all files so far
            Path("/proc/self/clear_refs").write_text("5")
        line.send((outcome(data), peak()))


def outcome(data: bytes) -> str:
    """`opened`, the status of an ImageError, or `crash: why`."""
    try:
        for image in (*open_frames(data).images, open_image(data)):
            if image.mode != "RGB" or image.info or not 0 < image.width * image.height <= MAX_JUDGED_PIXELS:
                return f"crash: an image of {image.mode} {image.size} with {image.info}"
    except ImageError as error:
        return str(error.status)
    except BaseException as error:
        return f"crash: {type(error).__name__}: {error}"
    return "opened"


def peak() -> float:
    """Peak memory (MB) since the last file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sources(options: argparse.Namespace) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the files to open."""
    for folder in options.folder:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            yield str(path.relative_to(folder)), path.read_bytes()
    seeds = list(draw_seeds().items()) if options.files else []
    for number in range(options.files):
        # A generator per file, so that each can be drawn again without the others.
        rng = Random(f"{options.seed}/{number}")
        name, data = seeds[number % len(seeds)]
        yield f"{number} ({name})", mutate(data, [other for _, other in seeds], rng)


def draw_seeds() -> dict[str, bytes]:
    """Small files of each format, mode and feature that is handled when images are opened."""
    levels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    colour = Image.fromarray(levels)
    clear = colour.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(colour.size))
    deep = Image.fromarray(levels[..., 0].astype(np.uint16) * 257)
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {
        "save_all": True,
        "append_images": [colour.rotate(90 * turn) for turn in (1, 2, 3)],
        "duration": 50,
    }
    modes = {mode: colour.convert(mode) for mode in ("1", "L", "LA", "P")}
    made = {
        **{f"PNG {mode}": stored(image, "PNG") for mode, image in modes.items()},
        "PNG": stored(colour, "PNG", icc_profile=icc, exif=exif),
        "PNG clear": stored(clear, "PNG"),
        "PNG deep": stored(deep, "PNG", transparency=7),
        "PNG key": stored(modes["P"], "PNG", transparency=3),
        "PNG moving": stored(colour, "PNG", **frames),
        "JPEG": stored(colour, "JPEG", icc_profile=icc, exif=exif),
        "JPEG progressive": stored(colour, "JPEG", progressive=True),
        "JPEG grey": stored(modes["L"], "JPEG"),
        "JPEG inks": stored(colour.convert("CMYK"), "JPEG"),
        "JPEG several": stored(colour, "MPO", save_all=True, append_images=[colour]),
        "WebP": stored(colour, "WEBP", icc_profile=icc, exif=exif),
        "WebP lossless": stored(clear, "WEBP", lossless=True),
        "WebP moving": stored(colour, "WEBP", **frames),
        "GIF": stored(modes["P"], "GIF", transparency=3),
        "GIF moving": stored(colour, "GIF", **frames),
        **{f"BMP {mode}": stored(modes[mode], "BMP") for mode in ("1", "L", "P")},
        "BMP": stored(colour, "BMP"),
        "BMP clear": stored(clear, "BMP"),
    }
    chunks = (
        (b"gAMA", struct.pack(">I", 4167)),
        (b"cHRM", bytes(32)),
        (b"cICP", b"\x0c\x08\0\1"),
        (b"sRGB", b"\0"),
    )
    for name, body in chunks:
        made[f"PNG {name.decode()}"] = made["PNG L"][:33] + chunk(name, body) + made["PNG L"][33:]
    return made


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def mutate(data: bytes, others: list[bytes], rng: Random) -> bytes:
    """One to six changes, most of them near the start, where the headers are."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        size = len(changed)
        # Half of the time cubed, which is near the start.
        place = int(size * rng.random() ** rng.choice((1, 3)))
        length = 1 + int(min(size, 256) * rng.random() ** 3)
        part = bytes(changed[place : place + length])
        kind = rng.randrange(7)
        if kind == 0 and part:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and part:
            changed[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            changed[place : place + 4] = rng.choice(EXTREMES)
        elif kind == 3:
            del changed[place : place + length]
        elif kind == 4:
            changed[place:place] = part * rng.randint(1, 8)
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            changed[place : place + length] = other[start : start + length]
        elif rng.random() < 0.3:
            del changed[place:]
    found = bytes(changed)
    return repair_checksums(found) if found[1:4] == b"PNG" and rng.random() < 0.5 else found


def repair_checksums(data: bytes) -> bytes:
    """The PNG with a correct checksum after each chunk, as far as the lengths are valid."""
    done, place = bytearray(data), 8
    while place + 12 <= len(done):
        # Length, name, body, checksum: 4, 4, length and 4 bytes.
        end = place + 8 + int.from_bytes(done[place : place + 4], "big")
        if end + 4 > len(done):
            break
        done[end : end + 4] = struct.pack(">I", zlib.crc32(done[place + 4 : end]))
        place = end + 4
    return bytes(done)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2000, help="how many mutated files")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other mutations")
    parser.add_argument(
        "--folder", type=Path, action="append", default=[], help="also open all files in it, as they are"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="a file that takes longer hangs")
    parser.add_argument(
        "--megabytes",
        type=float,
        default=300.0,
        help="most memory that opening a file may take, Python included",
    )
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    options = parser.parse_args()
    for folder in options.folder:
        if not folder.is_dir():
            parser.error(f"--folder {folder}: no such folder")
    return options


if __name__ == "__main__":
    sys.exit(main())
