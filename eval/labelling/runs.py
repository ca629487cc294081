"""One labelling run in this process, measured: by the clock, by processor time, by stage."""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.serving.processes import memory_bytes, processor_seconds, tree
from judge.labelling.job import Job, Scoring, run_job
from judge.labelling.one_machine import one_machine
from judge.labelling.opening import Opening
from judge.labelling.rows import Engine, Scored, Task
from judge.labelling.scoring import Scorer, preprocessing_of
from judge.protocol import Classifier
from judge.publish.hub import model_hash
from judge.verdicts.rows import Judging
from prompts.taxonomy import Taxonomy

WALL = ("wait", "encode", "score", "rows", "write")
"""What the process that scores spends its time on, one after the other: waiting for decoded blocks, the encoder, the
head, verdicts as columns, and collecting and writing parts."""


@dataclass(frozen=True)
class Measured:
    """What a run took."""

    rows: int
    statuses: dict[str, int]
    seconds: float
    """By the clock, from the listing of the input to the last part; the model is loaded before."""
    processor: float
    """Of all processes."""
    scoring: float
    """Processor seconds of the process that reads files, scores and writes."""
    encoder_processor: float
    """Processor seconds of the encoder; of one thread of torch."""
    stages: dict[str, float]
    """Clock seconds: `WALL`, which add up to `seconds`; `read` and `decode` are of others, beside them."""
    first: float
    """Clock seconds until the first block was there: processes started, models loaded by them."""
    steady_rate: float
    """Images a second in the later half of the blocks."""
    peak_bytes: int
    """The most memory that all processes held, shared pages counted once a process."""
    output_bytes: int
    """Of the Parquet files."""

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.rows / self.seconds

    def share(self, stage: str) -> float:
        """A stage's share of the clock."""
        return self.stages[stage] / self.seconds

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "rows": self.rows,
            "statuses": self.statuses,
            "images_per_second": self.rate,
            "images_per_second_of_the_later_half": self.steady_rate,
            "seconds_to_first_block": self.first,
            "seconds": self.seconds,
            "processor_seconds": {"all": self.processor, "scoring_process": self.scoring},
            "stages": self.stages,
            "encoder_share_of_wall": self.share("encode"),
            "encoder_share_of_processor_time": self.encoder_processor / self.processor,
            "peak_mb": self.peak_bytes / 1e6,
            "output_bytes_per_row": self.output_bytes / self.rows,
        }


@dataclass(frozen=True)
class Bench:
    """What all runs of a measurement share: a loaded classifier, and how it is asked."""

    judge: str
    """As `judge.load_classifier` takes it."""
    classifier: Classifier
    batch_size: int = 64
    workers: int = 2
    """Processes that decode."""

    def job(self, where: Path, folder: Path, taxonomies: Iterable[Taxonomy]) -> Job:
        """A job as `arbiter label` makes it."""
        hashed = model_hash(self.judge)
        judgings = tuple(Judging(one, model=self.classifier.name, model_hash=hashed) for one in taxonomies)
        scoring = Scoring(self.judge, judgings, batch_size=self.batch_size)
        opening = Opening(preprocessing_of(self.classifier), workers=self.workers)
        return Job(str(where), folder, scoring, opening)

    def run(self, where: Path, folder: Path, taxonomies: Iterable[Taxonomy]) -> Measured:
        """Label an input into a folder that is not there yet, on this machine alone."""
        job = self.job(where, folder, taxonomies)
        scorer = Scorer(self.classifier, job.scoring.judgings, self.batch_size)
        return measure(job, self.classifier, one_machine(job.opening, scorer))


def measure(job: Job, classifier: Classifier, engine: Engine) -> Measured:
    """Run a job into a folder that is not there yet."""
    timed = _Timed(engine)
    before, own, thread = processor_seconds(tree(os.getpid())), time.process_time(), time.thread_time()
    begun = time.perf_counter()
    with _peak_memory() as peak:
        tally = run_job(job, classifier, timed)
    seconds = time.perf_counter() - begun
    processor = processor_seconds(tree(os.getpid())) - before
    thread = time.thread_time() - thread
    stages = {**dict.fromkeys(WALL, 0.0), **tally.seconds}
    scored = stages["encode"] + stages["score"] + stages["rows"]
    stages |= {"wait": timed.inside - scored, "write": seconds - timed.inside}
    return Measured(
        tally.rows,
        dict(tally.counts.statuses),
        seconds,
        processor,
        time.process_time() - own,
        # Beside other work on the machine, the clock runs on while this thread does not.
        stages["encode"] * min(1.0, thread / (seconds - stages["wait"])),
        stages,
        timed.came[0][0] if timed.came else 0.0,
        timed.steady_rate(),
        max(peak),
        sum(path.stat().st_size for path in job.folder.glob("*.parquet")),
    )


class _Timed:
    """An engine, and the time that is spent in it."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.inside = engine, 0.0
        self.came: list[tuple[float, int]] = []
        """Of each block, how many seconds after the first call it came, and its rows."""

    def __call__(self, tasks: Iterable[Task]) -> Iterator[Scored]:
        blocks, called = iter(self.engine(tasks)), time.perf_counter()
        while True:
            begun = time.perf_counter()
            scored = next(blocks, None)
            self.inside += time.perf_counter() - begun
            if scored is None:
                return
            self.came.append((time.perf_counter() - called, scored.table.num_rows))
            yield scored

    def steady_rate(self) -> float:
        """Images a second in the later half of the blocks; 0 where there are not enough."""
        half = len(self.came) // 2
        if not half:
            return 0.0
        rows = sum(rows for _, rows in self.came[half:])
        return rows / (self.came[-1][0] - self.came[half - 1][0])


@contextmanager
def _peak_memory(every: float = 0.5) -> Iterator[list[int]]:
    """Samples of what this process and those it started hold, while the `with` block runs."""
    samples, ended = [memory_bytes(tree(os.getpid()))], threading.Event()

    def look() -> None:
        while not ended.wait(every):
            samples.append(memory_bytes(tree(os.getpid())))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
