"""Build a corpus twice, once in peace and once killed twice with SIGKILL and resumed, and compare what is left.

    python scripts/corpus_kill_test.py --out runs/corpus_kill_test --metrics runs/diffusion/metrics.json

10,000 pictures by `tiny-diffusion` in 4 steps with guidance, labelled by `tiny-student`, each build on one core; 6
minutes on two. The kills come after random numbers of chunks. Prints `rows`, `lost`, `doubled` and whether all shards
have the same hashes, and writes them as `corpus` into the metrics, beside what stands there. Exit status 1 where a row
is lost, doubled or different.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from judge.corpus.audit import audit_corpus
from judge.corpus.builder import LEDGER
from judge.runs.files import write_atomically

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "build_corpus.py"
CHUNK = 125


def command(folder: Path, options: argparse.Namespace, *, resume: bool) -> list[str]:
    """The recipe on these rows."""
    words = {
        "output_dir": folder,
        "resume": str(resume).lower(),
        "pipeline": options.pipeline,
        "count": options.prompts,
        "seeds": options.seeds,
        "steps": options.steps,
        "batch_size": CHUNK,
        "chunk_size": CHUNK,
    }
    given = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(RECIPE), *given]


def start(folder: Path, options: argparse.Namespace, *, resume: bool = False) -> "subprocess.Popen[bytes]":
    """A build in a process of its own, on one thread; what it prints goes beside its folder."""
    log = folder.with_name(f"{folder.name}.log").open("ab")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(folder, options, resume=resume), stdout=log, stderr=subprocess.STDOUT, env=environment
    )


def chunks_done(folder: Path) -> int:
    """How many chunks a build has drawn or labelled; a look into its ledger from outside, which changes nothing."""
    try:
        with closing(sqlite3.connect(f"{(folder / LEDGER).resolve().as_uri()}?mode=ro", uri=True)) as ledger:
            return int(ledger.execute("SELECT COUNT(*) FROM done").fetchone()[0])
    except sqlite3.OperationalError:  # it is not there yet, or being made
        return 0


def kill_after(process: "subprocess.Popen[bytes]", folder: Path, chunks: int) -> int:
    """End a build with SIGKILL once it has done so many chunks; returns how many it had."""
    while process.poll() is None and (done := chunks_done(folder)) < chunks:
        time.sleep(0.2)
    if process.poll() is not None:
        raise SystemExit(f"The build ended by itself before it was killed; see {folder}.log.")
    process.send_signal(signal.SIGKILL)
    process.wait()
    return done


def finish(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Wait for a build that nobody kills."""
    if process.wait():
        raise SystemExit(
            f"The build in {folder} failed:\n{folder.with_name(folder.name + '.log').read_text()[-2000:]}"
        )


def shards(folder: Path) -> dict[str, str]:
    """Shard -> SHA-256."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return dict(metrics["shards"])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Build both, and compare."""
    peaceful, killed = options.out / "peaceful", options.out / "killed"
    total = 2 * -(-options.prompts * options.seeds // CHUNK)
    draw = random.Random(options.seed)
    instants = sorted(draw.sample(range(1, total - 1), 2))
    other = start(peaceful, options)
    try:
        at = []
        for turn, instant in enumerate(instants):
            build = start(killed, options, resume=turn > 0)
            try:
                at.append(kill_after(build, killed, instant))
            finally:
                build.kill()
        finish(start(killed, options, resume=True), killed)
        finish(other, peaceful)
    finally:
        other.kill()
    audit = audit_corpus(killed)
    planned = audit_corpus(peaceful)
    return {
        "rows": audit.rows,
        "in_shards": audit.in_shards,
        "failed": audit.failed,
        "duplicates": audit.duplicates,
        "lost": len(audit.lost) + max(planned.rows - audit.rows, 0),
        "doubled": len(audit.doubled) + max(audit.rows - planned.rows, 0),
        "damaged": len(audit.damaged),
        "same_hashes": shards(killed) == shards(peaceful),
        "shards": len(shards(killed)),
        "killed_after_chunks": at,
        "chunks": total,
    }


def main() -> None:
    """Measure, print and keep the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/corpus_kill_test"), help="builds in it are made anew"
    )
    parser.add_argument("--metrics", type=Path, help="a metrics.json that gets the numbers as `corpus`")
    parser.add_argument("--pipeline", default="tiny-diffusion")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the instants of the kills")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("peaceful", "killed"):
        shutil.rmtree(options.out / name, ignore_errors=True)
        (options.out / f"{name}.log").unlink(missing_ok=True)
    started = time.time()
    numbers = measure(options)
    numbers["seconds"] = time.time() - started
    print(json.dumps(numbers, indent=2))
    if options.metrics is not None:
        known = json.loads(options.metrics.read_text(encoding="utf-8")) if options.metrics.is_file() else {}
        options.metrics.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.metrics, json.dumps({**known, "corpus": numbers}, indent=2) + "\n")
    if numbers["lost"] or numbers["doubled"] or numbers["damaged"] or not numbers["same_hashes"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
