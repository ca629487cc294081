"""Stages for the Ray engines, in a module that their workers can import."""

import os
import signal
from pathlib import Path

import numpy as np
from fixtures_corpus import StubLabels

from judge.corpus.stages import Result, Task
from judge.errors import CorpusError
from judge.labelling import scoring
from judge.labelling.opening import BlockReader
from judge.labelling.rows import Block, Opened


class Deadly(StubLabels):
    """Labels, which kill their own process at one chunk, as often as is written in a file."""

    def __init__(self, deaths: Path, chunk: int) -> None:
        self.deaths, self.chunk = deaths, chunk

    def __call__(self, task: Task) -> Result:
        if task.chunk == self.chunk:
            die(self.deaths)
        return super().__call__(task)


class Wrong(StubLabels):
    def __call__(self, task: Task) -> Result:
        raise CorpusError(f"chunk {task.chunk} in process {os.getpid()}")


def die(deaths):
    """Kill this process, as often as is written in a file."""
    left = int(deaths.read_text())
    if left:
        deaths.write_text(str(left - 1))
        os.kill(os.getpid(), signal.SIGKILL)


class DeadlyReader(BlockReader):
    """Reads shards; its process is killed at one block."""

    def __init__(self, opening, deaths, place):
        super().__init__(opening)
        self.deaths, self.place = deaths, place

    def blocks(self, tasks):
        for block in super().blocks(tasks):
            if (block.shard, block.offset) == self.place:
                die(self.deaths)
            yield block


class DeadlyScorer:
    """Scores blocks; its process is killed at one block."""

    def __init__(self, make, deaths, place):
        self.score, self.deaths, self.place = make(), deaths, place

    def __call__(self, block):
        (self.deaths.parent / f"scorer-{os.getpid()}").touch()
        if (block.shard, block.offset) == self.place:
            die(self.deaths)
        return self.score(block)


class BlankReader:
    """Shards of one block of eight blank images."""

    def blocks(self, tasks):
        for task in tasks:
            rows = tuple(Opened(f"{place}", "blank", views=1) for place in range(8))
            images = np.zeros((8, 4, 4, 3), np.uint8)
            yield Block(task.shard.number, 0, 0, rows, images, last=True)


class Broken:
    """A classifier that fails on everything."""

    name = "broken"

    def score(self, images, prompts, taxonomy):
        raise RuntimeError("a kernel is missing")


def broken_scorer(judgings):
    """A scorer that stops after a few failures."""
    scoring.MAX_FAILURES = 4
    return scoring.Scorer(Broken(), judgings)
