"""Blocks of encoded images -> blocks of pixels, in order, many images a second, by worker processes.

For work in bulk, where `judge.intake.decoding` serves requests: images are read in threads, decoded (and resized, if a
classifier's preprocessing is given) in worker processes ahead of whoever takes the blocks. No image can stop, crash or
fill this process: each gets a status of its own.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from threading import Condition, Lock, Thread
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, Self, SupportsBytes, TypeVar

from judge.data.images import read_bytes
from judge.errors import ConfigError, DecoderError, ImageError, first_line

from .blocks import OpenedBlock, UnfinishedBlock
from .lanes import BATCH, Lane, TaskQueue
from .processes import MEMORY, SECONDS, Answer, settings_of

if TYPE_CHECKING:
    from judge.data.images import ImageLimits
    from judge.data.preprocessing import ImagePreprocessing

Key = TypeVar("Key")

MAX_HELD_BYTES = 2**29
"""Bytes of pixels, and of encoded images in memory, up to which blocks behind the next one are read and decoded."""


class BatchDecoder:
    """Worker processes that open encoded images in bulk; a context manager, and to be closed.

    Workers start when it is made, and take half a second. One that ended is replaced at once.
    """

    def __init__(
        self,
        workers: int,
        limits: "ImageLimits | None" = None,
        *,
        preprocessing: "ImagePreprocessing | None" = None,
        readers: int = 4,
        seconds: float = SECONDS,
        memory: int = MEMORY,
        max_frames: int | None = None,
    ) -> None:
        """Start the workers.

        Args:
            workers: processes, each with a thread here; as many as there are processors to spare.
            limits: as for `judge.data.frames.open_frames`; the default ones if None.
            preprocessing: done by the workers with each view, to sizes that are the same for all images.
            readers: threads that read images; more where these come over a network.
            seconds: processor time for one image, above 0; `PATIENCE` times as much by the clock.
            memory: bytes for a worker. On Linux; elsewhere the system may not enforce it.
            max_frames: of an animation; `judge.data.frames.MAX_FRAMES` if None.

        Raises:
            ConfigError: no workers or readers, or a preprocessing that leaves images of different sizes.
            DecoderError: no process can be started.
        """
        from judge.data.images import DEFAULT_LIMITS

        if min(workers, readers) < 1:
            raise ConfigError(f"BatchDecoder: {workers} workers and {readers} readers; take at least 1 each.")
        self.limits = limits or DEFAULT_LIMITS
        self._shape = None if preprocessing is None else _shape(preprocessing)
        self._readers = readers
        self._ahead = 4 * BATCH * workers + 256
        self._error: BaseException | None = None
        self._runs: set[_Run[Any]] = set()
        self._lock = Lock()
        self._queue = TaskQueue(workers)
        settings = settings_of(
            self.limits, seconds=seconds, memory=memory, max_frames=max_frames, preprocessing=preprocessing
        )
        self._most_views = max(2, settings["max_frames"])
        self._lanes: list[Lane] = []
        try:
            for _ in range(workers):
                self._lanes.append(Lane(self._queue, settings, self._fail))
        except OSError as error:
            self.close()
            raise DecoderError(
                f"No process that decodes images can be started: {first_line(error)}."
            ) from error

    @property
    def pids(self) -> list[int]:
        """The processes, to watch them."""
        return [lane.worker.process.pid for lane in self._lanes]

    def open_blocks(
        self, blocks: Iterable[tuple[Key, Sequence[SupportsBytes | ImageError]]], *, ahead: int | None = None
    ) -> Iterator[tuple[Key, OpenedBlock]]:
        """Decode blocks of images ahead of whoever takes them.

        Args:
            blocks: something to know a block by, which comes back with it, and its images: objects whose `bytes()` are
                encoded images and which may raise ImageError, or the ImageErrors of images that are known to have none.
                Taken by threads, one at a time.
            ahead: take no further block while this many images are in blocks that were not taken yet; by default enough
                to keep the workers busy. One block is always taken.

        Yields:
            Every block once, in order.

        Raises:
            DecoderError: workers cannot be started any more, or the decoder was closed.
            Exception: what `blocks` raises, after the blocks before.
        """
        run = _Run(blocks, self._queue, self._block_of, self.limits, self._ahead if ahead is None else ahead)
        with self._lock:
            if self._error is not None:
                raise DecoderError(str(self._error)) from self._error
            self._runs.add(run)
        try:
            run.start(self._readers)
            yield from run.take_all()
        finally:
            run.stop(None)
            with self._lock:
                self._runs.discard(run)

    def _block_of(self, size: int) -> UnfinishedBlock:
        return UnfinishedBlock(size, self._shape, self._most_views)

    def _fail(self, error: BaseException) -> None:
        """Stop everything."""
        with self._lock:
            self._error = self._error or error
            runs = list(self._runs)
        self._queue.close()
        for run in runs:
            run.stop(self._error)

    def close(self) -> None:
        """Kill the workers, whatever they do, and wait for their end."""
        self._fail(DecoderError("The decoder was closed."))
        for lane in self._lanes:
            lane.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shape(preprocessing: "ImagePreprocessing") -> tuple[int, int]:
    """Height and width of every image that was resized and cropped."""
    size = preprocessing.crop or preprocessing.resize
    if not isinstance(size, tuple):
        raise ConfigError(
            f"Images cannot be stacked: the preprocessing resizes to {size} and does not crop. "
            "Use one with a height and a width, or decode without."
        )
    return size


class _Task:
    """One image of a block, as `lanes.Task`."""

    __slots__ = ("block", "data", "index", "run", "sha256", "source", "suspect")

    def __init__(self, run: "_Run[Any]", block: UnfinishedBlock, index: int, source: SupportsBytes) -> None:
        self.run, self.block, self.index, self.source = run, block, index, source
        self.data, self.sha256, self.suspect = b"", "", False

    @property
    def wanted(self) -> bool:
        return self.block.wanted

    def places(self, sizes: list[list[int]]) -> Sequence[Any]:
        return self.block.places(self.index, sizes)

    def finish(self, found: Answer | ImageError) -> None:
        self.run.finish(self.block, self.index, self.sha256 or None, found)


class _Run(Generic[Key]):
    """One pass over blocks: the threads that read, and the blocks that were not taken yet."""

    def __init__(
        self,
        blocks: Iterable[tuple[Key, Sequence[SupportsBytes | ImageError]]],
        queue: TaskQueue,
        block_of: Callable[[int], UnfinishedBlock],
        limits: "ImageLimits",
        ahead: int,
    ) -> None:
        self._queue, self._block_of, self._limits, self._ahead = queue, block_of, limits, ahead
        self._tasks = self._all_tasks(blocks)
        self._turn = Lock()
        """Of the thread that gets its next task."""
        self._changed = Condition()
        self._waiting: deque[tuple[Key, UnfinishedBlock]] = deque()
        self._images = self._held = 0
        """In blocks that wait: images, and bytes of pixels and of encoded images that were in memory."""
        self._ended = self._stopped = False
        self._error: BaseException | None = None

    def start(self, readers: int) -> None:
        for _ in range(readers):
            # Not waited for, as nothing can be done about one that reads from a server without an answer.
            Thread(target=self._read_all, name="arbiter-reading", daemon=True).start()

    def take_all(self) -> Iterator[tuple[Key, OpenedBlock]]:
        """The blocks, in order, as soon as they are decoded."""
        while (found := self._take()) is not None:
            yield found[0], found[1].opened()

    def _take(self) -> tuple[Key, UnfinishedBlock] | None:
        with self._changed:
            self._changed.wait_for(self._may_take)
            if self._waiting and not self._stopped:
                key, block = self._waiting.popleft()
                self._images -= len(block)
                self._held -= block.held
                self._changed.notify_all()
                return key, block
            if self._error is not None:
                raise self._error
            return None

    def _may_take(self) -> bool:
        return self._stopped or (not self._waiting[0][1].unfinished if self._waiting else self._ended)

    def finish(
        self, block: UnfinishedBlock, index: int, sha256: str | None, found: Answer | ImageError
    ) -> None:
        """Take the result for one of the images of a block."""
        views = block.views_of(found) if isinstance(found, Answer) else ()
        with self._changed:
            before = block.held
            block.finish(index, sha256, found, views)
            self._held += block.held - before
            if not block.unfinished:
                self._changed.notify_all()

    def stop(self, error: BaseException | None) -> None:
        """End the threads, and have `take_all` raise an error."""
        with self._changed:
            self._stopped = True
            self._error = self._error or error
            for _, block in self._waiting:
                block.wanted = False
            self._changed.notify_all()

    def _all_tasks(
        self, blocks: Iterable[tuple[Key, Sequence[SupportsBytes | ImageError]]]
    ) -> Iterator[_Task]:
        """All images that are to be read, each when it is time for it."""
        for key, sources in blocks:
            block = self._block_of(len(sources))
            # What is in memory already, as the images in tables are, stays there until the block is taken.
            block.held = sum(len(source) for source in sources if isinstance(source, Sized))
            if not self._add(key, block):
                return
            for index, source in enumerate(sources):
                if isinstance(source, ImageError):
                    self.finish(block, index, None, source)
                elif self._wait_for_turn(block):
                    yield _Task(self, block, index, source)
                else:
                    return

    def _add(self, key: Key, block: UnfinishedBlock) -> bool:
        """Put a block behind those that wait, when these are not too many; False if the run was stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or not self._waiting or self._has_room(block))
            self._waiting.append((key, block))
            self._images += len(block)
            self._held += block.held
            if not len(block):
                self._changed.notify_all()
            return not self._stopped

    def _has_room(self, block: UnfinishedBlock) -> bool:
        return self._images + len(block) <= self._ahead and self._held <= MAX_HELD_BYTES

    def _wait_for_turn(self, block: UnfinishedBlock) -> bool:
        """Return when there is room for the pixels of an image of this block; False if the run was stopped."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or self._held <= MAX_HELD_BYTES or self._waiting[0][1] is block
            )
            return not self._stopped

    def _read_all(self) -> None:
        """Read images until there are no more; by several threads."""
        try:
            while (task := self._next()) is not None:
                self._read(task)
        except BaseException as error:  # whoever waits for the blocks has to know
            self.stop(error)

    def _next(self) -> _Task | None:
        task = None
        try:
            with self._turn:
                task = next(self._tasks, None)
        except Exception as error:  # of the iterator of blocks; those before it are decoded
            self._error = error
        if task is None:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
        return task

    def _read(self, task: _Task) -> None:
        started = perf_counter()
        try:
            task.data = read_bytes(task.source, self._limits)
            problem = None
        except ImageError as error:
            problem = error
        except Exception as error:  # whatever a library of a file system raises
            problem = ImageError("unreadable", first_line(error))
        seconds = perf_counter() - started
        with self._changed:
            task.block.read_seconds += seconds
            task.block.size += len(task.data)
        if problem is not None:
            return self.finish(task.block, task.index, None, problem)
        task.sha256 = hashlib.sha256(task.data).hexdigest()
        return self._queue.put(task)
