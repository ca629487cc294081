"""Clients under load: what they count, and that hostile ones break nothing."""

import asyncio
import os
import subprocess
import sys
from collections import Counter

import pytest
from fixtures_server import ColourJudge, colour_service, listening, picture, wait_until
from sqlalchemy import func, select

from eval.serving import clients as load
from eval.serving.asked import hostile_requests, pictures, question, request
from eval.serving.processes import memory_bytes, processor_seconds, tree
from judge.records.tables import VerdictRow

GOOD = [request(question(picture(red=red))) for red in (0, 255)]


def port_of(address):
    return int(address.rpartition(":")[2])


def test_hostile_clients_break_nothing():
    service = colour_service(decode_workers=1)
    hostile, counted, refused = hostile_requests(pictures()[0]), Counter(), 0
    with listening(service) as address:
        while counted["200"] <= 20 or refused <= 5:  # a busy machine needs longer
            siege = load.besiege(port_of(address), GOOD, hostile, clients=16, seconds=1, share=0.3)
            counted.update(asyncio.run(siege))
            refused = sum(count for name, count in counted.items() if name.startswith("hostile 4"))
    assert "lost" not in counted
    assert not [name for name in counted if name.split()[-1].startswith("5")]
    assert service.pending == 0


def test_closed_and_open_loops_count_answers():
    judge = ColourJudge()
    with listening(colour_service(judge)) as address, load.client_process() as clients:
        options = {"port": port_of(address), "requests": GOOD}
        closed = clients.run(load.closed_loop, clients=2, seconds=0.2, **options)
        assert closed["answers"] == sum(size for size, _, _ in judge.calls) >= 2
        assert closed["seconds"] >= 0.2
        before = len(judge.calls)
        opened = clients.run(load.open_loop, rate=50, seconds=0.4, **options)
        assert len(opened["taken"]) == sum(size for size, _, _ in judge.calls[before:])
        assert all(0 < taken < 60 for taken in opened["taken"])
        with pytest.raises(RuntimeError, match="HTTP 400"):
            clients.run(
                load.closed_loop, port=options["port"], requests=[request(b"{}")], clients=1, seconds=1
            )


def test_processes_and_what_they_use():
    code = "import time; x = bytearray(b'1') * 50_000_000; sum(range(10**6)); print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            assert process.pid in tree(os.getpid())
            assert process.pid not in tree(os.getpid(), [process.pid])
            assert memory_bytes([process.pid]) > 50_000_000
            assert processor_seconds([process.pid]) > 0
        finally:
            process.kill()
    wait_until(lambda: process.pid not in tree(os.getpid()))
    assert memory_bytes([process.pid]) == processor_seconds([process.pid]) == 0


@pytest.mark.slow
def test_the_benchmark_prints_its_numbers(start_script):
    import json

    short = [
        "--rounds",
        "1",
        "--round-seconds",
        "0.3",
        "--latency-seconds",
        "0.5",
        "--seconds",
        "0",
        "--starts",
        "0",
    ]
    done = start_script("scripts/bench_serve.py", "--classifiers", "tiny-student", *short)
    assert done.wait() == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["tiny-student"]
    assert found["http_per_second"] > 0
    assert found["overhead"] == pytest.approx(found["called_per_second"] / found["http_per_second"] - 1)
    assert found["p95"] >= found["p50"] > 0


def test_writers_store_what_they_count(database_url, open_records, tmp_path):
    from eval.serving.writers import write_rate

    rate = write_rate(database_url, tmp_path / "images", writers=2, seconds=0.2)
    assert rate.p95 > 0
    records = open_records(database_url)
    assert len(records.items()) == 2
    with records._database.read() as session:
        stored = session.scalar(select(func.count()).select_from(VerdictRow))
    assert stored == round(rate.per_second * 0.2)


def test_a_writer_that_fails_is_no_slow_one(tmp_path):
    from eval.serving.writers import write_rate

    with pytest.raises(RuntimeError, match="a writer failed"):
        write_rate("sqlite:///:memory:", tmp_path / "images", writers=1)
