"""Build a corpus on many processes or machines with Ray (Moritz et al. 2018).

A worker is an actor that keeps the stages it has run, so each model is loaded once. The driver alone writes the ledger
and the files; workers get a chunk and give back rows and pictures. A chunk whose worker died (killed, out of memory,
machine gone) goes to a new worker. As a stage is a function of its chunk, and the builder enters each chunk once, rows
are neither lost nor doubled, and the shards are those of a build without Ray, where machines and libraries are alike.

These are Ray's actors and not Ray Data, as the builder is a loop around the ledger already: it offers tasks one by one,
when there is room for them, and takes results in any order. Ray Data plans a whole data set first, which would put all
pictures of a stage into its object store, and one bad row ends its job, where ours becomes a failed row.
"""

import os
import pickle
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from judge.errors import ConfigError, CorpusError, MissingExtraError

from .stages import ChunkStage, Engine, Result, Task

_AHEAD = 2
"""Chunks that a worker is given at a time, so that it need not wait for the next one."""


@dataclass(frozen=True)
class RayOptions:
    """Where workers run, and what each needs.

    Raises:
        ConfigError: a number outside its range.
    """

    address: str | None = None
    """Of a running cluster, such as `auto` or `10.0.0.1:6379`; None starts one on this machine, and ends it."""
    workers: int | None = None
    """None: as many as the cluster has room for."""
    cpus: float = 1
    """Of each worker."""
    gpus: float = 0
    """Of each worker."""
    attempts: int = 3
    """Workers that one chunk may cost before the build stops."""
    patience: float = 3600
    """Seconds without any result, after which the build stops."""
    object_store: int | None = None
    """Bytes of shared memory of a cluster started here, at least 80 MB; None for Ray's default, 30 % of the memory."""

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("attempts", 1), ("object_store", 80_000_000)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; give at least {least:,}.")
        if self.cpus <= 0 or self.gpus < 0 or self.patience <= 0:
            raise ConfigError(
                f"cpus is {self.cpus}, gpus {self.gpus}, patience {self.patience}; cpus and patience are above 0."
            )


@contextmanager
def ray_engine(options: RayOptions | None = None) -> Iterator[Engine]:
    """An engine for `judge.corpus.builder.build`, on a cluster that is there inside the `with` block.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: no such cluster, or none of its machines has what a worker needs.
        CorpusError: Ray did not start, as on a machine that is too busy; from the engine, where a chunk costs too many
            workers, or nothing comes back.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "This engine needs Ray: pip install 'arbiter-vision[ray]', on every machine of the cluster."
        ) from error
    options = options or RayOptions()
    ours = not ray.is_initialized()
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if in_main else None
    if ours:
        _connect(ray, options)
    try:
        pool = _Pool(ray, options, _room(ray, options))
        try:
            yield pool.run
        finally:
            pool.close()
    finally:
        if ours:
            ray.shutdown()
            if handler is not None:  # Ray puts its own in its place
                signal.signal(signal.SIGTERM, handler)


def _connect(ray: Any, options: RayOptions) -> None:
    given: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if options.address is not None:
        given["address"] = options.address
    else:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # Workers find modules where this process finds them.
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        given |= {
            "address": "local",
            "include_dashboard": False,
            "runtime_env": {"env_vars": {"PYTHONPATH": paths}},
            "object_store_memory": options.object_store,
        }
        if options.workers is not None:  # as asked for, though this machine may have fewer cores
            given["num_cpus"] = -(-options.workers * options.cpus // 1)
    where = f"at {options.address}" if options.address else "on this machine"
    try:
        ray.init(**given)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ConfigError(f"No Ray cluster {where}: {error}") from error
    except Exception as error:  # as Ray says that its processes took longer than 30 seconds to start
        raise CorpusError(f"Ray did not start {where}: {error} Run the same command again.") from error


def _room(ray: Any, options: RayOptions) -> int:
    """How many workers to start: those asked for, or as many as fit."""
    needed = {name: value for name, value in (("CPU", options.cpus), ("GPU", options.gpus)) if value}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = sum(int(min(node.get(name, 0) / value for name, value in needed.items())) for node in nodes)
    if not fits:
        raise ConfigError(
            f"A worker needs {needed}, which no machine of the cluster has: "
            f"{[{name: node.get(name, 0) for name in needed} for node in nodes]}. Ask for less, or wait for machines."
        )
    return min(fits, options.workers or fits)


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
