"""What is simulated: how long the stages of `arbiter label` take for an image, on which machines, and how much of it.

Shards are read over a network and decoded on cores, images are encoded and scored by one process for each device (or,
without devices, on cores), and one driver, or several side by side, writes the rows.
"""

import math
from dataclasses import dataclass, fields

from judge.errors import ConfigError


@dataclass(frozen=True)
class StageTimes:
    """What one image takes, in seconds of the one core or device that does it."""

    size: float
    """Bytes that are read, not seconds."""
    open: float
    """Of a core: taken out of its shard, hashed, decoded, resized and handed on."""
    encode: float
    """Of a device; of a core where a machine has none."""
    score: float
    """The head, under one taxonomy; where the encoder runs."""
    rows: float
    """Of a core: verdicts as columns, under one taxonomy, by the process that encodes."""
    write: float
    """Of a core of the driver: collected, written, synchronised, under one taxonomy."""

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True)
class Machine:
    """One machine."""

    cores: int
    devices: int = 0
    """GPUs, each with a process that encodes and scores; 0 encodes on cores."""
    scorers: int = 1
    """Processes that encode on a core each, where there are no devices."""
    bandwidth: float = math.inf
    """Bytes a second that it reads."""
    price: float = 0.0
    """Of an hour."""

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.cores < 1 or (not self.devices and self.scorers < 1):
            raise ConfigError(f"A machine has at least one core and one process that encodes; got {self}.")

    @property
    def encoders(self) -> int:
        """Processes that encode and score."""
        return self.devices or self.scorers


@dataclass(frozen=True)
class Cluster:
    """Machines that work on one job, and what goes wrong with them."""

    machine: Machine
    machines: int = 1
    store_bandwidth: float = math.inf
    """Bytes a second that the object store gives to all machines together."""
    drivers: int = 1
    """Runs side by side, each with a driver of its own on its share of the input."""
    start_seconds: float = 0.0
    """Until a machine is up and its model loaded; paid for."""
    failure_hours: float = math.inf
    """Mean time between failures of one machine."""
    restart_seconds: float = 0.0
    """Until a failed machine, or its replacement, works again."""
    redone: float = 0.0
    """Images that are opened and encoded once more after a failure."""
    slow_share: float = 0.0
    """Share of the machines whose cores and devices take `slow_factor` times as long."""
    slow_factor: float = 1.0

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.machines < 1 or self.drivers < 1 or self.slow_share > 1 or self.slow_factor < 1:
            raise ConfigError(
                f"A cluster has at least one machine and one driver, a share is at most 1 and a factor at least 1; "
                f"got {self}."
            )

    @property
    def slow_machines(self) -> int:
        """How many of the machines are slow."""
        return round(self.slow_share * self.machines)


@dataclass(frozen=True)
class Job:
    """Images to be labelled."""

    images: int
    times: StageTimes
    taxonomies: int = 1

    def __post_init__(self) -> None:
        if self.images < 1 or self.taxonomies < 1:
            raise ConfigError(f"A job has at least one image and one taxonomy; got {self}.")

    @property
    def encode(self) -> float:
        """Seconds of an encoder for an image under all taxonomies."""
        return self.times.encode + self.taxonomies * self.times.score

    @property
    def rows(self) -> float:
        """Seconds of a core for an image's rows under all taxonomies."""
        return self.taxonomies * self.times.rows

    @property
    def write(self) -> float:
        """Seconds of a driver for an image under all taxonomies."""
        return self.taxonomies * self.times.write


def capacities(job: Job, cluster: Cluster) -> dict[str, float]:
    """Stage -> images a second that it could do if no other were in its way; their minimum bounds every run.

    `store` and `network` read, `cores` open images (and encode them where there are no devices), `encoders` encode,
    score and make rows, `drivers` write.
    """
    machine, times = cluster.machine, job.times
    slow = cluster.slow_machines
    # In machines of full speed.
    machines = cluster.machines - slow + slow / cluster.slow_factor
    on_cores = times.open + job.rows + (0.0 if machine.devices else job.encode)
    return {
        "store": _rate(cluster.store_bandwidth, times.size),
        "network": _rate(cluster.machines * machine.bandwidth, times.size),
        "cores": _rate(machines * machine.cores, on_cores),
        "encoders": _rate(machines * machine.encoders, job.encode + job.rows),
        "drivers": _rate(cluster.drivers, job.write),
    }


def bottleneck(capacity: dict[str, float]) -> str:
    """The stage with the smallest capacity."""
    return min(capacity, key=lambda stage: capacity[stage])


def _rate(servers: float, work: float) -> float:
    return servers / work if work else math.inf


def _check_numbers(values: "StageTimes | Machine | Cluster") -> None:
    for one in fields(values):
        value = getattr(values, one.name)
        if isinstance(value, int | float) and not value >= 0:
            raise ConfigError(f"{one.name} is {value}; give a number that is not negative.")
