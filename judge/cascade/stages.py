"""The cascade's arithmetic: which stage settles a row, and cutoffs that keep a promised total miss rate.

Each stage classify safe below one cutoff, unsafe from another, and passes on what lies between:

- the filter (text and image): settles unsafe what one of the two is sure of and the other does not contradict, and safe
  what the image filter is sure of and the prompt does not make suspicious;
- the student: settles all but a narrow band;
- the judge, if there is one: settles what is left. Without it the student has no band.

**What a stage could not read, no later stage calls safe.** It may flag it; if it does not, the row is unjudged.

**A prompt can only add suspicion.** The text filter is never sure of safe: it may settle unsafe, or contradict an image
filter that is sure of safe, and then the row passes on. So does a row with hidden characters in its prompt, which no
filter settles as safe. Student and judge give the highest score over the image alone and its prompt (`judge.readings`),
so theirs with the prompt is at least theirs without. Hence a row called safe with its prompt is called safe without it:
- by the filter: the image filter was sure of safe, and it does not read the prompt. Without it, it settles safe;
- by the student: the image filter was not sure of unsafe, or the row would be unsafe. Without the prompt it settles
  safe, or passes on to a student whose score is no higher, so below the same cutoff;
- by the judge: the same, and the student's score was below its "unsafe" cutoff. Without the prompt it is no higher, so
  the student settles safe or passes on to a judge whose score is no higher, so below the same cutoff.
What could not be read does not depend on the prompt, as every stage reads the image alone too. QED.

**Conditions on the prompt** are for student and judge: where the image comes nearest to a category with one, the image
filter may be sure of safe, never of unsafe. That depends on image and policy alone, so both proofs hold as before.

**One parameter.** `CutoffFamily.at(level)` gives the cutoffs at a level from 0 (nothing is called safe) to 1. A stage's
"safe" cutoff is a lower quantile of its scores on unsafe tuning rows, at the level times the stage's share. It can only
rise with the level. "Unsafe" cutoffs are fixed (filter), or can only rise with the level too (student).

**Why a miss can only disappear as the level falls.** Let a row be called safe at a low level; then it is at any higher
one. At each stage, what it calls safe grows with the level and what it calls unsafe shrinks: of the filter, "image sure
of safe, text not of unsafe, nothing hidden" grows because its first part does and the others stay; "image sure of
unsafe, or text sure of it and image not of safe" shrinks likewise. What could not be read does not depend on the level.
Now take the stage that called the row safe. Earlier stages did not call it unsafe, so at the higher level they do not
either: they call it safe, or pass it on, and then this stage calls it safe as before. QED.
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
    hidden: NDArray[np.bool_] | None = None
    """(N,) whether there are hidden characters in the prompt; None for none in any."""
    conditional: NDArray[np.bool_] | None = None
    """(N,) whether the image comes nearest to a category with a condition on the prompt; None for no row."""

    def __len__(self) -> int:
        return len(self.student)

    def rows(self, chosen: Any) -> "StageScores":
        """The rows that an index or mask chooses."""
        judge = None if self.judge is None else self.judge[chosen]
        hidden = None if self.hidden is None else self.hidden[chosen]
        conditional = None if self.conditional is None else self.conditional[chosen]
        return StageScores(
            self.text[chosen], self.image[chosen], self.student[chosen], judge, hidden, conditional
        )


@dataclass(frozen=True)
class Cutoffs:
    """Probabilities: a stage classify safe below `*_safe`, unsafe from `*_unsafe`; 0 and `NEVER` switch it off."""

    text_unsafe: float
    """The text filter is never sure of safe."""
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
        return self.text_unsafe <= 1

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
    """(N,) 1 where the text filter is sure of unsafe, 0 where it is not or has no prompt."""
    image: NDArray[np.int64]
    """(N,) 1 where the image filter is sure of unsafe, -1 of safe, 0 where it is unsure."""
    by_text: NDArray[np.bool_]
    """(N,) whether `unsafe` is the text filter's."""


def filter_verdict(
    text: Array,
    image: Array,
    cutoffs: Cutoffs,
    hidden: NDArray[np.bool_] | None = None,
    conditional: NDArray[np.bool_] | None = None,
) -> FilterVerdict:
    """Stage one: settle what one filter is sure of and the other does not contradict.

    Args:
        text: (N,) p(unsafe) by the prompt, NaN without one.
        image: (N,) p(unsafe) by the image.
        cutoffs: of the cascade.
        hidden: (N,) hidden characters in the prompt: not settled as safe; None for none.
        conditional: (N,) nearest to a category with a condition: the image filter is not sure of unsafe; None for none.
    """
    text_side = (text >= cutoffs.text_unsafe).astype(np.int64)
    image_side = classify(image, cutoffs.image_safe, cutoffs.image_unsafe)
    if conditional is not None:
        image_side = np.where(conditional, np.minimum(image_side, 0), image_side)
    side = np.sign(text_side + image_side)  # 0 where both are unsure, and where they contradict each other
    if hidden is not None:
        side = np.where(hidden, np.maximum(side, 0), side)
    of_text = shift_to_half(text, text_side, cutoffs.text_unsafe, cutoffs.text_unsafe)
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
    first = filter_verdict(scores.text, scores.image, cutoffs, scores.hidden, scores.conditional)
    unsafe = withhold_safe(first.unsafe, unread)
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
