"""Labelling by one process or several at once, on chosen cores, each on its share of the input."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from prompts.taxonomy_file import load_taxonomy

from .runs import Bench


@dataclass(frozen=True)
class Share:
    """What one process labels."""

    where: Path
    out: Path
    judge: str
    taxonomy: str
    batch_size: int
    workers: int
    threads: int
    cores: frozenset[int]
    """Processor cores that it and its decoding processes may use."""


def label_together(shares: Sequence[Share]) -> float:
    """Images a second of all processes together, from when all have loaded their model to when the last one ends."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(len(shares)), context.SimpleQueue()
    processes = [context.Process(target=_label, args=(share, ready, results)) for share in shares]
    for process in processes:
        process.start()
    try:
        found = [results.get() for _ in processes]
    finally:
        for process in processes:
            process.join()
    failed = next((one for one in found if isinstance(one, str)), None)
    if failed is not None:
        raise RuntimeError(f"A process that labels ended with {failed}")
    rows, begun, ended = zip(*found, strict=True)
    return float(sum(rows) / (max(ended) - min(begun)))


def _label(share: Share, ready: Barrier, results: Any) -> None:
    try:
        os.sched_setaffinity(0, share.cores)
        import torch

        from judge.classifiers import load_classifier

        torch.set_num_threads(share.threads)
        classifier = load_classifier(share.judge, batch_size=share.batch_size)
        bench = Bench(share.judge, classifier, share.batch_size, share.workers)
        ready.wait()
        begun = time.monotonic()
        taken = bench.run(share.where, share.out, [load_taxonomy(share.taxonomy)])
        results.put((taken.rows, begun, time.monotonic()))
    except BaseException as error:  # the other side waits for an answer
        ready.abort()
        results.put(repr(error))
        raise
