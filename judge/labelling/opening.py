"""The first stage of a labelling run: a shard -> blocks of decoded images. It holds no model."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Self, SupportsBytes

from judge.errors import ImageError, LabellingError
from judge.intake.batches import BatchDecoder
from judge.intake.blocks import OpenedBlock
from judge.intake.worker import SMALLEST_PNG

from .inputs.read import read_shard
from .inputs.shards import InputRow
from .rows import Block, Opened, Task

if TYPE_CHECKING:
    from judge.data.frames import Frames
    from judge.data.preprocessing import ImagePreprocessing

MAX_CRASHES = 64
"""Images in a row that end the process that decodes them, before it is tried on a plain one."""


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
        self._crashes = 0

    def blocks(self, tasks: Iterable[Task]) -> Iterator[Block]:
        """Every block of the parts that tasks lack, in order."""
        wanted = (
            (request, [_image(row) for row in request.rows])
            for task in tasks
            for request in requests(task, self._opening.part_rows, self._opening.block_rows)
        )
        for request, opened in self._decoder.open_blocks(wanted):
            self._count_crashes(opened)
            yield _block(request, opened)

    def _count_crashes(self, opened: OpenedBlock) -> None:
        """Stop where no process can decode, which would cost every image of the input its label."""
        for row in opened.rows:
            crashed = row.problem is not None and row.problem.status == "crashed"
            self._crashes = self._crashes + 1 if crashed else 0
        if self._crashes < MAX_CRASHES:
            return
        # The images may be to blame, and a stranger may have chosen them: a plain one decides.
        [(_, plain)] = self._decoder.open_blocks([(None, [SMALLEST_PNG])])
        self._crashes = 0
        if (problem := plain.rows[0].problem) is not None:
            raise LabellingError(
                f"The processes that decode end on every image, at last with: {problem}. Mend that (memory? a limit of "
                "the system?), and run the same command again: what is labelled stays."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()


def _image(row: InputRow) -> SupportsBytes | ImageError:
    if row.problem is not None:
        return row.problem
    # Not `or`: bytes that are empty are an image without any.
    return ImageError("missing", "there is no image") if row.image is None else row.image


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
