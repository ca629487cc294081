"""A labelling run on a cluster as discrete events: machines that pull shards, and where they wait for each other.

What passes from stage to stage is a run of images, as small as a block where that is cheap to simulate. All machines
share the store and the driver. Queues are bounded as in `arbiter label`, so a slow stage stops those before it.
"""

import bisect
import math
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from .cluster import Cluster, Job

BLOCK = 64
"""Images of a block; no smaller number passes from stage to stage."""
MACHINES = 32
"""Machines that are simulated at most: more of them behave alike, and these get their share of all that is shared."""
WAITING = 4
"""Blocks that wait before each process that encodes, and before each driver for each machine."""
_OPEN, _ENCODE = 1, 0
"""Who gets a free core first."""


@dataclass(frozen=True)
class Outcome:
    """What a simulated run took."""

    images: int
    done: int
    """Images that were written; of the simulated part of the machines."""
    asked: int
    """Images that the simulated machines were given."""
    seconds: float
    """From the start of the machines to the last row."""
    rate: float
    """Images a second of the whole cluster, its start left out."""
    use: dict[str, float]
    """Stage (`cluster.capacities`) -> share of its time that it was at work, its start left out."""
    failures: int
    """Of machines, in the simulated part."""
    price: float
    """Of all machines from start to end."""

    @property
    def hours(self) -> float:
        """From the start of the machines to the last row."""
        return self.seconds / 3600

    @property
    def price_per_million(self) -> float:
        """Of a million images."""
        return self.price / self.images * 1e6

    @property
    def busiest(self) -> str:
        """The stage that the others wait for."""
        return max(self.use, key=lambda stage: self.use[stage])


def simulate(
    job: Job, cluster: Cluster, *, pieces: int = 20_000, variation: float = 0.0, seed: int = 0
) -> Outcome:
    """Simulate a job.

    Args:
        job: what is done.
        cluster: by whom.
        pieces: what all images are cut into at most, which is what the time of this function grows with.
        variation: standard deviation of a block's times, over their mean (lognormal).
        seed: of variation and failures.
    """
    run = _Run(job, cluster, pieces, variation, random.Random(seed))
    for machine in run.machines:
        machine.start()
    drivers = [run.env.process(run.drive()) for _ in range(cluster.drivers)]
    run.env.run(run.env.all_of(drivers))
    return run.outcome()


class _Run:
    """The state of a simulation that all machines share."""

    def __init__(
        self, job: Job, cluster: Cluster, pieces: int, variation: float, draw: random.Random
    ) -> None:
        import simpy

        self.job, self.cluster, self.variation, self.draw = job, cluster, variation, draw
        count = min(cluster.machines, MACHINES)
        self.share = count / cluster.machines
        self.asked = max(1, round(job.images * self.share))
        self.env = simpy.Environment()
        self.size = max(BLOCK, math.ceil(self.asked / pieces))
        self.left = self.asked
        self.done = 0
        self.busy: defaultdict[str, float] = defaultdict(float)
        self.store = _Line(cluster.store_bandwidth * self.share)
        # Each driver writes for all machines, of which `share` are simulated.
        self.write = job.write / self.share
        self.queue = simpy.Store(self.env, WAITING * count)
        slow = math.ceil(cluster.slow_machines * self.share - 1e-9)
        self.machines = [
            _Machine(self, cluster.slow_factor if number < slow else 1.0) for number in range(count)
        ]
        self.working = count * cluster.machine.encoders

    def next_piece(self) -> int:
        """How many images the next reader gets; 0 at the end."""
        taken = min(self.size, self.left)
        self.left -= taken
        return taken

    def spread(self, images: int) -> float:
        """A random factor of mean 1 on the time of so many images."""
        if not self.variation:
            return 1.0
        deviation = self.variation / math.sqrt(images / BLOCK)
        sigma = math.sqrt(math.log1p(deviation**2))
        return self.draw.lognormvariate(-(sigma**2) / 2, sigma)

    def drive(self) -> Any:
        """One driver: writes what was scored, until every process that encodes has said that it is done."""
        while self.working > 0:
            images = yield self.queue.get()
            if not images:
                self.working -= 1
                if self.working == 0:  # wakes the other drivers
                    for _ in range(self.cluster.drivers - 1):
                        yield self.queue.put(0)
                continue
            seconds = self.write * images * self.spread(images)
            self.busy["drivers"] += seconds
            yield self.env.timeout(seconds)
            self.done += images

    def outcome(self) -> Outcome:
        """What the finished run took."""
        cluster, machine = self.cluster, self.cluster.machine
        worked = self.env.now - cluster.start_seconds
        size = self.asked * self.job.times.size
        count = len(self.machines)
        servers = {
            "cores": count * machine.cores,
            "encoders": count * machine.encoders,
            "drivers": cluster.drivers,
        }
        use = {
            "store": size / (self.store.speed * worked),
            "network": size / (machine.bandwidth * count * worked),
            **{stage: self.busy[stage] / (number * worked) for stage, number in servers.items()},
        }
        price = cluster.machines * machine.price * self.env.now / 3600
        rate = self.asked / self.share / worked
        failures = sum(one.outages.before(self.env.now) for one in self.machines)
        return Outcome(self.job.images, self.done, self.asked, self.env.now, rate, use, failures, price)


class _Machine:
    """Processes that open images, a bounded queue, and processes that encode them."""

    def __init__(self, run: _Run, slowness: float) -> None:
        import simpy

        self.run, self.slowness = run, slowness
        machine = run.cluster.machine
        self.cores = simpy.PriorityResource(run.env, machine.cores)
        self.line = _Line(machine.bandwidth)
        self.readers = 2 * machine.cores  # while one waits for the network, another one decodes
        self.queue = simpy.Store(run.env, WAITING * machine.encoders)
        self.outages = _Outages(run.cluster, run.draw)

    def start(self) -> None:
        """Begin, all processes at once."""
        env = self.run.env
        readers = [env.process(self.open()) for _ in range(self.readers)]
        for _ in range(self.run.cluster.machine.encoders):
            env.process(self.encode())
        env.process(self.close(readers))

    def close(self, readers: Any) -> Any:
        """Tell the processes that encode when nothing follows."""
        yield self.run.env.all_of(readers)
        for _ in range(self.run.cluster.machine.encoders):
            yield self.queue.put(0)

    def open(self) -> Any:
        """One process that reads and decodes."""
        run, job = self.run, self.run.job
        yield run.env.timeout(run.cluster.start_seconds)
        while images := run.next_piece():
            size = images * job.times.size
            ready = max(self.line.finish(run.env.now, size), run.store.finish(run.env.now, size))
            yield run.env.timeout(ready - run.env.now)
            yield from self.on_core(*self.time(images, job.times.open, self.readers), _OPEN)
            yield self.queue.put(images)

    def encode(self) -> Any:
        """One process that encodes, scores and makes rows."""
        run, job, machine = self.run, self.run.job, self.run.cluster.machine
        while images := (yield self.queue.get()):
            on_core = job.rows if machine.devices else job.encode + job.rows
            if machine.devices:
                seconds, again = self.time(images, job.encode, machine.encoders)
                run.busy["encoders"] += seconds
                yield run.env.timeout(self.through_outages(seconds, again))
            seconds, again = self.time(images, on_core, machine.encoders)
            run.busy["encoders"] += seconds
            yield from self.on_core(seconds, again, _ENCODE)
            yield run.queue.put(images)
        yield run.queue.put(0)

    def time(self, images: int, each: float, processes: int) -> tuple[float, float]:
        """Seconds that so many images take of `each`, and what an outage costs one of so many processes."""
        run = self.run
        again = run.cluster.redone / processes * each * self.slowness
        return images * each * self.slowness * run.spread(images), again

    def on_core(self, seconds: float, again: float, priority: int) -> Any:
        """Wait for a core, and work on it."""
        run = self.run
        with self.cores.request(priority) as core:
            yield core
            run.busy["cores"] += seconds
            yield run.env.timeout(self.through_outages(seconds, again))

    def through_outages(self, seconds: float, again: float) -> float:
        """How long work of `seconds` takes from now on."""
        return self.outages.through(self.run.env.now, seconds, again)


class _Outages:
    """When a machine is down, drawn as far as anybody has looked."""

    def __init__(self, cluster: Cluster, draw: random.Random) -> None:
        self.mean, self.lasts = cluster.failure_hours * 3600, cluster.restart_seconds
        self.draw = draw
        self.begins: list[float] = []

    def begin(self, number: int) -> float:
        """When an outage begins."""
        while len(self.begins) <= number:
            up = self.begins[-1] + self.lasts if self.begins else 0.0
            wait = self.draw.expovariate(1 / self.mean) if math.isfinite(self.mean) else math.inf
            self.begins.append(up + wait)
        return self.begins[number]

    def through(self, now: float, seconds: float, again: float) -> float:
        """How long work of `seconds` takes from `now`, where each outage costs `again` seconds of work.

        No outage costs more than what was done since the one before.
        """
        time, left = now, seconds
        number = bisect.bisect_right(self.begins, now - self.lasts)
        while self.begin(number) + self.lasts <= now:  # nobody was there to be interrupted
            number += 1
        while (begins := self.begin(number)) < time + left:
            if begins > time:
                up = self.begins[number - 1] + self.lasts if number else 0.0
                left += min(again, begins - up) - (begins - time)
            time = begins + self.lasts
            number += 1
        return time + left - now

    def before(self, end: float) -> int:
        """How many began before a time."""
        return bisect.bisect_left(self.begins, end)


class _Line:
    """A line on which transfers follow each other at a speed in bytes a second."""

    def __init__(self, speed: float) -> None:
        self.speed, self.free = speed, 0.0

    def finish(self, now: float, size: float) -> float:
        """When a transfer that is asked for now ends."""
        self.free = max(self.free, now) + size / self.speed
        return self.free
