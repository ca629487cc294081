"""Memory and processor time of a process and all that it started, on Linux."""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path


def tree(process: int, without: Collection[int] = ()) -> list[int]:
    """A process and what it started, and those started; some of them left out."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            parents[int(entry.name)] = int(_fields(int(entry.name))[1])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one and child not in without]
    return found


def processor_seconds(processes: Collection[int]) -> float:
    """Time that they have spent on a processor so far, that of processes that ended within them included."""
    ticks = 0
    for process in processes:
        with suppress(OSError):
            ticks += sum(map(int, _fields(process)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(processes: Collection[int]) -> int:
    """What they hold in memory, shared pages counted once a process."""
    pages = 0
    for process in processes:
        with suppress(OSError):
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def has_ended(process: int) -> bool:
    """Whether a process is gone, or holds nothing any more and only waits for its parent to notice."""
    try:
        return _fields(process)[0] == "Z"
    except OSError:
        return True


def _fields(process: int) -> list[str]:
    """Fields of `stat`, from the third on: state, parent, ..."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
