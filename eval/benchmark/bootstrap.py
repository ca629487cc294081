"""The bootstrap of a benchmark: the same samples of images for every classifier and every cell of a table.

As all numbers come from one set of samples, differences of two classifiers are paired: what an image adds to both
cancels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
_HELD = 10_000_000
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
    rng = np.random.default_rng(seed)
    step = max(1, _HELD // max(1, images))
    for start in range(0, draws, step):
        stop = min(draws, start + step)
        times = np.empty((stop - start, images), dtype=np.float32)  # how often each image is drawn
        for row in times:
            row[:] = np.bincount(rng.integers(0, images, images), minlength=images)
        for one, into in zip(indicators, found, strict=True):
            flat = one.reshape(images, -1).astype(np.float32)
            into[start:stop] = (times @ flat).reshape(into[start:stop].shape)  # exact: counts below 2 ** 24
    return found


def percentiles(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Drawn values (draws, ...) -> the ends (2, ...) of their 95 % interval (percentile bootstrap, Efron 1979).

    Samples in which a number is undefined (NaN) are left out; NaN where all are.
    """
    found = np.full((2, *values.shape[1:]), np.nan)
    defined = ~np.isnan(values).all(axis=0)
    if defined.any():
        found[:, defined] = np.nanquantile(values[:, defined].astype(np.float64), (0.025, 0.975), axis=0)
    return found
