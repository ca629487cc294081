"""The engine of `arbiter label --engine ray`: both stages of a labelling run on Ray Data, on one machine or many.

    shards -> readers (actors; read and decode) -> scorers (actors; one model each) -> the driver, which writes

Each shard is one task of a reader, which streams its blocks: Ray Data takes the next one when there is room in its
object store, so a tar of any size needs the memory of a few blocks. Each block is a Ray object of its own
(`target_max_block_size` of 1 byte). That is more than convenience: Ray does the task of a reader that died again from
its beginning and knows what it has already by its place in the stream, so places must hold the same in every attempt.
With a fixed number of bytes in an object, an image that timed out only once would shift all that follows.

A scorer that dies costs the blocks it had in hand; they are scored again. Ray Data starts actors and does their tasks
again as often as they die: where a block kills every worker, the run ends when all others are done and `patience` is
over. Errors of the stages travel as results and are raised in the driver as they are, without the trace of Ray.

Scores are those of the engine of one machine, bit by bit, where processor, libraries and threads are alike: batches are
formed inside blocks, and torch has as many threads as a scorer has CPUs (or `OMP_NUM_THREADS`).
"""

import logging
import os
import pickle
import platform
import warnings
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from judge.errors import ConfigError, LabellingError, first_line
from judge.publish.hub import model_hash
from judge.runs.machine import versions
from judge.runs.ray_cluster import ClusterOptions, at_least, ray_cluster, room_for
from prompts.errors import ArbiterError

from .inputs.files import is_url
from .opening import BlockReader, Opening
from .rows import Block, Engine, Scored, Task

if TYPE_CHECKING:
    from .job import Scoring

Stage = TypeVar("Stage")
LOG = logging.getLogger("arbiter")
_SCORERS_OF_A_READER = 4
"""Without GPUs, where encoding takes at least 80 % of the time."""

_PACKAGES = ("arbiter-vision", "numpy", "onnxruntime", "pillow", "torch", "transformers")
"""Packages that change what is decoded or scored."""


class Reads(Protocol):
    """The first stage, such as `opening.BlockReader`."""

    def blocks(self, tasks: Iterable[Task]) -> Iterator[Block]:
        """The missing blocks of shards."""
        ...


@dataclass(frozen=True)
class LabellingRayOptions(ClusterOptions):
    """Where shards are read and blocks are scored; `workers`, `cpus` and `gpus` are those of scorers.

    Raises:
        ConfigError: a number outside its range.
    """

    readers: int | None = None
    """Processes that read shards; None: one for four scorers, or for each scorer that has a GPU."""
    reader_cpus: float = 1
    """Of each reader, which has as many processes that decode."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("readers", self.readers, 1)
        if self.reader_cpus <= 0:
            raise ConfigError(f"reader_cpus is {self.reader_cpus}; give more than 0.")

    def readers_of(self, scorers: int) -> int:
        """How many readers that many scorers have."""
        return self.readers or -(-scorers // (1 if self.gpus else _SCORERS_OF_A_READER))

    def cpus_of(self, scorers: int) -> int:
        """CPUs that this many scorers and their readers need together."""
        return int(-(-(scorers * self.cpus + self.readers_of(scorers) * self.reader_cpus) // 1))


@contextmanager
def ray_engine(
    opening: Opening, scoring: "Scoring", options: LabellingRayOptions | None = None
) -> Iterator[Engine]:
    """An engine for `judge.labelling.run.label_shards`, on a cluster that is there inside the `with` block.

    The input and the classifier must be found on all machines by the same absolute paths (of a shared file system), by
    URL or by name. A worker whose versions or model differ from this process's ends the run.

    Args:
        opening: how blocks are opened; its `workers` are replaced by `options.reader_cpus`.
        scoring: how scorers are made; the `model_hash` of its judgings is compared with each worker's own.
        options: a cluster of this machine by default.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: no such cluster, or it has no room for a reader and a scorer.
        LabellingError: Ray did not start; from the engine, where workers cannot load the model or have other
            versions, or nothing comes back.
    """
    options = options or LabellingRayOptions()
    opening = replace(opening, workers=max(1, int(options.reader_cpus)))
    stage_judge = scoring.stage_judge and _anywhere(scoring.stage_judge)
    scoring = replace(scoring, judge=_anywhere(scoring.judge), stage_judge=stage_judge)
    with engine_of_stages(partial(BlockReader, opening), partial(load_same, scoring), options) as engine:
        yield engine


def _anywhere(name: str) -> str:
    """A path that does not depend on the folder that a process works in; other names as they are."""
    return os.path.abspath(name) if os.path.exists(name) else name


def load_same(scoring: "Scoring") -> Any:
    """A scorer, in the process of a worker.

    Raises:
        LabellingError: this machine has another model under that name.
    """
    expected = {judging.model_hash for judging in scoring.judgings}
    found = model_hash(scoring.judge)
    if expected != {found}:
        raise LabellingError(
            f"{scoring.judge} has the fingerprint {found} there, and {', '.join(map(str, expected))} where the run was "
            "started. Put the same files on all machines, or on a path that they share."
        )
    return scoring.load()


@contextmanager
def engine_of_stages(
    read: Callable[[], Reads], load: Callable[[], Callable[[Block], Scored]], options: LabellingRayOptions
) -> Iterator[Engine]:
    """As `ray_engine`, of any two stages.

    Args:
        read: makes the first stage in a reader's process; pickled.
        load: makes the second one in a scorer's process; pickled.
        options: where.
    """
    local_cpus = None if options.workers is None else options.cpus_of(options.workers)
    with ray_cluster(options, local_cpus, LabellingError) as ray:
        scorers = _scorers(ray, options)

        def engine(tasks: Iterable[Task]) -> Iterator[Scored]:
            # A task names up to thousands of paths that begin alike.
            rows = [_packed(zlib.compress(pickle.dumps(_of_anywhere(task)))) for task in tasks]
            if not rows:
                return
            with _quiet(), closing(_results(ray, rows, read, load, scorers, options)) as results:
                for result in results:
                    if isinstance(result, Exception):
                        raise result
                    yield result

        yield engine


def _of_anywhere(task: Task) -> Task:
    root = task.shard.root if is_url(task.shard.root) else os.path.abspath(task.shard.root)
    return replace(task, shard=replace(task.shard, root=root))


def _scorers(ray: Any, options: LabellingRayOptions) -> int:
    """How many scorers to start: those asked for, or as many as fit beside their readers."""
    fits = room_for(ray, options.needed)
    scorers = min(fits, options.workers or fits)
    have = ray.cluster_resources().get("CPU", 0)
    while scorers and options.cpus_of(scorers) > have:
        scorers -= 1
    if not scorers:
        raise ConfigError(
            f"One reader and one scorer need {options.cpus_of(1)} CPUs, and the cluster has {have:g}. Lower "
            "`reader_cpus` and `cpus`, which may be below 1."
        )
    return scorers


def _results(
    ray: Any,
    rows: list[Any],
    read: Callable[[], Reads],
    load: Callable[[], Callable[[Block], Scored]],
    scorers: int,
    options: LabellingRayOptions,
) -> Generator[Scored | Exception, None, None]:
    """What comes out of the two stages."""
    from ray.data import ActorPoolStrategy
    from ray.data.exceptions import ExecutionTimeoutError

    dataset = ray.data.from_arrow(rows)
    dataset.context.target_max_block_size = 1
    dataset.context.max_errored_blocks = 0
    dataset.context.enable_progress_bars = False
    dataset.context.execution_no_progress_timeout_s = options.patience
    given: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
    blocks = dataset.map_batches(
        ReadShard,
        fn_constructor_args=(read, versions(_PACKAGES)),
        # A shard takes long: none waits at a reader while another reader is idle.
        compute=ActorPoolStrategy(
            size=min(options.readers_of(scorers), len(rows)), max_tasks_in_flight_per_actor=1
        ),
        num_cpus=options.reader_cpus,
        **given,
    )
    scored = blocks.map_batches(
        ScoreBlock,
        fn_constructor_args=(load, versions(_PACKAGES)),
        compute=ActorPoolStrategy(size=scorers, max_tasks_in_flight_per_actor=2),
        num_cpus=options.cpus,
        num_gpus=options.gpus,
        **given,
    )
    tables = iter(scored.iter_batches(batch_size=None, batch_format="pyarrow"))
    try:
        with closing(tables):
            for table in tables:
                yield _unpacked(table)
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        raise LabellingError(
            f"Ray gave up: {' '.join(str(error).split())[:500]} Its logs say more. What is labelled stays; see to it "
            "that all machines have the same versions and enough memory, and run the same command again."
        ) from error


class ReadShard:
    """The first stage, in the process of a reader: a task -> its blocks, or the error that ends the run."""

    def __init__(self, read: Callable[[], Reads], expected: Mapping[str, str]) -> None:
        self._read, self._expected = read, expected

    def __call__(self, table: Any) -> Iterator[Any]:
        """A row for each block, as Ray Data hands rows on."""
        task = pickle.loads(zlib.decompress(_unpacked(table)))  # of our own driver
        yield from map(_packed, self._blocks(task))

    def _blocks(self, task: Task) -> Iterator[Block | Exception]:
        try:
            yield from self._reader.blocks([task])
        except Exception as error:  # whatever it is, it ends the run in the driver
            yield _portable(error)

    @cached_property
    def _reader(self) -> Reads:
        return _begin(self._read, self._expected)


class ScoreBlock:
    """The second stage, in the process of a scorer: a block -> its rows, or the error that ends the run."""

    def __init__(self, load: Callable[[], Callable[[Block], Scored]], expected: Mapping[str, str]) -> None:
        self._load, self._expected = load, expected

    def __call__(self, table: Any) -> Any:
        """A row of the rows of a block."""
        block = _unpacked(table)
        return _packed(block if isinstance(block, Exception) else self._score(block))

    def _score(self, block: Block) -> Scored | Exception:
        try:
            return self._scorer(block)
        except Exception as error:  # as above
            return _portable(error)

    @cached_property
    def _scorer(self) -> Callable[[Block], Scored]:
        return _begin(self._load, self._expected)


def _begin(make: Callable[[], Stage], expected: Mapping[str, str]) -> Stage:
    """A stage in its worker, if the worker has the driver's versions."""
    found = versions(_PACKAGES)
    other = [
        f"{name} {version} instead of {expected[name]}"
        for name, version in found.items()
        if version != expected.get(name, version)
    ]
    if other:
        raise LabellingError(
            f"The machine {platform.node()} has {', '.join(other)}; scores could differ. Install the same versions on "
            "all machines."
        )
    try:
        return make()
    except ArbiterError as error:
        raise LabellingError(f"A worker on {platform.node()} cannot begin: {error}") from error


def _portable(error: Exception) -> Exception:
    """An error for the driver; the worker's log gets its trace."""
    LOG.error("This ends the run.", exc_info=error)
    if isinstance(error, LabellingError):
        return error
    return LabellingError(
        f"A worker on {platform.node()} failed: {type(error).__name__}: {first_line(error)}. Its log in Ray's folder "
        "has the trace."
    )


def _packed(value: bytes | Block | Scored | Exception) -> Any:
    """One row of one column, which Ray Data does not look into."""
    import pyarrow as pa

    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    return pa.table({"pickled": pa.array([data], pa.large_binary())})


def _unpacked(table: Any) -> Any:
    [cell] = table.column(0)
    return pickle.loads(cell.as_buffer())  # of our own driver and workers


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data's remarks go to its log file only."""
    import ray.data

    shown = [
        handler
        for handler in logging.getLogger(ray.data.__name__).handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    levels = [handler.level for handler in shown]
    for handler in shown:
        handler.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # There may be fewer blocks than scorers.
            warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
            yield
    finally:
        for handler, level in zip(shown, levels, strict=True):
            handler.setLevel(level)
