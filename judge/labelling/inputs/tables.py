"""Parquet files as inputs: a column of images, or of paths of images; read a row group at a time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

from judge.data.images import DEFAULT_LIMITS, ImageLimits
from judge.errors import ConfigError, ImageError, first_line

from .cells import Columns, Rows, choose_columns
from .files import Skip, image_error, open_root
from .ids import file_id, storable
from .shards import InputRow, Shard

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_BATCH = 64
"""Rows that are in memory as Python objects at a time."""


def read_table(shard: Shard, skip: Skip, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[InputRow | None]:
    """The rows of a Parquet file; None for those to skip. Rows of a damaged row group are inputs with a problem."""
    path, rows, count = shard.paths[0], Rows(shard, limits), 0
    try:
        with _opened(shard.root, path) as table:
            columns = choose_columns(path, table.schema_arrow.names, shard.columns)
            sizes = _group_sizes(table)
            for group, size in enumerate(sizes):
                for row in _group_rows(table, group, range(count, count + size), columns, rows, skip):
                    yield row
                    count += 1
    except Exception as error:  # on malformed bytes, Arrow raises errors of any class
        if skip(count):
            yield None
        else:
            # Arrow's own errors about a file are OSErrors, too, without a number.
            no_images = isinstance(error, ConfigError)  # it lacks a column
            known = isinstance(error, OSError) and (error.errno or isinstance(error, FileNotFoundError))
            reason = first_line(error)
            if known:
                problem = image_error(error)
            elif no_images:
                problem = ImageError("not_an_image", reason)
            else:
                problem = ImageError("unreadable", f"no whole Parquet file: {reason}")
            yield InputRow(file_id(path), storable(path), problem=problem)


def check_table(root: str, path: str, columns: Mapping[str, str]) -> None:
    """See whether a Parquet file has the columns that are read, by its footer.

    Raises:
        ConfigError: it lacks one; the message says which it has.
    """
    try:
        with _opened(root, path) as table:
            names = list(table.schema_arrow.names)
    except Exception:  # damaged: its rows say so
        return
    choose_columns(path, names, columns)


@contextmanager
def _opened(root: str, path: str) -> Iterator["ParquetFile"]:
    from pyarrow.parquet import ParquetFile

    with open_root(root).open(path) as file, ParquetFile(file, page_checksum_verification=True) as table:
        yield table


def _group_sizes(table: "ParquetFile") -> list[int]:
    """Rows of each row group, as the footer says.

    Raises:
        ValueError: the footer contradicts itself, so that its numbers mean nothing.
    """
    # Not what it says about columns: on a damaged one Arrow ends the process there instead of raising.
    sizes = [
        int(table.metadata.row_group(number).num_rows) for number in range(table.metadata.num_row_groups)
    ]
    if sum(sizes) != table.metadata.num_rows or min(sizes, default=0) < 0:
        raise ValueError("the footer contradicts itself about the number of rows")
    return sizes


def _group_rows(
    table: "ParquetFile", group: int, numbers: range, columns: Columns, rows: Rows, skip: Skip
) -> Iterator[InputRow | None]:
    """The rows of a row group, as many as the footer says."""
    if all(map(skip, numbers)):
        yield from repeat(None, len(numbers))
        return
    done, reason = 0, "it has fewer rows than the footer says"
    names = [name for name in dict.fromkeys(columns) if name is not None]
    try:
        for record in _records(table, group, names):
            number = numbers[done]
            if skip(number):
                yield None
            else:
                place = (number + 1) / table.metadata.num_rows
                yield replace(rows.row(number, record(), columns), place=place)
            done += 1
    except Exception as error:  # on malformed bytes, Arrow raises errors of any class
        reason = first_line(error)
    for number in numbers[done:]:
        problem = ImageError("unreadable", f"row group {group} is damaged: {reason}")
        yield None if skip(number) else rows.broken(number, problem)


def _records(table: "ParquetFile", group: int, names: list[str]) -> Iterator[Any]:
    """A function for each row that makes a record of it."""
    for batch in table.iter_batches(_BATCH, row_groups=[group], columns=names, use_threads=False):
        cells = dict(zip(batch.schema.names, batch.columns, strict=True))
        for index in range(batch.num_rows):
            yield partial(_record, cells, index)


def _record(cells: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {name: column[index].as_py() for name, column in cells.items()}
