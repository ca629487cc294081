"""The arithmetic of a cascade around a generator: prompt filter, looks while it draws, student and judge behind it.

**Before the picture is finished, stages only stop.** The prompt filter refuses from a cutoff, before any step; each
look of a detector stops a picture from a cutoff of its own. Neither clears anything. The last stage that there is
decides what is left: the judge, else the student (which passes a narrow band on to the judge), and where nothing reads
the finished picture, the last look.

**What a stage could not read, no later stage releases.** A look that could not judge passes the picture on: later
stages may stop it; if none does, it is unjudged. A prompt that is not read leaves the picture to the other stages, as
in `judge.cascade.stages`, since a prompt alone never clears a picture. With neither looks nor a student nothing does,
and all that is not refused is unjudged. A look that is switched off is not made, and has no part in this.

**Why a miss can only disappear as the level falls** (`GenerationFamily`): the cutoffs of the stages that only stop do
not depend on the level, so the pictures that reach the last stage are the same at every level; what could not be read
does not depend on it either. The last stage's "safe" cutoff can only rise with the level. Where it is student and judge
together, the proof is that of `judge.cascade.stages`. So conformal risk control holds for all stages together, and
stages in front of a calibrated cascade can only lower its misses: what they cost is false alarms.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.calibration.cutoffs import clamp_to_side, shift_to_half, withhold_safe
from judge.errors import ConfigError

from .stages import NEVER, Array, stage_verdict

GENERATION_STAGES = ("filter", "detector", "student", "judge")


@dataclass(frozen=True)
class GenerationScores:
    """p(unsafe) of N pictures by every stage, in [0, 1]; NaN where a stage could not judge."""

    prompt: Array
    """(N,) by the prompt alone; NaN where there is none, or one that is not read."""
    looks: Array
    """(N, S) by S looks of a detector, in the order of the steps; S may be 0."""
    student: Array | None = None
    """(N,) by the finished picture; None where nothing reads it."""
    judge: Array | None = None
    """(N,) by the finished picture; None without a judge."""

    def __post_init__(self) -> None:
        rows = len(self.prompt)
        shapes = [
            self.prompt.shape,
            self.looks.shape[:1],
            *(c.shape for c in (self.student, self.judge) if c is not None),
        ]
        if self.looks.ndim != 2 or any(shape != (rows,) for shape in shapes):
            raise ConfigError(
                f"Scores of {rows} pictures are (N,), those of looks (N, S); got {shapes} and {self.looks.shape}."
            )
        if self.judge is not None and self.student is None:
            raise ConfigError(
                "A judge of finished pictures without a student: give its scores as the student's."
            )

    def __len__(self) -> int:
        return len(self.prompt)

    def rows(self, chosen: Any) -> "GenerationScores":
        """The rows that an index or mask chooses."""
        student = None if self.student is None else self.student[chosen]
        judge = None if self.judge is None else self.judge[chosen]
        return GenerationScores(self.prompt[chosen], self.looks[chosen], student, judge)


@dataclass(frozen=True)
class GenerationCutoffs:
    """Probabilities: a stage stops a picture from its cutoff on; `NEVER` switches it off."""

    prompt: float = NEVER
    looks: tuple[float, ...] = ()
    """One a look, in the order of the steps."""
    student: tuple[float, float] | None = None
    """The student calls a finished picture safe below the first, unsafe from the second; None: nothing reads it."""
    judge: float | None = None
    """The judge calls safe what is below; None without a judge."""

    def __post_init__(self) -> None:
        student, judge = self.student or (), () if self.judge is None else (self.judge,)
        for value in (self.prompt, *self.looks, *student, *judge):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= NEVER:
                raise ConfigError(f"A cutoff is {value!r}; give a probability, or {NEVER} for never.")
        if self.student is not None and self.student[0] > self.student[1]:
            raise ConfigError(
                "The student calls safe below {:g} and unsafe from {:g}; they cross.".format(*self.student)
            )
        if self.student is None and self.judge is not None:
            raise ConfigError(
                "A judge's cutoff without a student's; give the only reader of pictures as the student."
            )
        if self.student is not None and self.judge is None and self.student[0] != self.student[1]:
            raise ConfigError(
                "The student has a band of doubt and no judge behind it; give it one cutoff twice."
            )

    @property
    def looks_on(self) -> NDArray[np.bool_]:
        """(S,) looks that can stop a picture; the others are not made."""
        return np.array(self.looks, dtype=np.float64) <= 1

    @property
    def uses_prompt_filter(self) -> bool:
        """Whether the prompt filter can refuse; if not, no prompt need be encoded for it."""
        return self.prompt <= 1


@dataclass(frozen=True)
class GenerationDecisions:
    """What became of N pictures."""

    stage: NDArray[np.int64]
    """(N,) index into `GENERATION_STAGES` of the stage that decided, or of the last one where none could."""
    look: NDArray[np.int64]
    """(N,) index of the look that stopped the picture; -1 where none did."""
    unsafe: Array
    """(N,) p(unsafe) shifted so that 0.5 is the deciding stage's cutoff; NaN where none could decide."""

    @property
    def released(self) -> NDArray[np.bool_]:
        """(N,) pictures that leave; what is unjudged does not."""
        return self.unsafe < 0.5


def decide_generation(scores: GenerationScores, cutoffs: GenerationCutoffs) -> GenerationDecisions:
    """Run N pictures through the stages, given the scores of all stages.

    Raises:
        ConfigError: other stages than the cutoffs are for.
    """
    _check_stages(scores, cutoffs)
    refused, on = scores.prompt >= cutoffs.prompt, cutoffs.looks_on
    unsafe = np.where(refused, stop_score(scores.prompt, cutoffs.prompt), np.nan)
    over = scores.looks >= np.array(cutoffs.looks)  # (N, S); NaN is not over
    stopped = over.any(axis=1) & ~refused
    look = np.where(stopped, over.argmax(axis=1) if over.shape[1] else -1, -1)
    for place, cutoff in enumerate(cutoffs.looks):
        unsafe = np.where(look == place, stop_score(scores.looks[:, place], cutoff), unsafe)
    stage = np.where(refused, 0, int(on.any()))
    unread = np.isnan(scores.looks[:, on]).any(axis=1)
    if scores.student is None or cutoffs.student is None:
        return GenerationDecisions(
            stage, look, np.where(np.isnan(unsafe), release_score(scores, cutoffs), unsafe)
        )
    later: list[tuple[Array, float, float]] = [(scores.student, *cutoffs.student)]
    if scores.judge is not None and cutoffs.judge is not None:
        later.append((scores.judge, cutoffs.judge, cutoffs.judge))
    for number, (column, safe, flagged) in enumerate(later, start=2):
        left = np.isnan(unsafe)
        unread = unread | np.isnan(column)
        unsafe = np.where(left, withhold_safe(stage_verdict(column, safe, flagged), unread), unsafe)
        stage = np.where(left, number, stage)
    return GenerationDecisions(stage, look, unsafe)


def stop_score(probability: Array, cutoff: float) -> Array:
    """p(unsafe) (N,) of pictures that a stage stops, shifted so that its cutoff is 0.5; never below it."""
    sides = np.ones(len(probability), dtype=np.int64)
    return clamp_to_side(shift_to_half(probability, sides, cutoff, cutoff), sides)


def release_score(scores: GenerationScores, cutoffs: GenerationCutoffs) -> Array:
    """(N,) shifted p(unsafe) of pictures that no look stopped and nothing else reads; below 0.5, or NaN if unread."""
    on = cutoffs.looks_on
    if not on.any():
        return np.full(len(scores), np.nan)
    limits = np.array(cutoffs.looks)[on][None]
    looks = scores.looks[:, on]
    # `max` keeps NaN: a picture that one look could not judge is not released.
    shifted = shift_to_half(looks, np.full_like(looks, -1, dtype=np.int64), limits, limits).max(axis=1)
    return clamp_to_side(shifted, np.where(np.isnan(shifted), 0, -1))


def _check_stages(scores: GenerationScores, cutoffs: GenerationCutoffs) -> None:
    given = (scores.looks.shape[1], scores.student is not None, scores.judge is not None)
    wanted = (len(cutoffs.looks), cutoffs.student is not None, cutoffs.judge is not None)
    if given != wanted:
        words = "{} looks, student: {}, judge: {}"
        raise ConfigError(
            f"Scores of {words.format(*given)}, but cutoffs for {words.format(*wanted)}; give the same."
        )
