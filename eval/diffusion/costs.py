"""What stopping early saves, counted honestly: against drawing everything and filtering the finished pictures.

Every design of a cascade around a generator is tuned, calibrated to the same promised miss rate and tested on the same
pictures, all of which were finished. Its cost is that of the steps it makes, of the looks at *all* pictures, and of
decoding and reading what is finished. So

    saved = share of pictures that are stopped * steps they are spared - looks at all of them

and no more, as long as the finished pictures are read as before. Dropping that last filter saves its cost as well; what
that costs in misses or in false alarms stands beside it. `unsafe_share` is the share of what is asked for that would
come out unsafe: costs of unsafe and safe pictures are mixed in these shares, so that the share among the measured ones
does not count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.benchmark.bootstrap import percentiles, samples
from judge.cascade.generation_stages import GenerationCutoffs, decide_generation
from judge.cascade.generation_tuning import choose_generation_level, tune_generation
from judge.cascade.generation_work import Prices, Work, work_of
from judge.cascade.similarity import Platt

from .stage_scores import Questions

Array = NDArray[np.float64]
DRAWS = 400
UNSAFE_SHARE = 0.3
FALSE_ALARMS = 0.02
PROMISES = (0.02, 0.05)


@dataclass(frozen=True)
class Design:
    """Which stages there are, and whether the finished picture is read."""

    prompt: bool = False
    detector: bool = False
    student: bool = True


FINISHED = "student on everything"
DESIGNS: dict[str, Design] = {
    FINISHED: Design(),
    "prompt filter, student": Design(prompt=True),
    "detector, student": Design(detector=True),
    "prompt filter, detector, student": Design(prompt=True, detector=True),
    "detector, nothing behind it": Design(detector=True, student=False),
    "prompt filter, detector, nothing behind them": Design(prompt=True, detector=True, student=False),
}
"""Name -> design; the first is what the others are compared with."""


@dataclass(frozen=True)
class Outcome:
    """What a design did with Q test questions."""

    missed: NDArray[np.bool_]
    """(Q,) unsafe and handed out."""
    alarm: NDArray[np.bool_]
    """(Q,) safe and not handed out."""
    early: NDArray[np.bool_]
    """(Q,) refused or stopped before it was finished."""
    work: Work
    cutoffs: GenerationCutoffs


def run_design(
    design: Design,
    parts: Sequence[Questions],
    promise: float,
    prices: Prices,
    at: Sequence[int],
    steps: int,
    *,
    false_alarms: float = FALSE_ALARMS,
    unsafe_share: float = UNSAFE_SHARE,
) -> Outcome:
    """Tune a design on the first of three parts, calibrate it on the second, and run it on the third.

    Args:
        design: the stages.
        parts: questions to tune, calibrate and test on; no prompt in two of them.
        promise: total miss rate of all stages together.
        prices: of every piece of work.
        at: the steps of the looks.
        steps: of a whole picture.
        false_alarms: share of the safe pictures that may be stopped early.
        unsafe_share: of what is asked for.

    Raises:
        ConfigError: too few unsafe pictures for the promise.
    """
    tuning, calibration, test = parts
    curve = Platt.fit(tuning.unsafe.astype(float), tuning.similarity) if design.prompt else None
    looked = tuple(at) if design.detector else ()
    scores = [part.scores(curve, looks=design.detector, student=design.student) for part in parts]
    family = tune_generation(
        scores[0],
        tuning.unsafe,
        promise,
        prices,
        looked,
        steps,
        false_alarms=false_alarms,
        unsafe_share=unsafe_share,
    )
    groups = calibration.prompts[calibration.unsafe].tolist()
    level = choose_generation_level(family, scores[1].rows(calibration.unsafe), promise, groups=groups)
    cutoffs = family.at(level)
    decided = decide_generation(scores[2], cutoffs)
    work = work_of(decided, cutoffs, looked, steps)
    return Outcome(
        decided.released & test.unsafe,
        ~decided.released & ~test.unsafe,
        work.decode == 0,
        work,
        cutoffs,
    )


def compare_costs(
    parts: Sequence[Questions],
    prices: Prices,
    at: Sequence[int],
    steps: int,
    *,
    promises: Sequence[float] = PROMISES,
    designs: Mapping[str, Design] = DESIGNS,
    false_alarms: float = FALSE_ALARMS,
    unsafe_share: float = UNSAFE_SHARE,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Costs, misses and false alarms of every design at every promised miss rate.

    Args:
        parts: questions to tune, calibrate and test on; no prompt in two of them.
        prices: seconds of every piece of work for one picture.
        at: the steps of the looks.
        steps: of a whole picture.
        promises: total miss rates.
        designs: name -> design; the first is what the others are compared with.
        false_alarms: share of the safe pictures that may be stopped before they are finished.
        unsafe_share: of what is asked for.
        draws: samples of prompts for the intervals.
        seed: of the samples.

    Returns:
        `seconds` and `in_steps`: the prices; `unsafe_share`, `false_alarm_budget`, `steps`, `at`; `rows`: questions of
        each part, `unsafe_rows`: the unsafe test questions, `prompts`: their different prompts; `designs`: promise as
        text -> name -> numbers of `_summary`.
    """
    test = parts[2]
    names, member = np.unique(test.prompts, return_inverse=True)
    times = np.concatenate(list(samples(len(names), draws, seed)))
    found: dict[str, dict[str, Any]] = {}
    for promise in promises:
        outcomes = {
            name: run_design(
                design,
                parts,
                promise,
                prices,
                at,
                steps,
                false_alarms=false_alarms,
                unsafe_share=unsafe_share,
            )
            for name, design in designs.items()
        }
        first = next(iter(outcomes.values()))
        found[f"{promise:g}"] = {
            name: _summary(outcome, first, test, prices, steps, unsafe_share, member, times)
            for name, outcome in outcomes.items()
        }
    return {
        "seconds": asdict(prices),
        "in_steps": asdict(prices.in_steps()),
        "unsafe_share": unsafe_share,
        "false_alarm_budget": false_alarms,
        "steps": steps,
        "at": list(at),
        "rows": [len(part) for part in parts],
        "unsafe_rows": int(test.unsafe.sum()),
        "prompts": len(names),
        "designs": found,
    }


def _summary(
    outcome: Outcome,
    first: Outcome,
    test: Questions,
    prices: Prices,
    steps: int,
    unsafe_share: float,
    member: NDArray[np.intp],
    times: NDArray[np.float32],
) -> dict[str, Any]:
    """The numbers of one design, per picture that is asked for, with 95 % intervals over prompts.

    `steps`: cost in steps of the denoiser, `seconds`: the same in seconds, `saving`: 1 - cost / cost of the first
    design; `missed`: share of the unsafe ones handed out, `false_alarms`: share of the safe ones that are not; `early`:
    share stopped before the end; `spared`: share of all steps that stopping spares, `looking`: what looking at all of
    them costs, as a share of the first design's cost.
    """
    mix = _Mix(test.unsafe, unsafe_share, member, times)
    cost, reference = prices.of(outcome.work), prices.of(first.work)
    spared, looking = 1 - outcome.work.step / steps, prices.look * outcome.work.look
    values = {
        "saving": 1 - mix.mean(cost) / mix.mean(reference),
        "missed": mix.mean(outcome.missed, unsafe=1.0),
        "false_alarms": mix.mean(outcome.alarm, unsafe=0.0),
        "early": mix.mean(outcome.early),
        "spared": mix.mean(spared),
        "looking": mix.mean(looking) / mix.mean(reference),
        "seconds": mix.mean(cost),
        "steps": mix.mean(cost) / prices.step,
    }
    numbers: dict[str, Any] = {name: float(value[0]) for name, value in values.items()}
    ends = {name: percentiles(value[1:]) for name, value in values.items()}
    intervals = {name: (float(low), float(high)) for name, (low, high) in ends.items()}
    counts = {"missed_pictures": int(outcome.missed.sum()), "false_alarm_pictures": int(outcome.alarm.sum())}
    return {**numbers, **counts, "intervals": intervals, "cutoffs": asdict(outcome.cutoffs)}


@dataclass(frozen=True)
class _Mix:
    """Means over traffic with a share of unsafe pictures: of the data as they are, and of samples of its prompts."""

    unsafe: NDArray[np.bool_]
    share: float
    member: NDArray[np.intp]
    times: NDArray[np.float32]

    def mean(self, values: NDArray[Any], *, unsafe: float | None = None) -> Array:
        """(1 + D,) the mean of (Q,) values, first of the data and then of D samples."""
        share = self.share if unsafe is None else unsafe
        bad, good = (self._mean_of(values, side) for side in (self.unsafe, ~self.unsafe))
        # A side that does not count may be empty.
        return share * bad + (1 - share) * good if 0 < share < 1 else (bad if share else good)

    def _mean_of(self, values: NDArray[Any], side: NDArray[np.bool_]) -> Array:
        groups = self.times.shape[1]
        sums = np.bincount(self.member[side], weights=values[side].astype(np.float64), minlength=groups)
        counts = np.bincount(self.member[side], minlength=groups).astype(np.float64)
        drawn = np.concatenate([np.ones((1, groups)), self.times])
        with np.errstate(invalid="ignore"):  # a sample without such pictures has no mean
            found: Array = (drawn @ sums) / (drawn @ counts)
        return found


def cost_table(found: Mapping[str, Any]) -> list[str]:
    """The comparison as lines of text."""
    units = {name: value for name, value in found["in_steps"].items() if name != "step" and value}
    lines = [
        f"{found['unsafe_share']:.0%} of what is asked for would come out unsafe; at most "
        f"{found['false_alarm_budget']:.0%} of the safe pictures may be stopped early.",
        "In steps of the denoiser: "
        + ", ".join(f"{name} {value:.2f}" for name, value in units.items())
        + ".",
    ]
    for promise, designs in found["designs"].items():
        lines.append(f"\nat most {float(promise):.0%} of the unsafe pictures handed out:")
        lines.append(
            f"{'':46}{'steps':>7}{'CPU ms':>8}{'saves':>8}{'(95 %)':>18}{'missed':>8}{'(95 %)':>16}"
            f"{'false alarms':>14}{'spared':>8}{'looks':>7}"
        )
        for name, one in designs.items():
            saving, missed = one["intervals"]["saving"], one["intervals"]["missed"]
            lines.append(
                f"{name:46}{one['steps']:>7.2f}{1000 * one['seconds']:>8.1f}{one['saving']:>8.1%}"
                f"{f'{saving[0]:.1%} to {saving[1]:.1%}':>18}{one['missed']:>8.1%}"
                f"{f'{missed[0]:.1%} to {missed[1]:.1%}':>16}{one['false_alarms']:>14.1%}"
                f"{one['spared']:>8.1%}{one['looking']:>7.1%}"
            )
    return lines
