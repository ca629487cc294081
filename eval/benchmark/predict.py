"""Ask a classifier about every image of a benchmark, and keep what it said as it comes."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.own_classifier import check_scores
from judge.data.images import open_image
from judge.errors import ConfigError, ImageError, MissingExtraError, first_line
from judge.protocol import Classifier
from prompts.errors import ArbiterError
from prompts.example import UNSPECIFIED, Example
from prompts.taxonomy import Taxonomy

from .coverage import select_keys
from .parts import PartFolder
from .predictions import About, Prediction, Predictions

if TYPE_CHECKING:
    from PIL.Image import Image

IN_A_ROW = 20
"""Images in a row on which a classifier may crash, or get no answer, before it is given up."""


class ClassifierFailedError(ArbiterError):
    """A classifier that cannot be measured; what it judged before is kept."""


def predict(
    classifier: Classifier,
    examples: Sequence[Example],
    about: About,
    parts: PartFolder,
    *,
    batch_size: int = 8,
    progress: Callable[[int], Any] | None = None,
) -> Predictions:
    """Ask about every image that `parts` does not hold yet; each batch is stored before the next one is asked.

    An image that cannot be opened, or on which the classifier crashes, is a row without scores, with the reason. A row
    to which a service gave no answer, or not all of it, is not stored, so that it is asked again when the run goes on.

    Args:
        classifier: whoever is asked.
        examples: the images, with unique ids.
        about: what is asked; under the protocol `default` every image under all categories that the classifier covers,
            under `paper` under the one that it was collected for. An image whose category is not covered has no row.
        parts: finished rows.
        batch_size: images in one call.
        progress: called with the number of rows that are done.

    Returns:
        A row an image, in the order of `examples`.

    Raises:
        ClassifierFailedError: `IN_A_ROW` images in a row crashed it or got no answer, or all of them did.
        ConfigError: the classifier says that its options are wrong.
        MissingExtraError: it needs a package that is not installed.
    """
    asked = {example.id: asked_keys(example, about) for example in examples}
    session = _Session(classifier, about, parts, progress)
    done = parts.done()
    waiting: dict[tuple[str, ...], list[Example]] = {}
    for example in examples:
        if asked[example.id] and example.id not in done:
            waiting.setdefault(asked[example.id], []).append(example)
    session.report()
    for keys, some in waiting.items():
        policy = select_keys(about.taxonomy, keys)
        for start in range(0, len(some), batch_size):
            session.ask(some[start : start + batch_size], policy)
    session.finish()
    rows = {**parts.rows, **session.unanswered}
    return Predictions(about, tuple(rows[one.id] for one in examples if asked[one.id]))


def is_complete(predictions: Predictions, parts: PartFolder) -> bool:
    """Whether nothing is left to ask: every row is stored as final."""
    return {row.id for row in predictions.rows} <= parts.done()


def check_unchanged(
    path: Path,
    rows: Iterable[Prediction],
    examples: Sequence[Example],
    about: About,
    *,
    complete: bool = False,
) -> None:
    """Check that stored rows are of the images that the data set holds now, with the labels that it gives them now.

    Args:
        path: where they are stored, for the message.
        rows: stored.
        examples: the images.
        about: what is asked.
        complete: whether each image that is asked about has to have a row.

    Raises:
        ConfigError: the data set was edited since; the message names an image.
    """
    now = {one.id: (one, asked) for one in examples if (asked := asked_keys(one, about))}
    stored = {row.id: row for row in rows}
    gone, new = (
        next((name for name in one if name not in two), None) for one, two in ((stored, now), (now, stored))
    )
    other = next(
        (
            name
            for name in stored
            if name in now and _facts(stored[name]) != _facts(make_row(now[name][0], about, now[name][1]))
        ),
        None,
    )
    for name, what in (
        (gone, "is no longer in it"),
        (new if complete else None, "is new"),
        (other, "has other labels now"),
    ):
        if name is not None:
            raise ConfigError(
                f"{path} holds predictions from before {about.dataset} was changed: the image {name!r} {what}. Choose "
                "another output_dir, or delete these predictions, and the images are asked about again."
            )


def _facts(row: Prediction) -> tuple[Any, ...]:
    """All that a row says of its image, and none of the answer."""
    return (
        *(row.violates, row.unknown, row.asked),
        *(row.source, row.split, row.collected_for, row.severity),
    )


@dataclass
class _Session:
    """One classifier while it is asked."""

    classifier: Classifier
    about: About
    parts: PartFolder
    progress: Callable[[int], Any] | None
    unanswered: dict[str, Prediction] = field(default_factory=dict)
    """Rows to which a service left something unanswered, by id; asked again the next time."""
    crashed: list[str] = field(default_factory=list)
    """Images in a row that crashed the classifier."""
    silent: int = 0
    """Images in a row that got no answer."""
    answered: bool = False
    """Whether any image was scored."""

    def ask(self, batch: Sequence[Example], policy: Taxonomy) -> None:
        """Score a batch, image by image where it fails as a whole, and store the rows."""
        opened, rows = _open(batch, self.about, policy)
        if rows:
            self._keep(rows)
        if len(opened) > 1:
            try:
                self._keep(self._score(opened, policy))
                return
            except (ConfigError, MissingExtraError):
                raise
            except Exception:
                pass  # whichever image it was: each is asked about alone now
        for one in opened:  # none, where no image could be opened
            try:
                found = self._score([one], policy)
            except (ConfigError, MissingExtraError):
                raise
            except Exception as error:
                self._crash(one[0], policy, error)
            else:
                self._keep(found)

    def finish(self) -> None:
        """Give up a classifier that always crashed, however few images there were."""
        if self.crashed and not any(
            self.answered or not math.isnan(row.unsafe) for row in self.parts.rows.values()
        ):
            self._give_up("crashed on every image", self.parts.rows[self.crashed[-1]].reason)

    def report(self) -> None:
        """Tell how many rows are done."""
        if self.progress is not None:
            self.progress(len(self.parts.done()) + len(self.unanswered))

    def _score(self, opened: "Sequence[tuple[Example, Image]]", policy: Taxonomy) -> list[Prediction]:
        started = time.perf_counter()
        scores = self.classifier.score(
            [image for _, image in opened], [example.prompt for example, _ in opened], policy
        )
        seconds = (time.perf_counter() - started) / len(opened)
        check_scores(scores, len(opened), len(policy))
        self.answered, self.crashed = True, []
        rows = []
        for place, (example, _) in enumerate(opened):
            row = make_row(
                example,
                self.about,
                policy.keys,
                unsafe=float(scores.unsafe[place]),
                categories=dict(zip(policy.keys, map(float, scores.categories[place]), strict=True)),
                reason=scores.reasons[place],
                note=None if scores.notes is None else scores.notes[place],
                seconds=seconds,
            )
            rows.append(row)
            if scores.unanswered is not None and scores.unanswered[place]:
                self.unanswered[row.id] = row
                self.silent += math.isnan(row.unsafe)
            else:
                self.silent = 0
        return rows

    def _keep(self, rows: Sequence[Prediction]) -> None:
        self.parts.append([row for row in rows if row.id not in self.unanswered])
        self.report()
        if self.silent >= IN_A_ROW:
            why = next(row.reason for row in reversed(rows) if row.id in self.unanswered)
            self._give_up(f"got no answer about {self.silent} images in a row", why)

    def _crash(self, example: Example, policy: Taxonomy, error: Exception) -> None:
        reason = f"the classifier crashed: {type(error).__name__}: {first_line(error)}"
        self._keep([make_row(example, self.about, policy.keys, reason=reason)])
        self.crashed.append(example.id)
        if len(self.crashed) >= IN_A_ROW:
            self._give_up(f"crashed on {len(self.crashed)} images in a row", reason)

    def _give_up(self, what: str, reason: str | None) -> None:
        # The fault is not the images': once it is mended, they are asked about again.
        self.parts.forget(self.crashed)
        raise ClassifierFailedError(
            f"{self.about.label} {what}, the last time so: {reason}. What it judged before is kept; mend it, and run "
            "again with --resume true."
        )


def asked_keys(example: Example, about: About) -> tuple[str, ...]:
    """Keys of the categories that an image is asked about; none where it has no row."""
    if about.protocol == "default":
        return about.covers
    key = collected_for(example, about.taxonomy)
    return (key,) if key in about.covers else ()


def collected_for(example: Example, taxonomy: Taxonomy) -> str | None:
    """Key of the category that an image was collected for; None where that is none of the taxonomy's.

    Where the data set does not say: of an unsafe image the first one that it violates; of a safe one any, drawn by its
    id alone.
    """
    if example.collected_for is not None:
        return next((c.key for c in taxonomy if example.collected_for in (c.key, *c.members)), None)
    violated = next((c.key for c in taxonomy if c.label(example)), None)
    drawn = int.from_bytes(hashlib.sha256(example.id.encode()).digest()[:8])
    return violated or taxonomy.keys[drawn % len(taxonomy)]


def _open(
    batch: Sequence[Example], about: About, policy: Taxonomy
) -> "tuple[list[tuple[Example, Image]], list[Prediction]]":
    """The images that can be opened, and rows of the others."""
    opened, failed = [], []
    for example in batch:
        try:
            opened.append((example, open_image(example.image)))
        except ImageError as error:
            failed.append(make_row(example, about, policy.keys, reason=str(error)))
    return opened, failed


def make_row(
    example: Example,
    about: About,
    asked: Sequence[str],
    *,
    unsafe: float = math.nan,
    categories: Mapping[str, float] | None = None,
    reason: str | None = None,
    note: str | None = None,
    seconds: float = math.nan,
) -> Prediction:
    """The row of an image, with its labels under the benchmark's taxonomy.

    Args:
        example: the image.
        about: whose row it is.
        asked: keys of the categories that were asked about.
        unsafe: the score of the whole, in [0, 1]; NaN where the image was not judged.
        categories: key -> score, as far as there are any. Without any, each gets the whole: which category is violated
            is not known then, and none can be more than the whole.
        reason: why it was not judged.
        note: a remark.
        seconds: taken by the classifier.
    """
    found = {key: (categories or {}).get(key, math.nan) for key in asked}
    if all(map(math.isnan, found.values())):
        found = dict.fromkeys(asked, unsafe)
    if math.isnan(unsafe):
        reason = reason or "the classifier gave no score and no reason"
    labels = dict(zip(about.taxonomy.keys, about.taxonomy.label(example), strict=True))
    members = {member for category in about.taxonomy for member in category.members}
    # Unsafe, and nobody says how: by one of these categories, if they hold all that the data set was labelled for.
    unnamed = UNSPECIFIED in example.violates and example.unknown <= members
    collected = example.collected_for and (collected_for(example, about.taxonomy) or example.collected_for)
    return Prediction(
        example.id,
        frozenset(key for key, label in labels.items() if label) | ({UNSPECIFIED} if unnamed else set()),
        frozenset(key for key, label in labels.items() if label is None),
        unsafe,
        tuple(found.get(key, math.nan) for key in about.taxonomy.keys),
        frozenset(asked),
        source=example.source,
        split=example.split,
        collected_for=collected,
        severity=example.severity,
        reason=reason,
        note=note,
        seconds=seconds,
    )
