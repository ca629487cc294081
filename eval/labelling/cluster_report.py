"""Stage times measured on this machine, what they predict for it, and tables of simulated clusters."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eval.scale.cluster import Cluster, Job, Machine, StageTimes
from eval.scale.simulation import simulate
from eval.scale.tables import (
    Picture,
    assumptions,
    bottleneck_table,
    simulate_bottlenecks,
    simulate_sizes,
    sizes_table,
)
from prompts.taxonomy_file import load_taxonomy

from .pictures import pictures, write_input
from .runs import Bench
from .stages import blocks_of, photographs, time_driver, time_opening, time_scoring
from .together import Share, label_together

Say = Callable[[str], None]
SIDES = {256: 96, 512: 96, 1024: 48, 2048: 16}
"""Longer side of the photographs that are opened -> how many of them."""
GPU_RATE = 1450.0
"""Images a second: clip-retrieval's inference on an RTX 3080, 1,400 to 1,500 (its README, 2025-08-16)."""
GPU_MACHINE = Machine(cores=4, devices=1, bandwidth=1.25e9)
LARGE_MACHINE = Machine(cores=48, devices=4, bandwidth=5e9)
"""Of the table of bottlenecks."""
CPU_CORES = 16
TROUBLE = Cluster(
    GPU_MACHINE,
    store_bandwidth=25e9,
    start_seconds=120,
    failure_hours=500,
    restart_seconds=300,
    redone=5000,
    slow_share=0.05,
    slow_factor=1.5,
)
IMAGES = (10**6, 10**7, 10**8, 10**9)
MACHINES = (1, 10, 100, 1000)
DRIVERS = 8
"""For the largest cluster, in rows of their own."""


@dataclass(frozen=True)
class MeasuredStages:
    """What `measure_stages` found."""

    small: StageTimes
    """Of the small images of the other measurements, the encoder on a core."""
    photographs: dict[int, Picture]
    """By their longer side."""


def report_cluster(
    bench: Bench, folder: Path, taxonomy: str, *, images: int, prices: tuple[float, float], say: Say
) -> dict[str, Any]:
    """Measure, predict, compare, simulate.

    Args:
        bench: the classifier; its encoder is the one that is measured, on one thread.
        folder: for inputs and labels.
        taxonomy: name of the one that images are labelled under.
        images: labelled by each of the runs that predictions are compared with.
        prices: of an hour of a machine with a GPU and of one without.
        say: prints a line.
    """
    stages = measure_stages(bench, folder, taxonomy)
    for line in _stage_lines(stages):
        say(line)
    compared = compare_with_this_machine(bench, folder, taxonomy, stages.small, images)
    for name, (predicted, measured) in compared.items():
        say(
            f"{name}: predicted {predicted:.0f} images/s, measured {measured:.0f}, ratio {predicted / measured:.2f}"
        )
    return {
        "stage_times": asdict(stages.small),
        "photographs": {side: asdict(one) for side, one in stages.photographs.items()},
        "compared": {name: {"predicted": one, "measured": other} for name, (one, other) in compared.items()},
        **report_tables(stages, prices, say),
    }


def measure_stages(bench: Bench, folder: Path, taxonomy: str) -> MeasuredStages:
    """Seconds of every stage, each measured by itself."""
    asked = [load_taxonomy(taxonomy)]
    opened = folder / "opened"
    opened.mkdir()
    photos = {}
    for side, count in SIDES.items():
        size, seconds = time_opening(bench, opened, list(photographs(side, count)))
        photos[side] = Picture(f"{side} x {side * 3 // 4}", size, seconds)
    size, seconds = time_opening(bench, opened, list(pictures(2048)))
    blocks = blocks_of(bench, opened, ["timed.tar"])
    scoring = time_scoring(bench, blocks, asked)
    written = folder / "written"
    written.mkdir()
    write = time_driver(bench, written, blocks[0], asked, parts=8)
    return MeasuredStages(StageTimes(size=size, open=seconds, write=write, **scoring), photos)


def _stage_lines(stages: MeasuredStages) -> list[str]:
    small = stages.small
    opened = "; ".join(
        f"{one.name} {one.size / 1e3:.0f} kB, {1e3 * one.open:.2f} ms" for one in stages.photographs.values()
    )
    return [
        f"of a core, for an image: open {1e3 * small.open:.3f} ms ({small.size / 1e3:.1f} kB), encode "
        f"{1e3 * small.encode:.3f} ms, head {1e3 * small.score:.3f} ms, rows {1e6 * small.rows:.1f} us; the driver "
        f"takes {1e6 * small.write:.1f} us by the clock, so {1 / small.write:,.0f} rows a second",
        f"opening JPEGs: {opened}",
    ]


def compare_with_this_machine(
    bench: Bench, folder: Path, taxonomy: str, times: StageTimes, images: int
) -> dict[str, tuple[float, float]]:
    """Predicted and measured images a second: one core, two cores, two processes on two cores.

    In a process of its own, the driver's work is part of what a process that scores does.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    for number in range(2):
        write_input("tar", folder / "halves" / str(number), images // 2, seed=100 + number)
    job = Job(images, replace(times, rows=times.rows + times.write, write=0.0))
    found = {}
    for name, processes, used in (
        ("one process, one core", 1, cores[:1]),
        ("one process, two cores", 1, cores),
        ("two processes, two cores", 2, cores),
    ):
        if len(used) < 2 and name != "one process, one core":
            continue  # a machine of one core
        shares = [
            Share(
                folder / "halves" / (str(number) if processes == 2 else ""),
                folder / f"halves-{name}-{number}",
                bench.judge,
                taxonomy,
                bench.batch_size,
                bench.workers,
                1,
                frozenset(used),
            )
            for number in range(processes)
        ]
        predicted = simulate(job, Cluster(Machine(cores=len(used), scorers=processes))).rate
        found[name] = predicted, label_together(shares)
    return found


def report_tables(stages: MeasuredStages, prices: tuple[float, float], say: Say) -> dict[str, Any]:
    """The simulated clusters, printed; and as JSON values."""
    small, photo = stages.small, stages.photographs[512]
    encode = 1 / GPU_RATE
    on_gpu = replace(
        small, size=photo.size, open=photo.open, encode=encode, score=small.score * encode / small.encode
    )
    gpu = replace(TROUBLE, machine=replace(GPU_MACHINE, price=prices[0]))
    on_cpu = replace(small, size=photo.size, open=photo.open)
    cpu = replace(TROUBLE, machine=replace(cpu_machine(on_cpu), price=prices[1]))
    found: dict[str, Any] = {}
    for name, times, cluster in (("one GPU a machine", on_gpu, gpu), ("no GPU", on_cpu, cpu)):
        job = Job(IMAGES[0], times)
        runs = simulate_sizes(job, cluster, IMAGES, MACHINES)
        runs += simulate_sizes(job, replace(cluster, drivers=DRIVERS), IMAGES[-1:], MACHINES[-1:])
        say("")
        say(
            f"{name}: {cluster.machine.cores} cores, images of {photo.name}; * is the busiest stage; the last row has "
            f"{DRIVERS} drivers"
        )
        for line in sizes_table(runs):
            say(line)
        found[name] = [one.record() for one in runs]
    # The store and mishaps left out: what one machine waits for.
    alone = Cluster(LARGE_MACHINE)
    cells = simulate_bottlenecks(
        Job(200_000, on_gpu), alone, list(stages.photographs.values()), (1.25e8, 1.25e9, 5e9), (1, 2, 4, 8)
    )
    say("")
    say(f"images/s of one machine of {LARGE_MACHINE.cores} cores, and what it waits for")
    for line in bottleneck_table(cells):
        say(line)
    found["bottlenecks"] = [
        {
            "image": picture.name,
            "devices": one.cluster.machine.devices,
            "bandwidth": one.cluster.machine.bandwidth,
        }
        | one.record()
        for picture, one in cells
    ]
    say("")
    for line in assumptions(_assumed(stages, gpu, cpu)):
        say(line)
    return found


def cpu_machine(times: StageTimes) -> Machine:
    """A machine without GPUs, with as many processes that encode as its cores can feed."""
    encode = times.encode + times.score + times.rows
    scorers = round(CPU_CORES * encode / (encode + times.open))
    return Machine(cores=CPU_CORES, scorers=min(max(1, scorers), CPU_CORES), bandwidth=1.25e9)


def _assumed(stages: MeasuredStages, gpu: Cluster, cpu: Cluster) -> dict[str, tuple[str, str]]:
    """Name -> value and source."""
    small, here = stages.small, "measured here, on one core of this machine"
    ratio = small.score / small.encode
    return {
        "opening an image": ("by its size, above", f"{here}; pictures drawn for it, noise included"),
        "encoder on a GPU": (
            f"{GPU_RATE:,.0f} images/s",
            "published, not measured: clip-retrieval on an RTX 3080, 1,400 to 1,500 samples/s with texts (README, "
            "2025-08-16); the encoder of this benchmark is smaller",
        ),
        "head on a GPU": (f"{ratio:.1%} of the encoder", f"assumed to be the share {here}"),
        "encoder without a GPU": (f"{1e3 * small.encode:.2f} ms", here),
        "rows, one taxonomy": (f"{1e6 * small.rows:.1f} us", here),
        "driver, one taxonomy": (f"{1e6 * small.write:.1f} us a row", f"{here}, local disk"),
        "network of a machine": ("10 Gbit/s", "assumed; up to that is offered for both machines"),
        "object store": (f"{gpu.store_bandwidth / 1e9:.0f} GB/s for all machines", "assumed"),
        "machine with a GPU": (
            f"{gpu.machine.cores} cores, ${gpu.machine.price:g} an hour",
            "--price; default g5.xlarge on demand in us-east-1, as a price list of June 2026 has it",
        ),
        "machine without": (
            f"{cpu.machine.cores} cores, {cpu.machine.scorers} of them encode, ${cpu.machine.price:g} an hour",
            "--cpu-price; default c5.4xlarge on demand in us-east-1, as AWS's own example of spot prices has it",
        ),
        "the driver": ("a core that is not counted", "assumed"),
        "start of a machine": (f"{gpu.start_seconds:.0f} s, paid for", "assumed"),
        "failures": (
            f"one in {gpu.failure_hours:.0f} h a machine, {gpu.restart_seconds:.0f} s down, {gpu.redone:,.0f} images "
            "again",
            "assumed; half a shard of 10,000 is read anew",
        ),
        "slow machines": (f"{gpu.slow_share:.0%} take {gpu.slow_factor:g} times as long", "assumed"),
        "storage, requests, traffic": ("not priced", "depends on who offers them"),
    }
