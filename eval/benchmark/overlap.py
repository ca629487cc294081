"""How much of a test set a classifier may have seen in training, and its score on what it cannot have seen.

Tested images are compared with all training images that a run's folder leads to (`training_rows`): exact copies and
near ones (`judge.data.perceptual_hash`). What is not known is never counted as none: a classifier without a run folder
has no number but a reason, and what a run's base was trained on before stands beside its number, which is therefore
the least that it may have seen.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics.arrays import confusion
from eval.metrics.intervals import f1_interval
from eval.reports.table import Table
from judge.data.examples import load_examples
from judge.data.perceptual_hash import ImageHashes, exact_copies, hash_images, near_copies
from judge.data.sources import Skipped
from judge.errors import first_line
from prompts.errors import ArbiterError
from prompts.example import Example

from .predictions import Predictions
from .stages import Stages
from .training_rows import Source, known_training

_PAIRS = 5
"""Copies that a record names together with what they are copies of."""


@dataclass(frozen=True)
class Copies:
    """Which of the tested images have copies in one set of training images."""

    trained: int
    """Training images that were compared."""
    exact: Mapping[str, str]
    """Id of a tested image -> id of a training image with equal pixels."""
    near: Mapping[str, str]
    """The same for near copies that are not exact ones."""
    skipped: tuple[Skipped, ...] = ()
    """Training images that could not be compared."""


def find_copies(trained: ImageHashes | Iterable[Example], tested: ImageHashes) -> Copies:
    """Compare tested with training images.

    Args:
        trained: hashes, or examples, whose images are then hashed one after another.
        tested: hashes of the tested images.
    """
    if not isinstance(trained, ImageHashes):
        trained = hash_examples(trained)
    exact = {tested.ids[one]: trained.ids[two] for one, two in exact_copies(tested, trained)}
    near: dict[str, str] = {}
    for one, two in near_copies(tested, trained):
        if tested.ids[one] not in exact:
            near.setdefault(tested.ids[one], trained.ids[two])
    return Copies(len(trained), exact, near, trained.skipped)


def hash_examples(examples: Iterable[Example]) -> ImageHashes:
    """Hash the images of examples."""
    return hash_images((example.id, example.image) for example in examples)


def overlap(tested: ImageHashes, found: Sequence[Copies], not_known: Sequence[str] = ()) -> dict[str, Any]:
    """The record of one classifier, as JSON types.

    Args:
        tested: hashes of the tested images.
        found: copies in each set that it was trained on.
        not_known: what else it was trained on, in words.

    Returns:
        `tested` (images), `trained` (training images compared), `exact`, `near` (tested images with such a copy; an
        image is counted once, exact first), `share` of the tested ones, `ids` of both, `pairs` (a few [tested id,
        training id]), `unreadable` (tested and training images that could not be compared), `not_known`, and `reason`:
        why all numbers but `tested` are None, which they are where no training image is known.
    """
    record: dict[str, Any] = {"tested": len(tested), "not_known": list(not_known)}
    if not sum(one.trained for one in found):
        reason = "; ".join(not_known) or "none of its training images can be opened"
        unknown = ("trained", "exact", "near", "share", "ids", "pairs", "unreadable")
        return record | dict.fromkeys(unknown) | {"reason": reason}
    exact = {id_: copy for one in found for id_, copy in one.exact.items()}
    near = {id_: copy for one in found for id_, copy in one.near.items() if id_ not in exact}
    ids = [id_ for id_ in tested.ids if id_ in exact or id_ in near]
    return record | {
        "trained": sum(one.trained for one in found),
        "exact": len(exact),
        "near": len(near),
        "share": len(ids) / len(tested) if len(tested) else None,
        "ids": ids,
        "pairs": [[id_, exact.get(id_) or near[id_]] for id_ in ids[:_PAIRS]],
        "unreadable": len(tested.skipped) + sum(len(one.skipped) for one in found),
        "reason": None,
    }


@dataclass
class OverlapWithTraining:
    """Compares one test set with the training images of any number of classifiers; each data set is read once.

    Attributes:
        tested: hashes of the tested images.
        dataset: where they come from, as `load_examples` takes it.
    """

    tested: ImageHashes
    dataset: str
    _found: dict[tuple[object, ...], Copies | str] = field(default_factory=dict)
    """Copies in each source, or why it cannot be read."""

    def measure(self, name: str | Path, progress: Callable[[str], Any] | None = None) -> dict[str, Any]:
        """The record of one classifier (`overlap`).

        Args:
            name: as `known_training` takes it.
            progress: called with the name of each split before it is read.
        """
        known = known_training(name, self.dataset)
        found: list[Copies] = []
        not_known = list(known.not_known)
        for source in known.sources:
            if source.key not in self._found:
                if progress is not None:
                    progress(f"{source.dataset}/{source.split}")
                self._found[source.key] = self._compare(source)
            copies = self._found[source.key]
            if isinstance(copies, Copies):
                found.append(copies)
            elif copies not in not_known:
                not_known.append(copies)
        return overlap(self.tested, found, not_known)

    def _compare(self, source: Source) -> Copies | str:
        try:
            examples = load_examples(
                source.dataset,
                split=source.split,
                taxonomy=source.taxonomy,
                max_failures=1.0,
                limit=source.limit,
                # With a limit, images that cannot be opened decide which ones follow.
                verify=source.limit is not None,
            ).examples
        except ArbiterError as error:
            return f"{source.dataset}/{source.split}: {first_line(error)}"
        return find_copies(examples, self.tested)


def score_without(
    predictions: Predictions, ids: Iterable[str], threshold: float = 0.5
) -> dict[str, Any] | None:
    """F1 of the whole policy on all images, and on those without a copy in training.

    Args:
        predictions: of one classifier.
        ids: of the images with a copy (`overlap`).
        threshold: P(unsafe) from which an image is flagged; an unjudged row is an error.

    Returns:
        `rows`, `f1`, `f1_interval` (95 %), and the same of the remainder as `clean_rows`, `clean_f1`,
        `clean_f1_interval`; None for what is undefined. Rows whose truth is not known are left out.
    """
    copies = frozenset(ids)
    rows = [(row.truth, row.unsafe, row.id) for row in predictions.rows if row.truth is not None]
    found: dict[str, Any] = {}
    for name, chosen in (("", rows), ("clean_", [row for row in rows if row[2] not in copies])):
        truth = np.array([one for one, _, _ in chosen], dtype=np.bool_)
        unsafe = np.array([score for _, score, _ in chosen], dtype=np.float64)
        interval = f1_interval(truth, unsafe, [id_ for _, _, id_ in chosen], threshold)
        found |= {
            f"{name}rows": len(chosen),
            f"{name}f1": _defined(confusion(truth, unsafe, threshold).f1),
            f"{name}f1_interval": list(map(_defined, interval)),
        }
    return found


def compare_with_training(
    found: Sequence[Predictions],
    examples: Sequence[Example],
    dataset: str,
    stages: Stages,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """The record of each classifier of a run, and as `scores` what `score_without` gives.

    Args:
        found: predictions of each.
        examples: the tested images; hashed only if a record is missing in `stages`.
        dataset: where they come from, as `load_examples` takes it.
        stages: where records are kept.
        threshold: P(unsafe) from which an image is flagged.
    """
    tests = cache(lambda: OverlapWithTraining(hash_examples(examples), dataset))
    records = {}
    for one in found:
        label, name = one.about.label, one.about.classifier
        of = [name, one.about.fingerprint, dataset, len(examples)]
        record = stages.find(f"overlap/{label}", of)
        if record is None:
            record = stages.keep(f"overlap/{label}", of, tests().measure(name))
        records[label] = {**record, "scores": score_without(one, record["ids"] or (), threshold)}
    return records


def overlap_table(
    records: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Mapping[str, Any]] | None = None
) -> Table:
    """A line a classifier.

    Args:
        records: label -> `overlap`'s record.
        scores: label -> `score_without`'s, for F1 with and without the copies.
    """
    heads = ["images known", "exact", "near", "share", *(["F1", "F1 without"] if scores else []), "not known"]
    lines = []
    for label, record in records.items():
        known = record["reason"] is None
        cells = [record[key] if known else "unknown" for key in ("trained", "exact", "near", "share")]
        if scores:
            of = scores.get(label, {})
            cells += [of.get("f1"), of.get("clean_f1") if known else "unknown"]
        lines.append((label, [*cells, "; ".join(record["not_known"])]))
    note = (
        "Tested images with a copy among the training images that a run's folder leads to: exact (equal pixels) or "
        "near (perceptual hash and thumbnail). What is not known may hold more. F1 without: of images without a copy."
    )
    return Table("Training images in the test set", heads, lines, note)


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
