"""The cells of the paper's Table 4: what a classifier did on the images of one category and source.

Every cell of every classifier is counted at once, as an array of what happened to each image, so that a bootstrap over
images is one product of matrices.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .aligned import ALL, Aligned, Answers, Images
from .bootstrap import percentiles, resample, share_interval

OVERALL, COVERED = "overall", "covered"
"""The two columns that are no category."""
RATES = ("f1", "precision", "recall")
Cell = dict[str, Any]


@dataclass(frozen=True)
class Counted:
    """What a classifier did with each of N images in C columns: the K' categories that it covers, overall, covered."""

    keys: tuple[str, ...]
    """K' keys."""
    sources: tuple[str, ...]
    """S names: all, then each."""
    outcomes: NDArray[np.bool_]
    """(N, C, S, 3): whether it was found, a false alarm, missed."""
    rows: NDArray[np.int64]
    """(C, S) images."""
    unsafe: NDArray[np.int64]
    """(C, S) of them unsafe."""
    unjudged: NDArray[np.int64]
    """(C, S) of them unjudged."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the C columns; a category may have the name of the last two, its place tells them apart."""
        return (*self.keys, OVERALL, COVERED)


def count_cells(aligned: Aligned, answers: Answers, threshold: float) -> Counted:
    """Count each cell of a classifier; an unjudged image is missed if it is unsafe, else a false alarm."""
    images, covered = aligned.images, answers.covered
    member = cell_members(images, answers)[:, covered]  # (N, K')
    known, truth = whole_truth(images, answers)
    everything = len(covered) == len(aligned.taxonomy)
    pooled = known & (np.logical_or.reduce(member, axis=1) if images.says_collected else True)
    # Without `everything`, the column overall has no images.
    columns = np.column_stack([member, known & everything, pooled])  # (N, C)
    positive = np.column_stack([images.violates[:, covered], truth, truth])
    score = np.column_stack([answers.scores[:, covered], answers.unsafe, answers.unsafe])
    flagged = np.where(np.isnan(score), ~positive, score >= threshold)
    outcome = np.stack([positive & flagged, ~positive & flagged, positive & ~flagged], axis=-1)  # (N, C, 3)
    of_source = np.column_stack(
        [np.ones(len(truth), dtype=np.bool_), images.source[:, None] == np.arange(len(images.sources))]
    )  # (N, S)
    within = columns[:, :, None] & of_source[:, None, :]  # (N, C, S)
    return Counted(
        tuple(aligned.taxonomy.keys[place] for place in covered),
        (ALL, *images.sources),
        outcome[:, :, None, :] & within[..., None],
        within.sum(axis=0),
        (within & positive[:, :, None]).sum(axis=0),
        (within & np.isnan(score)[:, :, None]).sum(axis=0),
    )


def cell_members(images: Images, answers: Answers) -> NDArray[np.bool_]:
    """(N, K): whether an image is in the cell of a category, and the classifier was asked about it.

    It is if it violates the category, or nothing at all; where the data set says what images were collected for, only
    those that were collected for this category. Not if it was not labelled for it.
    """
    safe = ~images.violates_any[:, None] & ~images.unknown
    member: NDArray[np.bool_] = answers.asked & (images.violates | safe)
    if images.says_collected:
        member &= images.collected_for[:, None] == np.arange(member.shape[1])
    return member


def whole_truth(images: Images, answers: Answers) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) whether the classifier has a row whose truth is known, and (N,) whether it is unsafe.

    Unsafe: it violates any category that was asked about, or one that nobody names, and all were asked about.
    """
    truth: NDArray[np.bool_] = np.logical_or.reduce(images.violates & answers.asked, axis=1)
    truth |= images.unnamed & np.logical_and.reduce(answers.asked, axis=1)
    has_row = np.zeros(len(images.ids), dtype=np.bool_)
    has_row[answers.rows] = True
    return has_row & (truth | ~np.logical_or.reduce(images.unknown & answers.asked, axis=1)), truth


def rates(outcomes: NDArray[Any]) -> NDArray[np.float64]:
    """Counts (..., 3) of found, false alarms, missed -> (3, ...): F1, precision and recall; NaN where undefined."""
    found, alarms, missed = (outcomes[..., place].astype(np.float64) for place in range(3))
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return np.stack(
            [2 * found / (2 * found + alarms + missed), found / (found + alarms), found / (found + missed)]
        )


@dataclass(frozen=True)
class Cells:
    """The cells of a classifier, and its F1 in each sample of the bootstrap."""

    counted: Counted
    records: Mapping[tuple[int, str], Cell]
    """(place of the column, source) -> cell."""
    drawn_f1: NDArray[np.float64]
    """(draws, C, S)"""

    def of(self, column: int) -> dict[str, Cell]:
        """Source -> cell of one column."""
        return {source: self.records[column, source] for source in self.counted.sources}

    @property
    def overall(self) -> dict[str, Cell]:
        """Source -> cell; without any rows for a classifier that does not cover everything."""
        return self.of(len(self.counted.keys))

    @property
    def covered(self) -> dict[str, Cell]:
        """Source -> cell of the images of all categories that it covers."""
        return self.of(len(self.counted.keys) + 1)

    def mean_f1(self, source: str) -> Cell:
        """Mean F1 of the covered categories in one source, as in the paper's Figure 4, and of how many."""
        place, size = self.counted.sources.index(source), len(self.counted.keys)
        found = [self.records[column, source]["f1"] for column in range(size)]
        defined = [column for column, value in enumerate(found) if value is not None]
        if not defined:
            return {"categories": 0, "f1": None, "f1_interval": None}
        drawn = self.drawn_f1[:, defined, place]
        # A sample without any unsafe image or alarm of a category has no F1 of it, and of no category no mean.
        counts = np.sum(~np.isnan(drawn), axis=1)
        means = np.divide(np.nansum(drawn, axis=1), counts, out=np.full(len(drawn), np.nan), where=counts > 0)
        mean = float(np.mean([found[column] for column in defined]))
        return {"categories": len(defined), "f1": mean, "f1_interval": interval(percentiles(means))}


def measure_cells(all_counted: Sequence[Counted], draws: int, seed: int) -> list[Cells]:
    """The cells of each classifier; all from the same samples of images."""
    drawn = resample([one.outcomes for one in all_counted], draws, seed)
    return [_measured(one, samples) for one, samples in zip(all_counted, drawn, strict=True)]


def _measured(counted: Counted, drawn: NDArray[np.float32]) -> Cells:
    counts = counted.outcomes.sum(axis=0)  # (C, S, 3)
    found, alarms, missed = (counts[..., place] for place in range(3))
    values, samples = rates(counts), rates(drawn)  # (3, C, S) and (3, draws, C, S)
    ends = [
        share_interval(found, errors, sample, transform)
        for errors, sample, transform in zip(
            (alarms + missed, alarms, missed), samples, (f1_of_share, None, None), strict=True
        )
    ]  # of (2, C, S)
    safe = counted.rows - counted.unsafe
    records = {
        (c, source): {
            "rows": int(counted.rows[c, s]),
            "unsafe_rows": int(counted.unsafe[c, s]),
            **{rate: defined(value[c, s]) for rate, value in zip(RATES, values, strict=True)},
            **{f"{rate}_interval": interval(end[:, c, s]) for rate, end in zip(RATES, ends, strict=True)},
            "false_positive_rate": _share(alarms[c, s], safe[c, s]),
            "false_negative_rate": _share(missed[c, s], counted.unsafe[c, s]),
            "unjudged": int(counted.unjudged[c, s]),
        }
        for c in range(len(counted.columns))
        for s, source in enumerate(counted.sources)
    }
    return Cells(counted, records, samples[0])


def f1_of_share(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 from the share of the found among all that are found, missed or a false alarm (the Jaccard index)."""
    return 2 * share / (1 + share)


def compare_to_best(cells: Mapping[str, Cells]) -> None:
    """Add to each cell of a category and overall how far its F1 is below the best one, with a paired interval.

    `best` says whether it has the highest F1 of all classifiers. `behind_best` is the highest F1 minus its own, and
    `behind_best_interval` the 95 % of it; None for the best one itself, and the interval where all samples are alike,
    as those of a few images can be. The best one is chosen on the same images, so a small lead may be luck also where
    the interval leaves out 0.

    Args:
        cells: of each label; their records are added to.
    """
    sources = next(iter(cells.values())).counted.sources
    keys = dict.fromkeys(key for one in cells.values() for key in one.counted.keys)
    for key in (*keys, None):
        for s, source in enumerate(sources):
            _compare(
                [
                    (one.records[column, source], one.drawn_f1[:, column, s])
                    for one in cells.values()
                    if (column := _column(one.counted, key)) is not None
                ]
            )


def _column(counted: Counted, key: str | None) -> int | None:
    """Place of a category's column, or of overall where the key is None."""
    if key is None:
        return len(counted.keys)
    return counted.keys.index(key) if key in counted.keys else None


def _compare(found: Sequence[tuple[Cell, NDArray[np.float64]]]) -> None:
    """Compare the cells of one column and source, each with its F1 in each sample (draws,)."""
    known = [(cell["f1"], -place) for place, (cell, _) in enumerate(found) if cell["f1"] is not None]
    leader = -max(known)[1] if known else None
    for place, (cell, drawn) in enumerate(found):
        cell |= {"best": place == leader, "behind_best": None, "behind_best_interval": None}
        if leader is not None and place != leader and cell["f1"] is not None:
            best, samples = found[leader]
            ends = percentiles(samples - drawn)
            cell["behind_best"] = best["f1"] - cell["f1"]
            # Where all samples are alike, they say nothing about the spread.
            cell["behind_best_interval"] = interval(ends) if ends[0] < ends[1] else None


def mean_by_category(cells: Iterable[Cells], keys: Sequence[str], sources: Sequence[str]) -> dict[str, Any]:
    """For each category how many classifiers cover it, and their mean F1 by source (the paper's Figure 3)."""
    every = list(cells)
    found = {}
    for key in keys:
        covering = [one.of(one.counted.keys.index(key)) for one in every if key in one.counted.keys]
        means = {}
        for source in sources:
            values = [cell[source]["f1"] for cell in covering if cell[source]["f1"] is not None]
            means[source] = float(np.mean(values)) if values else None
        found[key] = {"classifiers": len(covering), "mean_f1": means}
    return found


def defined(value: float) -> float | None:
    """The value; None where it is not finite, as JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def interval(ends: NDArray[np.float64]) -> list[float] | None:
    """(2,) as a list; None where it is undefined."""
    return [float(one) for one in ends] if np.isfinite(ends).all() else None


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None
