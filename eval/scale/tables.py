"""Tables of simulated runs: sizes of jobs and clusters, and where the bottleneck moves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .cluster import Cluster, Job, Machine, bottleneck, capacities
from .simulation import Outcome, simulate

_STEPS = ("store", "network", "cores", "encoders", "drivers")
VARIATION = 0.2
"""Of the times of blocks."""


@dataclass(frozen=True)
class Simulated:
    """One simulated run beside its bound."""

    job: Job
    cluster: Cluster
    outcome: Outcome

    @property
    def bound(self) -> float:
        """Images a second that no run can exceed."""
        return min(capacities(self.job, self.cluster).values())

    @property
    def bottleneck(self) -> str:
        """The stage that sets the bound."""
        return bottleneck(capacities(self.job, self.cluster))

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        found = {name: value for name, value in asdict(self.outcome).items() if name not in ("done", "asked")}
        return {
            "machines": self.cluster.machines,
            **found,
            "bound": self.bound,
            "bottleneck": self.bottleneck,
            "price_per_million": self.outcome.price_per_million,
        }


def simulate_sizes(
    job: Job, cluster: Cluster, images: Sequence[int], machines: Sequence[int], pieces: int = 6_000
) -> list[Simulated]:
    """The job with so many images on so many machines, every combination."""
    found = []
    for size in images:
        for count in machines:
            one, many = replace(job, images=size), replace(cluster, machines=count)
            found.append(Simulated(one, many, simulate(one, many, pieces=pieces, variation=VARIATION)))
    return found


def sizes_table(found: Iterable[Simulated]) -> list[str]:
    """Rows: a job on a cluster. Columns: images a second, the bound, use of each stage, hours, price."""
    head = ["images", "machines", "images/s", "of bound", *_STEPS, "hours", "$ / million"]
    return _table(head, [_sizes_row(one) for one in found])


def _sizes_row(one: Simulated) -> list[str]:
    outcome = one.outcome
    return [
        f"{outcome.images:,}",
        f"{one.cluster.machines:,}",
        f"{outcome.rate:,.0f}",
        f"{outcome.rate / one.bound:.0%}",
        *(f"{outcome.use[step]:.0%}" + "*" * (step == outcome.busiest) for step in _STEPS),
        f"{outcome.hours:,.2f}",
        f"{outcome.price_per_million:,.2f}",
    ]


@dataclass(frozen=True)
class Picture:
    """A kind of image, by what reading and decoding one takes."""

    name: str
    size: float
    """Bytes."""
    open: float
    """Seconds of a core."""


def simulate_bottlenecks(
    job: Job,
    cluster: Cluster,
    pictures: Sequence[Picture],
    bandwidths: Sequence[float],
    devices: Sequence[int],
    pieces: int = 2_000,
) -> list[tuple[Picture, Simulated]]:
    """The same job with other images, networks (bytes a second of a machine) and GPUs, every combination."""
    found = []
    for picture in pictures:
        times = replace(job.times, size=picture.size, open=picture.open)
        for bandwidth in bandwidths:
            for count in devices:
                machine: Machine = replace(cluster.machine, bandwidth=bandwidth, devices=count)
                one, others = replace(job, times=times), replace(cluster, machine=machine)
                outcome = simulate(one, others, pieces=pieces, variation=VARIATION)
                found.append((picture, Simulated(one, others, outcome)))
    return found


def bottleneck_table(found: Sequence[tuple[Picture, Simulated]]) -> list[str]:
    """Rows: a kind of image and a network. Columns: GPUs; cells: images/s of a machine, and what they wait for."""
    devices = sorted({one.cluster.machine.devices for _, one in found})
    rows: dict[tuple[str, float], dict[int, str]] = {}
    for picture, one in found:
        machine = one.cluster.machine
        each = one.outcome.rate / one.cluster.machines
        cells = rows.setdefault((picture.name, machine.bandwidth), {})
        cells[machine.devices] = f"{each:,.0f} {one.outcome.busiest}"
    head = ["image", "Gbit/s", *(f"{count} GPU{'s' * (count != 1)}" for count in devices)]
    return _table(
        head,
        [
            [name, f"{8 * bandwidth / 1e9:g}", *(cells[count] for count in devices)]
            for (name, bandwidth), cells in rows.items()
        ],
    )


def assumptions(values: Mapping[str, tuple[str, str]]) -> list[str]:
    """Lines: name, value, and where it is from."""
    return _table(["assumption", "value", "from"], [[name, *said] for name, said in values.items()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose columns are aligned."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)]
