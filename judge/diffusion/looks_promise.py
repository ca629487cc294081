"""Thresholds for several looks at one picture, with a promise about all of them together.

A guard that looks several times has several chances of a false alarm, and several of a hit. Looking does not change
what is seen later, so a picture passes if and only if every look's score is below that look's cutoff; that is one
decision, and it is calibrated as one (`judge.calibration.conformal`), on pictures that were looked at, never stopped:

- **Missed.** Cutoffs are ordered in a family by one level, in which all rise together. The most lenient level with
  (missed + 1) / (unsafe + 1) <= promise lets pass at most that share of the pictures that would come out unsafe.
- **False alarms.** The same theorem with the sides exchanged: at the strictest level with (stopped + 1) / (safe + 1)
  <= promise at most that share of the pictures that would come out safe is stopped, over all looks.

One family cannot keep both: one is promised, and the other is what it costs. As in the cascade, either holds on average
over calibration sets, for all pictures together, and only for pictures made like those of the calibration: categories,
scheduler, number of steps and guidance. Elsewhere it is withdrawn. Pictures that could not be judged are left out; a
guard stops them.
"""

import inspect
import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from judge.calibration.conformal import average_by, conformal_level, needed_unsafe
from judge.calibration.envelope import Envelope
from judge.errors import CheckpointError, ConfigError
from prompts.taxonomy import Taxonomy

Array = NDArray[np.float64]
Promised = Literal["missed", "false alarms"]
"""Of the unsafe pictures those that pass all looks; of the safe ones those that any look stops."""

MOST_LEVELS = 2000
"""Levels that a calibration tries at most."""


@dataclass(frozen=True)
class Sampling:
    """How pictures are made: what a promise depends on, beside the pipeline and the categories."""

    schedulers: tuple[str, ...]
    """Names of the scheduler's class."""
    steps: tuple[int, int]
    """Fewest and most steps of a call."""
    guidance: tuple[float, float]
    """Lowest and highest guidance scale; 0 where there is none, NaN where the pipeline does not show it."""

    @classmethod
    def of(cls, pipeline: Any) -> Self:
        """How the call that a pipeline is in makes its pictures."""
        steps = int(getattr(pipeline, "num_timesteps", 0) or 0)
        guidance = float(getattr(pipeline, "guidance_scale", 0.0) or 0.0)
        # Qwen-Image and Flux keep the scale of true guidance to the call itself.
        if "true_cfg_scale" in inspect.signature(type(pipeline).__call__).parameters:
            guidance = math.nan
        return cls((type(pipeline.scheduler).__name__,), (steps, steps), (guidance, guidance))

    @classmethod
    def of_calls(cls, calls: Sequence["Sampling"]) -> Self:
        """What some calls span together."""
        if not calls:
            raise ConfigError("No call was given, so that nothing is known of how its pictures were made.")
        if any(math.isnan(scale) for call in calls for scale in call.guidance):
            raise ConfigError(
                "This pipeline does not show its guidance scale, so nothing can be promised of it."
            )
        return cls(
            tuple(sorted({name for call in calls for name in call.schedulers})),
            (min(call.steps[0] for call in calls), max(call.steps[1] for call in calls)),
            (min(call.guidance[0] for call in calls), max(call.guidance[1] for call in calls)),
        )

    def why_outside(self, call: "Sampling") -> str | None:
        """What of a call the calibration does not cover, on one line; None where it covers all."""
        other = [name for name in call.schedulers if name not in self.schedulers]
        if other:
            return f"calibrated with {', '.join(self.schedulers)}, not {other[0]}"
        for what, known, asked in (
            ("steps", self.steps, call.steps),
            ("guidance", self.guidance, call.guidance),
        ):
            # 1e-6 for a guidance scale that was written to a file and read again.
            if math.isnan(asked[0]):
                return f"this pipeline does not show its {what}"
            if asked[0] < known[0] - 1e-6 or asked[1] > known[1] + 1e-6:
                span = f"{known[0]:g}" if known[0] == known[1] else f"{known[0]:g} to {known[1]:g}"
                return f"calibrated with {what} {span}, not {asked[0]:g}"
        return None


@dataclass(frozen=True)
class LooksPromise:
    """The result of a calibration: a cutoff for each look, and what is promised of all looks together."""

    detector: str
    """Name of the detector whose scores were calibrated."""
    at: tuple[int, ...] | tuple[float, ...]
    """When the L looks are taken, as `DiffusionGuard` reads it."""
    cutoffs: tuple[float, ...]
    """L numbers in [0, 1]; a look stops a picture with a score from its cutoff on."""
    promised: Promised
    promise: float
    """The promised share, between 0 and 1; on average over calibration sets."""
    pictures: int
    """Unsafe pictures (or safe ones, for false alarms), or groups of them, from which the level was chosen."""
    other_rate: float
    """Share of the calibration's safe pictures that are stopped (or of its unsafe ones that pass); NaN without any."""
    calibrated_for: Envelope
    sampling: Sampling

    def __post_init__(self) -> None:
        numbers = [*self.cutoffs, self.promise]
        if not self.at or len(self.at) != len(self.cutoffs):
            raise ConfigError(f"{len(self.cutoffs)} cutoffs for {len(self.at)} looks; one each.")
        if not all(math.isfinite(number) and 0 <= number <= 1 for number in numbers):
            raise ConfigError(f"Cutoffs and the promise lie between 0 and 1; got {numbers}.")
        if self.promised not in get_args(Promised):
            raise ConfigError(f"Promised is 'missed' or 'false alarms', not {self.promised!r}.")
        if self.pictures < needed_unsafe(self.promise):
            raise ConfigError(f"{self.pictures} pictures cannot support a promise of {self.promise:g}.")

    def why_outside(
        self, taxonomy: Taxonomy, sampling: Sampling | None = None, detector: str | None = None
    ) -> str | None:
        """Why the promise does not hold under a taxonomy, for a call, by this detector's scores; None where it does."""
        if detector is not None and detector != self.detector:
            return f"calibrated on scores of {self.detector}, not of {detector}"
        why = self.calibrated_for.why_outside(taxonomy)
        return why if why is not None or sampling is None else self.sampling.why_outside(sampling)

    def text(self, taxonomy: Taxonomy, sampling: Sampling | None = None, detector: str | None = None) -> str:
        """The promise and what it was calibrated on, on one line; or `withdrawn` and why."""
        why = self.why_outside(taxonomy, sampling, detector)
        if why is not None:
            what = "miss rate" if self.promised == "missed" else "rate of false alarms"
            return f"withdrawn: the promised {what} of {self.promise:.1%} does not hold: {why}"
        looks = f"over {len(self.at)} looks" if len(self.at) > 1 else "in one look"
        done, side = ("missed", "unsafe") if self.promised == "missed" else ("stopped", "safe")
        of_them = "" if self.promised == "missed" else " of the safe ones"
        return (
            f"at most {self.promise:.1%}{of_them} {done} {looks}, calibrated on {self.pictures} {side} pictures made "
            "so, under such policies"
        )

    def to_json(self) -> str:
        """The promise as JSON, which `from_json` reads."""
        data = asdict(self)
        data["other_rate"] = None if math.isnan(self.other_rate) else self.other_rate
        return json.dumps(data, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "the file") -> Self:
        """Read what `to_json` wrote; `source` names it in errors.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            data = json.loads(text)
            envelope, sampling = Envelope.from_dict(data.pop("calibrated_for")), data.pop("sampling")
            if envelope is None:
                raise ConfigError("the calibrated categories are missing")
            made = Sampling(
                tuple(map(str, sampling["schedulers"])),
                _pair(sampling["steps"], int),
                _pair(sampling["guidance"], float),
            )
            data["at"], data["cutoffs"] = tuple(data["at"]), tuple(map(float, data["cutoffs"]))
            data["other_rate"] = math.nan if data["other_rate"] is None else float(data["other_rate"])
            return cls(**data, calibrated_for=envelope, sampling=made)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{source} holds no promise over several looks ({error}); calibrate again."
            ) from None


def _pair(values: Any, kind: Any) -> Any:
    low, high = values
    return kind(low), kind(high)


def calibrate_looks(
    truth: ArrayLike,
    scores: ArrayLike,
    *,
    at: Sequence[int] | Sequence[float],
    promise: float,
    promised: Promised = "missed",
    detector: str,
    policies: Sequence[Taxonomy],
    sampling: Sampling,
    shape: ArrayLike | None = None,
    groups: Sequence[Hashable] | None = None,
) -> LooksPromise:
    """Cutoffs of L looks from N pictures that were looked at and finished.

    Args:
        truth: (N,) 1 where the finished picture is unsafe, 0 where it is safe, NaN where not known.
        scores: (N, L) `Scores.unsafe` of each look, NaN where not judged. A picture with any NaN is left out.
        at: when the looks were taken.
        promise: the promised share, between 0 and 1.
        promised: what it is about.
        detector: name of the detector.
        policies: every taxonomy that the rows were scored under.
        sampling: how the pictures were made.
        shape: (M, L) scores of other pictures that are safe, which say how the looks' cutoffs stand to each other: at
            each level all looks stop the same share of these. None: one cutoff for all looks.
        groups: N ids, such as prompts, where several pictures belong together and so are not independent: the promise
            is about the mean over them.

    Raises:
        ConfigError: shapes or values are off, or there are too few pictures or groups for the promise: the message says
            how many it takes.
    """
    label, found = _check_rows(truth, scores, len(at))
    judged = ~np.isnan(found).any(axis=1)
    unsafe, safe = judged & (label == 1), judged & (label == 0)
    own = unsafe if promised == "missed" else safe
    levels = cutoff_levels(found[own], shape)
    misses, alarms = passes(found[unsafe], levels), 1 - passes(found[safe], levels)
    losses, other = (misses, alarms) if promised == "missed" else (alarms, misses)
    if groups is not None:
        if len(groups) != len(label):
            raise ConfigError(f"{len(groups)} groups for {len(label)} pictures; give one each.")
        places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
        losses = average_by(losses, np.array([places[group] for group in groups])[own])
    level = _last_kept(losses, promise) if promised == "missed" else _first_kept(losses, promise)
    return LooksPromise(
        detector=detector,
        at=tuple(at),
        cutoffs=tuple(float(cutoff) for cutoff in levels[level]),
        promised=promised,
        promise=float(promise),
        pictures=len(losses),
        other_rate=float(other[:, level].mean()) if len(other) else math.nan,
        calibrated_for=Envelope.from_policies(policies),
        sampling=sampling,
    )


def cutoff_levels(scores: ArrayLike, shape: ArrayLike | None = None) -> Array:
    """(V, L) cutoffs in [0, 1] of L looks at V levels, from 0 (everything is stopped) to 1, rising at every look.

    Args:
        scores: (N, L) of the pictures that the promise is about; without a shape every level that makes a difference
            to them is tried, or 2,000 of these.
        shape: (M, L) scores of other, safe pictures; see `calibrate_looks`.
    """
    if shape is None:
        highest = np.unique(np.asarray(scores, dtype=np.float64).max(axis=1, initial=0.0))
        # A picture is stopped from its own score on, and passes from the next number after it.
        values = np.unique(np.concatenate([[0.0, 1.0], highest, np.nextafter(highest, 2.0)]).clip(0, 1))
        if len(values) > MOST_LEVELS:
            values = values[np.linspace(0, len(values) - 1, MOST_LEVELS).round().astype(int)]
        return np.repeat(values[:, None], np.shape(scores)[1], axis=1)
    others = np.asarray(shape, dtype=np.float64)
    if others.ndim != 2 or not len(others) or not np.all((others >= 0) & (others <= 1)):
        raise ConfigError(f"A shape is (M, looks) scores in [0, 1], without NaN; got shape {others.shape}.")
    edges = np.ones((1, others.shape[1]))
    quantiles = np.quantile(
        np.concatenate([0 * edges, others, edges]), np.linspace(0, 1, MOST_LEVELS), axis=0
    )
    return np.asarray(quantiles, dtype=np.float64)


def passes(scores: ArrayLike, levels: Array) -> Array:
    """(N, L) scores -> (N, V) 1.0 where a picture passes all looks at a level, else 0.0."""
    found = np.asarray(scores, dtype=np.float64)
    passed = np.ones((len(found), len(levels)), dtype=bool)
    for look in range(levels.shape[1]):
        passed &= found[:, look, None] < levels[None, :, look]
    return passed.astype(np.float64)


def _last_kept(misses: Array, promise: float) -> int:
    """The most lenient level that keeps a promised miss rate."""
    return conformal_level(misses, promise)


def _first_kept(alarms: Array, promise: float) -> int:
    """The strictest level that keeps a promised rate of false alarms."""
    needed = needed_unsafe(promise)
    if len(alarms) < needed:
        raise ConfigError(
            f"A promised rate of false alarms of {promise:g} needs at least {needed} safe calibration pictures that "
            f"are judged; there are {len(alarms)}."
        )
    # From lenient to strict false alarms never fall; before all levels stands "stop nothing", which has none.
    lenient_first = np.concatenate([np.zeros((len(alarms), 1)), alarms[:, ::-1]], axis=1)
    kept = conformal_level(lenient_first, promise)
    if kept == 0:
        share = float(alarms[:, -1].mean())
        raise ConfigError(
            f"{share:.1%} of the safe pictures have a score of 1, so no cutoff keeps the promised {promise:.1%} of "
            "false alarms."
        )
    return int(alarms.shape[1]) - kept


def _check_rows(truth: ArrayLike, scores: ArrayLike, looks: int) -> tuple[Array, Array]:
    label, found = np.asarray(truth, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if label.ndim != 1 or found.shape != (len(label), looks) or not looks:
        raise ConfigError(
            f"truth has shape {label.shape} and scores {found.shape}; they must be (N,) and (N, {looks}), with a score "
            "for each look."
        )
    if np.any((label != 0) & (label != 1) & ~np.isnan(label)) or np.any((found < 0) | (found > 1)):
        raise ConfigError("truth holds 0, 1 or NaN, scores numbers in [0, 1] or NaN; got others.")
    return label, found
