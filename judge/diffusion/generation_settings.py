"""The result of calibrating a cascade around a generator: cutoffs, and what is promised of which pictures."""

import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from judge.calibration.conformal import needed_unsafe
from judge.calibration.envelope import Envelope
from judge.cascade.generation_stages import GenerationCutoffs, GenerationScores, decide_generation
from judge.cascade.generation_tuning import GenerationFamily, choose_generation_level
from judge.cascade.similarity import Platt
from judge.errors import CheckpointError, ConfigError
from prompts.taxonomy import Taxonomy

from .looks_promise import Sampling

GENERATION_SETTINGS = "generation.json"


@dataclass(frozen=True)
class GenerationSettings:
    """Cutoffs of a cascade around a generator, and the promise they were chosen for."""

    cutoffs: GenerationCutoffs
    at: tuple[int, ...] = ()
    """The steps after which the looks are made, from 1, rising; one a cutoff."""
    prompt: Platt | None = None
    """Of the prompt filter; None without one."""
    promise: float | None = None
    """Promised total miss rate, from 0 to 1: the share of the pictures that would come out unsafe which are handed
    out; None where nothing is promised. On average over calibration sets (`judge.calibration.conformal`)."""
    false_alarms: float | None = None
    """Share of the safe calibration pictures that are not handed out."""
    unsafe_rows: int = 0
    """Unsafe calibration pictures, or groups of them, from which the level was chosen."""
    calibrated_for: Envelope | None = None
    """Which policies the promise covers."""
    sampling: Sampling | None = None
    """How the pictures of the calibration were made."""
    stages: tuple[str, ...] = ()
    """Names of the detector, the student and the judge whose scores were calibrated, of those there are."""

    def __post_init__(self) -> None:
        if (
            len(self.at) != len(self.cutoffs.looks)
            or list(self.at) != sorted({*self.at})
            or min(self.at, default=1) < 1
        ):
            raise ConfigError(
                f"Looks after the steps {self.at}, with {len(self.cutoffs.looks)} cutoffs; give rising steps from 1, "
                "one each."
            )
        if self.cutoffs.uses_prompt_filter and self.prompt is None:
            raise ConfigError(
                "A cutoff of the prompt filter without its curve; switch it off, or give the curve."
            )
        if self.promise is not None and self.unsafe_rows < needed_unsafe(self.promise):
            raise ConfigError(
                f"{self.unsafe_rows} unsafe pictures cannot support a promise of {self.promise:g}."
            )

    def why_outside(self, taxonomy: Taxonomy, sampling: Sampling | None, stages: Sequence[str]) -> str | None:
        """Why the promise does not hold under a taxonomy, for a call, by these stages; None where it does."""
        if self.promise is None or self.calibrated_for is None or self.sampling is None:
            return "nothing was calibrated"
        if tuple(stages) != self.stages:
            known, found = (", ".join(names) or "nobody" for names in (self.stages, stages))
            return f"calibrated on scores of {known}, not of {found}"
        why = self.calibrated_for.why_outside(taxonomy)
        return why if why is not None or sampling is None else self.sampling.why_outside(sampling)

    def text(self, taxonomy: Taxonomy, sampling: Sampling | None, stages: Sequence[str]) -> str | None:
        """The promise and what it was calibrated on, on one line; or `withdrawn` and why; None where there is none."""
        if self.promise is None:
            return None
        why = self.why_outside(taxonomy, sampling, stages)
        if why is not None:
            return f"withdrawn: the promised miss rate of {self.promise:.1%} does not hold: {why}"
        return (
            f"at most {self.promise:.1%} missed by all stages, calibrated on {self.unsafe_rows} unsafe pictures made "
            "so, under such policies"
        )

    def to_json(self) -> str:
        """The settings as JSON, which `from_json` reads."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = GENERATION_SETTINGS) -> Self:
        """Read what `to_json` wrote; `source` names it in errors.

        Raises:
            CheckpointError: it is something else, or was given by no calibration.
        """
        try:
            data = json.loads(text)
            cuts, prompt, sampling = data.pop("cutoffs"), data.pop("prompt"), data.pop("sampling")
            student = None if cuts["student"] is None else _pair(cuts["student"])
            settings = cls(
                cutoffs=GenerationCutoffs(cuts["prompt"], tuple(cuts["looks"]), student, cuts["judge"]),
                at=tuple(map(int, data.pop("at"))),
                stages=tuple(map(str, data.pop("stages"))),
                prompt=None if prompt is None else Platt(**prompt),
                calibrated_for=Envelope.from_dict(data.pop("calibrated_for")),
                sampling=None if sampling is None else _sampling(sampling),
                **data,
            )
            _check_numbers(settings)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{source} holds no settings of a cascade around a generator ({error}); calibrate again."
            ) from None
        return settings


def calibrate_generation(
    family: GenerationFamily,
    scores: GenerationScores,
    unsafe: NDArray[np.bool_],
    promise: float,
    *,
    at: Sequence[int],
    prompt: Platt | None,
    policies: Sequence[Taxonomy],
    sampling: Sampling,
    stages: Sequence[str],
    groups: Sequence[Hashable] | None = None,
) -> GenerationSettings:
    """The cutoffs at which all stages together keep a promised miss rate, from N calibration pictures.

    Args:
        family: the cutoffs, tuned on other pictures.
        scores: of the calibration pictures, which were looked at, never stopped, and finished.
        unsafe: (N,) the truth about the finished pictures.
        promise: total miss rate, between 0 and 1.
        at: the steps of the looks.
        prompt: the curve of the prompt filter.
        policies: every taxonomy that the pictures were judged under.
        sampling: how they were made.
        stages: names of the detector, the student and the judge, of those there are.
        groups: N ids, such as prompts, where pictures that share one are not independent.

    Raises:
        ConfigError: too few unsafe pictures or groups for the promise; the message says how many it takes.
    """
    names = None if groups is None else [group for group, bad in zip(groups, unsafe, strict=True) if bad]
    level = choose_generation_level(family, scores.rows(unsafe), promise, groups=names)
    cutoffs = family.at(level)
    alarms = ~decide_generation(scores.rows(~unsafe), cutoffs).released
    return GenerationSettings(
        cutoffs=cutoffs,
        at=tuple(at),
        prompt=prompt,
        promise=promise,
        false_alarms=float(alarms.mean()) if len(alarms) else None,
        unsafe_rows=int(unsafe.sum()) if names is None else len(set(names)),
        calibrated_for=Envelope.from_policies(policies),
        sampling=sampling,
        stages=tuple(stages),
    )


def _check_numbers(settings: GenerationSettings) -> None:
    numbers = [*(asdict(settings.prompt).values() if settings.prompt else ())]
    numbers += [value for value in (settings.promise, settings.false_alarms) if value is not None]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ConfigError("a number is not finite")
    if settings.prompt is not None and settings.prompt.slope < 0:
        raise ConfigError(f"the prompt filter's slope is {settings.prompt.slope:g}, below 0")
    if type(settings.unsafe_rows) is not int:
        raise ConfigError("unsafe_rows is no whole number")


def _pair(values: Any) -> tuple[float, float]:
    low, high = values
    return low, high


def _sampling(data: Any) -> Sampling:
    (fewest, most), (lowest, highest) = data["steps"], data["guidance"]
    return Sampling(
        tuple(map(str, data["schedulers"])), (int(fewest), int(most)), (float(lowest), float(highest))
    )
