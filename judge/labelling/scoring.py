"""The second stage of a labelling run: blocks of decoded images -> rows of the output.

It is the only stage that holds a model. An image is encoded once, however many taxonomies it is scored under.
"""

import logging
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from judge.errors import LabellingError, first_line
from judge.inputs import concatenate_scores
from judge.protocol import Classifier, Scores, ScoresFeatures
from judge.verdicts.rows import Judging

from .columns import label_block
from .rows import STATUS_OF, Block, Opened, Scored, Status
from .writer import schema

if TYPE_CHECKING:
    from judge.data.preprocessing import ImagePreprocessing

LOG = logging.getLogger(__name__)
MAX_FAILURES = 64
"""Images on which the classifier fails one after the other before it is tried on a plain grey one."""


class ClassifierFailedError(LabellingError):
    """The classifier fails on any image, so that going on would only write rows without a verdict."""


@dataclass
class Scorer:
    """Scores blocks under several taxonomies."""

    classifier: Classifier
    judgings: Sequence[Judging]
    """One a taxonomy; their names differ."""
    batch_size: int = 64
    """Images in one pass of the encoder, or of the classifier."""
    _failures: int = field(default=0, init=False)
    """Images in a row on which it failed, or gave no answer."""

    def __call__(self, block: Block) -> Scored:
        """The rows of a block.

        Raises:
            ClassifierFailedError: on `MAX_FAILURES` images in a row, and on a grey one.
        """
        return self.rows(block, *self.score(block))

    def score(self, block: Block) -> tuple[list[Scores] | None, dict[str, float]]:
        """Scores of all views under each taxonomy, None without any view; and the seconds of all stages so far.

        Raises:
            ClassifierFailedError: as calling it.
        """
        seconds = {**block.seconds, "encode": 0.0, "score": 0.0}
        prompts = [row.prompt for row in block.rows for _ in range(row.views)]
        parts = [
            self._score(block.images[start:stop], prompts[start:stop], seconds)
            for start, stop in _batches(len(prompts), self.batch_size)
        ]
        found = [concatenate_scores(list(column)) for column in zip(*parts, strict=True)]
        return found or None, seconds

    def rows(self, block: Block, scores: Sequence[Scores] | None, seconds: Mapping[str, float]) -> Scored:
        """The rows of a block from its scores; needs no model, so another thread may do it."""
        begun = time.perf_counter()
        table = self._table(block.rows, scores)
        seconds = {**seconds, "rows": time.perf_counter() - begun}
        return Scored(
            block.shard, block.part, block.offset, block.last, table, seconds, block.size, block.place
        )

    def _score(
        self, images: Any, prompts: Sequence[str | None], seconds: MutableMapping[str, float]
    ) -> list[Scores]:
        """Scores of a batch under every taxonomy; where that fails, of each image alone."""
        try:
            found = self._score_batch(images, prompts, seconds)
        except Exception as error:  # a classifier may fail in any way, and other images are worth going on
            if len(prompts) == 1:
                return self._failed(images, error)
            LOG.warning("The classifier failed on %d images (%r); trying each alone.", len(prompts), error)
        else:
            for row in range(len(prompts)):
                silent = _unanswered(found, row) is not None
                self._failures = self._failures + 1 if silent else 0
                if silent:
                    self._check_failures(images[row : row + 1])
            return found
        alone = [
            self._score(images[row : row + 1], prompts[row : row + 1], seconds) for row in range(len(prompts))
        ]
        return [concatenate_scores(list(column)) for column in zip(*alone, strict=True)]

    def _failed(self, image: Any, error: Exception) -> list[Scores]:
        """One image without scores, and why."""
        self._failures += 1
        self._check_failures(image)
        reason = (f"the classifier failed on this image: {type(error).__name__}",)
        return [
            Scores(np.full(1, np.nan), np.full((1, len(judging.taxonomy)), np.nan), reason)
            for judging in self.judgings
        ]

    def _check_failures(self, image: Any) -> None:
        """After many, see whether it is the classifier that fails, not the images, which a stranger may have chosen."""
        from PIL import Image

        if self._failures % MAX_FAILURES:
            return
        grey: Any = (
            np.full_like(image, 128)
            if isinstance(image, np.ndarray)
            else [Image.new("RGB", (64, 64), "grey")]
        )
        cause: Exception | None = None
        try:
            reason = _unanswered(self._score_batch(grey, [None], {"encode": 0.0, "score": 0.0}), 0)
        except Exception as error:
            cause, reason = error, f"{type(error).__name__}: {first_line(error)}"
        if reason is not None:
            raise ClassifierFailedError(
                f"{self.classifier.name} failed on {self._failures} images in a row, and on a grey one: {reason}. Mend "
                "that, and run the same command again: what is labelled stays."
            ) from cause

    def _score_batch(
        self, images: Any, prompts: Sequence[str | None], seconds: MutableMapping[str, float]
    ) -> list[Scores]:
        begun = time.perf_counter()
        taxonomies = [judging.taxonomy for judging in self.judgings]
        if isinstance(self.classifier, ScoresFeatures):
            resized = isinstance(images, np.ndarray)
            encode = self.classifier.encode_resized if resized else self.classifier.encode_images
            features = encode(images)
            encoded = time.perf_counter()
            seconds["encode"] += encoded - begun
            found = self.classifier.score_features(features, prompts, taxonomies)
            seconds["score"] += time.perf_counter() - encoded
        else:
            found = [self.classifier.score(images, prompts, taxonomy) for taxonomy in taxonomies]
            seconds["encode"] += time.perf_counter() - begun
        for scores, taxonomy in zip(found, taxonomies, strict=True):
            if scores.categories.shape != (len(prompts), len(taxonomy)):
                raise ValueError(f"scores of shape {scores.categories.shape} for {len(prompts)} images")
        return found

    def _table(self, rows: Sequence[Opened], scores: Sequence[Scores] | None) -> Any:
        import pyarrow as pa

        labels = [
            label_block(rows, None if scores is None else scores[place], judging)
            for place, judging in enumerate(self.judgings)
        ]
        became = [
            _what_became(row, [one.problems.get(place) for one in labels]) for place, row in enumerate(rows)
        ]
        form = schema([judging.taxonomy for judging in self.judgings])
        return pa.table(
            [
                pa.array([row.id for row in rows], pa.string()),
                pa.array([row.source for row in rows], pa.string()),
                pa.array([row.sha256 for row in rows], pa.string()),
                pa.array([status for status, _ in became], pa.string()),
                pa.array([reason for _, reason in became], pa.string()),
                pa.StructArray.from_arrays(
                    [one.verdicts for one in labels], fields=list(form.field("verdicts").type)
                ),
            ],
            schema=form,
        )


def preprocessing_of(classifier: Classifier) -> "ImagePreprocessing | None":
    """What can be done to images before a classifier gets them; None where it takes them as they are."""
    return classifier.image_preprocessing if isinstance(classifier, ScoresFeatures) else None


def _unanswered(found: Sequence[Scores], row: int) -> str | None:
    """Why a service gave no answer about an image under one of the taxonomies; None where it gave all."""
    for scores in found:
        if scores.unanswered is not None and scores.unanswered[row]:
            return (scores.reasons and scores.reasons[row]) or "no answer"
    return None


def _batches(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, count)) for start in range(0, count, size))


def _what_became(row: Opened, problems: Sequence[tuple[Status, str] | None]) -> tuple[Status, str | None]:
    """Status and reason of a row: of its image, or else of the first taxonomy that has no verdict."""
    if row.problem is not None:
        return STATUS_OF[row.problem.status], str(row.problem)
    return next(filter(None, problems), ("ok", None))
