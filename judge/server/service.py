"""Questions -> verdicts: open images, score them in batches, conclude; how much is accepted, and when it ends."""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from judge.errors import ImageError
from judge.lessons.evidence import evidence_of
from judge.protocol import PromisesMissRate
from judge.runs.machine import now
from judge.verdicts.from_scores import unjudged, verdict_of_frames, verdicts_from_scores, worst_frame
from judge.verdicts.rows import Judging, verdict_row
from prompts.taxonomy import Taxonomy
from prompts.verdict import DEFAULT_THRESHOLD, Verdict

from .batching import Batcher
from .errors import DrainingError, LoadingError, OverloadedError
from .futures import in_daemon_thread
from .metrics import Metrics
from .opening import Intake, Opener

if TYPE_CHECKING:
    from PIL.Image import Image

    from judge.intake.decoding import Decoded
    from judge.protocol import Classifier

    from .settings import ServerSettings

LOG = logging.getLogger("arbiter")


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
        self.metrics = Metrics()
        self._intake = Intake(settings, self.metrics, opener)
        self._load = load
        self._judge: LoadedJudge | None = None
        self._batcher: Batcher | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closed = False
        self._facts = lru_cache(maxsize=256)(self._ask_facts)
        self.metrics.watch(
            lambda: self.pending,
            lambda: self._batcher.length if self._batcher else 0,
            lambda: float(self.ready),
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

    def close(self) -> None:
        """Stop decoding and scoring; whoever still waits gets an error."""
        if self._closed:
            return
        self.draining = self._closed = True
        self._intake.close()
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
        return await self._intake.view(image)

    async def still_hash(self, image: bytes) -> str:
        """`judge.data.images.pixels_hash` of an image that is no animation, as training opens it.

        Raises:
            ImageError: it cannot be opened, or is animated.
        """
        return await self._intake.still_hash(image)

    async def fetch(self, url: str) -> bytes:
        """The bytes behind an address of one of the allowed hosts.

        Raises:
            ImageError: it is not allowed, or nothing usable came from it.
        """
        return await self._intake.fetch(url)

    @contextlib.contextmanager
    def _accepted(self, images: int) -> Iterator[None]:
        """Room in the queue for some images, until they are answered."""
        self.check_accepting(images)
        self.pending += images
        try:
            yield
        finally:
            self.pending -= images

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

    async def _answer(self, question: Question) -> Judged:
        loaded = self.judge_loaded
        judging = Judging(question.taxonomy, question.threshold, loaded.name, loaded.sha256)
        digest, error, frame, explanation = None, None, "", None
        try:
            if isinstance(question.image, ImageError):
                raise question.image
            async with self._intake.opened(question.image) as opened:
                digest = opened.sha256
                verdict, frame, explanation = await self._judge_frames(question, opened)
        except ImageError as found:
            error = found
            verdict = unjudged(str(found), question.taxonomy, loaded.name)
            if isinstance(question.image, bytes):
                digest = hashlib.sha256(question.image).hexdigest()
        self.metrics.concluded(verdict.status, verdict.decided_by if error is None else "door")
        row = verdict_row(verdict, judging, time=now(), path=question.name, image_hash=digest, frame=frame)
        return Judged(row, error, explanation)

    async def _judge_frames(
        self, question: Question, opened: "Decoded"
    ) -> tuple[Verdict, str, dict[str, Any] | None]:
        """The verdict on a file, which frame it is about, and what drove it."""
        more = len(opened.frames.images) - 1
        self.pending += more  # the frames of an animation, which nobody could know before
        try:
            verdicts = await self._verdicts(question, opened)
            verdict, frame = verdict_of_frames(opened.frames, verdicts)
            if not question.explain:
                return verdict, frame, None
            shown = opened.frames.images[worst_frame(verdicts)]
            return verdict, frame, await self._explain(question, shown, verdict)
        finally:
            self.pending -= more

    async def _verdicts(self, question: Question, opened: "Decoded") -> list[Verdict]:
        """A verdict for each frame."""
        if self._batcher is None:
            raise LoadingError
        images = opened.frames.images
        scores = await self._batcher.score(images, question.prompt, question.taxonomy)
        evidence, promise = self._facts(question.taxonomy)
        try:
            return verdicts_from_scores(
                scores,
                question.taxonomy,
                threshold=question.threshold,
                model=self.model_name,
                evidence=evidence,
                promise=promise,
            )
        except ValueError as error:  # scores that are no probabilities
            LOG.error("unusable scores: %s", error)
            return [unjudged(f"unusable scores: {error}", question.taxonomy, self.model_name)] * len(images)

    async def _explain(self, question: Question, image: "Image", verdict: Verdict) -> dict[str, Any] | None:
        """What of the image drove the score of the flagged category, else of the one with the highest score."""
        category = verdict.category or max(verdict.scores, key=verdict.scores.__getitem__, default=None)
        if self._batcher is None or category is None or verdict.status == "unjudged":
            return None
        from judge.explain import explain

        classifier = self.judge_loaded.classifier
        try:
            found = await self._batcher.call(
                lambda: explain(classifier, image, question.prompt, question.taxonomy, category)
            )
        except Exception:  # an explanation that fails must not cost the verdict
            LOG.exception("no explanation")
            return None
        return found.to_dict()

    def _ask_facts(self, taxonomy: Taxonomy) -> tuple[str, str | None]:
        """What is known of the classifier under a taxonomy, and what it promises."""
        classifier = self.judge_loaded.classifier
        promise = classifier.promise(taxonomy) if isinstance(classifier, PromisesMissRate) else None
        return evidence_of(classifier).of_policy(taxonomy), promise
