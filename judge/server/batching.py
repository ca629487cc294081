"""One thread that scores, and the queue before it: micro-batches without waiting.

Whenever the thread is free it takes what is queued: the oldest entry, and of the others those under the same taxonomy,
up to `batch_size` images; of every taxonomy, where the classifier can mix them. The rest keeps its order, so nothing
starves: every batch serves the oldest. Under little load a batch is one image and nobody waits; under much load batches
are full. No time is spent waiting for company.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from judge.inputs import concatenate_scores
from judge.protocol import Classifier, MixedClassifier, Scores, rows_of
from prompts.taxonomy import Taxonomy

from .futures import complete

if TYPE_CHECKING:
    from PIL.Image import Image

LOG = logging.getLogger("arbiter")
_SMOOTHING = 0.2
"""Weight of the latest batch in `Batcher.seconds_per_image`."""

Result = TypeVar("Result")


class Watcher(Protocol):
    """Who is told what the scoring thread did, by that thread."""

    def scored(self, images: int, waited: Sequence[float], seconds: float) -> None:
        """A batch was scored: its images, how long each of its entries had waited, and how long it took."""
        ...


@dataclass(eq=False)
class _Images:
    """The images of one question, and what is known of them so far."""

    images: "Sequence[Image]"
    prompt: str | None
    taxonomy: Taxonomy
    future: "asyncio.Future[Scores]"
    queued: float = field(default_factory=time.perf_counter)
    taken: int = 0
    """Images that were handed to the classifier."""
    scores: list[Scores] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.images) - self.taken


@dataclass(eq=False)
class _Call:
    """A function to call in the scoring thread."""

    function: Callable[[], Any]
    future: "asyncio.Future[Any]"


class _Part(NamedTuple):
    """Some consecutive images of an entry, in one batch."""

    entry: _Images
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
        self._watcher = watcher
        self._mixes = isinstance(classifier, MixedClassifier)
        self._queue: deque[_Images | _Call] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="arbiter-scoring", daemon=True)
        self._thread.start()

    async def score(self, images: "Sequence[Image]", prompt: str | None, taxonomy: Taxonomy) -> Scores:
        """Scores of F images with one prompt, as soon as all of them are scored; F is at least 1.

        A batch that the classifier fails on is tried again image by image; what fails then is a row of NaN with the
        reason. Cancelling drops the images that have not started.

        Raises:
            RuntimeError: the batcher is closed.
        """
        future: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        return await self._wait(_Images(images, prompt, taxonomy, future), future)

    async def call(self, function: Callable[[], Result]) -> Result:
        """What `function` returns or raises, called in the scoring thread when its turn comes."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        return await self._wait(_Call(function, future), future)

    @property
    def length(self) -> int:
        """Images in the queue that have not started."""
        with self._changed:
            return sum(entry.left for entry in self._queue if isinstance(entry, _Images))

    def close(self) -> None:
        """End the thread after the batch it is at, for which nobody waits; whoever waits for others gets an error."""
        with self._changed:
            self._closed = True
            dropped = list(self._queue)
            self._queue.clear()
            self._changed.notify()
        for entry in dropped:
            complete(entry.future, error=RuntimeError("the server was closed"))

    async def _wait(self, entry: _Images | _Call, future: "asyncio.Future[Result]") -> Result:
        with self._changed:
            if self._closed:
                raise RuntimeError("the server was closed")
            self._queue.append(entry)
            self._changed.notify()
        try:
            return await future
        except asyncio.CancelledError:
            with self._changed:
                if entry in self._queue:
                    self._queue.remove(entry)
            raise

    def _run(self) -> None:
        while (work := self._take()) is not None:
            if isinstance(work, _Call):
                _answer(work)
                continue
            try:
                self._score(work)
            except Exception as error:  # a mistake of ours must not end the thread, for which all others wait
                LOG.exception("a batch was lost")
                for entry, _ in work:
                    complete(entry.future, error=error)

    def _take(self) -> list[_Part] | _Call | None:
        """The next batch, or a function to call; None once the batcher is closed."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            oldest = self._queue[0]
            if isinstance(oldest, _Call):
                self._queue.popleft()
                return oldest
            parts = list[_Part]()
            room = self.batch_size
            for entry in self._queue:
                # Thresholds are no part of it: they are applied to the scores.
                if isinstance(entry, _Images) and (
                    self._mixes or entry.taxonomy.categories == oldest.taxonomy.categories
                ):
                    some = entry.images[entry.taken : entry.taken + room]
                    entry.taken += len(some)
                    parts.append(_Part(entry, some))
                    room -= len(some)
                    if not room:
                        break
            self._queue = deque(entry for entry in self._queue if isinstance(entry, _Call) or entry.left)
            return parts

    def _score(self, parts: Sequence[_Part]) -> None:
        started = time.perf_counter()
        images = [image for part in parts for image in part.images]
        prompts = [part.entry.prompt for part in parts for _ in part.images]
        taxonomies = [part.entry.taxonomy for part in parts for _ in part.images]
        scores = self._score_rows(images, prompts, taxonomies)
        seconds = time.perf_counter() - started
        self.seconds_per_image += _SMOOTHING * (seconds / len(images) - self.seconds_per_image)
        if self._watcher is not None:
            self._watcher.scored(len(images), [started - part.entry.queued for part in parts], seconds)
        row = 0
        for entry, some in parts:
            entry.scores += scores(row, row + len(some))
            row += len(some)
            if not entry.left:
                found = entry.scores
                complete(entry.future, found[0] if len(found) == 1 else concatenate_scores(found))

    def _score_rows(
        self, images: "list[Image]", prompts: list[str | None], taxonomies: list[Taxonomy]
    ) -> Callable[[int, int], list[Scores]]:
        """What gives the scores of rows `start` to `stop` of a batch; where scoring it fails, of each image alone."""
        first, rows = taxonomies[0], zip(images, prompts, taxonomies, strict=True)
        try:
            if all(taxonomy.categories == first.categories for taxonomy in taxonomies):
                scores = self._checked(images, prompts, first)
                return lambda start, stop: [rows_of(scores, start, stop)]
            if isinstance(self.classifier, MixedClassifier):
                mixed = self.classifier.score_mixed(images, prompts, taxonomies)
                for one, taxonomy in zip(mixed, taxonomies, strict=True):
                    _check_shape(one, 1, taxonomy)
                return lambda start, stop: mixed[start:stop]
        except Exception as error:  # a classifier may fail in any way, and the server has to live on
            LOG.warning("the classifier failed on %d images; trying each alone: %r", len(images), error)
        alone = [self._score_alone(*row) for row in rows]
        return lambda start, stop: alone[start:stop]

    def _score_alone(self, image: "Image", prompt: str | None, taxonomy: Taxonomy) -> Scores:
        try:
            return self._checked([image], [prompt], taxonomy)
        except Exception as error:
            LOG.exception("the classifier failed on an image, which is unjudged")
            return _failed(taxonomy, error)

    def _checked(self, images: "list[Image]", prompts: list[str | None], taxonomy: Taxonomy) -> Scores:
        scores = self.classifier.score(images, prompts, taxonomy)
        _check_shape(scores, len(images), taxonomy)
        return scores


def _check_shape(scores: Scores, images: int, taxonomy: Taxonomy) -> None:
    if scores.categories.shape != (images, len(taxonomy)):
        raise ValueError(f"scores of shape {scores.categories.shape} for {images} images")


def _failed(taxonomy: Taxonomy, error: Exception) -> Scores:
    """One unjudged row. The error's text stays in the log, as it may hold paths."""
    import numpy as np

    reason = f"the classifier failed on this image ({type(error).__name__})"
    return Scores(np.full(1, np.nan), np.full((1, len(taxonomy)), np.nan), (reason,))


def _answer(call: _Call) -> None:
    try:
        complete(call.future, call.function())
    except Exception as error:
        complete(call.future, error=error)
