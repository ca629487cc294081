"""What `arbiter label` does on one machine, beside what people do without it, and a cluster simulated from its stages.

    python scripts/bench_label.py                                   # 100,000 images; 20 minutes on two quiet cores
    python scripts/bench_label.py --images 2000                     # a short version
    python scripts/bench_label.py --only simulate --images 2000     # the cluster, from stage times measured here

The inputs are made for it: small distinct images (48 to 96 pixels a side, JPEG and PNG in turns) as webdataset tars, a
folder, Parquet and JSON lines. They are labelled as the command does, by `judge.labelling.job.run_job`; the model is
loaded before the clock starts. torch has `--threads` threads, and `--workers` processes decode.

1. `kinds`: images a second; the clock's time of the process that scores, by stage: waiting for decoded images, the
   encoder, the head, rows, writing; processor time of all; the encoder's share of both; peak memory; bytes a row.
   Tars hold `--images` images, the other kinds a tenth of it.
2. `taxonomies`: a tenth of the images under one taxonomy of 20 categories and under ten, in turns (`ten_over_one`).
3. `ray`: the same tenth on Ray Data with two workers on this machine, beside one process: `overhead` of all the time,
   and of the later half of the images, as workers load models of their own first.
4. `peers`: files of a folder, in turns: a DataLoader with `score`, `datasets.map` with `score`, and a DataLoader with
   the encoder and a head on the pooled vector, as clip-retrieval does it. Same model, threads, batches and workers.
5. `simulate`: stage times of images of several sizes, measured one by one; what they predict for this machine beside
   what it does (one core; two cores; two processes); tables of simulated clusters with all assumptions.

No GPU is needed. Rates of encoders on GPUs are published figures, and are said to be. The last line is JSON.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.labelling.runs import Bench, Measured

SECTIONS = ("kinds", "taxonomies", "ray", "peers", "simulate")
TENTH = 10


def main() -> None:
    """Measure what is asked and print it."""
    options = parse()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    report: dict[str, Any] = {"machine": machine(options), "options": {**vars(options), "out": None}}
    print(
        "{device}; {cores} cores; load {load_before:.1f}; {packages}".format(**report["machine"]), flush=True
    )
    bench = load(options)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        for name in options.only:
            print(f"\n{name}", flush=True)
            report[name] = MEASURES[name](bench, options, Path(folder))
    report["machine"]["load_after"] = os.getloadavg()[0]
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--judge", default="small-student", help="as of arbiter label")
    parser.add_argument("--taxonomy", default="signs")
    parser.add_argument("--kinds", nargs="+", default=["tar", "images", "parquet", "jsonl"])
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="of what takes turns")
    parser.add_argument("--out", type=Path, help="a folder for inputs and labels; emptied at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--price", type=float, default=1.006, help="of an hour of a machine with a GPU, in dollars"
    )
    parser.add_argument(
        "--cpu-price", type=float, default=0.68, help="of an hour of a machine of 16 cores without a GPU"
    )
    return parser.parse_args()


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    from judge.runs.machine import device_name

    packages = ("torch", "transformers", "pillow", "pyarrow", "numpy", "datasets", "ray", "simpy")
    return {
        "device": device_name("cpu", options.threads),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "load_before": os.getloadavg()[0],
    }


def load(options: argparse.Namespace) -> "Bench":
    """The classifier and how it is asked."""
    import torch

    from eval.labelling.runs import Bench
    from judge.classifiers import load_classifier

    torch.set_num_threads(options.threads)
    classifier = load_classifier(options.judge, batch_size=options.batch_size)
    return Bench(options.judge, classifier, options.batch_size, options.workers)


# --- one machine ----------------------------------------------------------------------------------------------


def kinds(bench: "Bench", options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Each kind of input by itself."""
    from eval.labelling.pictures import write_input
    from prompts import load_taxonomy

    found = {}
    for kind in options.kinds:
        count = options.images if kind == "tar" else max(1, options.images // TENTH)
        write_input(kind, folder / kind, count, options.seed)
        taken = bench.run(folder / kind, folder / f"{kind}-labels", [load_taxonomy(options.taxonomy)])
        found[kind] = taken.record()
        print(describe(f"{kind}, {count:,} images", taken), flush=True)
    return found


def describe(name: str, taken: "Measured") -> str:
    """A run in a few lines."""
    from eval.labelling.runs import WALL

    wall = ", ".join(f"{stage} {taken.share(stage):.1%}" for stage in WALL)
    processor = taken.encoder_processor / taken.processor
    return (
        f"  {name}: {taken.rate:.0f} images/s; {taken.seconds:.1f} s by the clock, {taken.processor:.1f} s of "
        f"processor time,\n    {taken.scoring:.1f} s of it where it is scored. By the clock: {wall}\n"
        f"    the encoder has {taken.share('encode'):.1%} of the clock and {processor:.1%} of processor time; peak "
        f"memory {taken.peak_bytes / 1e6:.0f} MB;\n    {taken.output_bytes / taken.rows:.0f} bytes a row; "
        f"{taken.statuses}"
    )


def tenth(options: argparse.Namespace, folder: Path) -> Path:
    """Tars of a tenth of the images, made once."""
    from eval.labelling.pictures import write_input

    where = folder / "tenth"
    if not where.is_dir():
        write_input("tar", where, max(2, options.images // TENTH), options.seed + 1)
    return where


def taxonomies(bench: "Bench", options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One taxonomy and ten, in turns."""
    from eval.labelling.policies import draw_taxonomies
    from prompts import load_taxonomy

    where = tenth(options, folder)
    ten = draw_taxonomies(load_taxonomy(options.taxonomy), 10, options.seed)
    runs: dict[int, list[Measured]] = {1: [], 10: []}
    for turn in range(options.rounds):
        for count, taken in runs.items():
            taken.append(bench.run(where, folder / f"taxonomies-{count}-{turn}", ten[:count]))
            print(describe(f"{count} taxonomies", taken[-1]), flush=True)
    median = {count: statistics.median(one.seconds for one in taken) for count, taken in runs.items()}
    processor = {count: statistics.median(one.processor for one in taken) for count, taken in runs.items()}
    found = {
        "categories": {count: sum(map(len, ten[:count])) for count in runs},
        "ten_over_one": median[10] / median[1],
        "ten_over_one_processor_time": processor[10] / processor[1],
        "runs": {count: [one.record() for one in taken] for count, taken in runs.items()},
    }
    print(f"  ten taxonomies take {found['ten_over_one']:.2f} times as long as one", flush=True)
    return found


def on_ray(bench: "Bench", options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Two workers on Ray Data beside one process, both from the listing of the input to the last part."""
    from eval.labelling.runs import measure
    from judge.labelling.ray_data import LabellingRayOptions, ray_engine
    from prompts import load_taxonomy

    where, asked = tenth(options, folder), [load_taxonomy(options.taxonomy)]
    alone = bench.run(where, folder / "alone", asked)
    job = bench.job(where, folder / "ray", asked)
    with ray_engine(job.opening, job.scoring, LabellingRayOptions(workers=2)) as engine:
        both = measure(job, bench.classifier, engine)
    found = {
        "one_process": alone.record(),
        "ray_two_workers": both.record(),
        "overhead": both.seconds / alone.seconds - 1,
        "overhead_of_the_later_half": alone.steady_rate / max(both.steady_rate, 1e-9) - 1,
    }
    print(
        f"  one process {alone.rate:.0f} images/s, Ray with two workers {both.rate:.0f}: time "
        f"{found['overhead']:+.0%}, {both.first:.0f} s of it until its first block;\n"
        f"  in the later half {alone.steady_rate:.0f} and {both.steady_rate:.0f} images/s",
        flush=True,
    )
    return found


def peers(bench: "Bench", options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ours and what people do without it, in turns over the same files."""
    from eval.labelling.peers import PEERS, rate
    from eval.labelling.pictures import write_input
    from judge.student.student import Student
    from prompts import load_taxonomy

    if not isinstance(bench.classifier, Student):
        raise SystemExit(f"--only peers needs a student in PyTorch; {options.judge} is none.")
    where, taxonomy = folder / "peers", load_taxonomy(options.taxonomy)
    write_input("images", where, max(1, options.images // TENTH), options.seed + 2)
    rates: dict[str, list[float]] = {"arbiter label": [], **{name: [] for name in PEERS}}
    for turn in range(options.rounds):
        rates["arbiter label"].append(bench.run(where, folder / f"ours-{turn}", [taxonomy]).rate)
        for name, peer in PEERS.items():
            out = folder / f"peer-{turn}.parquet"
            rates[name].append(
                rate(peer, bench.classifier, where, taxonomy, options.batch_size, options.workers, out)
            )
    median = {name: statistics.median(found) for name, found in rates.items()}
    ours = median["arbiter label"]
    for name, found in median.items():
        print(f"  {name}: {found:.0f} images/s; ours is {ours / found:.2f} times it", flush=True)
    return {"images_per_second": median, "ours_over": {name: ours / found for name, found in median.items()}}


# --- the simulated cluster ------------------------------------------------------------------------------------


def simulated(bench: "Bench", options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Stage times, predictions beside measurements, and the tables."""
    from eval.labelling.cluster_report import report_cluster

    return report_cluster(
        bench,
        folder,
        options.taxonomy,
        images=max(256, options.images // TENTH),
        prices=(options.price, options.cpu_price),
        say=lambda line: print(f"  {line}", flush=True),
    )


MEASURES: dict[str, Callable[["Bench", argparse.Namespace, Path], dict[str, Any]]] = {
    "kinds": kinds,
    "taxonomies": taxonomies,
    "ray": on_ray,
    "peers": peers,
    "simulate": simulated,
}


if __name__ == "__main__":
    main()
