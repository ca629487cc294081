"""How far two samples of numbers lie apart: effect sizes with intervals, and their distributions."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 1000
"""Bootstrap samples of an interval."""
EXACT_PAIRS = 10_000
"""Pairs of numbers up to which the p-value of the Kolmogorov-Smirnov test is exact."""
BINS = 30
"""Of a histogram."""

Floats = NDArray[np.float64]


def compare(first: ArrayLike, second: ArrayLike, *, seed: int = 0, draws: int = DRAWS) -> dict[str, Any]:
    """Compare two samples of finite numbers, (M,) and (N,).

    Returns:
        `rows` [M, N]; `cliffs_delta`, P(second > first) - P(second < first) in [-1, 1] (Cliff 1993), positive where
        the second sample is larger; its 95 % `interval` by percentile bootstrap of both samples, None where one has
        less than two numbers; `auc`, (delta + 1) / 2; the Kolmogorov-Smirnov statistic `ks` in [0, 1] and its
        `ks_p_value`. All None where a sample is empty. Where the samples do not overlap at all, no draw
        does, and the interval is a single point.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    found: dict[str, Any] = {"rows": [len(one), len(two)]}
    if not len(one) or not len(two):
        return found | dict.fromkeys(("cliffs_delta", "interval", "auc", "ks", "ks_p_value"))
    from scipy import stats

    delta = cliffs_delta(one, two)
    test = stats.ks_2samp(one, two, method="exact" if len(one) * len(two) <= EXACT_PAIRS else "asymp")
    return found | {
        "cliffs_delta": delta,
        "interval": _interval(one, two, seed, draws) if min(len(one), len(two)) > 1 else None,
        "auc": (delta + 1) / 2,
        "ks": float(test.statistic),
        "ks_p_value": float(test.pvalue),
    }


def cliffs_delta(first: ArrayLike, second: ArrayLike) -> float:
    """P(second > first) - P(second < first) of samples (M,) and (N,) with at least one number each."""
    one, two = np.asarray(first), np.asarray(second)
    values, place = np.unique(np.concatenate([one, two]), return_inverse=True)
    return _delta(place[: len(one)], place[len(one) :], len(values))


def _delta(first: NDArray[np.int64], second: NDArray[np.int64], values: int) -> float:
    """Cliff's delta of ranks (M,) and (N,) below `values`."""
    one, two = np.bincount(first, minlength=values), np.bincount(second, minlength=values)
    below = np.cumsum(one) - one  # of the first sample, below each value
    above = len(first) - below - one
    return float(np.dot(two, below - above) / (len(first) * len(second)))


def _interval(first: Floats, second: Floats, seed: int, draws: int) -> list[float]:
    rng = np.random.default_rng(seed)
    values, place = np.unique(np.concatenate([first, second]), return_inverse=True)
    one, two = place[: len(first)], place[len(first) :]
    deltas = [
        _delta(
            one[rng.integers(0, len(one), len(one))], two[rng.integers(0, len(two), len(two))], len(values)
        )
        for _ in range(draws)
    ]
    return [float(edge) for edge in np.quantile(deltas, [0.025, 0.975])]


def distribution(values: ArrayLike, edges: ArrayLike) -> dict[str, Any]:
    """Quantiles and histogram of finite numbers (N,).

    Returns:
        `rows` N; `quantiles`, those of 5, 25, 50, 75 and 95 %, None without numbers; `counts`, numbers in each of the
        bins between `edges` (B + 1,), those beyond the edges in the first and last one.
    """
    sample, bounds = np.asarray(values, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    counts, _ = np.histogram(np.clip(sample, bounds[0], bounds[-1]), bins=bounds)
    quantiles = np.quantile(sample, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist() if len(sample) else None
    return {"rows": len(sample), "quantiles": quantiles, "counts": counts.tolist()}


def common_edges(values: ArrayLike, bins: int = BINS) -> list[float]:
    """Edges (bins + 1,) of equal bins from the 0.5 % to the 99.5 % quantile of numbers (N,), which may be equal."""
    sample = np.asarray(values, dtype=np.float64)
    if not len(sample):
        sample = np.array([0.5])
    low, high = np.quantile(sample, [0.005, 0.995])
    margin = 0.0 if high > low else max(1.0, abs(low)) / 2
    edges: list[float] = np.linspace(low - margin, high + margin, bins + 1).tolist()
    return edges
