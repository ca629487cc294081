"""The simulated cluster: against its bound, against arithmetic on small cases, and its properties."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scale.cluster import Cluster, Job, Machine, StageTimes, bottleneck, capacities
from eval.scale.simulation import MACHINES, simulate
from eval.scale.tables import (
    Picture,
    assumptions,
    bottleneck_table,
    simulate_bottlenecks,
    simulate_sizes,
    sizes_table,
)
from judge.errors import ConfigError

seconds = st.floats(1e-6, 1e-2)
TIMES = st.builds(
    StageTimes,
    size=st.floats(1e3, 1e6),
    open=seconds,
    encode=seconds,
    score=seconds,
    rows=seconds,
    write=seconds,
)
MACHINE = st.builds(
    Machine,
    cores=st.integers(1, 8),
    devices=st.integers(0, 4),
    scorers=st.integers(1, 4),
    bandwidth=st.floats(1e7, 1e10),
)
CLUSTERS = st.builds(
    Cluster,
    machine=MACHINE,
    machines=st.integers(1, 6),
    store_bandwidth=st.floats(1e7, 1e10),
    drivers=st.integers(1, 3),
    start_seconds=st.floats(0, 100),
)
JOBS = st.builds(Job, images=st.integers(1, 5_000), times=TIMES, taxonomies=st.integers(1, 3))
few = settings(max_examples=20, derandomize=True, deadline=None)

FREE = StageTimes(size=0, open=0, encode=0, score=0, rows=0, write=0)
PLAIN = Cluster(Machine(cores=4, devices=1, bandwidth=1e9), machines=2, store_bandwidth=1.5e9)


@few
@given(JOBS, CLUSTERS, st.floats(0.01, 1.0), st.integers(0, 3))
def test_no_image_is_lost_whatever_fails(job: Job, cluster: Cluster, hours: float, seed: int) -> None:
    failing = replace(
        cluster, failure_hours=hours / 100, restart_seconds=20, redone=100, slow_share=0.5, slow_factor=2
    )
    found = simulate(job, failing, variation=0.3, seed=seed)
    assert found.done == found.asked == job.images
    assert all(0 <= use <= 1 + 1e-9 for use in found.use.values()), found.use


@few
@given(JOBS, CLUSTERS)
def test_no_run_is_faster_than_its_bound(job: Job, cluster: Cluster) -> None:
    found = simulate(job, cluster)
    assert found.rate <= min(capacities(job, cluster).values()) * (1 + 1e-9)
    # A stage's use is its rate over its capacity: no work is left out, none is done twice.
    for stage, capacity in capacities(job, cluster).items():
        assert found.use[stage] == pytest.approx(found.rate / capacity, rel=1e-6)


@few
@given(JOBS, CLUSTERS, st.integers(0, 9))
def test_failures_only_cost(job: Job, cluster: Cluster, seed: int) -> None:
    failing = replace(cluster, failure_hours=0.01, restart_seconds=30, redone=64)
    assert simulate(job, failing, seed=seed).seconds >= simulate(job, cluster).seconds * (1 - 1e-9)


@few
@given(JOBS, CLUSTERS)
def test_a_second_machine_never_slows_a_long_run(job: Job, cluster: Cluster) -> None:
    job = replace(job, images=20_000)
    one, two = (simulate(job, replace(cluster, machines=count)) for count in (1, 2))
    assert two.rate >= one.rate * 0.98  # its last blocks may come at another instant


@pytest.mark.parametrize(
    ("stage", "times", "expected"),
    [
        ("store", replace(FREE, size=1.5e6), 1000),
        ("network", replace(FREE, size=1e6), 100),
        ("cores", replace(FREE, open=8e-3), 1000),
        ("encoders", replace(FREE, encode=1e-3, score=5e-4, rows=5e-4), 1000),
        ("drivers", replace(FREE, write=1e-3), 1000),
    ],
)
@pytest.mark.parametrize("dominance", [math.inf, 5])
def test_one_dominating_stage_runs_at_its_capacity(stage, times, expected, dominance):
    network = replace(PLAIN, machine=replace(PLAIN.machine, bandwidth=5e7))
    cluster = network if stage == "network" else PLAIN
    job = Job(200_000, replace(times, open=times.open or 8e-3 / dominance) if stage != "network" else times)
    capacity = capacities(job, cluster)
    assert bottleneck(capacity) == stage
    assert capacity[stage] == pytest.approx(expected)
    found = simulate(job, cluster, pieces=1000)
    assert found.busiest == stage
    assert 0.97 * expected <= found.rate <= expected * (1 + 1e-9)


def test_many_machines_share_the_store_and_the_driver():
    """2,000 machines, of which 32 are simulated, against 64 of which all would be waiting for the same driver."""
    times = replace(FREE, open=1e-3, write=1e-5)
    cluster = replace(PLAIN, machines=2000, store_bandwidth=math.inf)
    found = simulate(Job(10**8, times), cluster, pieces=5000)
    assert found.asked == 10**8 * MACHINES / 2000
    assert found.rate == pytest.approx(1e5, rel=0.02)
    assert simulate(Job(10**8, times), replace(cluster, drivers=4), pieces=5000).rate == pytest.approx(
        4e5, rel=0.02
    )


def test_a_machine_that_encodes_on_its_cores():
    """One core does everything, a second one only helps what is not encoding."""
    job = Job(20_000, replace(FREE, open=1e-3, encode=3e-3))
    machine = Machine(cores=1)
    assert simulate(job, Cluster(machine)).rate == pytest.approx(250, rel=0.01)
    assert simulate(job, Cluster(replace(machine, cores=2))).rate == pytest.approx(333, rel=0.01)
    assert simulate(job, Cluster(replace(machine, cores=2, scorers=2))).rate == pytest.approx(500, rel=0.01)


def test_slow_machines_and_outages_cost_what_they_should():
    job = Job(400_000, replace(FREE, encode=1e-3))
    fast = Cluster(Machine(cores=2, devices=1), machines=4)
    slow = replace(fast, slow_share=0.5, slow_factor=2)
    assert simulate(job, slow, pieces=2000).rate == pytest.approx(3000, rel=0.02)
    failing = replace(fast, failure_hours=10 / 3600, restart_seconds=10)  # up half of the time
    found = simulate(replace(job, images=4_000_000), failing, seed=1, pieces=4000)
    assert found.rate == pytest.approx(2000, rel=0.15)
    assert found.failures == pytest.approx(found.seconds * 4 / 20, rel=0.15)


def test_variation_keeps_the_mean():
    job, cluster = Job(400_000, replace(FREE, encode=1e-3)), Cluster(Machine(cores=2, devices=1))
    calm, varied = (
        simulate(job, cluster, pieces=2000),
        simulate(job, cluster, pieces=2000, variation=0.5, seed=3),
    )
    assert varied.rate == pytest.approx(calm.rate, rel=0.03)
    assert varied.rate != calm.rate
    assert simulate(job, cluster, pieces=2000, variation=0.5, seed=3) == varied


def test_hours_and_price():
    cluster = Cluster(Machine(cores=1, devices=1, price=2.0), machines=3, start_seconds=600)
    found = simulate(Job(3_600_000, replace(FREE, encode=1e-3)), cluster, pieces=2000)
    assert found.hours == pytest.approx(1 / 6 + 1 / 3, rel=1e-3)
    assert found.price == pytest.approx(3 * 2 * found.hours)
    assert found.price_per_million == pytest.approx(found.price / 3.6)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Machine(cores=0),
        lambda: Machine(cores=1, scorers=0),
        lambda: replace(FREE, encode=-1.0),
        lambda: replace(FREE, encode=math.nan),
        lambda: replace(PLAIN, machines=0),
        lambda: replace(PLAIN, slow_factor=0.5),
        lambda: Job(0, FREE),
    ],
)
def test_impossible_clusters_are_refused(build):
    with pytest.raises(ConfigError, match=r"give|at least"):
        build()


def test_tables_show_every_combination_and_its_busiest_stage():
    times = replace(FREE, size=1e5, open=4e-3, encode=1e-3)
    job = Job(100_000, times)
    found = simulate_sizes(job, PLAIN, [100_000, 200_000], [1, 3], pieces=300)
    lines = sizes_table(found)
    assert len(lines) == 2 + 4
    assert all(line.count("*") == 1 for line in lines[2:])  # the busiest stage of each row
    assert all(one.outcome.rate <= one.bound for one in found)
    small, large = Picture("small", 1e3, 1e-4), Picture("large", 1e6, 2e-2)
    cells = simulate_bottlenecks(job, PLAIN, [small, large], [1e7, 1e9], [1, 4], pieces=300)
    by = {
        (picture.name, one.cluster.machine.bandwidth, one.cluster.machine.devices): one.outcome.busiest
        for picture, one in cells
    }
    assert by["small", 1e9, 1] == "encoders"
    assert by["small", 1e7, 4] == "encoders"  # 10,000 images/s arrive, 4,000 are encoded
    assert by["large", 1e7, 1] == "network"
    assert by["large", 1e9, 1] == "cores"
    assert len(bottleneck_table(cells)) == 2 + 4
    assert assumptions({"price": ("$1", "assumed")})[2].split() == [
        "|",
        "price",
        "|",
        "$1",
        "|",
        "assumed",
        "|",
    ]
