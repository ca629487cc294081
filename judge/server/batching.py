"""One thread that scores, and the queue before it: micro-batches without waiting.

Whenever the thread is free it takes what is queued: the oldest entry, and of the others those under the same taxonomy,
up to `batch_size` images. The rest keeps its order, so nothing starves: every batch serves the oldest. Under little
load a batch is one image and nobody waits; under much load batches are full. No time is spent waiting for company.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from judge.inputs import concatenate_scores
from judge.protocol import Classifier, Scores
from prompts.taxonomy import Taxonomy

if TYPE_CHECKING:
    from PIL.Image import Image

LOG = logging.getLogger("arbiter")


class Watcher(Protocol):
    """Who is told what the thread did, from that thread."""

    def scored(self, images: int, waited: Sequence[float], seconds: float) -> None:
        """A batch was scored: its images, how long each of its entries had waited, and how long it took."""
        ...


class Unwatched:
    """Nobody is told."""

    def scored(self, images: int, waited: Sequence[float], seconds: float) -> None:
        """Do nothing."""


@dataclass(eq=False)
class _Entry:
    """The images of one question, or a function to call."""

    images: "Sequence[Image]"
    prompt: str | None
    taxonomy: Taxonomy | None
    future: "asyncio.Future[Any]"
    call: Callable[[], Any] | None = None
    queued: float = field(default_factory=time.perf_counter)
    taken: int = 0
    """Images that were handed to the classifier."""
    scores: list[Scores] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.images) - self.taken


class _Part(NamedTuple):
    """Some consecutive images of an entry, in one batch."""

    entry: _Entry
    images: "Sequence[Image]"


class Batcher:
    """Scores images of many questions with one classifier, which is never called by two threads at a time.

    Args:
        classifier: what scores.
        batch_size: images in one call of it.
        watcher: told of every batch.
    """

    def __init__(self, classifier: Classifier, batch_size: int, watcher: Watcher | None = None) -> None:
        self.classifier = classifier
        self.batch_size = batch_size
        self.seconds_per_image = 0.0
        """Moving average, to estimate when a full queue has room again."""
        self._watcher = watcher or Unwatched()
        self._queue: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="arbiter-scoring", daemon=True)
        self._thread.start()

    async def score(self, images: "Sequence[Image]", prompt: str | None, taxonomy: Taxonomy) -> Scores:
        """Scores of F images with one prompt, as soon as all of them are scored.

        A batch that the classifier fails on is tried again image by image; what fails then is a row of NaN with the
        reason. Cancelling drops the images that have not started.

        Raises:
            RuntimeError: the batcher is closed.
        """
        loop = asyncio.get_running_loop()
        scores: Scores = await self._wait(_Entry(images, prompt, taxonomy, loop.create_future()))
        return scores

    async def call(self, function: Callable[[], Any]) -> Any:
        """What `function` returns or raises, called in the scoring thread when its turn comes."""
        loop = asyncio.get_running_loop()
        return await self._wait(_Entry((), None, None, loop.create_future(), function))

    @property
    def length(self) -> int:
        """Images in the queue that have not started."""
        with self._changed:
            return sum(entry.left for entry in self._queue)

    def close(self) -> None:
        """End the thread after the batch it is at; whoever still waits gets a RuntimeError."""
        with self._changed:
            self._closed = True
            dropped = list(self._queue)
            self._queue.clear()
            self._changed.notify()
        self._thread.join()
        for entry in dropped:
            _tell(entry.future, None, RuntimeError("the server was closed"))

    async def _wait(self, entry: _Entry) -> Any:
        with self._changed:
            if self._closed:
                raise RuntimeError("the server was closed")
            self._queue.append(entry)
            self._changed.notify()
        try:
            return await entry.future
        except asyncio.CancelledError:
            with self._changed:
                if entry in self._queue:
                    self._queue.remove(entry)
            raise

    def _run(self) -> None:
        while parts := self._take():
            if parts[0].entry.call is not None:
                self._answer_call(parts[0].entry, parts[0].entry.call)
            else:
                self._score(parts)

    def _take(self) -> list[_Part]:
        """The next batch; empty once the batcher is closed."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if self._closed:
                return []
            oldest = self._queue[0]
            if oldest.call is not None or oldest.taxonomy is None:
                return [_Part(self._queue.popleft(), ())]
            asked, room, parts = oldest.taxonomy.categories, self.batch_size, list[_Part]()
            for entry in self._queue:
                if entry.taxonomy is None or entry.taxonomy.categories != asked:
                    continue
                some = entry.images[entry.taken : entry.taken + room]
                entry.taken += len(some)
                parts.append(_Part(entry, some))
                room -= len(some)
                if not room:
                    break
            done = {id(part.entry) for part in parts if not part.entry.left}
            self._queue = deque(entry for entry in self._queue if id(entry) not in done)
            return parts

    def _score(self, parts: Sequence[_Part]) -> None:
        started = time.perf_counter()
        images = [image for part in parts for image in part.images]
        prompts = [part.entry.prompt for part in parts for _ in part.images]
        taxonomy = parts[0].entry.taxonomy
        assert taxonomy is not None  # entries without one are calls
        scores = self._score_rows(images, prompts, taxonomy)
        seconds = time.perf_counter() - started
        self.seconds_per_image += 0.2 * (seconds / len(images) - self.seconds_per_image)
        self._watcher.scored(len(images), [started - part.entry.queued for part in parts], seconds)
        row = 0
        for entry, some in parts:
            entry.scores.append(rows_of(scores, row, row + len(some)))
            row += len(some)
            if not entry.left:
                found = entry.scores
                _tell(entry.future, found[0] if len(found) == 1 else concatenate_scores(found), None)

    def _score_rows(self, images: "list[Image]", prompts: list[str | None], taxonomy: Taxonomy) -> Scores:
        """Scores of a batch; where that fails, of each image alone."""
        try:
            scores = self.classifier.score(images, prompts, taxonomy)
            if scores.categories.shape != (len(images), len(taxonomy)):
                raise ValueError(f"scores of shape {scores.categories.shape} for {len(images)} images")
            return scores
        except Exception as error:  # a classifier may fail in any way, and the server has to live on
            if len(images) == 1:
                LOG.exception("the classifier failed on an image, which is unjudged")
                return _failed(taxonomy, error)
            LOG.warning("the classifier failed on %d images, trying each alone: %r", len(images), error)
        return concatenate_scores(
            [
                self._score_rows([image], [prompt], taxonomy)
                for image, prompt in zip(images, prompts, strict=True)
            ]
        )

    def _answer_call(self, entry: _Entry, call: Callable[[], Any]) -> None:
        try:
            _tell(entry.future, call(), None)
        except Exception as error:
            _tell(entry.future, None, error)


def rows_of(scores: Scores, start: int, stop: int) -> Scores:
    """Rows `start` to `stop` of scores."""
    if start == 0 and stop == len(scores.unsafe):
        return scores
    rows = slice(start, stop)
    return replace(
        scores,
        unsafe=scores.unsafe[rows],
        categories=scores.categories[rows],
        reasons=scores.reasons[rows],
        decided_by=None if scores.decided_by is None else scores.decided_by[rows],
        because=None if scores.because is None else scores.because[rows],
        separate=None if scores.separate is None else scores.separate[rows],
        notes=None if scores.notes is None else scores.notes[rows],
    )


def _failed(taxonomy: Taxonomy, error: Exception) -> Scores:
    """One unjudged row. The error's text stays in the log, as it may hold paths."""
    import numpy as np

    reason = f"the classifier failed on this image ({type(error).__name__})"
    return Scores(np.full(1, np.nan), np.full((1, len(taxonomy)), np.nan), (reason,))


def _tell(future: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    """Complete a future from another thread."""

    def complete() -> None:
        if future.done():  # its request went away
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    loop = future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(complete)
