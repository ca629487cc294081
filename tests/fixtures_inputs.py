"""What is read of an input, in a form that can be compared."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

from judge.errors import ImageError
from judge.labelling.inputs.read import read_shard
from judge.labelling.inputs.shards import InputRow, Shard

PNG = b"\x89PNG\r\n\x1a\n"


class Read(NamedTuple):
    """An input that was read to its bytes."""

    id: str
    prompt: str | None
    image: bytes | str
    """Its bytes, or the status of the error."""
    reason: str = ""


def read_row(row: InputRow) -> Read:
    assert (row.image is None) != (row.problem is None)
    problem = row.problem
    try:
        if problem is None:
            return Read(row.id, row.prompt, bytes(row.image))
    except ImageError as error:
        problem = error
    assert "\n" not in problem.reason
    return Read(row.id, row.prompt, problem.status, problem.reason)


def read_file(
    root: object, path: str, kind: str, skip: Callable[[int], bool] = lambda number: False, **columns: str
) -> list[Read | None]:
    """Every input of a file; images are read when all inputs have come."""
    rows = list(read_shard(Shard(0, kind, str(root), (path,), columns), skip))
    assert all(0 <= row.place <= 1 for row in rows if row is not None)
    found = [None if row is None else read_row(row) for row in rows]
    ids = [row.id for row in found if row is not None]
    assert len(set(ids)) == len(ids)
    for row in filter(None, found):
        (row.id + (row.prompt or "")).encode()  # Arrow stores UTF-8 alone
    return found


def check_skips(root: object, path: str, kind: str, numbers: set[int], **columns: str) -> list[Read]:
    """Read a file as a whole, and without some inputs: nothing but those may change. Returns the whole."""
    whole = read_file(root, path, kind, **columns)
    assert read_file(root, path, kind, numbers.__contains__, **columns) == [
        None if number in numbers else row for number, row in enumerate(whole)
    ]
    assert read_file(root, path, kind, lambda number: True, **columns) == [None] * len(whole)
    return whole


def tar_of(members: Iterable[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT, end: bool = True) -> bytes:
    """A tar of (name, content); without `end` no zeros follow the last one."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        length = tar.offset
    return made.getvalue() if end else made.getvalue()[:length]


def lines_of(records: Iterable[object]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)
