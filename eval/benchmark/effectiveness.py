"""How well each classifier finds what, from predictions: the numbers of the paper's sections 3.4 and 4.1.

Unjudged is an error in every number: an unjudged unsafe image is missed, an unjudged safe one a false alarm.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics.arrays import average_precision, calibration_error, ratio, roc_auc

from .aligned import Aligned, Answers, align
from .bootstrap import DRAWS, percentiles, resample
from .predictions import Predictions

ALL = "all"
"""Key of all sources together."""
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?")
_REASONS = 30
"""Most reasons that are told apart."""
Record = dict[str, Any]


def measure(
    all_predictions: Sequence[Predictions], threshold: float = 0.5, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Every number of a benchmark, as JSON types, None where undefined.

    A **cell** of a category is about the images that violate it against those that violate nothing, where the data set
    says so only those that were collected for it; the verdict is the category's own score. Images for which it is
    unknown are left out. **Overall** is the whole verdict against the whole truth, for classifiers that cover
    everything; **covered** the same on the images of the cells of every other classifier. Intervals are percentile
    bootstraps over images.

    Args:
        all_predictions: of each classifier, on the same images under the same taxonomy.
        threshold: score from which an image is flagged.
        draws: samples of the bootstrap.
        seed: of the samples.

    Raises:
        MetricError: the predictions do not compare (`align`).
    """
    aligned = align(all_predictions)
    counted = [_count(aligned, answers, threshold) for answers in aligned.answers]
    drawn = resample([one.outcomes for one in counted], draws, seed)
    cells = [_cells(one, samples) for one, samples in zip(counted, drawn, strict=True)]
    return {
        "threshold": threshold,
        "protocol": aligned.protocol,
        "taxonomy_hash": aligned.taxonomy.hash,
        "dataset": aligned.answers[0].about.dataset,
        "images": len(aligned.images.ids),
        "sources": list(aligned.images.sources),
        "categories": [{"key": one.key, "name": one.name} for one in aligned.taxonomy],
        "classifiers": {
            answers.about.label: _record(aligned, answers, found, threshold)
            for answers, found in zip(aligned.answers, cells, strict=True)
        },
    }


@dataclass(frozen=True)
class _Counted:
    """What happened to each of N images in each of C columns: the covered categories, then overall and covered."""

    names: tuple[str, ...]
    """C names."""
    sources: tuple[str, ...]
    """S names: all, then each."""
    outcomes: NDArray[np.bool_]
    """(N, C, S, 3): found, false alarm, missed."""
    members: NDArray[np.int64]
    """(C, S) images."""
    unsafe: NDArray[np.int64]
    """(C, S) of which unsafe."""
    unjudged: NDArray[np.int64]
    """(C, S) of which unjudged."""


def _count(aligned: Aligned, answers: Answers, threshold: float) -> _Counted:
    images, covered = aligned.images, answers.covered
    keys = [aligned.taxonomy.keys[place] for place in covered]
    member = cell_members(aligned, answers)[:, covered]  # (N, K')
    known, truth = whole_truth(aligned, answers)
    pooled = known & (member.any(axis=1) if images.says_collected else True)
    everything = len(covered) == len(aligned.taxonomy)
    # Columns: the covered categories, overall (without any image for those that do not cover everything), covered.
    columns = np.column_stack([member, known & everything, pooled])
    positive = np.column_stack([images.violates[:, covered], truth, truth])
    score = np.column_stack([answers.scores[:, covered], answers.unsafe, answers.unsafe])
    flagged = np.where(np.isnan(score), ~positive, score >= threshold)
    outcome = np.stack([positive & flagged, ~positive & flagged, positive & ~flagged], axis=-1)  # (N, C, 3)
    of_source = images.source[:, None] == np.arange(len(images.sources))
    of_source = np.column_stack([np.ones(len(of_source), dtype=np.bool_), of_source])  # (N, S)
    within = columns[:, :, None] & of_source[:, None, :]  # (N, C, S)
    return _Counted(
        (*keys, "overall", "covered"),
        (ALL, *images.sources),
        outcome[:, :, None, :] & within[..., None],
        within.sum(axis=0),
        (within & positive[:, :, None]).sum(axis=0),
        (within & np.isnan(score)[:, :, None]).sum(axis=0),
    )


def cell_members(aligned: Aligned, answers: Answers) -> NDArray[np.bool_]:
    """(N, K): whether an image is in the cell of a category that this classifier was asked about."""
    images = aligned.images
    safe = ~images.violates_any[:, None] & ~images.unknown
    member = answers.asked & (images.violates | safe)
    if images.says_collected:
        member &= images.collected_for[:, None] == np.arange(len(aligned.taxonomy))
    return member


def whole_truth(aligned: Aligned, answers: Answers) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) whether the classifier has a row whose truth is known, and (N,) whether it is unsafe."""
    images, asked = aligned.images, answers.asked
    truth: NDArray[np.bool_] = np.logical_or.reduce(images.violates & asked, axis=1)
    has_row = np.zeros(len(images.ids), dtype=np.bool_)
    has_row[answers.rows] = True
    return has_row & (truth | ~(images.unknown & asked).any(axis=1)), truth


def _rates(outcomes: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Counts (..., 3) of found, false alarms and missed -> F1, precision and recall, (...) each; NaN if undefined."""
    found, alarms, missed = (outcomes[..., place].astype(np.float64) for place in range(3))
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return 2 * found / (2 * found + alarms + missed), found / (found + alarms), found / (found + missed)


def _cells(counted: _Counted, drawn: NDArray[np.float32]) -> dict[str, dict[str, Record]]:
    """Column -> source -> cell; `drawn` (draws, C, S, 3) are counts in samples."""
    values = _rates(counted.outcomes.sum(axis=0))
    intervals = [percentiles(one) for one in _rates(drawn)]
    return {
        name: {
            source: {
                "rows": int(counted.members[c, s]),
                "unsafe_rows": int(counted.unsafe[c, s]),
                **{
                    key: value
                    for rate, one, ends in zip(("f1", "precision", "recall"), values, intervals, strict=True)
                    for key, value in (
                        (rate, _defined(one[c, s])),
                        (f"{rate}_interval", _interval(ends[:, c, s])),
                    )
                },
                "unjudged": int(counted.unjudged[c, s]),
            }
            for s, source in enumerate(counted.sources)
        }
        for c, name in enumerate(counted.names)
    }


def _record(
    aligned: Aligned, answers: Answers, cells: dict[str, dict[str, Record]], threshold: float
) -> Record:
    about, rows = answers.about, len(answers.rows)
    known, truth = whole_truth(aligned, answers)
    judged = (truth[known], answers.unsafe[known])
    everything = len(answers.covered) == len(aligned.taxonomy)
    overall, covered = cells.pop("overall"), cells.pop("covered")
    seconds = answers.seconds[np.isfinite(answers.seconds)]
    each = float(seconds.mean()) if len(seconds) else math.nan
    return {
        "group": about.group,
        "classifier": about.classifier,
        "covers": [aligned.taxonomy.keys[place] for place in answers.covered],
        "rows": rows,
        "unjudged": len(answers.reasons),
        "unjudged_share": _defined(ratio(len(answers.reasons), rows)),
        "failures": count_failures(answers.reasons),
        "cells": cells,
        "overall": overall if everything else None,
        "covered": covered,
        "auc": _defined(roc_auc(*judged)),
        "average_precision": _defined(average_precision(*judged)),
        "calibration_error": _defined(calibration_error(*judged)),
        "category_accuracy": _defined(category_accuracy(aligned, answers, threshold)),
        "cost": {
            "seconds_per_image": _defined(each),
            "images_per_second": _defined(ratio(1.0, each)),
            "price_per_1000": about.price_per_1000,
        },
        "severity": None,
    }


def category_accuracy(aligned: Aligned, answers: Answers, threshold: float = 0.5) -> float:
    """How often the category with the highest score is one that the image violates.

    Over the unsafe images that were flagged, and those that were not judged, which count as wrong; only images asked
    about two or more categories. Where several categories share the highest score, as they do for a classifier with
    one score for all, the share of them that is violated. NaN without such images.
    """
    known, truth = whole_truth(aligned, answers)
    unjudged = np.isnan(answers.unsafe)
    several = answers.asked.sum(axis=1) > 1
    rows = known & truth & several & (unjudged | (answers.unsafe >= threshold))
    if not rows.any():
        return math.nan
    scores = np.where(answers.asked & ~unjudged[:, None], answers.scores, np.nan)[rows]
    highest = scores == np.fmax.reduce(
        scores, axis=1, keepdims=True, initial=np.nan
    )  # all False without any score
    right = (highest & aligned.images.violates[rows]).sum(axis=1)
    return float(np.mean(right / np.maximum(1, highest.sum(axis=1))))


def count_failures(reasons: Iterable[tuple[str, str | None]]) -> dict[str, int]:
    """Reasons of unjudged rows, without what differs from image to image -> their number, the most frequent first.

    Args:
        reasons: (id of the image, reason) of each.
    """
    counts = Counter(_without_numbers(image, reason) for image, reason in reasons)
    found = dict(counts.most_common(_REASONS))
    others = counts.total() - sum(found.values())
    return found | ({"other reasons": others} if others else {})


def _without_numbers(image: str, reason: str | None) -> str:
    text = re.sub(rf"(?<!\w){re.escape(image)}(?!\w)", "ID", reason or "no reason given")
    return _NUMBERS.sub("N", text)


def _defined(value: float) -> float | None:
    """As JSON has no NaN, None for it."""
    return float(value) if math.isfinite(value) else None


def _interval(ends: NDArray[np.float64]) -> list[float] | None:
    return [float(one) for one in ends] if np.isfinite(ends).all() else None
