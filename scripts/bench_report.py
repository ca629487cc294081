"""Seconds and memory of a benchmark's report at UnsafeBench's size: 10,146 images, eight classifiers.

    python scripts/bench_report.py                    # what docs/measured.md says
    python scripts/bench_report.py --images 500 --classifiers 3 --keep report

Predictions are made up: two thirds of the classifiers cover everything, the others fewer and fewer categories, and one
image in fifty is unjudged. They are written as Parquet. A process of its own then reads the files, measures, and
writes `report.html` and `report.md`, with pictures of 512 x 512 drawn when a contact sheet asks for them; its seconds
are those of the clock, imports included, and beside them those of the processor, which other work on the machine does
not lengthen; its memory is the largest resident set of its life. The last line is JSON.
"""

import argparse
import hashlib
import json
import math
import os
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from eval.benchmark.predictions import About, Prediction, Predictions, read_predictions, write_predictions
from eval.classifiers import GROUPS
from judge.runs.machine import device_name
from prompts import load_taxonomy

IMAGES = 10_146
"""In UnsafeBench."""
UNJUDGED = 0.02
SIDE = 512
"""Of the pictures that are drawn."""


def main() -> None:
    """Write predictions, have another process report them, print what that took."""
    options = parse()
    if options.report is not None:
        print(json.dumps(report(options.report, options.keep or options.report, blur=not options.sharp)))
        return
    with TemporaryDirectory() as folder:
        for number in range(options.classifiers):
            made = predictions(number, options.classifiers, options.images)
            write_predictions(Path(folder) / f"{number}.parquet", made)
        child = [sys.executable, __file__, "--report", folder]
        child += ["--keep", str(options.keep.absolute())] if options.keep else []
        load, start = os.getloadavg()[0], time.perf_counter()
        ran = subprocess.run(
            child + ["--sharp"] * options.sharp, stdout=subprocess.PIPE, text=True, check=True
        )
        seconds = time.perf_counter() - start
    found = json.loads(ran.stdout.splitlines()[-1])
    print(f"{options.classifiers} classifiers, {options.images:,} images: {seconds:.1f} s in all")
    print(f"    {found['cpu_seconds']:.1f} s of the processor")
    for stage, taken in found["stages"].items():
        print(f"    {stage:10}{taken:8.1f} s")
    print(f"    memory at most {found['peak_mib']:,.0f} MiB, page of {found['page_mb']:.1f} MB")
    found |= {
        "images": options.images,
        "classifiers": options.classifiers,
        "seconds": seconds,
        "machine": device_name("cpu", os.cpu_count() or 1),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "versions": {
            name: version(name) for name in ("numpy", "matplotlib", "pillow", "pyarrow", "scikit-learn")
        },
    }
    print(json.dumps(found))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--classifiers", type=int, default=8)
    parser.add_argument(
        "--sharp", action="store_true", help="embed pictures that are not blurred, which are larger"
    )
    parser.add_argument("--keep", type=Path, help="folder for the report; it is not kept otherwise")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)  # what the process of its own does
    return parser.parse_args()


def report(folder: Path, out: Path, *, blur: bool) -> dict[str, Any]:
    """Read, measure and report the files of a folder: seconds of each stage, largest memory, size of the page."""
    marks = [time.perf_counter()]
    from eval.benchmark.effectiveness import measure
    from eval.benchmark.report.page import write_benchmark_report

    marks.append(time.perf_counter())
    found = [read_predictions(path) for path in sorted(folder.glob("*.parquet"))]
    marks.append(time.perf_counter())
    metrics = measure(found)
    marks.append(time.perf_counter())
    page = write_benchmark_report(out, metrics, found, images=drawn, blur=blur)
    marks.append(time.perf_counter())
    names = ("imports", "read", "measure", "report")
    return {
        "stages": dict(zip(names, np.diff(marks).tolist(), strict=True)),
        "cpu_seconds": time.process_time(),
        # In kB on Linux, in bytes on macOS.
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "darwin" else 1024),
        "page_mb": page.stat().st_size / 1e6,
    }


def predictions(number: int, classifiers: int, images: int) -> Predictions:
    """Those of one classifier; the images and what is true of them are the same for all."""
    taxonomy = load_taxonomy("unsafebench")
    keys = taxonomy.keys
    partial = number - 2 * classifiers // 3
    covers = keys[: max(1, len(keys) - 3 * partial)] if partial > 0 else keys
    truth, noise = np.random.default_rng(0), np.random.default_rng(number + 1)
    about = truth.integers(len(keys), size=images)
    unsafe, generated = truth.random((2, images)) < 0.5
    violates = np.where(unsafe, about, -1)[:, None] == np.arange(len(keys))  # (N, K)
    signal = np.where(violates, 0.8 - 0.04 * number, 0.05 + 0.03 * number)
    scores = np.clip(signal + 0.15 * noise.normal(size=signal.shape), 0, 1)[:, : len(covers)]
    scores[noise.random(images) < UNJUDGED] = math.nan
    unasked = (math.nan,) * (len(keys) - len(covers))
    rows = tuple(
        Prediction(
            id=f"unsafebench-test-{row:05}",
            violates=frozenset([keys[about[row]]] if unsafe[row] else []),
            unknown=frozenset(),
            unsafe=float(scores[row].max()),
            categories=(*scores[row].tolist(), *unasked),
            asked=frozenset(covers),
            source="generated" if generated[row] else "real",
            collected_for=keys[about[row]],
            reason=f"no answer after {row} ms" if math.isnan(scores[row, 0]) else None,
            seconds=0.01 * (number + 1),
        )
        for row in range(images)
    )
    label = f"classifier {number + 1}"
    group = GROUPS[number % len(GROUPS)]
    return Predictions(About(label, label, group, taxonomy, covers, "unsafebench", ("test",)), rows)


def drawn(name: str) -> Image.Image:
    """A picture of soft colours with as many details as a photo, from its name."""
    random = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    coarse = Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((SIDE, SIDE))
    fine = Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    return Image.blend(coarse, fine, 0.2)


if __name__ == "__main__":
    main()
