"""Worker processes that decode: what an image may cost, and that it costs nobody else anything."""

import asyncio
import errno
import hashlib
import json
import os
import platform
import signal
import struct
import zlib
from collections.abc import Awaitable, Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from judge.data.frames import open_frames
from judge.data.images import ImageLimits
from judge.errors import ImageError
from judge.intake import decoding, processes
from judge.intake.decoding import DecodePool


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def use(pool: DecodePool, body: Callable[[DecodePool], Awaitable[None]]) -> None:
    async def main() -> None:
        try:
            await body(pool)
        finally:
            pool.close()

    asyncio.run(main())


def pids(pool: DecodePool) -> set[int]:
    return set(pool.pids)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def busy(pid: int) -> None:
    """Return when the process has used a tenth of a second more."""

    def ticks() -> int:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))

    before = ticks()
    while ticks() < before + os.sysconf("SC_CLK_TCK") // 10:
        await asyncio.sleep(0.01)


async def ended(pid: int) -> None:
    """Return when the process is no more, or a zombie."""
    while alive(pid):
        await asyncio.sleep(0.01)


def megabytes(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))


@cache
def slow() -> bytes:
    """An animation of many frames: some seconds of work in 3 MB."""
    frames = [Image.new("P", (1500, 1500), level) for level in range(120)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def test_images_come_out_as_the_door_opens_them() -> None:
    moving = encoded(photo(), "GIF", save_all=True, append_images=[photo().rotate(90 * n) for n in (1, 2)])
    files = [encoded(photo(), "JPEG"), moving, encoded(photo(2600, 2000), "JPEG")]

    async def body(pool: DecodePool) -> None:
        await pool.ready()
        for data, found in zip(files, await asyncio.gather(*map(pool.open, files)), strict=True):
            wanted = open_frames(data)
            assert found.sha256 == hashlib.sha256(data).hexdigest()
            assert found.frames._replace(images=[]) == wanted._replace(images=[])
            for one, other in zip(found.frames.images, wanted.images, strict=True):
                assert (one.mode, one.info) == ("RGB", {})
                assert np.array_equal(one, other)

    use(DecodePool(2), body)


def test_errors_of_the_door_arrive_and_cost_no_worker() -> None:
    files = {
        "truncated": encoded(photo(), "JPEG")[:-200],
        "not_an_image": b"text",
        "unsupported_format": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "too_large": bytes(100_001),
    }

    async def body(pool: DecodePool) -> None:
        await pool.ready()
        before = pids(pool)
        for status, data in files.items():
            with pytest.raises(ImageError) as caught:
                await pool.open(data)
            assert caught.value.status == status
        assert pids(pool) == before

    use(DecodePool(1, ImageLimits(max_bytes=100_000)), body)


def test_a_slow_image_is_killed_and_the_next_one_goes_on() -> None:
    async def body(pool: DecodePool) -> None:
        await pool.ready()
        before = pids(pool)
        with pytest.raises(ImageError, match=r"^timeout: decoding took more than 0\.5 s"):
            await pool.open(slow())
        assert (await pool.open(encoded(photo()))).frames.total == 1
        assert pids(pool).isdisjoint(before)
        assert not [pid for pid in before if alive(pid)]

    use(DecodePool(1, seconds=0.5), body)


def test_no_image_is_late_because_its_worker_still_starts(monkeypatch) -> None:
    monkeypatch.setattr(processes, "_START", "import time; time.sleep(0.6)\n" + processes._START)
    monkeypatch.setattr(decoding, "PATIENCE", 0.5)

    async def body(pool: DecodePool) -> None:
        assert (await pool.open(encoded(photo()))).frames.total == 1
        monkeypatch.setattr(decoding, "START_SECONDS", 0.1)
        for pid in pids(pool):
            os.kill(pid, signal.SIGKILL)
            await ended(pid)
        with pytest.raises(ImageError, match=r"^crashed: no worker could decode within 0\.1 s"):
            await pool.open(encoded(photo()))

    use(DecodePool(1, seconds=1), body)


def test_memory_is_limited() -> None:
    large = encoded(Image.new("RGB", (6000, 4000)), compress_level=1)

    async def body(pool: DecodePool) -> None:
        with pytest.raises(ImageError, match=r"^out_of_memory: "):
            await pool.open(large)
        assert (await pool.open(encoded(photo()))).frames.total == 1

    use(DecodePool(1, memory=100 * 10**6), body)


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="the C library's own way to keep freed memory")
def test_memory_is_given_back() -> None:
    """Kept, it counts against the next image, which is then refused for what others needed."""

    async def body(pool: DecodePool) -> None:
        await pool.open(encoded(photo()))
        [pid] = pids(pool)
        before = megabytes(pid, "VmRSS")
        await pool.open(encoded(photo(2000, 1900), compress_level=0))  # 11 MB
        assert megabytes(pid, "VmRSS") < before + 20

    use(DecodePool(1), body)


def test_memory_is_limited_once_all_libraries_have_theirs() -> None:
    """Linear algebra takes 32 MB of addresses when it is first used, here for a gamma."""
    gamma = struct.pack(">4sI", b"gAMA", 50_000)
    chunk = struct.pack(">I", 4) + gamma + struct.pack(">I", zlib.crc32(gamma))
    plain = encoded(photo())

    async def body(pool: DecodePool) -> None:
        await pool.open(plain)
        [pid] = pids(pool)
        before = megabytes(pid, "VmData")
        await pool.open(plain[:33] + chunk + plain[33:])
        assert megabytes(pid, "VmData") < before + 8

    use(DecodePool(1), body)


def test_workers_that_cannot_start_are_no_endless_loop() -> None:
    async def body(pool: DecodePool) -> None:
        for _ in range(2):
            with pytest.raises(ImageError, match=r"^crashed: the decoder ended its process \(\d+\)"):
                await pool.ready()

    use(DecodePool(1, memory="none"), body)  # type: ignore[arg-type]


def test_workers_have_no_torch_and_leave_nothing_on_disk() -> None:
    async def body(pool: DecodePool) -> None:
        await pool.open(encoded(photo(), "WEBP"))
        [pid] = pids(pool)
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        rows = {line[:26].strip(): line[26:].split()[:2] for line in limits}
        assert rows["Max core file size"] == rows["Max file size"] == ["0", "0"]
        assert 50 * 10**6 < int(rows["Max data size"][0]) < 400 * 10**6

    use(DecodePool(1), body)


def test_a_crash_costs_one_image() -> None:
    async def body(pool: DecodePool) -> None:
        await pool.ready()
        [pid] = pids(pool)
        first, second = (
            asyncio.create_task(pool.open(slow())),
            asyncio.create_task(pool.open(encoded(photo()))),
        )
        await busy(pid)
        os.kill(pid, signal.SIGSEGV)
        with pytest.raises(ImageError, match=r"^crashed: the decoder ended its process \(-11\)"):
            await first
        assert (await second).frames.total == 1
        # One that dies while it waits costs none.
        [pid] = pids(pool)
        os.kill(pid, signal.SIGKILL)
        await ended(pid)
        assert (await pool.open(encoded(photo()))).frames.total == 1

    use(DecodePool(1, seconds=60), body)


LIARS = {
    "too much text": b"\1" + b"\xff" * 4,
    "no JSON": b"\1" + struct.pack(">I", 3) + b"{{{",
    "no object": b"\1" + struct.pack(">I", 2) + b"[]",
    "an unknown error": {"error": ["safe", "x"]},
    "half an error": {"error": ["timeout"]},
    "no views": {"sizes": [], "numbers": [], "grounds": [], "total": 1, "unrepresented": 0},
    "other numbers": {"sizes": [[1, 1]], "numbers": [0, 1], "grounds": [""], "total": 1, "unrepresented": 0},
    "texts": {"sizes": [[1, 1]], "numbers": ["0"], "grounds": [""], "total": 1, "unrepresented": 0},
    "too large": {"sizes": [[9999, 9999]], "numbers": [0], "grounds": [""], "total": 1, "unrepresented": 0},
    "negative": {"sizes": [[-1, -1]], "numbers": [0], "grounds": [""], "total": 1, "unrepresented": 0},
    "too many": {
        "sizes": [[2048, 2048]] * 9,
        "numbers": [0] * 9,
        "grounds": [""] * 9,
        "total": 9,
        "unrepresented": 0,
    },
    "no pixels": {"sizes": [[4, 4]], "numbers": [0], "grounds": [""], "total": 1, "unrepresented": 0},
}


@pytest.mark.parametrize("name", LIARS)
def test_a_worker_that_was_taken_over_is_not_believed(name, monkeypatch, tmp_path) -> None:
    said = LIARS[name]
    if isinstance(said, dict):
        text = json.dumps(said).encode()
        said = b"\1" + struct.pack(">I", len(text)) + text
    (tmp_path / "said").write_bytes(said)
    script = f"import sys; sys.stdout.buffer.write(open({str(tmp_path / 'said')!r}, 'rb').read())"
    monkeypatch.setattr(processes, "_START", script)

    async def body(pool: DecodePool) -> None:
        with pytest.raises(ImageError, match=r"^crashed: "):
            await pool.open(encoded(photo()))

    use(DecodePool(1), body)


def test_a_machine_that_starts_no_process_is_an_answer(monkeypatch) -> None:
    async def body(pool: DecodePool) -> None:
        await pool.ready()
        monkeypatch.setattr(processes.subprocess, "Popen", refuse)
        for pid in pids(pool):
            os.kill(pid, signal.SIGKILL)
            await ended(pid)
        for _ in range(2):
            with pytest.raises(ImageError, match=r"^crashed: no worker can be started: Resource temporarily"):
                await pool.open(encoded(photo()))
        monkeypatch.undo()
        assert (await pool.open(encoded(photo()))).frames.total == 1

    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    use(DecodePool(1), body)


def test_workers_get_no_secrets(monkeypatch) -> None:
    monkeypatch.setenv("ARBITER_API_KEYS", "secret")

    async def body(pool: DecodePool) -> None:
        [pid] = pids(pool)
        await pool.ready()
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()

    use(DecodePool(1), body)


def test_kills_and_cancellations_at_any_moment_cost_no_other_image() -> None:
    """While data is on its way, too; queues shared by workers stood still then, for a minute or for ever."""
    large = encoded(photo(1500, 1400), compress_level=0)  # 6 MB
    rng = Random(1)
    kills, crashed, opened = 0, 0, 0

    async def work(pool: DecodePool, number: int) -> None:
        nonlocal kills, crashed, opened
        what = number % 10
        if what == 3:
            os.kill(rng.choice(pool.pids), signal.SIGKILL)
            kills += 1
        elif what in (5, 6):
            task = asyncio.create_task(pool.open(large))
            await asyncio.sleep(rng.random() * 0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            colour = (number, rng.randrange(256), 9)
            data = large if what == 9 else encoded(Image.new("RGB", (40, 30), colour))
            try:
                found = await pool.open(data)
            except ImageError as error:
                if error.status != "crashed":
                    raise
                crashed += 1
                return
            assert found.sha256 == hashlib.sha256(data).hexdigest()
            assert what == 9 or found.frames.images[0].getpixel((7, 7)) == colour
            opened += 1

    async def client(pool: DecodePool, numbers: range) -> None:
        for number in numbers:
            await work(pool, number)

    async def body(pool: DecodePool) -> None:
        await pool.ready()
        await asyncio.gather(*(client(pool, range(start, 60, 5)) for start in range(5)))
        assert kills == 6
        assert crashed <= kills
        assert opened + crashed == 42

    use(DecodePool(2, seconds=20), body)


def test_what_nobody_waits_for_is_not_decoded() -> None:
    async def body(pool: DecodePool) -> None:
        await pool.ready()
        [pid] = pids(pool)
        work = asyncio.create_task(pool.open(slow()))
        waiting = asyncio.create_task(pool.open(slow()))
        await busy(pid)
        waiting.cancel()
        work.cancel()
        assert (await pool.open(encoded(photo()))).frames.total == 1
        assert not alive(pid)

    use(DecodePool(1, seconds=60), body)


def test_closing_kills_what_is_under_way() -> None:
    async def main() -> None:
        pool = DecodePool(1, seconds=60)
        await pool.ready()
        [pid] = pids(pool)
        work = asyncio.create_task(pool.open(slow()))
        await busy(pid)
        pool.close()
        assert not alive(pid)
        for opening in (work, pool.open(encoded(photo()))):
            with pytest.raises(ImageError, match="crashed: the decoder was closed"):
                await opening

    asyncio.run(main())
