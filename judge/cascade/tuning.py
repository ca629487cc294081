"""Tuning a cascade: how cutoffs depend on one level, which such families to try, and the level that keeps a promise."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from judge.calibration.conformal import average_by, conformal_level
from judge.errors import ConfigError

from .stages import NEVER, Array, Cutoffs, StageScores, decide

LEVELS: tuple[float, ...] = (0.0, *(float(level) for level in np.geomspace(1e-4, 1.0, 300)))
"""The levels that are tried, strict to lenient; chosen beforehand, never from data."""


@dataclass(frozen=True)
class CascadeShape:
    """What fixes a family of cutoffs: how the stages share the budget of misses, and where they are sure enough.

    A share is multiplied by the level: at level 0.02, a share of 0.5 puts a stage's "safe" cutoff at the 1 % quantile
    of its scores on unsafe tuning rows. With a share of 0 a stage never calls anything safe.
    """

    image: float = 0.25
    student: float = 0.5
    judge: float = 0.5
    text_precision: float = 0.99
    """The text filter calls unsafe from the score above which this share of the tuning rows is; above 1, never."""
    image_precision: float = 0.99
    band: float = 0.05
    """Share of the tuning rows that the student is unsure of, most of which the filter may have settled."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= (NEVER if name.endswith("precision") else 1):
                raise ConfigError(f"{name} of a cascade's shape is {value!r}; it is a share from 0 to 1.")


class CutoffFamily:
    """Cutoffs as a function of one level, fixed by a shape and the tuning rows."""

    def __init__(self, scores: StageScores, unsafe: NDArray[np.bool_], shape: CascadeShape) -> None:
        """Fit the family to N tuning rows.

        Args:
            scores: of the rows.
            unsafe: (N,) the truth.
            shape: of the cutoffs.

        Raises:
            ConfigError: no unsafe or no safe row.
        """
        if not unsafe.any() or unsafe.all():
            raise ConfigError(
                f"The tuning set has {int(unsafe.sum())} unsafe and {int((~unsafe).sum())} safe examples; it takes "
                "both. Add the missing kind, or tune on another split."
            )
        self.shape, self.with_judge = shape, scores.judge is not None
        judge = scores.student if scores.judge is None else scores.judge
        # Without a judge its cutoff is never used; the student's scores only fill the place.
        columns = {"image": scores.image, "student": scores.student, "judge": judge}
        self._unsafe = {name: _sorted_judged(column[unsafe]) for name, column in columns.items()}
        # All rows, safe and unsafe: the band is a share of the rows that arrive, whatever they are.
        self._student = _sorted_judged(scores.student)
        self._band = round(shape.band * len(scores)) if self.with_judge else 0
        self.text_unsafe = precise_cutoff(scores.text, unsafe, shape.text_precision)
        self.image_unsafe = precise_cutoff(scores.image, unsafe, shape.image_precision)

    def at(self, level: float) -> Cutoffs:
        """The cutoffs at a level from 0 to 1."""
        low = {
            name: _quantile(ranked, level * getattr(self.shape, name))
            for name, ranked in self._unsafe.items()
        }
        high = low["student"]
        if self._band:
            # Counted in rows and not in probability, so that the band keeps its size wherever the level puts it.
            # The first score beyond the band's rows; past the last row there is none, and nothing is called unsafe.
            top = int(np.searchsorted(self._student, high)) + self._band
            high = float(self._student[top]) if top < len(self._student) else NEVER
        return Cutoffs(
            text_unsafe=self.text_unsafe,
            image_safe=low["image"],
            image_unsafe=self.image_unsafe,
            student_safe=low["student"],
            student_unsafe=high,
            judge=low["judge"],
        )

    def losses(self, scores: StageScores, levels: Sequence[float] = LEVELS) -> NDArray[np.bool_]:
        """(N, L) whether each of N unsafe rows is called safe at each of L levels.

        Monotone along a row, as `judge.cascade.stages` proves.
        """
        return np.stack([decide(scores, self.at(level)).safe for level in levels], axis=1)


def precise_cutoff(
    probability: Array, unsafe: NDArray[np.bool_], precision: float, min_rows: int = 20
) -> float:
    """The lowest cutoff with at least `precision` of the rows from it on unsafe, and at least `min_rows` such rows.

    Args:
        probability: (N,) in [0, 1], NaN where not judged.
        unsafe: (N,) the truth.
        precision: share of unsafe rows, 0 to 1; above 1 there is no such cutoff.
        min_rows: rows that the cutoff has to rest on.

    Returns:
        The cutoff; `NEVER` where there is none.
    """
    judged = ~np.isnan(probability)
    # From the highest score down; after each row, `hits` of `counts` rows so far are unsafe.
    order = np.argsort(-probability[judged])
    ranked, hits = probability[judged][order], np.cumsum(unsafe[judged][order])
    counts = np.arange(1, len(ranked) + 1)
    ends = np.append(np.diff(ranked) != 0, True)[: len(ranked)]  # a cutoff cannot separate rows of one score
    enough = np.flatnonzero(ends & (hits >= precision * counts) & (counts >= min_rows))
    return float(ranked[enough[-1]]) if len(enough) else NEVER


def choose_level(
    family: CutoffFamily,
    scores: StageScores,
    promise: float,
    *,
    images: Sequence[Hashable] | None = None,
    levels: Sequence[float] = LEVELS,
) -> float:
    """The most lenient level whose corrected total miss rate on N unsafe calibration rows keeps the promise.

    Rows that the most lenient level leaves undecided, as a stage failed on them, go to a person and are left out, as in
    `judge.calibration.conformal`. They are no miss at any level, so the promise holds with them too.

    Args:
        family: the cutoffs, tuned on other rows.
        scores: of the unsafe calibration rows.
        promise: total miss rate, between 0 and 1.
        images: N ids, where an image may stand in several rows: the promise is then about the mean over images.
        levels: from strict to lenient, the first 0.

    Raises:
        ConfigError: too few rows for the promise; the message says how many it takes.
    """
    return levels[conformal_level(decided_losses(family, scores, images=images, levels=levels), promise)]


def decided_losses(
    family: CutoffFamily,
    scores: StageScores,
    *,
    images: Sequence[Hashable] | None = None,
    levels: Sequence[float] = LEVELS,
) -> Array:
    """The losses that `choose_level` bounds: (N, L) of N unsafe rows at L levels, or (I, L) means over their images."""
    # A row that is undecided at the most lenient level is called safe at no level, so it is a miss at none.
    decided = ~np.isnan(decide(scores, family.at(levels[-1])).unsafe)
    losses = family.losses(scores.rows(decided), levels)
    if images is None:
        return losses.astype(np.float64)
    places = {image: place for place, image in enumerate(dict.fromkeys(images))}
    return average_by(losses, np.array([places[image] for image in images])[decided])


def tune(
    scores: StageScores,
    unsafe: NDArray[np.bool_],
    promise: float,
    *,
    judge_share: float = 0.04,
    costs: Mapping[str, float] | None = None,
    shapes: Sequence[CascadeShape] | None = None,
) -> CutoffFamily:
    """Try shapes on N tuning rows, each at the level that keeps the promise there, and take the best.

    Best is the highest F1 with at most `judge_share` of the rows sent to the judge, also at half and at twice the
    level, as calibration will choose another; of those within 0.002 of it, the cheapest. The promise itself is made
    later, on other rows (`choose_level`), so that trying many shapes does not weaken it.

    Args:
        scores: of the tuning rows.
        unsafe: (N,) the truth.
        promise: total miss rate.
        judge_share: largest share of rows, 0 to 1, that the judge may be asked about.
        costs: seconds a row for `text` (the text filter, where it is on), `student` and `judge`; by default 0.1,
            1 and 10. The encoder and the image filter see every row anyway.
        shapes: what to try; by default `cascade_shapes(judge_share)`.

    Raises:
        ConfigError: unsafe rows only or safe ones only, or no shape keeps to `judge_share`.
    """
    costs = costs or {"text": 0.1, "student": 1.0, "judge": 10.0}
    # The price of a row by the stage that decides it: each later stage is paid on top of the earlier ones.
    price = np.cumsum([0.0, costs["student"], costs.get("judge", 0.0)])
    tried: list[tuple[float, float, CutoffFamily]] = []
    for shape in shapes or cascade_shapes(judge_share, with_judge=scores.judge is not None):
        family = CutoffFamily(scores, unsafe, shape)
        level = _level_by_bisection(family, scores.rows(unsafe), promise)
        cutoffs = family.at(level)
        decided = decide(scores, cutoffs)
        # Calibration will choose another level on its own rows; the judge must not be flooded there either.
        around = [decide(scores, family.at(min(1.0, factor * level))) for factor in (0.5, 2.0)]
        if max(np.mean(found.stage == 2) for found in (decided, *around)) > judge_share:
            continue
        # What no stage could judge counts as an error, whatever it is.
        flagged = np.where(np.isnan(decided.unsafe), ~unsafe, ~decided.safe)
        f1 = 2 * np.sum(flagged & unsafe) / (np.sum(flagged) + np.sum(unsafe))
        cost = price[decided.stage].mean() + costs["text"] * cutoffs.uses_text_filter
        tried.append((float(f1), float(cost), family))
    if not tried:
        raise ConfigError(
            f"No shape sends at most {judge_share:.1%} of the rows to the judge; allow it more."
        )
    best = max(f1 for f1, _, _ in tried)
    return min((entry for entry in tried if entry[0] >= best - 0.002), key=lambda entry: entry[1])[2]


def cascade_shapes(judge_share: float, *, with_judge: bool = True) -> list[CascadeShape]:
    """The shapes that `tune` tries."""
    tried = product(
        (0.0, 0.1, 0.25, 0.5),
        (0.25, 0.5, 1.0),
        (0.25, 0.5, 1.0) if with_judge else (1.0,),
        (0.98, 0.995, NEVER),
        (0.5, 1.0, 1.5, 2.0, 3.0) if with_judge else (0.0,),
    )
    return [
        CascadeShape(image, student, judge, 0.99, precision, min(1.0, band * judge_share))
        for image, student, judge, precision, band in tried
    ]


def _level_by_bisection(family: CutoffFamily, scores: StageScores, promise: float) -> float:
    """`choose_level` in 9 steps instead of 301, as the losses are monotone in the level."""
    low, high = 0, len(LEVELS) - 1
    rows = len(scores)
    while low < high:
        middle = (low + high + 1) // 2
        # The same bound as `conformal_level`, for whole rows.
        missed = int(decide(scores, family.at(LEVELS[middle])).safe.sum())
        low, high = (middle, high) if (missed + 1) / (rows + 1) <= promise else (low, middle - 1)
    return LEVELS[low]


def _sorted_judged(column: Array) -> Array:
    return np.sort(column[~np.isnan(column)])


def _quantile(ranked: Array, q: float) -> float:
    """A lower quantile that is 0 at q = 0, the largest value at q = 1, and never falls between."""
    return float(np.interp(q * len(ranked), np.arange(len(ranked) + 1), np.concatenate([[0.0], ranked])))
