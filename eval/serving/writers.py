"""How many verdicts a second many processes store in one database, each on disk before the next."""

import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple


class WriteRate(NamedTuple):
    """What was measured of one database."""

    per_second: float
    """Verdicts, of all writers together."""
    p95: float
    """Seconds for one verdict, of which most is waiting for the other writers."""


def write_rate(url: str, folder: Path, *, writers: int = 16, seconds: float = 3.0) -> WriteRate:
    """Have processes store verdicts as `arbiter serve` does, each on an item of its own.

    Args:
        url: of the database, as `judge.records.records.Records` takes it.
        folder: where the items' images go.
        writers: processes, with a connection each.
        seconds: for which they write.

    Raises:
        RuntimeError: one of them failed.
    """
    # Forked from a process that has imported everything and holds no thread, lock or connection.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "judge.records.records", "psycopg"])
    barrier = context.Barrier(writers)
    ends, processes = [], []
    for number in range(writers):
        ours, theirs = context.Pipe(duplex=False)
        arguments = (url, folder, number, seconds, barrier, theirs)
        processes.append(context.Process(target=_write, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
        ends.append(ours)
    taken = list[float]()
    for end in ends:
        try:
            taken += end.recv()
        except EOFError as error:
            raise RuntimeError("a writer failed; its error is above") from error
    for process in processes:
        process.join()
    return WriteRate(len(taken) / seconds, statistics.quantiles(taken, n=20)[-1])


def _write(url: str, folder: Path, number: int, seconds: float, barrier: Barrier, end: Connection) -> None:
    from judge.records.entries import NewItem
    from judge.records.records import Records
    from prompts import load_taxonomy

    taxonomy, records = load_taxonomy("digits"), Records(url, folder)
    row = _row()
    [item] = records.add_items([NewItem(str(number).encode(), f"{number}.png")])
    barrier.wait(60)
    taken, now = list[float](), time.perf_counter()
    until = now + seconds
    while now < until:
        records.add_verdict(item.id, row, taxonomy)
        before, now = now, time.perf_counter()
        taken.append(now - before)
    end.send(taken)
    records.close()


def _row() -> dict[str, Any]:
    """The row of a verdict under ten categories."""
    from judge.verdicts.rows import Judging, verdict_row
    from prompts import load_taxonomy
    from prompts.verdict import verdict_from_scores

    taxonomy = load_taxonomy("digits")
    verdict = verdict_from_scores(0.9, [0.9] + [0.1] * 9, taxonomy, threshold=0.5, model="bench")
    return verdict_row(verdict, Judging(taxonomy, 0.5, "bench", "ab" * 32), time="2026-01-01T00:00:00+00:00")
