"""What passes between the stages of a labelling run: shards, their inputs, blocks of decoded images, scored blocks.

A *shard* is read from one end to the other: a tar, a Parquet file, JSON lines, or some image files of a folder. A
*part* is `part_rows` consecutive inputs of a shard and becomes one file of the output. A *block* is a number of
consecutive inputs of a part; it passes from stage to stage, and batches never reach beyond it. So what a resumed run
computes does not depend on where the first one was killed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from judge.errors import ImageError, ImageStatus

from .inputs.shards import Shard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

Status = Literal["ok", "unreadable", "unsupported", "too_large", "timeout", "model_error"]

STATUS_OF: Mapping[ImageStatus, Status] = {
    "missing": "unreadable",
    "unreadable": "unreadable",
    "truncated": "unreadable",
    "crashed": "unreadable",
    "url_refused": "unreadable",
    "url_failed": "unreadable",
    "not_an_image": "unsupported",
    "unsupported_format": "unsupported",
    "animated": "unsupported",
    "unknown_colours": "unsupported",
    "too_narrow": "unsupported",
    "too_large": "too_large",
    "too_many_pixels": "too_large",
    "out_of_memory": "too_large",
    "timeout": "timeout",
}
"""What became of an input, of what `judge.data.images` and `judge.intake` say of its image."""


@dataclass(frozen=True)
class Task:
    """A shard that is not finished."""

    shard: Shard
    done: frozenset[int] = frozenset()
    """Numbers of its parts that are there."""


@dataclass(frozen=True)
class Opened:
    """An input whose image was read and decoded, or why it was not."""

    id: str
    source: str
    prompt: str | None = None
    sha256: str | None = None
    """64 hexadecimal digits, of the encoded bytes; None where they could not be read."""
    problem: ImageError | None = None
    views: int = 0
    """How many of the block's images are views of this input (`judge.data.frames`); 0 with a problem."""
    frames: Mapping[str, Any] | None = None
    """`numbers`, `total`, `unrepresented` and `grounds` of `judge.data.frames.Frames`, where there are several views
    or frames."""


@dataclass(frozen=True)
class Block:
    """Consecutive inputs of a part, decoded."""

    shard: int
    part: int
    """Number of the part within the shard, from 0."""
    offset: int
    """How many inputs of the shard come before this block."""
    rows: tuple[Opened, ...]
    images: "NDArray[np.uint8] | Sequence[Image]"
    """All views of all rows, in order: (V, H, W, 3) as the classifier's preprocessing resizes them, or V images."""
    last: bool
    """Whether the shard ends with this block."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What was spent on it: `read`, `decode`; processor or wall time of the process that did it."""
    size: int = 0
    """Encoded bytes that were read."""
    place: float = 0.0
    """Share of the shard that is read with this block, from 0 to 1."""


@dataclass(frozen=True)
class Scored:
    """A block whose images were scored: rows of the output."""

    shard: int
    part: int
    offset: int
    last: bool
    table: Any
    """`pyarrow.Table` of `judge.labelling.writer`'s schema, one row an input of the block."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """`read`, `decode`, `encode`, `score`."""
    size: int = 0
    """Encoded bytes that were read."""
    place: float = 0.0
    """Share of the shard that is read with this block, from 0 to 1."""

    def __reduce__(self) -> tuple[Any, ...]:
        """As Arrow's own bytes for a table: a column of structs takes four times as long to unpickle."""
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.table.schema) as stream:
            stream.write_table(self.table)
        values = {**self.__dict__, "table": None}
        return _unpickle, (values, sink.getvalue().to_pybytes())


def _unpickle(values: dict[str, Any], table: bytes) -> Scored:
    import pyarrow as pa

    return Scored(**{**values, "table": pa.ipc.open_stream(table).read_all()})


Engine = Callable[[Iterable[Task]], Iterator[Scored]]
"""Opens and scores what is missing of shards, and yields every block of it at least once, in any order."""
