"""When a guard looks, and with which thresholds."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from judge.calibration.thresholds import Thresholds
from judge.errors import ConfigError
from prompts.taxonomy import Taxonomy
from prompts.verdict import verdict_from_scores

from .detector import Detector
from .looks_promise import LooksPromise

DEFAULT_PLACES = (0.25, 0.5, 0.75)
"""Where in a detector's range of log-SNRs a guard looks, if nothing is said."""
DEFAULT_RANGE = (-4.0, 4.0)
"""That range for detectors that answer everywhere: earlier hardly anything is seen, later hardly anything is saved."""


def times_of_looks(
    at: Sequence[int] | Sequence[float] | None, promise: LooksPromise | None, detector: Detector
) -> tuple[int, ...] | tuple[float, ...]:
    """When to look, in order: all numbers of steps, or all log-SNRs."""
    if promise is not None:
        if at is not None and tuple(at) != promise.at:
            raise ConfigError(
                f"The cutoffs were calibrated for looks at {promise.at}, not {tuple(at)}; leave `at` out."
            )
        return promise.at
    if at is None:
        low, high = (
            own if math.isfinite(own) else default
            for own, default in zip(detector.log_snrs, DEFAULT_RANGE, strict=True)
        )
        return tuple(low + part * (high - low) for part in DEFAULT_PLACES)
    places = list(at)
    whole = [isinstance(place, int | np.integer) and not isinstance(place, bool) for place in places]
    real = [isinstance(place, float | np.floating) and math.isfinite(place) for place in places]
    if not places or not (all(whole) or all(real)) or len(set(places)) != len(places):
        raise ConfigError(
            f"Looks are numbers of steps (integers from 1) or log-SNRs (floats), each once; got {places}."
        )
    if all(whole):
        if min(places) < 1:
            raise ConfigError(
                f"Steps are numbered from 1; got {min(places)}. A log-SNR is a float: {min(places)}.0."
            )
        return tuple(sorted(int(place) for place in places))
    return tuple(sorted(float(place) for place in places))


def limits_of_looks(
    thresholds: float | Mapping[str, float] | Thresholds | LooksPromise, taxonomy: Taxonomy, looks: int
) -> list[float | dict[str, float]]:
    """The thresholds of each look, checked."""
    if isinstance(thresholds, LooksPromise):
        return list(thresholds.cutoffs)
    if isinstance(thresholds, Thresholds):
        limits: float | dict[str, float] = thresholds.for_taxonomy(taxonomy)
    elif isinstance(thresholds, Mapping):
        limits = dict(thresholds)
    else:
        limits = thresholds
    try:
        # Only for its errors: numbers outside [0, 1], names that are not in the taxonomy.
        verdict_from_scores(math.nan, [math.nan] * len(taxonomy), taxonomy, threshold=limits)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"These thresholds cannot be used: {error}") from None
    return [limits] * looks


def strictest(
    limits: Sequence[float | Mapping[str, float]], due: Sequence[int]
) -> float | Mapping[str, float]:
    """The thresholds of the strictest of the looks that are due: they differ only where they are one number each."""
    chosen = [limits[place] for place in due]
    numbers = [limit for limit in chosen if not isinstance(limit, Mapping)]
    return min(numbers) if numbers else chosen[0]
