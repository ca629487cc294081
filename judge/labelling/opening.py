"""The first stage of a labelling run: a shard -> blocks of decoded images. It holds no model."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Self

from judge.errors import ImageError
from judge.intake.batches import BatchDecoder
from judge.intake.blocks import OpenedBlock

from .inputs.read import read_shard
from .inputs.shards import InputRow
from .rows import Block, Opened, Task

if TYPE_CHECKING:
    from judge.data.frames import Frames
    from judge.data.preprocessing import ImagePreprocessing

_NO_IMAGE = ImageError("missing", "there is no image")


@dataclass(frozen=True)
class Opening:
    """How inputs are read and their images decoded; it is pickled to get to other processes."""

    preprocessing: "ImagePreprocessing | None" = None
    """What is done to every image (`scoring.preprocessing_of`); None hands them over as they are."""
    part_rows: int = 4096
    block_rows: int = 64
    """Inputs of a block; a divisor of `part_rows`."""
    workers: int = 2
    """Processes that decode."""
    seconds: float = 2.0
    """Processor time for one image."""


@dataclass(frozen=True)
class Request:
    """A block before its images are read."""

    shard: int
    part: int
    offset: int
    rows: tuple[InputRow, ...]
    last: bool = False


class BlockReader:
    """Opens the blocks of shards ahead of whoever takes them; a context manager that holds the worker processes."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._decoder = BatchDecoder(
            opening.workers, preprocessing=opening.preprocessing, seconds=opening.seconds
        )

    def blocks(self, tasks: Iterable[Task]) -> Iterator[Block]:
        """Every block of the parts that tasks lack, in order."""
        wanted = (
            (request, [row.problem or row.image or _NO_IMAGE for row in request.rows])
            for task in tasks
            for request in requests(task, self._opening.part_rows, self._opening.block_rows)
        )
        for request, opened in self._decoder.open_blocks(wanted):
            yield _block(request, opened)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()


def _block(request: Request, opened: OpenedBlock) -> Block:
    rows = tuple(
        Opened(
            row.id, row.source, row.prompt, found.sha256, found.problem, found.views, _several(found.frames)
        )
        for row, found in zip(request.rows, opened.rows, strict=True)
    )
    return Block(
        request.shard,
        request.part,
        request.offset,
        rows,
        opened.images,
        request.last,
        {"read": opened.read_seconds, "decode": opened.decode_seconds},
        opened.size,
        1.0 if request.last else max((row.place for row in request.rows), default=0.0),
    )


def _several(frames: "Frames | None") -> dict[str, object] | None:
    """What the views of an image are, where there is more to say than that it is one."""
    if frames is None or (frames.total == 1 and len(frames.numbers) == 1):
        return None
    return {key: value for key, value in frames._asdict().items() if key != "images"}


def requests(task: Task, part_rows: int, block_rows: int) -> Iterator[Request]:
    """The blocks of a shard whose parts are missing; the last one says so, and may be empty."""
    held: Request | None = None
    rows = read_shard(task.shard, lambda index: index // part_rows in task.done)
    for number, members in groupby(enumerate(rows), key=lambda pair: pair[0] // block_rows):
        if held is not None and held.rows:
            yield held
        offset = number * block_rows
        present = tuple(row for _, row in members if row is not None)
        held = Request(task.shard.number, offset // part_rows, offset, present)
    yield replace(held or Request(task.shard.number, 0, 0, ()), last=True)
