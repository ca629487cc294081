"""JSON lines as inputs: one object a line, with `image` (base64, a data URL or a path) or `path`.

Empty lines are no inputs. A file that is packed by gzip is read, too.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO

from judge.data.images import DEFAULT_LIMITS, ImageLimits
from judge.errors import ImageError, first_line

from .cells import Columns, Rows, choose_columns
from .files import Skip, image_error, opened
from .ids import file_id, storable
from .shards import InputRow, Shard

_MOST_BESIDE = 2**20
"""Bytes of a line beside its image, at most."""
_FAILURES = (OSError, EOFError, zlib.error)


def read_lines(shard: Shard, skip: Skip, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[InputRow | None]:
    """The lines of a file; None for those to skip. A line that is damaged is an input with a problem."""
    path = shard.paths[0]
    rows, count, number = Rows(shard, limits), 0, 0
    columns = Columns(
        shard.columns.get("image", "image"),
        None if "image" in shard.columns else "path",
        shard.columns.get("prompt", "prompt"),
        shard.columns.get("id", "id"),
    )
    try:
        with opened(shard.root, path) as table:
            for number, line in _lines(table.file, _longest(limits)):
                if skip(count):
                    yield None
                else:
                    yield replace(_row(rows, columns, number, line), place=table.place)
                count += 1
    except ImageError as error:
        yield None if skip(count) else InputRow(file_id(path), storable(path), problem=error)
    except _FAILURES as error:
        if skip(count):
            yield None
        elif number == 0:
            yield InputRow(file_id(path), storable(path), problem=image_error(error))
        else:
            yield rows.broken(number + 1, image_error(error, "the file cannot be read from this line on"))


def check_lines(root: str, path: str, columns: Mapping[str, str]) -> None:
    """See whether the first line holds an image or a path.

    Raises:
        ConfigError: it does not; the message says what it holds.
    """
    try:
        with opened(root, path) as table:
            _, line = next(_lines(table.file, _longest(DEFAULT_LIMITS)), (0, None))
            record = json.loads(line.decode("utf-8-sig")) if line is not None else None
    except (*_FAILURES, ValueError, RecursionError):  # an ImageError, too: the rows say so
        return
    if isinstance(record, dict):
        image = {name: column for name, column in columns.items() if name == "image"}
        choose_columns(f"{path}, line 1", list(record), image)  # a prompt need not be in every line


def _longest(limits: ImageLimits) -> int:
    return limits.max_bytes * 4 // 3 + _MOST_BESIDE


def _lines(file: BinaryIO, longest: int) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line) of those that are not empty; None for one that is too long, which is not kept."""
    number = 0
    while line := file.readline(longest):
        number += 1
        if len(line) == longest and not line.endswith(b"\n"):
            rest = file.readline(longest)
            whole = not rest
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(longest)
            yield number, line if whole else None
        elif line.strip():
            yield number, line


def _row(rows: Rows, columns: Columns, number: int, line: bytes | None) -> InputRow:
    if line is None:
        return rows.broken(number, ImageError("too_large", "a line that is too long"))
    if not line.strip(b"\0\r\n"):
        return rows.broken(number, ImageError("unreadable", f"{len(line):,} zero bytes instead of a line"))
    try:
        record: Any = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:
        return rows.broken(number, ImageError("unreadable", f"no JSON: {first_line(error)}"))
    if not isinstance(record, dict):
        found = type(record).__name__
        return rows.broken(number, ImageError("unreadable", f"expected an object, got {found}"))
    return rows.row(number, record, columns)
