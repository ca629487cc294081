"""A shard -> its inputs, in an order that does not change, whatever is damaged."""

from collections.abc import Iterator, Mapping

from judge.data.images import DEFAULT_LIMITS, ImageLimits

from .files import Skip
from .folders import read_images
from .jsonl import check_lines, read_lines
from .shards import InputRow, Kind, Shard
from .tables import check_table, read_table
from .tars import read_tar

_READERS = {"images": read_images, "tar": read_tar, "parquet": read_table, "jsonl": read_lines}


def read_shard(shard: Shard, skip: Skip, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[InputRow | None]:
    """Every input of a shard, in the order of the file; None for those to skip, which are not read.

    What is damaged is an input with a `problem`; nothing is raised for it.

    Args:
        shard: what to read.
        skip: whether the input with a number, counted from 0 within the shard, was labelled already.
        limits: larger images are not read into memory.
    """
    yield from _READERS[shard.kind](shard, skip, limits)


def check_source(root: str, path: str, kind: Kind, columns: Mapping[str, str]) -> None:
    """See whether a table has the columns that are read, before anything else is done; cheap.

    Raises:
        ConfigError: it has neither images nor paths, or not a column that `columns` names; the message says which it
            has. A damaged table is no error here: its rows say so.
    """
    if kind == "parquet":
        check_table(root, path, columns)
    elif kind == "jsonl":
        check_lines(root, path, columns)
