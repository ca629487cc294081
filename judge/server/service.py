"""Questions -> verdicts: open images, score them in batches, conclude; how much is accepted, and when it ends."""

import asyncio
import contextlib
import hashlib
import io
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from judge.errors import ImageError
from judge.lessons.evidence import evidence_of
from judge.protocol import PromisesMissRate
from judge.runs.machine import now
from judge.verdicts.from_scores import unjudged, verdict_of_frames, verdicts_from_scores
from judge.verdicts.rows import Judging, verdict_row
from prompts.taxonomy import Taxonomy
from prompts.verdict import DEFAULT_THRESHOLD, Verdict

from .batching import Batcher
from .errors import DrainingError, LoadingError, OverloadedError
from .futures import in_daemon_thread, run_to_end
from .metrics import Metrics
from .opening import Opener, ThreadOpener

if TYPE_CHECKING:
    from judge.intake.decoding import Decoded
    from judge.protocol import Classifier, Scores

    from .settings import ServerSettings

LOG = logging.getLogger("arbiter")
MAX_HELD_PIXELS = 2**26
"""Pixels of opened images that may wait to be scored before further ones are opened: 200 MB. Each opener may exceed it
by what it is at."""


@dataclass(frozen=True)
class Question:
    """One image under one taxonomy."""

    image: bytes | ImageError
    """Encoded; or why there are no bytes, such as that their text is no base64."""
    taxonomy: Taxonomy
    prompt: str | None = None
    threshold: float | Mapping[str, float] = DEFAULT_THRESHOLD
    explain: bool = False
    name: str | None = None
    """What the caller calls the image; it is `image.path` of the row."""


@dataclass(frozen=True)
class Judged:
    """The answer to one question."""

    row: dict[str, Any]
    """As `judge.verdicts.rows.verdict_row`; status `unjudged` with a reason also for an image that cannot be opened."""
    error: ImageError | None = None
    """Why the image could not be opened, where that is the reason."""
    explanation: dict[str, Any] | None = None
    """What of the image drove the verdict; None where nobody asked, or nothing can be said."""


@dataclass(frozen=True)
class LoadedJudge:
    """A classifier and what answers say of it."""

    classifier: "Classifier"
    taxonomy: Taxonomy
    """Used where a question names none."""
    name: str
    sha256: str | None = None
    """`judge.runs.references.fingerprint`; None for a served classifier."""
    threshold: float | Mapping[str, float] = DEFAULT_THRESHOLD
    """Used where a question gives none."""


class JudgeService:
    """Judges images for many callers at a time; everything but the scoring thread runs in one event loop.

    Args:
        load: returns the classifier; called once, in a thread, by `start`.
        settings: limits.
        opener: what decodes images.
    """

    def __init__(
        self,
        load: Callable[[], LoadedJudge],
        settings: "ServerSettings",
        *,
        opener: Opener | None = None,
    ) -> None:
        self.settings = settings
        self.draining = False
        """Whether new questions are refused, as the server is shutting down."""
        self.pending = 0
        """Images that were accepted and not answered yet, frames included."""
        self.failure: BaseException | None = None
        """Why the classifier could not be loaded."""
        self._load = load
        self.metrics = Metrics()
        self._opener = opener or _opener(settings)
        self._openers = asyncio.Semaphore(max(1, settings.decode_workers))
        self._held = 0
        self._room = asyncio.Event()
        self._room.set()
        self._judge: LoadedJudge | None = None
        self._batcher: Batcher | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._facts = lru_cache(maxsize=256)(self._ask_facts)
        self.metrics.watch(
            lambda: self.pending,
            lambda: self._batcher.length if self._batcher else 0,
            lambda: float(self.draining),
        )

    # --- what is known of the classifier -------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether questions are accepted."""
        return self._judge is not None and not self.draining

    @property
    def judge_loaded(self) -> LoadedJudge:
        """The classifier.

        Raises:
            LoadingError: not yet.
        """
        if self._judge is None:
            raise LoadingError
        return self._judge

    @property
    def default_taxonomy(self) -> Taxonomy:
        """The taxonomy of questions that name none."""
        return self.judge_loaded.taxonomy

    @property
    def model_name(self) -> str:
        """Name of the classifier."""
        return self.judge_loaded.name

    @property
    def model_hash(self) -> str | None:
        """SHA-256 of its weights and settings; None for a served one."""
        return self.judge_loaded.sha256

    @property
    def model_version(self) -> str:
        """`name@hash12`, or the name alone."""
        found = self.judge_loaded
        return f"{found.name}@{found.sha256[:12]}" if found.sha256 else found.name

    @property
    def explains(self) -> bool:
        """Whether explanations can be given."""
        return False

    def default_threshold(self, taxonomy: Taxonomy) -> float | dict[str, float]:
        """The threshold of questions that give none; of those per category, the ones of the same categories."""
        found = self.judge_loaded
        if not isinstance(found.threshold, Mapping):
            return found.threshold
        limits = {
            found.taxonomy.categories[found.taxonomy.index(name)]: limit
            for name, limit in found.threshold.items()
        }
        return {category.name: limits[category] for category in taxonomy if category in limits}

    # --- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load the classifier in a thread; a failure is kept in `failure`."""
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> None:
        try:
            found = await in_daemon_thread(self._load)
        except Exception as error:
            self.failure = error
            return
        if not self._closed:
            self._batcher = Batcher(found.classifier, self.settings.batch_size, self.metrics)
            self._judge = found

    async def drain(self) -> None:
        """Refuse new questions, and return when all accepted ones are answered."""
        self.draining = True
        await self._idle.wait()

    def close(self) -> None:
        """Stop decoding and scoring; whoever still waits gets an error."""
        if self._closed:
            return
        self.draining = self._closed = True
        self._opener.close()
        if self._batcher is not None:
            self._batcher.close()

    # --- questions -----------------------------------------------------------------------------------------

    async def judge(self, question: Question) -> Judged:
        """Answer one question.

        Raises:
            OverloadedError: the queue is full.
            DrainingError: the server is shutting down.
            LoadingError: the classifier is not loaded yet.
        """
        with self._accepted(1):
            return await self._answer(question)

    async def judge_all(self, questions: Sequence[Question]) -> list[Judged]:
        """Answer several questions, in order; all of them are accepted, or none.

        Raises:
            ApiError: as `judge`.
        """
        with self._accepted(len(questions)):
            return list(await asyncio.gather(*map(self._answer, questions)))

    async def view(self, image: bytes) -> list[bytes]:
        """The pixels that are judged, as one PNG for each frame; encoded here, never the file's own bytes.

        Raises:
            ImageError: the image cannot be opened.
        """
        async with self._opened(image) as opened:
            return await asyncio.to_thread(_as_png, opened)

    @contextlib.contextmanager
    def _accepted(self, images: int) -> Iterator[None]:
        """Room in the queue for some images, until they are answered."""
        self.check_accepting(images)
        self._count(images)
        try:
            yield
        finally:
            self._count(-images)

    def check_accepting(self, images: int = 1) -> None:
        """Raise what `judge` would raise before it decodes anything."""
        if self.draining:
            raise DrainingError
        if self._batcher is None:
            raise LoadingError
        if self.pending + images > self.settings.queue_images:
            raise OverloadedError(
                f"{self.pending} images are waiting, of at most {self.settings.queue_images}; ask again.",
                min(30.0, self.pending * self._batcher.seconds_per_image),
            )

    def _count(self, images: int) -> None:
        self.pending += images
        if self.pending:
            self._idle.clear()
        else:
            self._idle.set()

    async def _answer(self, question: Question) -> Judged:
        loaded = self.judge_loaded
        judging = Judging(question.taxonomy, question.threshold, loaded.name, loaded.sha256)
        digest, error, frame = None, None, ""
        try:
            if isinstance(question.image, ImageError):
                raise question.image
            async with self._opened(question.image) as opened:
                digest = opened.sha256
                verdict, frame = await self._verdict(question, opened)
        except ImageError as found:
            error = found
            verdict = unjudged(str(found), question.taxonomy, loaded.name)
            if isinstance(question.image, bytes):
                digest = hashlib.sha256(question.image).hexdigest()
        self.metrics.concluded(verdict.status, verdict.decided_by if error is None else "door")
        row = verdict_row(verdict, judging, time=now(), path=question.name, image_hash=digest, frame=frame)
        return Judged(row, error)

    @contextlib.asynccontextmanager
    async def _opened(self, data: bytes) -> AsyncIterator["Decoded"]:
        """An image's frames, which count as held as long as they are needed."""
        started = time.perf_counter()
        try:
            async with self._openers:
                await self._room.wait()
                opened = await run_to_end(
                    self._opener.open(data)
                )  # cancelled, it would cost a worker process
        except ImageError as error:
            self.metrics.opened(error.status, time.perf_counter() - started)
            raise
        self.metrics.opened("ok", time.perf_counter() - started)
        images = opened.frames.images
        pixels, more = sum(image.width * image.height for image in images), len(images) - 1
        self._hold(pixels)
        self._count(more)  # the frames of an animation, which nobody could know before
        try:
            yield opened
        finally:
            self._count(-more)
            self._hold(-pixels)

    def _hold(self, pixels: int) -> None:
        self._held += pixels
        if self._held < MAX_HELD_PIXELS:
            self._room.set()
        else:
            self._room.clear()

    async def _verdict(self, question: Question, opened: "Decoded") -> tuple[Verdict, str]:
        if self._batcher is None:
            raise LoadingError
        scores = await self._batcher.score(opened.frames.images, question.prompt, question.taxonomy)
        try:
            return verdict_of_frames(opened.frames, self._conclude(scores, question))
        except ValueError as error:  # scores that are no probabilities
            LOG.warning("unusable scores: %s", error)
            return unjudged(f"unusable scores: {error}", question.taxonomy, self.model_name), ""

    def _conclude(self, scores: "Scores", question: Question) -> list[Verdict]:
        evidence, promise = self._facts(question.taxonomy)
        return verdicts_from_scores(
            scores,
            question.taxonomy,
            threshold=question.threshold,
            model=self.model_name,
            evidence=evidence,
            promise=promise,
        )

    def _ask_facts(self, taxonomy: Taxonomy) -> tuple[str, str | None]:
        """What is known of the classifier under a taxonomy, and what it promises."""
        classifier = self.judge_loaded.classifier
        promise = classifier.promise(taxonomy) if isinstance(classifier, PromisesMissRate) else None
        return evidence_of(classifier).of_policy(taxonomy), promise


def _opener(settings: "ServerSettings") -> Opener:
    """Worker processes, or threads where none are wanted."""
    if not settings.decode_workers:
        return ThreadOpener()
    from judge.intake.decoding import DecodePool

    return DecodePool(settings.decode_workers)


def _as_png(opened: "Decoded") -> list[bytes]:
    pictures = []
    for image in opened.frames.images:
        written = io.BytesIO()
        image.save(written, "PNG", compress_level=1)
        pictures.append(written.getvalue())
    return pictures
