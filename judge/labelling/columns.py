"""Scores of a block -> the columns of its verdicts.

Most rows are plain: one view, a score for every category, nothing to remark. Their verdicts are arithmetic on whole
columns, a hundred times as fast as one `Verdict` after the other. All others go through the functions that
`arbiter judge` uses; a test holds both ways to be equal.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from judge.data.frames import Frames
from judge.protocol import Scores, on_one_scale, rows_of
from judge.verdicts.from_scores import unjudged, verdict_of_frames, verdicts_from_scores
from judge.verdicts.rows import Judging
from prompts.verdict import DEFAULT_THRESHOLD, Verdict

from .rows import Opened, Status
from .writer import verdict_type

_TEXTS = ("status", "category", "decided_by", "because", "reason", "note", "frame")


class Labels(NamedTuple):
    """What a block's rows say under one taxonomy."""

    verdicts: Any
    """`pyarrow.StructArray` of `verdict_type`, one element a row of the block."""
    problems: dict[int, tuple[Status, str]]
    """Row -> why it has no verdict, of those whose image was opened."""


def label_block(rows: Sequence[Opened], scores: Scores | None, judging: Judging) -> Labels:
    """The verdicts on a block's rows under one taxonomy.

    Args:
        rows: B rows.
        scores: of all V views of these rows, in order; None where there is no view at all.
        judging: the taxonomy and its thresholds.
    """
    columns = _Columns(len(rows), judging)
    first = np.cumsum([0, *(row.views for row in rows)])  # (B + 1,) the view that each row starts with
    plain: set[int] = set()
    if scores is not None:
        scores = on_one_scale(scores)
        found = _plain_rows(rows, scores, first, columns.limits)
        columns.fill(found, first[found], scores)
        plain = set(found.tolist())
    problems: dict[int, tuple[Status, str]] = {}
    for row, opened in enumerate(rows):
        if row in plain:
            continue
        if opened.problem is not None or scores is None:
            columns.put(row, unjudged(str(opened.problem), judging.taxonomy, judging.model), "")
            continue
        views = rows_of(scores, int(first[row]), int(first[row + 1]))
        verdict, frame, status = _conclude(opened, views, judging)
        columns.put(row, verdict, frame)
        if verdict.status == "unjudged":
            problems[row] = status, str(verdict.reason)
    return Labels(columns.array(), problems)


def _plain_rows(
    rows: Sequence[Opened], scores: Scores, first: NDArray[Any], limits: NDArray[np.float64]
) -> NDArray[np.intp]:
    """Rows of one view, judged on every category, on which nothing is to be remarked."""
    single = np.array([row.views == 1 and row.frames is None for row in rows], dtype=bool)
    chosen = np.flatnonzero(single)
    views = first[chosen]
    found = scores.categories[views]  # (R, K)
    fine = np.isfinite(scores.unsafe[views]) & np.isfinite(found).all(axis=1)
    # A threshold other than 0.5 that decides is remarked on (`threshold_note`).
    fine &= ((found >= DEFAULT_THRESHOLD) == (found >= limits)).all(axis=1)
    for texts in (scores.reasons, scores.because, scores.notes):
        if texts is not None:
            fine &= np.array([texts[view] is None for view in views], dtype=bool)
    plain: NDArray[np.intp] = chosen[fine]
    return plain


def _conclude(opened: Opened, scores: Scores, judging: Judging) -> tuple[Verdict, str, Status]:
    """The verdict on an image from the scores of its views, which view it is about, and the status if there is none."""
    verdicts = verdicts_from_scores(
        scores, judging.taxonomy, threshold=judging.threshold, model=judging.model
    )
    if opened.frames is None:
        return verdicts[0], "", "model_error"
    verdict, frame = verdict_of_frames(Frames([], **opened.frames), verdicts)
    # All views are judged, but frames that resemble none of them are not.
    judged = all(one.status != "unjudged" for one in verdicts)
    return verdict, frame, "unsupported" if judged else "model_error"


class _Columns:
    """The columns of B verdicts, filled row by row or many at a time."""

    def __init__(self, count: int, judging: Judging) -> None:
        self.taxonomy = judging.taxonomy
        self.limits = np.array([judging.thresholds[name] for name in self.taxonomy.names])
        self.unsafe = np.full(count, np.nan)
        self.scores = np.full((count, len(self.taxonomy)), np.nan)
        self.texts = {name: np.full(count, None, dtype=object) for name in _TEXTS}

    def fill(self, rows: NDArray[np.intp], views: NDArray[Any], scores: Scores) -> None:
        """Enter the plain `rows` from the scores of their `views`: the rule of `prompts.verdict`, for all at once."""
        found = scores.categories[views]  # (R, K)
        over = found >= self.limits
        flagged = over.any(axis=1)
        # The first of the highest flagged ones, as `max` takes it.
        highest = np.where(over, found, -1.0).argmax(axis=1)
        self.unsafe[rows], self.scores[rows] = scores.unsafe[views], found
        self.texts["status"][rows] = np.where(flagged, "unsafe", "safe")
        names = np.array([*self.taxonomy.names], dtype=object)
        self.texts["category"][rows] = np.where(flagged, names[highest], None)
        decided = scores.decided_by or ("judge",) * len(scores.unsafe)
        self.texts["decided_by"][rows] = np.array(decided, dtype=object)[views]

    def put(self, row: int, verdict: Verdict, frame: str) -> None:
        """Enter one verdict; what is unjudged has no scores."""
        self.texts["status"][row], self.texts["frame"][row] = verdict.status, frame or None
        for name in ("category", "decided_by", "because", "reason", "note"):
            self.texts[name][row] = getattr(verdict, name)
        if verdict.status == "unjudged":
            return
        self.unsafe[row] = np.nan if verdict.unsafe is None else verdict.unsafe
        for place, name in enumerate(self.taxonomy.names):
            self.scores[row, place] = verdict.scores.get(name, np.nan)

    def array(self) -> Any:
        """The columns as one `pyarrow.StructArray` of `verdict_type`."""
        import pyarrow as pa

        kind = verdict_type(self.taxonomy)
        judged = self.texts["status"] != "unjudged"
        columns = {name: pa.array(values, pa.string()) for name, values in self.texts.items()}
        columns["flagged"] = pa.array(self.texts["status"] == "unsafe", mask=~judged)
        columns["unsafe"] = _numbers(self.unsafe)
        columns["scores"] = pa.StructArray.from_arrays(
            [_numbers(column) for column in self.scores.T], fields=list(kind.field("scores").type)
        )
        return pa.StructArray.from_arrays([columns[field.name] for field in kind], fields=list(kind))


def _numbers(values: NDArray[np.float64]) -> Any:
    """(B,) floats as an array in which NaN is null."""
    import pyarrow as pa

    return pa.array(np.ascontiguousarray(values), mask=np.isnan(values))
