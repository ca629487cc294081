"""What HTTP costs beside the classifier, how long answers take, what hostile clients break, and how soon it starts.

    python scripts/bench_serve.py                            # a ViT-B/32-shaped student and the shipped tiny-student
    python scripts/bench_serve.py --seconds 10 --rounds 2    # shorter
    python scripts/bench_serve.py --classifiers --seconds 0 --starts 0 --database temporary    # only 5.

1. Throughput: images a second that keep-alive clients get from `POST /v1/verdicts`, one JPEG of 512 x 512 a request,
   beside those of the same classifier called in this process with batches of the same size, decoding included on both
   sides. Server and calls take turns in each round, in one process; the clients are another one. `overhead` compares
   medians of the time; `cpu_overhead` the processor time, that of the server's decoding workers included and that of
   the clients not. Measured with a student in the shape of ViT-B/32 (random weights) and with the shipped tiny-student,
   whose encoder costs next to nothing, so that it shows the server alone.
2. Latency at 80 % of that throughput, with requests at random times (a Poisson process), from when each was due.
3. Soak: `arbiter serve` in a process of its own, 64 clients, 5 % of whose requests are hostile: cut, huge and narrow
   images, bombs, malformed and deep JSON, unknown taxonomies, broken animations, clients that go away. Counted are
   answers by status, requests without an answer, and how much the memory of server and workers grew after a warm-up.
4. Start: from `arbiter serve` to the first verdict, and `arbiter --help`; the fastest of three.
5. With `--database`: verdicts a second that 16 processes store in SQLite and in PostgreSQL, in turns, both on the disk
   of the temporary folder if PostgreSQL is one that is started here (`temporary`; from the system's packages).

Only 127.0.0.1 is used. Takes four minutes beside `--seconds`. The last line is JSON.
"""

import argparse
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.serving.asked import HOST, PATH, hostile_requests, pictures, question, request
from eval.serving.clients import Clients, besiege, client_process, closed_loop, open_loop
from eval.serving.processes import memory_bytes, processor_seconds, tree

if TYPE_CHECKING:
    from eval.serving.writers import WriteRate
    from judge.protocol import Classifier

SOAK_CLIENTS, HOSTILE_SHARE = 64, 0.05
WRITERS, WRITER_ROUNDS = 16, 3
CLI = [sys.executable, "-m", "judge.serve.cli"]


def main() -> None:
    """Measure everything and print it."""
    options = parse()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    report: dict[str, Any] = {"machine": machine(options), "options": vars(options)}
    with client_process() as clients:
        for name in options.classifiers:
            report[name] = measure_classifier(name, options, clients)
            print(describe(name, report[name]), flush=True)
        if options.seconds:
            report["soak"] = soak(options, clients)
            print(f"soak: {json.dumps(report['soak'])}", flush=True)
    if options.starts:
        report["start"] = time_starts(options.starts)
        print(f"start: {json.dumps(report['start'])}", flush=True)
    if options.database:
        report["writers"] = measure_writers(options.database)
        print(
            "{writers} writers: SQLite {sqlite_per_second:.0f} verdicts/s, PostgreSQL {postgresql_per_second:.0f} "
            "({postgresql_over_sqlite:.2f} times); p95 {sqlite_p95_ms:.0f} and {postgresql_p95_ms:.0f} ms".format_map(
                report["writers"]
            ),
            flush=True,
        )
    report["machine"]["load_after"] = os.getloadavg()[0]
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--classifiers", nargs="*", default=["ViT-B/32", "tiny-student"], metavar="NAME")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--clients", type=int, default=16, help="connections in the throughput test")
    parser.add_argument("--round-seconds", type=float, default=8, help="of each side in each round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--latency-seconds", type=float, default=15)
    parser.add_argument("--seconds", type=float, default=60, help="of the soak; 0 leaves it out")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument(
        "--database", metavar="URL", help="an empty one in PostgreSQL, or `temporary`: also measure writers"
    )
    return parser.parse_args()


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    from judge.runs.machine import device_name

    packages = ("torch", "fastapi", "starlette", "uvicorn", "pillow")
    return {
        "device": device_name("cpu", options.threads),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "load_before": os.getloadavg()[0],
    }


def describe(name: str, found: dict[str, Any]) -> str:
    """The numbers of one classifier in a line."""
    return (
        f"{name}: {found['http_per_second']:.1f} images/s over HTTP, {found['called_per_second']:.1f} called; overhead "
        f"{found['overhead']:+.1%} of time, {found['cpu_overhead']:+.1%} of processor time; at 80 %: p50 "
        f"{1000 * found['p50']:.0f} ms, p95 {1000 * found['p95']:.0f} ms ({found['p95_over_p50']:.2f} times)"
    )


# --- throughput and latency -----------------------------------------------------------------------------------


def measure_classifier(name: str, options: argparse.Namespace, clients: Clients) -> dict[str, Any]:
    """Throughput over HTTP and called, in turns; then the latency at 80 % of it."""
    import torch

    torch.set_num_threads(options.threads)
    classifier, data = load(name, options.batch_size), pictures()
    requests = [request(question(picture)) for picture in data]
    with serving(classifier, options) as port:
        sides = {
            "http": lambda: over_http(clients, port, requests, options),
            "called": lambda: call_directly(classifier, data, options),
        }
        seconds, cpu = {side: list[float]() for side in sides}, {side: list[float]() for side in sides}
        for round_number in range(options.rounds + 1):
            for side, measure in sides.items():
                before = processor_seconds(tree(os.getpid(), [clients.pid]))
                images, taken = measure()
                after = processor_seconds(tree(os.getpid(), [clients.pid]))
                if round_number:  # the first one warms up
                    seconds[side].append(taken / images)
                    cpu[side].append((after - before) / images)
        per_image = {side: statistics.median(found) for side, found in seconds.items()}
        per_image_cpu = {side: statistics.median(found) for side, found in cpu.items()}
        rate = 0.8 / per_image["http"]
        answers = clients.run(
            open_loop, port=port, requests=requests, rate=rate, seconds=options.latency_seconds
        )
    taken = sorted(answers["taken"])
    p50, p95 = taken[len(taken) // 2], taken[int(0.95 * len(taken))]
    return {
        "http_per_second": 1 / per_image["http"],
        "called_per_second": 1 / per_image["called"],
        "overhead": per_image["http"] / per_image["called"] - 1,
        "cpu_overhead": per_image_cpu["http"] / per_image_cpu["called"] - 1,
        "cpu_ms_per_image": {side: 1000 * found for side, found in per_image_cpu.items()},
        "p50": p50,
        "p95": p95,
        "p95_over_p50": p95 / p50,
        "answers_at_80_percent": len(taken),
    }


def over_http(
    clients: Clients, port: int, requests: list[bytes], options: argparse.Namespace
) -> tuple[int, float]:
    """Images that were answered, and seconds it took."""
    found = clients.run(
        closed_loop, port=port, requests=requests, clients=options.clients, seconds=options.round_seconds
    )
    return found["answers"], found["seconds"]


def load(name: str, batch_size: int) -> "Classifier":
    """A run, or a student of random weights in the shape of ViT-B/32."""
    import judge

    if name != "ViT-B/32":
        return judge.load_classifier(name, batch_size=batch_size)
    import torch

    torch.manual_seed(0)
    built: Any = runpy.run_path(str(Path(__file__).with_name("bench_student.py")))["random_student"](name)
    built.batch_size = batch_size
    return built  # type: ignore[no-any-return]


def call_directly(
    classifier: "Classifier", data: list[bytes], options: argparse.Namespace
) -> tuple[int, float]:
    """Decode, score and conclude batch after batch; images, and seconds it took."""
    from judge.data.frames import open_frames
    from judge.verdicts.from_scores import verdicts_from_scores
    from prompts import load_taxonomy

    taxonomy, size, images = load_taxonomy("digits"), options.batch_size, 0
    started = time.perf_counter()
    while time.perf_counter() < started + options.round_seconds:
        batch = [open_frames(data[(images + n) % len(data)]).images[0] for n in range(size)]
        scores = classifier.score(batch, [None] * size, taxonomy)
        verdicts_from_scores(scores, taxonomy, threshold=0.5, model=classifier.name)
        images += size
    return images, time.perf_counter() - started


@contextmanager
def serving(classifier: "Classifier", options: argparse.Namespace) -> Iterator[int]:
    """The port of a server in this process."""
    import uvicorn

    from judge.server.app import create_app
    from judge.server.service import JudgeService, LoadedJudge
    from judge.server.settings import ServerSettings
    from prompts import load_taxonomy

    loaded = LoadedJudge(classifier, load_taxonomy("digits"), classifier.name)
    service = JudgeService(lambda: loaded, ServerSettings(batch_size=options.batch_size))
    app = create_app(service, service.settings)
    config = uvicorn.Config(app, HOST, 0, log_level="error", access_log=False, timeout_keep_alive=75)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not (server.started and service.ready):
        time.sleep(0.05)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


# --- soak and start -------------------------------------------------------------------------------------------


@contextmanager
def serve_process(*words: str) -> Iterator[tuple[int, int]]:
    """Process id and port of `arbiter serve` on a free port, ready for questions; drained at the end."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*CLI, "serve", "--judge", "tiny-student", "--port", "0", *words],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        )
        lines = iter(process.stderr or ())
        try:
            address = next(line for line in lines if "/v1 is the API" in line).split("/v1", 1)[0]
            threading.Thread(target=lambda: list(lines), daemon=True).start()
            yield process.pid, int(address.rpartition(":")[2])
            process.terminate()
            if process.wait(60) != 0:
                raise RuntimeError(f"arbiter serve ended with {process.returncode}")
        finally:
            process.kill()
            process.wait()


def first_verdict(port: int) -> None:
    """Ask for a verdict until there is one."""
    body = question(pictures()[0])
    while True:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"http://{HOST}:{port}{PATH}", body), timeout=60
            ):
                return
        except OSError:
            time.sleep(0.02)


def soak(options: argparse.Namespace, clients: Clients) -> dict[str, Any]:
    """Answers by status, and the growth of memory after a warm-up."""
    data = pictures()
    load = {
        "requests": [request(question(picture)) for picture in data],
        "hostile": hostile_requests(data[0]),
        "clients": SOAK_CLIENTS,
    }
    with serve_process("--batch-size", str(options.batch_size)) as (process, port):
        first_verdict(port)
        # Half hostile, so that every kind of request has left its traces before memory is measured.
        warm_up = clients.run(besiege, port=port, seconds=options.seconds / 4, share=0.5, **load)
        before = memory_bytes(tree(process))
        statuses = clients.run(besiege, port=port, seconds=options.seconds, share=HOSTILE_SHARE, **load)
        after = memory_bytes(tree(process))
    counted = {**warm_up, **{name: warm_up.get(name, 0) + count for name, count in statuses.items()}}
    return {
        "answers": dict(sorted(counted.items())),
        "answers_per_second": sum(statuses.values()) / options.seconds,
        "lost": counted.get("lost", 0),
        "server_errors": sum(count for name, count in counted.items() if name.split()[-1].startswith("5")),
        "memory_mb": {"before": before / 1e6, "after": after / 1e6},
        "memory_growth": after / before - 1,
    }


def time_starts(count: int) -> dict[str, float]:
    """Seconds to the first verdict of `arbiter serve`, by the clock and of processors, and of `arbiter --help`.

    The fastest of several: whatever else the machine does only adds to them.
    """
    clock, processor, helped = [], [], []
    for _ in range(count):
        started = time.perf_counter()
        with serve_process() as (process, port):
            first_verdict(port)
            clock.append(time.perf_counter() - started)
            processor.append(processor_seconds(tree(process)))
        started = time.perf_counter()
        subprocess.run([*CLI, "--help"], capture_output=True, check=True)
        helped.append(time.perf_counter() - started)
    return {
        "first_verdict": min(clock),
        "first_verdict_processor_seconds": min(processor),
        "help": min(helped),
    }


# --- writers --------------------------------------------------------------------------------------------------


def measure_writers(database: str) -> dict[str, float]:
    """Verdicts a second that 16 processes store, in SQLite and PostgreSQL by turns; medians of three."""
    from eval.serving.postgresql import temporary_postgresql
    from eval.serving.writers import write_rate

    found: dict[str, list[WriteRate]] = {"sqlite": [], "postgresql": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(temporary_postgresql()).new_url() if database == "temporary" else database
        urls = {"sqlite": f"sqlite:///{folder}/records.sqlite", "postgresql": url}
        for _ in range(WRITER_ROUNDS):
            for name, rates in found.items():
                rates.append(write_rate(urls[name], folder / "images", writers=WRITERS))
    per_second = {name: statistics.median(rate.per_second for rate in rates) for name, rates in found.items()}
    return {
        "writers": WRITERS,
        **{f"{name}_per_second": rate for name, rate in per_second.items()},
        "postgresql_over_sqlite": per_second["postgresql"] / per_second["sqlite"],
        **{f"{name}_p95_ms": 1000 * statistics.median(r.p95 for r in rates) for name, rates in found.items()},
    }


if __name__ == "__main__":
    main()
