"""Seconds that each stage of a labelling run takes for an image, for the simulated cluster (`eval.scale`)."""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from eval.serving.processes import processor_seconds, tree
from judge.labelling.inputs.shards import Shard
from judge.labelling.opening import BlockReader
from judge.labelling.rows import Block, Scored, Task
from judge.labelling.run import label_shards
from judge.labelling.scoring import Scorer
from prompts.taxonomy import Taxonomy

from .pictures import Picture, encoded, write_tar
from .runs import Bench


def photographs(side: int, count: int, seed: int = 0) -> Iterator[Picture]:
    """JPEGs of `side` by three quarters of it, with about as many bytes a pixel as photographs have."""
    for number in range(count):
        draw = np.random.default_rng((seed, side, number))
        height, width = side * 3 // 4, side
        coarse = draw.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        fine = draw.normal(0, 6, (height, width, 3))
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image = Image.fromarray((np.asarray(smooth) + fine).clip(0, 255).astype(np.uint8))
        yield Picture(f"{number:06d}.jpg", encoded(image, ".jpg"))


def time_opening(bench: Bench, folder: Path, some: list[Picture]) -> tuple[float, float]:
    """Bytes of an image, and processor seconds of all that read and decode it out of a tar."""
    write_tar(folder / "timed", some)
    shard = Shard(0, "tar", str(folder), ("timed.tar",))
    opening = bench.job(folder, folder, []).opening
    with BlockReader(opening) as reader:
        for _ in reader.blocks([Task(shard)]):  # starts the processes
            pass
        before = processor_seconds(tree(os.getpid()))
        blocks = list(reader.blocks([Task(shard)]))
        seconds = processor_seconds(tree(os.getpid())) - before
    rows = sum(len(block.rows) for block in blocks)
    bad = [row.problem for block in blocks for row in block.rows if row.problem is not None]
    if rows != len(some) or bad:
        raise RuntimeError(f"{rows} of {len(some)} images came back, {len(bad)} with a problem: {bad[:1]}")
    return sum(block.size for block in blocks) / rows, seconds / rows


def time_scoring(bench: Bench, blocks: list[Block], taxonomies: list[Taxonomy]) -> dict[str, float]:
    """Processor seconds an image of `encode`, `score` and `rows`; the latter two of all taxonomies together."""
    scorer = Scorer(
        bench.classifier, bench.job(Path(), Path(), taxonomies).scoring.judgings, bench.batch_size
    )
    scorer(blocks[0])
    clock, own = time.perf_counter(), time.process_time()
    found = [scorer(block).seconds for block in blocks]
    # By the clock it depends on what else the machine does.
    busy = (time.process_time() - own) / (time.perf_counter() - clock)
    rows = sum(len(block.rows) for block in blocks)
    return {name: busy * sum(one[name] for one in found) / rows for name in ("encode", "score", "rows")}


def time_driver(bench: Bench, folder: Path, block: Block, taxonomies: list[Taxonomy], parts: int) -> float:
    """Seconds by the clock in which a driver takes a row that another process scored, collects and writes it."""
    job = bench.job(folder, folder, taxonomies)
    scorer = Scorer(bench.classifier, job.scoring.judgings, bench.batch_size)
    # As a block arrives from another process: what it is pickled to, and what makes it of that.
    rebuild, parts_of_block = scorer(replace(block, last=False)).__reduce__()
    size = job.opening.block_rows
    if len(block.rows) != size:
        raise ValueError(f"{len(block.rows)} rows; give a block of {size}.")
    rows = parts * job.opening.part_rows

    def engine(tasks: Iterable[Task]) -> Iterator[Scored]:
        for task in tasks:
            for offset in range(0, rows, size):
                one: Scored = rebuild(*parts_of_block)
                part, last = offset // job.opening.part_rows, offset + size == rows
                yield replace(one, shard=task.shard.number, part=part, offset=offset, last=last)

    shard = Shard(0, "tar", str(folder), ("timed.tar",))
    begun = time.perf_counter()
    label_shards([shard], folder, job.opening.part_rows, engine, {})
    return (time.perf_counter() - begun) / rows


def blocks_of(bench: Bench, where: Path, names: Iterable[str]) -> list[Block]:
    """The decoded blocks of some tars in a folder."""
    opening = bench.job(where, where, []).opening
    tasks = [Task(Shard(number, "tar", str(where), (name,))) for number, name in enumerate(names)]
    with BlockReader(opening) as reader:
        return [block for block in reader.blocks(tasks) if block.rows]
