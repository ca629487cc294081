"""The cascade's arithmetic: which stage settles a row, and cutoffs that keep a promised total miss rate.

Each stage classify safe below one cutoff, unsafe from another, and passes on what lies between:

- the filter (text and image): settles what one of the two is sure of and the other does not contradict;
- the student: settles all but a narrow band;
- the judge, if there is one: settles what is left. Without it the student has no band.

**What a stage could not read, no later stage calls safe.** It may flag it; if it does not, the row is unjudged. A
prompt too long for filters and student can so not carry an image past them to a judge that reads it just as badly.

**One parameter.** `CutoffFamily.at(level)` gives the cutoffs at a level from 0 (nothing is called safe) to 1. A stage's
"safe" cutoff is a lower quantile of its scores on unsafe tuning rows, at the level times the stage's share. It can only
rise with the level. "Unsafe" cutoffs are fixed (filter), or can only rise with the level too (student).

**Why a miss can only disappear as the level falls.** Let a row be called safe at a low level; then it is at any higher
one. At each stage, what it calls safe grows with the level and what it calls unsafe shrinks: of the filter, "one is
sure of safe and the other not of unsafe" grows because each part does, and "one is sure of unsafe and the other not of
safe" shrinks likewise. What could not be read does not depend on the level. Now take the stage that called the row
safe. Earlier stages did not call it unsafe, so at the higher level they do not either: they call it safe, or pass it
on, and then this stage calls it safe as before. QED.
So the whole cascade is one family of monotone losses, and conformal risk control (`judge.calibration.conformal`) on
rows that had no part in tuning promises its total miss rate, whatever the stages are worth.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from judge.calibration.cutoffs import clamp_to_side, classify, shift_to_half, withhold_safe
from judge.errors import ConfigError

Array = NDArray[np.float64]

STAGES = ("filter", "student", "judge")
NEVER = 2.0
"""A cutoff that no probability reaches."""


@dataclass(frozen=True)
class StageScores:
    """p(unsafe) of N rows by every stage, each (N,) in [0, 1]; NaN where a stage could not judge."""

    text: Array
    image: Array
    student: Array
    judge: Array | None = None

    def __len__(self) -> int:
        return len(self.student)

    def rows(self, chosen: Any) -> "StageScores":
        """The rows that an index or mask chooses."""
        judge = None if self.judge is None else self.judge[chosen]
        return StageScores(self.text[chosen], self.image[chosen], self.student[chosen], judge)


@dataclass(frozen=True)
class Cutoffs:
    """Probabilities: a stage classify safe below `*_safe`, unsafe from `*_unsafe`; 0 and `NEVER` switch it off."""

    text_safe: float
    text_unsafe: float
    image_safe: float
    image_unsafe: float
    student_safe: float
    student_unsafe: float
    judge: float
    """The judge classify safe below it, unsafe from it."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= NEVER:
                raise ConfigError(
                    f"The cutoff {name} is {value!r}; give a probability, or {NEVER} for never."
                )

    @property
    def uses_text_filter(self) -> bool:
        """Whether the text filter can ever be sure; if not, no prompt need be encoded for it."""
        return self.text_safe > 0 or self.text_unsafe <= 1

    def without_judge(self) -> Self:
        """The student settles its band too, as unsafe: nothing is missed that was not missed with the judge.

        Where the cutoffs cross, what lies between them was unsafe before (unsafe goes first), and stays so.
        """
        return replace(self, student_unsafe=min(self.student_safe, self.student_unsafe))


@dataclass(frozen=True)
class Decisions:
    """Verdicts on N rows, and the stages that gave them."""

    stage: NDArray[np.int64]
    """(N,) index into `STAGES` of the stage that decided, or of the last one where none could."""
    unsafe: Array
    """(N,) p(unsafe) shifted so that 0.5 is the deciding stage's cutoff; NaN where none could decide."""

    @property
    def safe(self) -> NDArray[np.bool_]:
        """(N,) rows that were called safe; what is unjudged is not."""
        return self.unsafe < 0.5


@dataclass(frozen=True)
class FilterVerdict:
    """The verdict of stage one on N rows."""

    unsafe: Array
    """(N,) shifted p(unsafe), NaN for rows that are passed on; where both filters are sure, that of the surer."""
    text: NDArray[np.int64]
    """(N,) -1 where the text filter is sure of safe, 1 of unsafe, 0 where it is unsure or has no prompt."""
    image: NDArray[np.int64]
    """(N,) the same of the image filter."""
    by_text: NDArray[np.bool_]
    """(N,) whether `unsafe` is the text filter's."""


def filter_verdict(text: Array, image: Array, cutoffs: Cutoffs) -> FilterVerdict:
    """Stage one: settle what one filter is sure of and the other does not contradict.

    Args:
        text: (N,) p(unsafe) by the prompt, NaN without one.
        image: (N,) p(unsafe) by the image.
        cutoffs: of the cascade.
    """
    text_side = classify(text, cutoffs.text_safe, cutoffs.text_unsafe)
    image_side = classify(image, cutoffs.image_safe, cutoffs.image_unsafe)
    side = np.sign(text_side + image_side)  # 0 where both are unsure, and where they contradict each other
    of_text = shift_to_half(text, text_side, cutoffs.text_safe, cutoffs.text_unsafe)
    of_image = shift_to_half(image, image_side, cutoffs.image_safe, cutoffs.image_unsafe)
    # Distances from 0.5 on the shifted scale, so that filters with different cutoffs can be compared.
    surer = (image_side == 0) | (np.abs(of_text - 0.5) > np.abs(of_image - 0.5))
    by_text = (text_side != 0) & surer
    verdict = clamp_to_side(np.where(by_text, of_text, of_image), side)
    return FilterVerdict(verdict, text_side, image_side, by_text)


def stage_verdict(probability: Array, safe: float, unsafe: float) -> Array:
    """The verdict of a later stage: (N,) p(unsafe) -> (N,) shifted p(unsafe), NaN for what it does not settle."""
    side = classify(probability, safe, unsafe)
    return clamp_to_side(shift_to_half(probability, side, safe, unsafe), side)


def decide(scores: StageScores, cutoffs: Cutoffs) -> Decisions:
    """Run N rows through the stages, given the scores of all stages."""
    unread = np.isnan(scores.image)
    unsafe = withhold_safe(filter_verdict(scores.text, scores.image, cutoffs).unsafe, unread)
    later = [(scores.student, cutoffs.student_safe, cutoffs.student_unsafe)]
    if scores.judge is not None:
        later.append((scores.judge, cutoffs.judge, cutoffs.judge))
    stage = np.zeros(len(unsafe), dtype=np.int64)
    for number, (column, low, high) in enumerate(later, start=1):
        left = np.isnan(unsafe)
        # Cumulative: a row that any stage so far could not score is never called safe by a later one.
        unread = unread | np.isnan(column)
        unsafe = np.where(left, withhold_safe(stage_verdict(column, low, high), unread), unsafe)
        stage[left] = number
    return Decisions(stage, unsafe)
