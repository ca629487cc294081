"""Cutoffs of a cascade around a generator: who may stop early at what price, and the level that keeps a promise.

Two budgets. **Misses** are bounded by conformal risk control over all stages together, as in `judge.cascade.tuning`:
the last stage's cutoff moves with one level. **False alarms** of the stages that stop early are bounded by the same
theorem with the sides exchanged: a shape says how the stages share them, and one factor moves all their cutoffs, as far
as they together stop (stopped + 1) / (n + 1) <= budget of n safe tuning pictures. Looks that stop the same pictures so
get more than their shares. Where several shapes are tried (`tune_generation`), this is measured, not promised.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from judge.calibration.conformal import average_by, conformal_level
from judge.errors import ConfigError

from .generation_stages import GenerationCutoffs, GenerationScores, decide_generation
from .generation_work import Prices, work_of
from .stages import NEVER, Array
from .tuning import LEVELS

DIVISIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Parts of the budget of false alarms that the prompt filter may get, the looks share the rest."""
SLOPES = (0.25, 1.0, 4.0)
"""How often more of the looks' part each look gets than the one before it."""
FACTOR_STEPS = 12
COARSE = LEVELS[::6]
"""Levels that are tried while tuning; the promise itself is made with all of them."""


@dataclass(frozen=True)
class GenerationShape:
    """What fixes a family of cutoffs: shares of safe pictures that each early stage may stop, and the last stage's."""

    prompt: float = 0.01
    looks: tuple[float, ...] = ()
    """One a look. Where nothing reads the finished picture, the last look decides, and its share is not used."""
    judge: float = 0.5
    """The judge's share of the level; the student's is 0.5, or 1 without a judge."""
    band: float = 0.05
    """Share of the finished pictures that the student passes on to the judge, where there is one."""

    def __post_init__(self) -> None:
        for value in (self.prompt, *self.looks, self.judge, self.band):
            if not 0 <= value <= 1:
                raise ConfigError(f"A share is {value!r}; it lies from 0 to 1.")


class GenerationFamily:
    """Cutoffs as a function of one level, from 0 (nothing is released) to 1, fixed by a shape and the tuning rows."""

    def __init__(self, scores: GenerationScores, unsafe: NDArray[np.bool_], shape: GenerationShape) -> None:
        """Fit the family to N tuning pictures that were all finished.

        Args:
            scores: of the pictures, by the stages that there will be.
            unsafe: (N,) the truth about the finished pictures.
            shape: of the cutoffs.

        Raises:
            ConfigError: no unsafe or no safe picture, another number of looks, or no stage that could release any.
        """
        if not unsafe.any() or unsafe.all():
            raise ConfigError(
                f"The tuning set has {int(unsafe.sum())} unsafe and {int((~unsafe).sum())} safe pictures; it takes "
                "both. Add the missing kind, or tune on another split."
            )
        if len(shape.looks) != scores.looks.shape[1]:
            raise ConfigError(
                f"Shares for {len(shape.looks)} looks, scores of {scores.looks.shape[1]}; one each."
            )
        if scores.student is None and not shape.looks:
            raise ConfigError("Neither a look nor a student judges the pictures, so none can be released.")
        self.shape = shape
        safe = scores.rows(~unsafe)
        self.prompt, self.looks = early_cutoffs(safe, shape, last_decides=scores.student is None)
        self.with_student, self.with_judge = scores.student is not None, scores.judge is not None
        last = scores.looks[:, -1] if scores.student is None else scores.student
        self._last = _sorted_judged(last[unsafe])
        self._judge = None if scores.judge is None else _sorted_judged(scores.judge[unsafe])
        self._band = round(shape.band * len(scores)) if self.with_judge else 0
        self._all = _sorted_judged(last)

    def at(self, level: float) -> GenerationCutoffs:
        """The cutoffs at a level."""
        if not self.with_student:
            return GenerationCutoffs(self.prompt, (*self.looks[:-1], _quantile(self._last, level)))
        low = _quantile(self._last, level * (0.5 if self.with_judge else 1.0))
        high = low
        if self._band:
            # Counted in rows, so that the band keeps its size wherever the level puts it.
            top = int(np.searchsorted(self._all, low)) + self._band
            high = max(low, float(self._all[top])) if top < len(self._all) else NEVER
        judge = None if self._judge is None else _quantile(self._judge, level * self.shape.judge)
        return GenerationCutoffs(self.prompt, self.looks, (low, high), judge)

    def losses(self, scores: GenerationScores, levels: Sequence[float] = LEVELS) -> NDArray[np.bool_]:
        """(N, L) whether each of N unsafe pictures is released at each of L levels; monotone along a row."""
        return np.stack([decide_generation(scores, self.at(level)).released for level in levels], axis=1)


def early_cutoffs(
    safe: GenerationScores, shape: GenerationShape, *, last_decides: bool = False
) -> tuple[float, tuple[float, ...]]:
    """Cutoffs of the prompt filter and of S looks that together stop at most the sum of their shares.

    Args:
        safe: scores of safe pictures.
        shape: the shares.
        last_decides: whether the last look is no early stage; its cutoff is then `NEVER`.
    """
    columns = [safe.prompt, *safe.looks.T][: -1 if last_decides else None]
    shares = [shape.prompt, *shape.looks][: len(columns)]

    def at(factor: float) -> list[float]:
        return [
            budget_cutoff(column, min(1.0, factor * share))
            for column, share in zip(columns, shares, strict=True)
        ]

    def kept(factor: float) -> bool:
        over = [column >= cutoff for column, cutoff in zip(columns, at(factor), strict=True)]
        stopped = int(np.any(over, axis=0).sum())
        return (stopped + 1) / (len(safe) + 1) <= sum(shares) + 1e-12

    # With a factor of 1 it is kept, as no picture is stopped more than each stage counts it; `len(columns)` times a
    # share is the sum, if all are equal. What is stopped only grows with the factor.
    low, high = 1.0, 2.0 * len(columns)
    for _ in range(FACTOR_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    prompt, *looks = at(low)
    return prompt, (*looks, *[NEVER] * last_decides)


def budget_cutoff(safe: Array, share: float) -> float:
    """The lowest cutoff that stops at most `share` of new safe pictures, on average over draws of the given ones.

    Args:
        safe: (N,) p(unsafe) of safe pictures, NaN where not judged.
        share: from 0 to 1; 0 stops none.

    Returns:
        A number just above a score, so that (stopped + 1) / (n + 1) <= share; `NEVER` where there is none.
    """
    judged = _sorted_judged(safe)
    allowed = int(np.floor(share * (len(judged) + 1) + 1e-9)) - 1
    if allowed < 0:
        return NEVER
    if allowed >= len(judged):
        return 0.0
    # From just above the (allowed + 1)-th largest score on lie at most `allowed` others.
    return float(np.nextafter(judged[len(judged) - 1 - allowed], NEVER))


def choose_generation_level(
    family: GenerationFamily,
    scores: GenerationScores,
    promise: float,
    *,
    groups: Sequence[Hashable] | None = None,
    levels: Sequence[float] = LEVELS,
) -> float:
    """The most lenient level whose corrected total miss rate on N unsafe calibration pictures keeps the promise.

    Pictures that no stage could decide go to nobody and are left out, as in `judge.cascade.tuning.choose_level`.

    Args:
        family: the cutoffs, tuned on other pictures.
        scores: of the unsafe calibration pictures.
        promise: total miss rate, between 0 and 1.
        groups: N ids, such as prompts, where several pictures belong together: the promise is about the mean over them.
        levels: from strict to lenient, the first 0.

    Raises:
        ConfigError: too few pictures or groups for the promise; the message says how many it takes.
    """
    return levels[conformal_level(generation_losses(family, scores, groups=groups, levels=levels), promise)]


def generation_losses(
    family: GenerationFamily,
    scores: GenerationScores,
    *,
    groups: Sequence[Hashable] | None = None,
    levels: Sequence[float] = LEVELS,
) -> Array:
    """The losses that `choose_generation_level` bounds: (N, L), or (G, L) means over groups."""
    decided = ~np.isnan(decide_generation(scores, family.at(levels[-1])).unsafe)
    losses = family.losses(scores.rows(decided), levels)
    if groups is None:
        return losses.astype(np.float64)
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    return average_by(losses, np.array([places[group] for group in groups])[decided])


def tune_generation(
    scores: GenerationScores,
    unsafe: NDArray[np.bool_],
    promise: float,
    prices: Prices,
    at: Sequence[int],
    steps: int,
    *,
    false_alarms: float = 0.02,
    unsafe_share: float = 0.3,
) -> GenerationFamily:
    """Try divisions of the budget of false alarms on N tuning pictures, and take the cheapest.

    Args:
        scores: of the tuning pictures.
        unsafe: (N,) the truth.
        promise: total miss rate; the promise itself is made on other pictures (`choose_generation_level`).
        prices: of every piece of work.
        at: the steps of the S looks, from 1.
        steps: of a whole picture.
        false_alarms: share of the safe pictures that the early stages may stop together. Where nothing reads the
            finished picture, the last look stops more, as many as the promise takes.
        unsafe_share: share of what is asked for that becomes unsafe pictures.

    Raises:
        ConfigError: as `GenerationFamily`; or not even one unsafe picture a promised miss.
    """
    tried: list[tuple[float, float, GenerationFamily]] = []
    for shape in generation_shapes(false_alarms, scores.looks.shape[1], last_decides=scores.student is None):
        family = GenerationFamily(scores, unsafe, shape)
        cutoffs = family.at(choose_generation_level(family, scores.rows(unsafe), promise, levels=COARSE))
        decided = decide_generation(scores, cutoffs)
        costs = prices.of(work_of(decided, cutoffs, at, steps))
        cost = unsafe_share * costs[unsafe].mean() + (1 - unsafe_share) * costs[~unsafe].mean()
        tried.append((float((~decided.released[~unsafe]).mean()), float(cost), family))
    # Stopping more of what is safe is always cheaper, so the price is compared within the budget only.
    fewest = min(alarms for alarms, _, _ in tried)
    return min((entry for entry in tried if entry[0] <= fewest + false_alarms), key=lambda entry: entry[1])[2]


def generation_shapes(
    false_alarms: float, looks: int, *, last_decides: bool = False
) -> list[GenerationShape]:
    """The shapes that `tune_generation` tries: divisions of a budget among the prompt filter and S looks."""
    early = looks - last_decides
    found = []
    for part, slope in product(DIVISIONS if early else (1.0,), SLOPES if early > 1 else (1.0,)):
        weights = slope ** np.arange(early, dtype=np.float64)
        shares = (1 - part) * false_alarms * weights / max(weights.sum(), 1.0e-300)
        found.append(GenerationShape(part * false_alarms, (*shares.tolist(), *[0.0] * last_decides)))
    return list(dict.fromkeys(found))


def _sorted_judged(column: Array) -> Array:
    return np.sort(column[~np.isnan(column)])


def _quantile(ranked: Array, q: float) -> float:
    """A lower quantile that is 0 at q = 0, the largest value at q = 1, and never falls between."""
    return float(np.interp(q * len(ranked), np.arange(len(ranked) + 1), np.concatenate([[0.0], ranked])))
