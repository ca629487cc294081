"""How well each classifier finds what, from predictions: the numbers of the paper's sections 3.4 and 4.1.

Unjudged is an error in every number: an unjudged unsafe image is missed, an unjudged safe one a false alarm.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from eval.metrics.arrays import average_precision, calibration_error, ratio, roc_auc

from .aligned import ALL, Aligned, Answers, align, check_alike
from .bootstrap import DRAWS
from .cells import Cells, compare_to_best, count_cells, defined, mean_by_category, measure_cells, whole_truth
from .naming import category_accuracy, name_unseen
from .predictions import Predictions
from .severity import measure_severity

_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?")
_REASONS = 30
"""Most reasons that are told apart."""


def measure(
    all_predictions: Sequence[Predictions],
    threshold: float = 0.5,
    *,
    held_out: Sequence[str] = (),
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Every number of a benchmark, as JSON types, None where undefined.

    A **cell** of a category is about the images that violate it against those that violate nothing, where the data set
    says so only those that were collected for it; the verdict is the category's own score. Images for which it is
    unknown are left out (`left_out` of a category). **Overall** is the whole verdict against the whole truth, for
    classifiers that cover everything; **covered** the same on the images of the categories that one covers. AUC,
    average precision and calibration error are of the whole verdict on all images, where unsafe is what violates any
    category that was asked about.

    Intervals are percentile bootstraps over images (Wilson's where all samples are alike), from one set of samples
    for all classifiers; `behind_best` and its interval are paired. They do not know of the luck in choosing the best.

    Under the paper's rules some classifiers are asked about more splits than others. Only those of the same splits are
    compared to each other; `images` and `left_out` are of the largest group.

    Args:
        all_predictions: of each classifier, on the same images under the same taxonomy.
        threshold: score from which an image is flagged.
        held_out: keys of categories that classifiers were not trained on, for `naming`.
        draws: samples of the bootstrap.
        seed: of the samples.

    Raises:
        MetricError: the predictions do not compare (`align`), or `held_out` is not in the taxonomy.
    """
    groups = _groups(all_predictions)
    sources = sorted({row.source for one in all_predictions for row in one.rows})
    first = align(groups[0], sources)
    records: dict[str, Any] = {}
    cells: list[Cells] = []
    for aligned in (first, *(align(group, sources) for group in groups[1:])):
        counted = [count_cells(aligned, answers, threshold) for answers in aligned.answers]
        labels = [answers.about.label for answers in aligned.answers]
        found = dict(zip(labels, measure_cells(counted, draws, seed), strict=True))
        compare_to_best(found)
        cells += found.values()
        records |= {
            answers.about.label: {
                **_record(aligned, answers, found[answers.about.label], threshold),
                "severity": measure_severity(aligned, answers, threshold, draws=draws, seed=seed),
                "naming": name_unseen(aligned, answers, held_out, threshold),
            }
            for answers in aligned.answers
        }
    keys, left_out = first.taxonomy.keys, count_left_out(first)
    return {
        "threshold": threshold,
        "protocol": first.protocol,
        "taxonomy_hash": first.taxonomy.hash,
        "dataset": first.answers[0].about.dataset,
        "images": len(first.images.ids),
        "sources": list(first.images.sources),
        "categories": [
            {"key": one.key, "name": one.name, "left_out": left_out[one.key]} for one in first.taxonomy
        ],
        "by_category": mean_by_category(cells, keys, (ALL, *first.images.sources)),
        "classifiers": {one.about.label: records[one.about.label] for one in all_predictions},
    }


def _groups(all_predictions: Sequence[Predictions]) -> list[list[Predictions]]:
    """Those that were asked about the same splits, the most images first."""
    check_alike([one.about for one in all_predictions])
    groups: dict[tuple[str, ...], list[Predictions]] = {}
    for one in all_predictions:
        groups.setdefault(tuple(sorted(one.about.splits)), []).append(one)
    return sorted(groups.values(), key=lambda group: -max(len(one.rows) for one in group))


def _record(aligned: Aligned, answers: Answers, cells: Cells, threshold: float) -> dict[str, Any]:
    """The numbers of one classifier."""
    about, rows = answers.about, len(answers.rows)
    known, truth = whole_truth(aligned.images, answers)
    judged = (truth[known], answers.unsafe[known])
    seconds = answers.seconds[np.isfinite(answers.seconds)]
    each = float(seconds.mean()) if len(seconds) else math.nan
    return {
        "group": about.group,
        "classifier": about.classifier,
        "covers": list(cells.counted.keys),
        "splits": list(about.splits),
        "rows": rows,
        "unjudged": len(answers.reasons),
        "unjudged_share": defined(ratio(len(answers.reasons), rows)),
        "failures": count_failures(answers.reasons),
        "cells": {key: cells.of(column) for column, key in enumerate(cells.counted.keys)},
        "overall": cells.overall if len(cells.counted.keys) == len(aligned.taxonomy) else None,
        "covered": cells.covered,
        "mean_f1": {source: cells.mean_f1(source) for source in cells.counted.sources},
        "auc": defined(roc_auc(*judged)),
        "average_precision": defined(average_precision(*judged)),
        "calibration_error": defined(calibration_error(*judged)),
        "category_accuracy": defined(category_accuracy(aligned, answers, threshold)),
        "cost": {
            "seconds_per_image": defined(each),
            "images_per_second": defined(ratio(1.0, each)),
            "price_per_1000": about.price_per_1000,
        },
    }


def count_left_out(aligned: Aligned) -> dict[str, int]:
    """By category, the images that should be in its cell and are not, as their label does not say on which side.

    Where the data set says what images were collected for: those collected for it that violate only other categories,
    or were not labelled for it; and those that violate it, or nothing, of which nobody says what they were collected
    for. Else: those that were not labelled for it.
    """
    images = aligned.images
    unclear = images.unknown & ~images.violates
    if images.says_collected:
        other = images.violates_any[:, None] & ~images.violates
        unclear = (unclear | other) & (images.collected_for[:, None] == np.arange(len(aligned.taxonomy)))
        unclear |= images.says_nothing[:, None] & ~other
    return dict(zip(aligned.taxonomy.keys, map(int, unclear.sum(axis=0)), strict=True))


def count_failures(reasons: Iterable[tuple[str, str | None]]) -> dict[str, int]:
    """Reasons of unjudged rows, without what differs from image to image -> their number, the most frequent first.

    Args:
        reasons: (id of the image, reason) of each.
    """
    counts = Counter(_general(image, reason) for image, reason in reasons)
    found = dict(counts.most_common(_REASONS))
    others = counts.total() - sum(found.values())
    return found | ({"other reasons": others} if others else {})


def _general(image: str, reason: str | None) -> str:
    """A reason without the image's id and without numbers."""
    text = reason or "no reason given"
    if image in text:  # nearly never, and the pattern is another one for every image
        text = re.sub(rf"(?<!\w){re.escape(image)}(?!\w)", "ID", text)
    return _NUMBERS.sub("N", text)
