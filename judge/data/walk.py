"""Every file below a folder, in an order that does not change, in memory that does not grow with their number."""

import heapq
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO, NamedTuple

_SORTED_AT_ONCE = 200_000
"""Names of one folder that are sorted in memory; more are sorted in runs of so many, on disk."""


class Walked(NamedTuple):
    """A file, or a folder that cannot be read."""

    path: str
    error: OSError | None = None
    """Why the folder cannot be read; None for a file."""


def walk(
    folder: str,
    keep: Callable[[str], bool] = lambda name: True,
    leave_out: str | os.PathLike[str] | None = None,
) -> Iterator[Walked]:
    """Every file below a folder: those of a folder by name, then those of the folders inside it.

    Linked folders come last, each real folder once: a file that is also reachable without a link is listed under its
    own path. What cannot be listed is said in its place.

    Args:
        folder: where to start.
        keep: whether a name of a file or folder is looked at.
        leave_out: a folder that is there and is not looked into, by whatever path it is found.
    """
    folders, links = [folder], list[str]()  # a stack, and a queue for when the stack is empty
    seen = set[tuple[int, int]]()  # (device, inode) of each folder: links may form a circle
    if leave_out is not None:
        status = os.stat(leave_out)
        seen.add((status.st_dev, status.st_ino))
    while folders or links:
        parent = folders.pop() if folders else links.pop(0)
        below = list[str]()
        try:
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            for name, kind in _entries(parent, keep):
                path = os.path.join(parent, name)
                if kind == "file":
                    yield Walked(path)
                else:
                    (links if kind == "link" else below).append(path)
        except OSError as error:
            yield Walked(parent, error)
        folders += reversed(below)  # the last one is popped first


def _entries(folder: str, keep: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """(name, `file`, `folder` or `link` to a folder) of what a folder holds, by name."""
    with os.scandir(folder) as entries:
        # No name holds a NUL, and nothing sorts before it.
        described = (f"{entry.name}\0{_kind(entry)}" for entry in entries if keep(entry.name))
        for line in in_order(described):
            name, _, kind = line.partition("\0")
            yield name, kind


def _kind(entry: "os.DirEntry[str]") -> str:
    try:
        if entry.is_dir():
            return "link" if entry.is_symlink() else "folder"
    except OSError:  # a link to itself: listed as a file, and the reason follows when it is opened
        pass
    return "file"


def in_order(texts: Iterable[str], at_once: int = _SORTED_AT_ONCE) -> Iterator[str]:
    """Sort any number of texts in the memory that `at_once` of them take; all are read before the first comes out."""
    with ExitStack() as stack:
        runs, batch = list[IO[str]](), list[str]()
        for text in texts:
            batch.append(text)
            if len(batch) == at_once:
                runs.append(stack.enter_context(TemporaryFile("w+", encoding="ascii")))
                # As JSON a text is one line of ASCII, whatever is in it.
                runs[-1].writelines(f"{json.dumps(one)}\n" for one in sorted(batch))
                runs[-1].seek(0)
                batch = []
        yield from heapq.merge(*(map(json.loads, run) for run in runs), sorted(batch))
