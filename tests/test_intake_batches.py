"""Images decoded in bulk: order, completeness, and what one image may cost the others."""

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from judge.data.frames import open_frames
from judge.data.images import ImageLimits
from judge.data.preprocessing import ImagePreprocessing
from judge.errors import ConfigError, DecoderError, ImageError
from judge.intake import lanes, processes
from judge.intake.batches import BatchDecoder

STEPS = ImagePreprocessing((20, 24), 3, (18, 22), 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PATIENCE = 120
"""Seconds that a test waits for what takes far less."""


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@cache
def good(seed: int) -> bytes:
    """Images of one view, and of several."""
    image = photo(seed)
    if seed % 4 == 1:
        return encoded(image, "GIF", save_all=True, append_images=[image.rotate(90 * n) for n in (1, 2)])
    if seed % 4 == 2:
        image.putalpha(100)
        return encoded(image)
    return encoded(image, "JPEG" if seed % 4 else "PNG")


@cache
def slow() -> bytes:
    """An animation of many frames: some seconds of work in 3 MB."""
    frames = [Image.new("P", (1500, 1500), level) for level in range(80)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


@cache
def hungry() -> bytes:
    return encoded(Image.new("RGB", (6000, 4000)), compress_level=1)


@dataclass
class Source:
    """An image as a reader gives it; may do something when it is read."""

    data: bytes
    when_read: Callable[[], object] = field(default=lambda: None)

    def __bytes__(self) -> bytes:
        self.when_read()
        return self.data


def fail_with(error: BaseException) -> Source:
    def fail() -> None:
        raise error

    return Source(b"", fail)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def decoder() -> Iterator[BatchDecoder]:
    """Two workers that give up soon."""
    with BatchDecoder(2, ImageLimits(max_bytes=10**7), preprocessing=STEPS, seconds=0.5) as decoder:
        yield decoder


def test_blocks_come_in_order_with_the_pixels_of_the_one_image_path(decoder: BatchDecoder) -> None:
    files = [good(seed) for seed in range(37)]
    bounds = [0, 1, 1, 20, 22, 37]
    blocks = [(n, [Source(data) for data in files[slice(*bounds[n : n + 2])]]) for n in range(5)]
    found = list(decoder.open_blocks(blocks))
    assert [key for key, _ in found] == list(range(5))
    assert [len(block.rows) for _, block in found] == [1, 0, 19, 2, 15]
    images = np.concatenate([block.images for _, block in found])
    wanted = [open_frames(data) for data in files]
    assert np.array_equal(images, [STEPS.resized(image) for frames in wanted for image in frames.images])
    rows = [row for _, block in found for row in block.rows]
    for row, frames, data in zip(rows, wanted, files, strict=True):
        assert row.problem is None
        assert row.sha256 == hashlib.sha256(data).hexdigest()
        assert row.frames == frames._replace(images=[])
        assert row.views == len(frames.images)
    assert sum(block.size for _, block in found) == sum(map(len, files))
    assert sum(block.decode_seconds for _, block in found) > 0


def test_without_preprocessing_images_come_as_they_are_judged() -> None:
    files = [good(1), good(2), encoded(photo(3, 1300, 1100), compress_level=0)]
    with BatchDecoder(1) as decoder:
        [(_, block)] = decoder.open_blocks([("", [Source(data) for data in files])])
    wanted = [image for data in files for image in open_frames(data).images]
    for one, other in zip(block.images, wanted, strict=True):
        assert (one.mode, one.info) == ("RGB", {})
        assert np.array_equal(np.asarray(one), np.asarray(other))


POISONS: dict[str, tuple[Callable[[], Source | ImageError], str]] = {
    "slow": (lambda: Source(slow()), "timeout"),
    "cut": (lambda: Source(encoded(photo(), "JPEG")[:-200]), "truncated"),
    "text": (lambda: Source(b"text"), "not_an_image"),
    "nothing": (lambda: Source(b""), "not_an_image"),
    "large": (lambda: Source(bytes(10**7 + 1)), "too_large"),
    "vector": (lambda: Source(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "unsupported_format"),
    "known": (lambda: ImageError("missing", "no such file"), "missing"),
    "refused": (lambda: fail_with(ImageError("url_failed", "gone")), "url_failed"),
    "broken disk": (lambda: fail_with(OSError(5, "Input/output error")), "unreadable"),
    "broken library": (lambda: fail_with(KeyError("bucket")), "unreadable"),
}


def check(decoder: BatchDecoder, sources: list[Source | ImageError], block_rows: int) -> dict[int, str]:
    """Decode sources; place -> status of those that are not ok. The others have their own pixels."""
    count = len(sources)
    blocks = [(start, sources[start : start + block_rows]) for start in range(0, count, block_rows)]
    found = list(decoder.open_blocks(blocks))
    assert [key for key, _ in found] == [key for key, _ in blocks]
    rows = [row for _, block in found for row in block.rows]
    assert len(rows) == count
    opened = [source for source, row in zip(sources, rows, strict=True) if row.problem is None]
    wanted = [view for source in opened for view in open_frames(bytes(source)).images]
    images = np.concatenate([block.images for _, block in found])
    assert np.array_equal(images, [STEPS.resized(view) for view in wanted] or np.empty((0, 18, 22, 3)))
    return {place: row.problem.status for place, row in enumerate(rows) if row.problem}


@pytest.mark.parametrize("name", POISONS)
def test_a_poison_costs_its_own_row(decoder: BatchDecoder, name: str) -> None:
    make, status = POISONS[name]
    sources: list[Source | ImageError] = [Source(good(seed)) for seed in range(11)]
    sources[5] = make()
    assert check(decoder, sources, 4) == {5: status}
    wait_until(lambda: all(map(alive, decoder.pids)))  # replaced, where it was killed


def test_an_image_that_takes_too_much_memory_costs_its_own_row() -> None:
    with BatchDecoder(1, preprocessing=STEPS, memory=100 * 10**6) as decoder:
        sources: list[Source | ImageError] = [Source(good(seed)) for seed in range(11)]
        sources[5] = Source(hungry())
        assert check(decoder, sources, 4) == {5: "out_of_memory"}


CRASH, HANG = b"crash", b"hang"
HOOK = """import os, signal, time
import judge.data.frames
plain = judge.data.frames.open_frames
def open_frames(data, *rest, **options):
    if data == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"hang" and os.path.exists({file!r}):
        os.rename({file!r}, {file!r} + ".seen")
        time.sleep(600)
    return plain(data, *rest, **options)
judge.data.frames.open_frames = open_frames
"""


@pytest.fixture
def hooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Workers crash at one image, as a fault in a C library would have them do; and one waits for ever at another.

    Returns:
        A file that is called `.seen` as soon as that one waits.
    """
    file = tmp_path / "file"
    file.touch()
    first, last = processes._START.rsplit("from judge", 1)
    monkeypatch.setattr(processes, "_START", f"{first}{HOOK.format(file=str(file))}from judge{last}")
    return file


CHEAP = sorted(POISONS.keys() - {"slow"})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.none() | st.sampled_from(CHEAP), max_size=50),
    block_rows=st.integers(1, 60),
)
def test_poisons_in_any_place_cost_their_own_rows(
    decoder: BatchDecoder, names: list[str | None], block_rows: int
) -> None:
    sources: list[Source | ImageError] = []
    statuses = {}
    for place, name in enumerate(names):
        if name is not None:
            sources.append(POISONS[name][0]())
            statuses[place] = POISONS[name][1]
        else:
            sources.append(Source(good(place)))
    if sources:
        assert check(decoder, sources, block_rows) == statuses


@pytest.mark.parametrize("place", [0, 31, 32, 63, 69])
def test_a_crash_costs_its_own_row(hooked: Path, place: int) -> None:
    """In the first batch that a worker has, at its end, in the second and in one that is not full."""
    with BatchDecoder(1, preprocessing=STEPS) as decoder:
        sources: list[Source | ImageError] = [Source(good(seed % 8)) for seed in range(70)]
        sources[place] = Source(CRASH)
        assert check(decoder, sources, 64) == {place: "crashed"}


def test_an_image_whose_worker_was_killed_is_asked_once_more(hooked: Path) -> None:
    with BatchDecoder(2, preprocessing=STEPS) as decoder:

        def kill() -> None:
            wait_until(hooked.with_suffix(".seen").exists)
            victims.extend(decoder.pids)
            for pid in victims:
                os.kill(pid, signal.SIGKILL)

        victims: list[int] = []
        thread = Thread(target=kill)
        thread.start()
        # The next worker that gets it does not wait, and says what it is.
        sources: list[Source | ImageError] = [Source(good(seed % 8)) for seed in range(40)]
        sources[7] = Source(HANG)
        statuses = check(decoder, sources, 20)
        thread.join()
        assert statuses == {7: "not_an_image"}
        # The one that had the image was replaced; the other one is, as soon as it is given something.
        assert len(set(victims) & set(decoder.pids)) < 2


def test_a_worker_that_waits_for_ever_is_killed(hooked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "PATIENCE", 2)
    with BatchDecoder(1, preprocessing=STEPS, seconds=1) as decoder:
        sources: list[Source | ImageError] = [Source(good(seed)) for seed in range(5)]
        sources[2] = Source(HANG)
        assert check(decoder, sources, 5) == {2: "timeout"}


@pytest.mark.parametrize("place", [0, 90])
def test_a_worker_killed_from_outside_costs_no_image(decoder: BatchDecoder, place: int) -> None:
    """Also while large requests and answers are on their way, which fill the pipes."""
    large = encoded(photo(1, 1100, 1000), compress_level=0)  # 3 MB
    sources = [Source(large if seed % 20 == 3 else good(seed % 16)) for seed in range(120)]

    victims = decoder.pids[:1]

    def kill() -> None:
        while victims:  # once: `check` reads them again
            with suppress(ProcessLookupError):
                os.kill(victims.pop(), signal.SIGKILL)

    sources[place].when_read = kill
    assert check(decoder, [*sources], 32) == {}


def test_requests_and_answers_larger_than_the_pipes_do_not_meet() -> None:
    """Each side would wait for the other to read."""
    wide = encoded(Image.new("RGB", (1400, 1400)))  # small when asked, large when answered
    deep = encoded(photo(1, 900, 900), compress_level=0)  # large both times
    with BatchDecoder(1) as decoder:
        [(_, block)] = decoder.open_blocks(
            [(0, [Source(data) for data in [wide, deep, wide, wide, deep] * 4])]
        )
    assert [image.size[0] for image in block.images] == [1400, 900, 1400, 1400, 900] * 4


def test_blocks_are_not_taken_long_before_they_are_needed(decoder: BatchDecoder) -> None:
    taken = []

    def blocks() -> Iterator[tuple[int, list[Source | ImageError]]]:
        for number in range(1000):
            taken.append(number)
            yield number, [Source(good(0))] * 10

    found = decoder.open_blocks(blocks(), ahead=50)
    for number in range(20):
        assert next(found)[0] == number
        # Five that wait, and one that was taken and does not wait yet.
        assert len(taken) <= number + 1 + 6
    found.close()  # type: ignore[attr-defined]
    assert check(decoder, [Source(good(3))], 1) == {}


def test_images_that_are_in_memory_count(decoder: BatchDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of tables hold their images until their block is taken; hundreds of large ones would be gigabytes."""
    taken, large = [], good(0) + bytes(2**20)
    monkeypatch.setattr("judge.intake.batches.MAX_HELD_BYTES", 10 * 2**20)

    def blocks() -> Iterator[tuple[int, list[bytes]]]:
        for number in range(30):
            taken.append(number)
            yield number, [large] * 4

    found = decoder.open_blocks(blocks(), ahead=500)
    for number in range(10):
        assert next(found)[0] == number
        assert len(taken) <= number + 1 + 4  # three are 12 MB, and one does not wait yet
    found.close()  # type: ignore[attr-defined]


def test_an_error_of_the_iterator_comes_after_the_blocks_before_it(decoder: BatchDecoder) -> None:
    def blocks() -> Iterator[tuple[int, list[Source | ImageError]]]:
        yield 0, [Source(good(0))]
        yield 1, [Source(good(1))]
        raise OSError("the disk is gone")

    found = decoder.open_blocks(blocks())
    assert [next(found)[0], next(found)[0]] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


def test_closing_ends_what_is_under_way(hooked: Path) -> None:
    decoder = BatchDecoder(2, preprocessing=STEPS, seconds=60)
    gate = Event()
    sources = [Source(HANG), *[Source(good(0))] * 20, Source(b"", lambda: gate.wait(PATIENCE))]
    errors = []

    def take() -> None:
        with pytest.raises(DecoderError, match="closed") as caught:
            list(decoder.open_blocks([(0, sources)]))
        errors.append(caught.value)

    thread = Thread(target=take)
    thread.start()
    wait_until(hooked.with_suffix(".seen").exists)
    pids = decoder.pids
    decoder.close()
    assert not any(map(alive, pids))
    thread.join(PATIENCE)
    gate.set()
    assert len(errors) == 1
    with pytest.raises(DecoderError, match="closed"):
        list(decoder.open_blocks([(0, sources)]))


ORPHANS = """
import sys
from judge.intake.batches import BatchDecoder
decoder = BatchDecoder(2)
[(_, block)] = decoder.open_blocks([(0, [b"text"] * 100)])
print(*decoder.pids, flush=True)
blocks = ((n, [open(sys.argv[1], "rb").read()] * 32) for n in range(10**6))
for _ in decoder.open_blocks(blocks):
    print(".", flush=True)
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(good(4))
    command = [sys.executable, "-c", ORPHANS, str(tmp_path / "image")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as parent:
        assert parent.stdout
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert parent.stdout.readline()  # all are at work
        assert len(pids) == 2
        assert all(map(alive, pids))
        parent.kill()
    wait_until(lambda: not any(map(alive, pids)))


LIARS = {
    "too much text": b"\1" + b"\xff" * 4,
    "no object": b"\1" + struct.pack(">I", 2) + b"[]",
    "another size": {"sizes": [[22, 19]]},
    "negative sizes": {"sizes": [[-22, -18]]},
    "too many views": {"sizes": [[22, 18]] * 99, "numbers": [0] * 99, "grounds": [""] * 99},
    "a time of its own": {"seconds": float("inf")},
    "no pixels": {},
}


@pytest.mark.parametrize("name", LIARS)
def test_a_worker_that_was_taken_over_is_not_believed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = LIARS[name]
    if isinstance(said, dict):
        honest = {
            "sizes": [[22, 18]],
            "numbers": [0],
            "grounds": [""],
            "total": 1,
            "unrepresented": 0,
            "seconds": 0.1,
        }
        text = json.dumps({**honest, **said}).encode()
        said = b"\1" + struct.pack(">I", len(text)) + text
    (tmp_path / "said").write_bytes(said)
    script = f"import sys; sys.stdout.buffer.write(open({str(tmp_path / 'said')!r}, 'rb').read()); sys.stdout.flush()"
    # It has begun two images, and so cannot say that it was killed before.
    script += (
        "; import json, os; os.write(json.loads(sys.argv[1])['counter'], b'..'); sys.stdin.buffer.read(9)"
    )
    monkeypatch.setattr(processes, "_START", script)
    with BatchDecoder(1, preprocessing=STEPS) as decoder:
        [(_, block)] = decoder.open_blocks([(0, [Source(good(0)), Source(good(1))])])
    assert [row.problem and row.problem.status for row in block.rows] == ["crashed"] * 2
    assert block.images.shape == (0, 18, 22, 3)


def test_no_image_is_blamed_where_no_worker_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_PAUSE", 0)
    monkeypatch.setattr(processes, "_START", "raise SystemExit(7)")
    with BatchDecoder(1) as decoder, pytest.raises(DecoderError, match=r"10 times in a row: .*\(7"):
        list(decoder.open_blocks([(0, [Source(good(0))])]))


def test_options_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="0 workers"):
        BatchDecoder(0)
    with pytest.raises(ConfigError, match="cannot be stacked"):
        BatchDecoder(1, preprocessing=ImagePreprocessing(224, 3, None, None, None, None))
