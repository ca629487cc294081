"""The bootstrap of a benchmark: the same samples of images for every classifier and every cell of a table.

As all numbers come from one set of samples, differences of two classifiers are paired: what an image adds to both
cancels.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
_HELD = 2_000_000
"""Most numbers of times that images were drawn held in memory at once."""


def resample(
    indicators: Sequence[NDArray[np.bool_]], draws: int = DRAWS, seed: int = 0
) -> list[NDArray[np.float32]]:
    """How often indicators are true in samples with replacement of N of N images.

    Args:
        indicators: arrays (N, ...), such as whether a classifier missed an image; all of the same N.
        draws: number of samples.
        seed: of the samples.

    Returns:
        For each array the counts (draws, ...), over the same samples.
    """
    images = len(indicators[0])
    found = [np.empty((draws, *one.shape[1:]), dtype=np.float32) for one in indicators]
    start = 0
    for times in samples(images, draws, seed):
        for one, into in zip(indicators, found, strict=True):
            part = into[start : start + len(times)]
            flat = one.reshape(images, -1).astype(np.float32)
            part[:] = (times @ flat).reshape(part.shape)  # exact: counts are below 2 ** 24
        start += len(times)
    return found


def samples(images: int, draws: int = DRAWS, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """How often each of N images is in each of `draws` samples of N, as arrays (D, N) whose D add up to `draws`."""
    rng = np.random.default_rng(seed)
    step = max(1, _HELD // max(1, images))
    for start in range(0, draws, step):
        times = np.empty((min(step, draws - start), images), dtype=np.float32)
        for row in times:
            row[:] = np.bincount(rng.integers(0, images, images), minlength=images)
        yield times


def percentiles(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Drawn values (draws, ...) -> the ends (2, ...) of their 95 % interval (percentile bootstrap, Efron 1979).

    Samples in which a number is undefined (NaN) are left out; NaN where all are.
    """
    found = np.full((2, *values.shape[1:]), np.nan)
    defined = ~np.isnan(values).all(axis=0)
    if defined.any():
        found[:, defined] = np.nanquantile(values[:, defined].astype(np.float64), (0.025, 0.975), axis=0)
    return found


def share_interval(
    hits: NDArray[np.integer],
    errors: NDArray[np.integer],
    drawn: NDArray[np.floating],
    transform: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> NDArray[np.float64]:
    """The ends (2, ...) of the 95 % interval of numbers that grow with a share of hits.

    `percentiles` of the drawn values; but where there are hits only, or errors only, all samples are alike, and an
    interval without width would promise what a few images cannot. There it is Wilson's (`eval.metrics.intervals`).

    Args:
        hits: (...)
        errors: (...)
        drawn: (draws, ...) the numbers in samples.
        transform: from a share to the number; None where it is the share itself.
    """
    ends = percentiles(drawn)
    number = transform or (lambda share: share)
    squared = NormalDist().inv_cdf(0.975) ** 2
    for alike, count, best in (
        ((hits > 0) & (errors == 0), hits, True),
        ((hits == 0) & (errors > 0), errors, False),
    ):
        width = squared / (count[alike] + squared)
        ends[0, alike] = number(1 - width) if best else 0.0
        ends[1, alike] = 1.0 if best else number(width)
    return ends
