"""Build a corpus on many processes or machines with Ray (Moritz et al. 2018).

A worker is an actor that keeps the stages it has run, so each model is loaded once. The driver alone writes the ledger
and the files; workers get a chunk and give back rows and pictures. A chunk whose worker died (killed, out of memory,
machine gone) goes to a new worker. As a stage is a function of its chunk, and the builder enters each chunk once, rows
are neither lost nor doubled, and the shards are those of a build without Ray, where machines and libraries are alike.

These are Ray's actors and not Ray Data, as the builder is a loop around the ledger already: it offers tasks one by one,
when there is room for them, and takes results in any order. Ray Data plans a whole data set first, which would put all
pictures of a stage into its object store, and one bad row ends its job, where ours becomes a failed row.
"""

import pickle
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from judge.errors import CorpusError
from judge.runs.ray_cluster import ClusterOptions, at_least, ray_cluster, room_for

from .stages import ChunkStage, Engine, Result, Task

_AHEAD = 2
"""Chunks that a worker is given at a time, so that it need not wait for the next one."""


@dataclass(frozen=True)
class RayOptions(ClusterOptions):
    """Where workers run, and what each needs.

    Raises:
        ConfigError: a number outside its range.
    """

    attempts: int = 3
    """Workers that one chunk may cost before the build stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("attempts", self.attempts, 1)


@contextmanager
def ray_engine(options: RayOptions | None = None) -> Iterator[Engine]:
    """An engine for `judge.corpus.builder.build`, on a cluster that is there inside the `with` block.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: no such cluster, or none of its machines has what a worker needs.
        CorpusError: Ray did not start, as on a machine that is too busy; from the engine, where a chunk costs too many
            workers (`attempts`), or nothing comes back.
    """
    options = options or RayOptions()
    local_cpus = None if options.workers is None else int(-(-options.workers * options.cpus // 1))
    with ray_cluster(options, local_cpus, CorpusError) as ray:
        fits = room_for(ray, options.needed)
        pool = _Pool(ray, options, min(fits, options.workers or fits))
        try:
            yield pool.run
        finally:
            pool.close()


class _Worker:
    """Runs stages, in a process of its own; each is unpickled once, so that its model is loaded once."""

    def __init__(self) -> None:
        self._stages: dict[bytes, ChunkStage] = {}

    def run(self, pickled: bytes, task: Task) -> Result:
        """What the stage makes of the task."""
        if pickled not in self._stages:
            self._stages[pickled] = pickle.loads(pickled)  # of our own driver
        return self._stages[pickled](task)


@dataclass
class _Busy:
    """A worker and the chunks that it was given, the oldest first."""

    actor: Any
    given: deque[tuple[Any, Task]] = field(default_factory=deque)
    """References to results to come, with their tasks."""


class _Pool:
    """Workers that share the tasks of a stage, and stay for the next one."""

    def __init__(self, ray: Any, options: RayOptions, workers: int) -> None:
        self._ray, self._options, self._size = ray, options, workers
        self._workers: list[_Busy] = []

    def run(self, stage: ChunkStage, tasks: Iterable[Task]) -> Iterator[Result]:
        """The engine: every task once, in the order in which they end."""
        pickled = self._ray.cloudpickle.dumps(stage)
        offered, again = iter(tasks), deque[Task]()
        lost: Counter[int] = Counter()
        try:
            while True:
                self._give(pickled, offered, again)
                # The oldest of each worker, as a worker does one after the other.
                oldest = {busy.given[0][0]: busy for busy in self._workers if busy.given}
                if not oldest:
                    return
                ready, _ = self._ray.wait(list(oldest), num_returns=1, timeout=self._options.patience)
                if not ready:
                    raise CorpusError(
                        f"The stage {stage.name} gave nothing back for {self._options.patience:g} seconds; see the "
                        "workers' logs in Ray's folder. The same command goes on; raise `patience` for slower models."
                    )
                busy, result = oldest[ready[0]], self._result(ready[0])
                if isinstance(result, Result):
                    busy.given.popleft()
                    yield result
                    continue
                self._workers.remove(busy)
                again.extend(task for _, task in busy.given)
                chunk = busy.given[0][1].chunk
                lost[chunk] += 1
                if lost[chunk] == self._options.attempts:
                    raise CorpusError(
                        f"The stage {stage.name} lost {lost[chunk]} workers at chunk {chunk}: {result} If they ran out "
                        "of memory, draw fewer pictures at a time. The same command goes on."
                    )
        finally:
            self._drop_busy()

    def _give(self, pickled: bytes, offered: Iterator[Task], again: deque[Task]) -> None:
        """Give every worker chunks, as long as there are any; start workers that are missing."""
        for depth in range(_AHEAD):
            for place in range(self._size):
                if place < len(self._workers) and len(self._workers[place].given) > depth:
                    continue
                task = again.popleft() if again else next(offered, None)
                if task is None:
                    return
                if place == len(self._workers):
                    self._workers.append(_Busy(self._start()))
                busy = self._workers[place]
                busy.given.append((busy.actor.run.remote(pickled, task), task))

    def _start(self) -> Any:
        remote = self._ray.remote(
            num_cpus=self._options.cpus, num_gpus=self._options.gpus, max_restarts=0, max_task_retries=0
        )
        return remote(_Worker).remote()

    def _result(self, reference: Any) -> Result | str:
        """What a worker gave back, or in words how it was lost; the stage's own errors are raised as they are."""
        errors = self._ray.exceptions
        gone = (errors.RayActorError, errors.ObjectLostError, errors.NodeDiedError, errors.WorkerCrashedError)
        try:
            result: Result = self._ray.get(reference, timeout=self._options.patience)
        except gone as error:
            return " ".join(str(error).split())[:300]
        except errors.RayTaskError as error:
            if isinstance(error.cause, ImportError):
                raise CorpusError(
                    f"A worker cannot run its stage: {error.cause}. Install the same version of everything on all "
                    "machines, and define stages in modules that they can import."
                ) from error
            raise error.cause from error
        return result

    def _drop_busy(self) -> None:
        """End the workers whose results nobody waits for any more."""
        for busy in self._workers:
            if busy.given:
                self._ray.kill(busy.actor)
        self._workers = [busy for busy in self._workers if not busy.given]

    def close(self) -> None:
        """End all workers."""
        for busy in self._workers:
            self._ray.kill(busy.actor)
        self._workers = []
