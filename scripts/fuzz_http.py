"""Fuzz a server over HTTP: each file gives a verdict or a clean 4xx, in time and memory.

    python scripts/fuzz_http.py                                          # 10,000 mutated files
    python scripts/fuzz_http.py --files 0 --folder Pillow/Tests/images   # and a collection of others
    python scripts/fuzz_http.py --files 0 --costly                       # as large and slow as the limits allow

`fuzz_images.py` says where Pillow's test images are; its seeds and mutations are used here. They go to
`POST /v1/moderations` of a real server in a process of its own, one after the other, with a classifier that takes no
time. So what is measured is the way in: HTTP, base64, and the worker processes that decode.

A violation, which makes the exit code 1: an answer that is neither a verdict nor a 4xx with a known code; no answer, or
a server that ended; a decoder that crashed; more than `--seconds` of *processor* time for an answer, all processes of
the server together; a worker that ever held more than `--megabytes`. The processor's time and not the clock's, because
other work on the machine is no fault of the server; the clock is reported. A worker that is killed for its time is
replaced at a cost of its own, which counts for no file: the next one is sent when the server is idle again.
"""

import argparse
import base64
import http.client
import json
import os
import platform
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
from fuzz_images import chunk, sources, stored
from PIL import Image

from judge.errors import ImageStatus
from judge.protocol import Scores
from prompts.taxonomy import Category, Taxonomy

TAXONOMY = Taxonomy("bright", "1", (Category("bright", "anything bright"),))
CODES = {*get_args(ImageStatus), "unjudged", "body_too_large"} - {"crashed"}
"""What a 4xx may say of an image."""
PACKAGES = ("pillow", "fastapi", "starlette", "uvicorn", "numpy")


def main() -> int:
    """Send all files and print the report; returns the exit code."""
    options = parse()
    if options.serve:
        serve(options.workers)
        return 0
    with Server(options.workers) as server:
        found = Findings(options)
        for name, data in chain(sources(options), draw_costly() if options.costly else ()):
            answer, cpu, clock = server.ask(data)
            found.add(name, data, answer, cpu, clock)
            if options.verbose:
                print(f"{answer:<28} {cpu:>6.2f} s {clock:>6.2f} s  {name}")
            if not server.alive:
                found.violations.append(f"{name}: the server ended with {server.process.poll()}")
                break
        found.peaks = dict(server.peaks)
    if found.largest > options.megabytes:
        found.violations.append(f"a worker held {found.largest:.0f} MB")
    report = found.report()
    print(report)
    if options.report is not None:
        options.report.write_text(report + "\n", encoding="utf-8")
    return 1 if found.violations else 0


class Findings:
    """What the answers were."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.counts: Counter[str] = Counter()
        self.cpu: list[float] = []
        self.clock: list[float] = []
        self.peaks: dict[int, float] = {}
        """MB by process."""
        self.violations: list[str] = []
        self.started = time.time()

    @property
    def largest(self) -> float:
        """MB."""
        return max(self.peaks.values(), default=0.0)

    def add(self, name: str, data: bytes, answer: str, cpu: float, clock: float) -> None:
        """Count one answer."""
        self.counts[answer.split(":")[0]] += 1
        self.cpu.append(cpu)
        self.clock.append(clock)
        wrong = answer if answer.startswith("WRONG") else ""
        if cpu > self.options.seconds:
            wrong = f"late: {cpu:.2f} s of work, {answer}"
        if wrong:
            self.violations.append(f"{name}: {wrong}")
            if self.options.keep is not None:
                self.options.keep.mkdir(parents=True, exist_ok=True)
                (self.options.keep / f"{len(self.violations)}.bin").write_bytes(data)

    def report(self) -> str:
        """Counts, costs, machine and versions."""
        lines = [f"{name:<32} {count:>6}" for name, count in sorted(self.counts.items())]
        lines.append(f"{self.counts.total()} files in {time.time() - self.started:.0f} s")
        for what, seconds in (("processor time", self.cpu), ("clock", self.clock)):
            median, high, most = np.quantile(seconds or [0.0], [0.5, 0.99, 1.0])
            lines.append(f"{what}: median {median:.3f} s, 99 % {high:.3f} s, largest {most:.2f} s a file")
        lines.append(f"memory: {len(self.peaks)} decode workers, at most {self.largest:.0f} MB each")
        load = "/".join(f"{one:.1f}" for one in os.getloadavg())
        lines.append(f"machine: {platform.platform()}, {os.cpu_count()} cores, load {load} at the end")
        versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        lines.append(f"python {platform.python_version()}, {versions}")
        lines.append(f"{len(self.violations)} violations")
        return "\n".join([*lines, *self.violations])


class Server:
    """A server process, what it is asked, and what it costs."""

    def __init__(self, workers: int) -> None:
        arguments = [sys.executable, __file__, "--serve", "--workers", str(workers)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.peaks: dict[int, float] = {}
        self.wait_until_ready(workers)
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def wait_until_ready(self, workers: int) -> None:
        """Return when the classifier and all workers are there."""
        end = time.monotonic() + 60
        while time.monotonic() < end and self.alive:
            if self.is_ready() and len(self.children()) >= workers:
                self.settle()
                return
            time.sleep(0.05)
        raise SystemExit("The server did not become ready.")

    def is_ready(self) -> bool:
        """Whether the server listens and its classifier is loaded."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            line.request("GET", "/readyz")
            return line.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            line.close()

    def ask(self, data: bytes) -> tuple[str, float, float]:
        """What was answered (`WRONG: ...` where that is a violation), seconds of the processor and of the clock."""
        body = json.dumps(question(data))
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        began, started = self.cpu(), time.perf_counter()
        try:
            line.request("POST", "/v1/moderations", body, {"Content-Type": "application/json"})
            response = line.getresponse()
            answer = verdict_of(response.status, response.read())
        except (OSError, http.client.HTTPException) as error:
            answer = f"WRONG: no answer: {type(error).__name__}: {error}"
        finally:
            line.close()
        spent, clock = self.cpu() - began, time.perf_counter() - started
        if not answer.startswith("200"):
            self.settle()
        return answer, spent, clock

    def settle(self) -> None:
        """Return when the server does nothing for a while; another worker may be starting."""
        quiet, before = 0, self.cpu()
        for _ in range(400):
            time.sleep(0.005)
            now = self.cpu()
            quiet, before = (quiet + 1 if now == before else 0), now
            if quiet == 3:
                return

    def children(self) -> list[int]:
        """The decode workers."""
        with suppress(OSError):
            tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
            found = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
            return [pid for pid in found if b"judge.intake.worker" in _read(pid, "cmdline")]
        return []

    def cpu(self) -> float:
        """Seconds of processor time of the server, its workers, and those that it had before."""
        ticks = sum(_ticks(self.process.pid)[:4]) + sum(sum(_ticks(pid)[:2]) for pid in self.children())
        return ticks / os.sysconf("SC_CLK_TCK")

    def _watch(self) -> None:
        """Ask for the peak memory of each worker, until the server ends."""
        while self.alive:
            for pid in self.children():
                for line in _read(pid, "status").splitlines():
                    if line.startswith(b"VmHWM"):
                        self.peaks[pid] = max(self.peaks.get(pid, 0.0), int(line.split()[1]) * 1024 / 1e6)
            time.sleep(0.02)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has just ended
        return b""


def _ticks(pid: int) -> list[int]:
    """User and system time of a process, then of the ended ones that it waited for."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return [int(field) for field in fields[11:15]] if fields else [0] * 4


def draw_costly() -> Iterator[tuple[str, bytes]]:
    """Files at the limits of the door, and some beyond them."""
    noise = np.random.default_rng(0).integers(0, 256, (2600, 3500, 3), dtype=np.uint8)
    yield "27 MB of noise", stored(Image.fromarray(noise), "PNG", compress_level=0)
    yield "31 MB of noise", stored(Image.fromarray(noise), "BMP") + bytes(4_000_000)
    yield (
        "24 MP, transparent",
        stored(Image.new("RGBA", (6000, 4000), (9, 9, 9, 99)), "PNG", compress_level=1),
    )
    yield "24 MP, grey and alpha", stored(Image.new("LA", (6000, 4000), (9, 99)), "PNG", compress_level=1)
    yield "24 MP, a palette", stored(Image.new("P", (6000, 4000)), "PNG", transparency=0)
    deep = Image.fromarray(np.zeros((4000, 6000), dtype=np.uint16))
    yield "24 MP, 16 bits", stored(deep, "PNG", compress_level=1)
    yield "24 MP, interlaced", interlaced(6000, 4000)
    inks = Image.new("CMYK", (6000, 4000))
    yield "24 MP of inks", stored(inks, "JPEG", progressive=True, subsampling=0)
    webp = Image.new("RGBA", (4080, 3056), (9, 9, 9, 99))
    yield "12 MP, WebP", stored(webp, "WEBP", lossless=True, quality=0, method=0)
    clear = Image.fromarray(np.random.default_rng(1).integers(0, 256, (2000, 2000, 4), dtype=np.uint8))
    yield "4 MP, every pixel transparent", stored(clear, "PNG", compress_level=1)
    for kind, mode, size, count in (
        ("WEBP", "RGB", (3200, 2500), 3),
        ("WEBP", "RGBA", (1000, 1000), 33),
        ("PNG", "RGBA", (1000, 1000), 33),
        ("GIF", "RGB", (1000, 1000), 33),
        ("GIF", "P", (1500, 1500), 130),
        ("GIF", "RGB", (16, 16), 2000),
    ):
        frames = [
            Image.new(mode, size, number if mode == "P" else shade(number)[: len(mode)])
            for number in range(count)
        ]
        name = f"{count} frames of {size[0]} x {size[1]}, {kind} {mode}"
        yield name, stored(frames[0], kind, save_all=True, append_images=frames[1:], duration=20)
    scans = stored(Image.new("RGB", (4000, 4000)), "JPEG", progressive=True)
    last = scans[scans.rindex(b"\xff\xda") : -2]
    yield "90 scans of 16 MP", scans[:-2] + last * 80 + scans[-2:]
    head = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0)
    yield "a bomb", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6)))
    text = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**8)))
    small = stored(Image.new("RGB", (9, 9)), "PNG")
    yield "a bomb as a profile", small[:33] + text + small[33:]
    yield "33 MB", bytes(33 * 2**20)


def shade(number: int) -> tuple[int, int, int, int]:
    """A colour and half of its opacity; other numbers, other colours."""
    return number * 37 % 256, number * 91 % 256, number * 151 % 256, 128


def interlaced(width: int, height: int) -> bytes:
    """A PNG of zeros in seven passes (Adam7), which Pillow cannot write."""
    size = 0
    for left, top, across, down in zip(
        (0, 4, 0, 2, 0, 1, 0),
        (0, 0, 4, 0, 2, 0, 1),
        (8, 8, 4, 4, 2, 2, 1),
        (8, 8, 8, 4, 4, 2, 2),
        strict=True,
    ):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        size += rows * (1 + 4 * columns)  # a filter byte, then RGBA
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 1)
    body = zlib.compress(bytes(size), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def question(data: bytes) -> dict[str, Any]:
    """The body of a request about one image."""
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"input": [{"type": "image_url", "image_url": {"url": url}}]}


def verdict_of(status: int, body: bytes) -> str:
    """`200 safe`, `422 truncated` and the like; `WRONG: ...` for anything that should not be."""
    try:
        answer = json.loads(body)
        if status == 200:
            [result] = answer["results"]
            row = result["verdict"]
            if row["status"] in ("safe", "unsafe") and result["flagged"] == (row["status"] == "unsafe"):
                return f"200 {row['status']}"
        elif 400 <= status < 500 and answer["error"].keys() == {"message", "type", "param", "code"}:
            code = answer["error"]["code"]
            return f"{status} {code}" if code in CODES else f"WRONG: {status} {answer['error']}"
    except (ValueError, KeyError, TypeError, AttributeError):  # another shape
        pass
    return f"WRONG: {status} {body[:200]!r}"


class Brightness:
    """A classifier that takes no time: the brighter, the less safe."""

    name = "brightness"
    default_taxonomy = TAXONOMY

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """The mean level, as the probability of every category."""
        bright = np.array([np.asarray(image.resize((1, 1))).mean() / 255 for image in images]).reshape(-1)
        return Scores(bright, np.repeat(bright[:, None], len(taxonomy), axis=1), (None,) * len(bright))


def serve(workers: int) -> None:
    """Print a port and serve there until the process is ended."""
    import uvicorn

    from judge.server.app import create_app
    from judge.server.service import JudgeService, LoadedJudge
    from judge.server.settings import ServerSettings

    settings = ServerSettings(decode_workers=workers)
    service = JudgeService(lambda: LoadedJudge(Brightness(), TAXONOMY, "brightness"), settings)
    server = uvicorn.Server(
        uvicorn.Config(create_app(service, settings), log_level="warning", access_log=False)
    )
    # With the protocol named: asyncio only then sends small answers at once.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        print(listening.getsockname()[1], flush=True)
        server.run(sockets=[listening])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=10_000, help="how many mutated files")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other mutations")
    parser.add_argument(
        "--folder", type=Path, action="append", default=[], help="also send all files in it, as they are"
    )
    parser.add_argument(
        "--costly", action="store_true", help="also send files as large and slow as the limits allow"
    )
    parser.add_argument("--workers", type=int, default=2, help="decode workers of the server")
    parser.add_argument(
        "--seconds", type=float, default=2.5, help="processor time for an answer; decoding may take 2"
    )
    parser.add_argument(
        "--megabytes", type=float, default=300.0, help="most memory of a worker, in 10^6 bytes"
    )
    parser.add_argument("--keep", type=Path, help="folder for the files of violations")
    parser.add_argument("--report", type=Path, help="also write the report there")
    parser.add_argument("--verbose", action="store_true", help="print every answer")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for folder in options.folder:
        if not folder.is_dir():
            parser.error(f"--folder {folder}: no such folder")
    return options


if __name__ == "__main__":
    sys.exit(main())
