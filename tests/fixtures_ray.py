"""Stages for the Ray engine, in a module that its workers can import."""

import os
import signal
from pathlib import Path

from fixtures_corpus import StubLabels

from judge.corpus.stages import Result, Task
from judge.errors import CorpusError


class Deadly(StubLabels):
    """Labels, which kill their own process at one chunk, as often as is written in a file."""

    def __init__(self, deaths: Path, chunk: int) -> None:
        self.deaths, self.chunk = deaths, chunk

    def __call__(self, task: Task) -> Result:
        left = int(self.deaths.read_text())
        if task.chunk == self.chunk and left:
            self.deaths.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(task)


class Wrong(StubLabels):
    def __call__(self, task: Task) -> Result:
        raise CorpusError(f"chunk {task.chunk} in process {os.getpid()}")
