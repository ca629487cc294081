"""Files -> rows: opening images, judging them in batches, and what each row says (`judge.verdicts.rows`)."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from judge.errors import ImageError
from judge.lessons.evidence import evidence_of
from judge.protocol import PromisesMissRate, score_each_category
from judge.verdicts.from_scores import unjudged, verdict_of_frames, verdicts_from_scores, worst_frame
from judge.verdicts.rows import Judging, verdict_row
from prompts.verdict import Verdict

from .image_files import FoundFile

if TYPE_CHECKING:
    from PIL.Image import Image

    from judge.data.frames import Frames
    from judge.protocol import Classifier

THUMBNAIL = 360
"""Longest side of the small pictures, in pixels."""


class JudgedFile(NamedTuple):
    """A file after it is judged."""

    row: dict[str, Any]
    """As `verdict_row` gives it."""
    thumbnail: bytes | None = None
    """JPEG of the pixels that were judged, of an animation those of the frame that decides; None where nobody asked, or
    the image was not opened."""


@dataclass
class _OpenedFile:
    """A file before it is judged: its frames, or the reason why it has none."""

    path: str
    prompt: str | None
    reason: str = ""
    frames: "Frames | None" = None
    hash: str | None = None
    """SHA-256 of its bytes, where they could be read."""

    @property
    def images(self) -> "Sequence[Image]":
        """The image, or the frames of an animation that are judged."""
        return () if self.frames is None else self.frames.images


@dataclass(frozen=True)
class JudgeCall:
    """What all images are judged with: the classifier, and what turns its scores into verdicts."""

    classifier: "Classifier"
    judging: Judging
    prompt_of: Callable[[str], str | None] = lambda path: None
    """The prompt of a file that came without, by its path."""
    multilabel: bool = False
    thumbnails: bool = False
    """Keep a small picture of every image."""

    @cached_property
    def evidence(self) -> str:
        """What is known of the classifier under this taxonomy."""
        return evidence_of(self.classifier).of_policy(self.judging.taxonomy)

    @cached_property
    def promise(self) -> str | None:
        """What a cascade promises under this taxonomy; None of other classifiers."""
        taxonomy = self.judging.taxonomy
        return self.classifier.promise(taxonomy) if isinstance(self.classifier, PromisesMissRate) else None

    def judge_files(self, found: Iterable[FoundFile], batch_size: int) -> Iterator[JudgedFile]:
        """One row per file, in order, as soon as a batch of files is judged; an animation has the worst frame's."""
        for files in _batches(map(self._open, found), batch_size):
            pairs = [(image, file.prompt) for file in files for image in file.images]
            # An animation may have more frames than a batch, so a chunk of images may end within a file.
            chunks = (pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size))
            verdicts = iter([verdict for chunk in chunks for verdict in self._judge_batch(chunk)])
            for file in files:
                yield self._conclude(file, list(islice(verdicts, len(file.images))))
            sys.stdout.flush()  # a pipe is block-buffered, and its reader should see each batch

    def _judge_batch(self, pairs: "Sequence[tuple[Image, str | None]]") -> list[Verdict]:
        """One verdict per image and its prompt."""
        images, prompts = [image for image, _ in pairs], [prompt for _, prompt in pairs]
        taxonomy = self.judging.taxonomy
        if self.multilabel:
            scores = score_each_category(self.classifier, images, prompts, taxonomy)
        else:
            scores = self.classifier.score(images, prompts, taxonomy)
        return verdicts_from_scores(
            scores,
            taxonomy,
            threshold=self.judging.threshold,
            model=self.classifier.name,
            evidence=self.evidence,
            promise=self.promise,
        )

    def _conclude(self, file: _OpenedFile, verdicts: Sequence[Verdict]) -> JudgedFile:
        """The row of a file from the verdicts on its frames."""
        from judge.runs.machine import now

        frame = ""
        if file.frames is None:
            verdict = unjudged(file.reason, self.judging.taxonomy, self.classifier.name)
        else:
            verdict, frame = verdict_of_frames(file.frames, verdicts)
        row = verdict_row(
            verdict, self.judging, time=now(), path=file.path, image_hash=file.hash, frame=frame
        )
        shown = verdicts and self.thumbnails
        return JudgedFile(row, _thumbnail(file.images[worst_frame(verdicts)]) if shown else None)

    def _open(self, found: FoundFile) -> _OpenedFile:
        from judge.data.frames import open_frames
        from judge.data.images import read_bytes

        prompt = self.prompt_of(found.path) if found.prompt is None else found.prompt
        opened = _OpenedFile(found.path, prompt, found.reason or "")
        if found.reason is not None:
            return opened
        try:
            data = read_bytes(found.path if found.data is None else found.data)
            opened.hash = hashlib.sha256(data).hexdigest()
            opened.frames = open_frames(data)
        except ImageError as error:
            opened.reason = str(error)
        return opened


def _thumbnail(image: "Image") -> bytes:
    """A JPEG of at most `THUMBNAIL` pixels a side, encoded anew: nothing of the file but its pixels is left."""
    small, file = image.copy(), BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(file, "JPEG", quality=80)
    return file.getvalue()


def _batches(files: Iterable[_OpenedFile], size: int) -> Iterator[list[_OpenedFile]]:
    """Files in groups of at least `size` images, or of `size` files."""
    batch: list[_OpenedFile] = []
    for file in files:
        batch.append(file)
        # A file that cannot be opened has no image; many of them must not wait for images that may never come.
        if len(batch) >= size or sum(len(file.images) for file in batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
