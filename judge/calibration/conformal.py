"""Thresholds for a promised miss rate, by conformal risk control.

The rule is theorem 1 of Angelopoulos et al. 2022 (arXiv 2208.02814). Take losses in [0, 1] that can only fall as a
parameter becomes stricter, and their mean R over n held-out rows. At the most lenient setting with

    n / (n + 1) * R + 1 / (n + 1) <= promise

the expected loss of a new row is at most `promise`. Here the rows are unsafe ones and the loss is a miss, so the miss
rate is what is promised (recall is 1 minus it).

- It holds on average over draws of calibration set *and* new row: one calibration set may be unlucky.
- It holds for all unsafe rows together, not within each category, source or style.
- It needs calibration and new unsafe rows to be exchangeable: drawn alike, and not used before. After a change of
  users, generator or policy, calibrate again.
- What could not be judged (NaN) goes to a person: it is neither safe nor missed. Such rows are left out, so the promise
  is about the unsafe rows that are judged; over all unsafe rows the miss rate is only lower. Counting them as caught
  would give a classifier that often fails a laxer threshold.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from judge.errors import ConfigError

Array = NDArray[np.float64]


def needed_unsafe(promise: float) -> int:
    """The fewest unsafe calibration rows that can support a promised miss rate: 1 / (n + 1) <= promise.

    Raises:
        ConfigError: the promise is not between 0 and 1.
    """
    if not 0 < promise < 1:
        raise ConfigError(f"A promised miss rate lies between 0 and 1, both excluded; got {promise!r}.")
    # 1e-9 for rounding: a recall of 0.9 is a promise of 0.09999999999999998, for which 9 rows suffice and not 10.
    return max(1, math.ceil(1 / promise - 1 - 1e-9))


def conformal_threshold(
    truth: ArrayLike, probability: ArrayLike, *, miss_rate: float | None = None, recall: float | None = None
) -> float:
    """The largest threshold t, flagging `probability >= t`, with the promise of this module's docstring.

    With n judged unsafe rows this is their k-th smallest probability, k = floor(promise * (n + 1)).

    Args:
        truth: (N,) 1 or 0, NaN where not labelled.
        probability: (N,) in [0, 1], NaN where not judged; such rows are left out.
        miss_rate: the promised share of unsafe rows below the threshold; or
        recall: 1 minus it.

    Raises:
        ConfigError: shapes or values are off; no unsafe or no safe row (the price in false alarms would be unknown);
            or too few unsafe rows for the promise: the message says how many it takes.
    """
    if (miss_rate is None) == (recall is None):
        raise ConfigError("Give either miss_rate or recall, which is 1 minus it.")
    promise = miss_rate if miss_rate is not None else 1 - float(recall or 0)
    unsafe, _ = split_both_labels(truth, probability)
    # Below the (m + 1)-th smallest score of an unsafe row lie exactly m misses, ties aside.
    return float(np.sort(unsafe)[allowed_misses(len(unsafe), promise)])


def conformal_level(losses: ArrayLike, promise: float) -> int:
    """The last of L levels, ordered from strict to lenient, that keeps the promise.

    Args:
        losses: (N, L) in [0, 1] of N unsafe rows, never falling along a row (checked), 0 at the first level: there
            must be a setting that misses nothing.
        promise: bound on the expected loss.

    Raises:
        ConfigError: the losses are not such a family, or N is too small for the promise.
    """
    table = _family(losses)
    # Only for its error: the first level, which misses nothing, must keep the promise.
    allowed_misses(len(table), promise)
    # n / (n + 1) * R + 1 / (n + 1), with 1e-12 for the rounding of the sum
    kept = (table.sum(axis=0) + 1) / (len(table) + 1) <= promise + 1e-12
    return int(np.flatnonzero(kept)[-1])


def average_by(losses: ArrayLike, groups: ArrayLike) -> Array:
    """Losses (N, L) of rows -> (G, L), the mean within each of G groups, such as the rows that show one image.

    Rows of one image are not exchangeable with rows of another; images are. Means of monotone losses in [0, 1] are
    monotone losses in [0, 1], so a promise about them holds for the mean over images.
    """
    table = np.asarray(losses, dtype=np.float64)
    _, places, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), table.shape[1]))
    # Unbuffered: `sums[places] += table` would count a repeated group once.
    np.add.at(sums, places, table)
    means: Array = sums / counts[:, None]
    return means


@dataclass(frozen=True)
class PromiseCheck:
    """The miss rate over random splits into calibration and test rows, beside the promised one."""

    promise: float
    splits: int
    mean: float
    """Mean miss rate on the test rows; its expectation is guaranteed to be at most the promise."""
    standard_error: float
    """Standard error of the mean over pairs of splits: the precision of this check, not of the promise."""
    quantiles: Mapping[str, float]
    """Miss rate at the 5th, 50th and 95th percentile of the splits."""
    share_above: float
    """Share of splits whose test side missed more than the promise; the promise is about the mean only."""
    false_alarm_rate: float
    """Mean share of the judged safe rows that were flagged; NaN where none were given."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "quantiles": dict(self.quantiles)}


def check_levels(
    losses: ArrayLike,
    promise: float,
    *,
    alarms: ArrayLike | None = None,
    splits: int = 200,
    share: float = 0.5,
    seed: int = 0,
) -> PromiseCheck:
    """Calibrate on a random share of the unsafe rows, measure on the others, and average over many such splits.

    Splits come in pairs, an order and its reverse: where the one is lucky the other is not, so that their mean is as
    exact as that of four to ten times as many independent splits.

    Args:
        losses: (N, L) as for `conformal_level`.
        promise: bound on the expected loss.
        alarms: (L,) false-alarm rate in [0, 1] of each level.
        splits: how many; an odd number is rounded up.
        share: of the rows, for calibration.
        seed: of the splits.

    Raises:
        ConfigError: as `conformal_level`, for the smaller calibration sets; rates of another number of levels; or
            too few splits or rows.
    """
    table = _family(losses)
    rates = np.full(table.shape[1], np.nan) if alarms is None else np.asarray(alarms, dtype=np.float64)
    if rates.shape != table.shape[1:]:
        raise ConfigError(
            f"{table.shape[1]} levels but false-alarm rates of shape {rates.shape}; give one each."
        )
    rows = len(table)
    size = round(share * rows)
    if splits < 2 or not 0 < size < rows:
        raise ConfigError(
            f"{splits} splits with a share of {share} of {rows} unsafe rows; give at least 2, and rows for both."
        )
    rng = np.random.default_rng(seed)
    missed, alarmed = [], []
    for _ in range(math.ceil(splits / 2)):
        order = rng.permutation(rows)
        for side in (order, order[::-1]):
            level = conformal_level(table[side[:size]], promise)
            missed.append(table[side[size:], level].mean())
            alarmed.append(rates[level])
    pairs = np.array(missed).reshape(-1, 2).mean(axis=1)
    error = float(pairs.std(ddof=1) / math.sqrt(len(pairs))) if len(pairs) > 1 else float("nan")
    return PromiseCheck(
        promise,
        splits=len(missed),
        mean=float(np.mean(missed)),
        standard_error=error,
        quantiles={f"{p}%": float(np.quantile(missed, p / 100)) for p in (5, 50, 95)},
        share_above=float((np.array(missed) > promise).mean()),
        false_alarm_rate=float(np.mean(alarmed)),
    )


def allowed_misses(rows: int, promise: float) -> int:
    """How many of n unsafe calibration rows a setting may miss: (misses + 1) / (n + 1) <= promise.

    Raises:
        ConfigError: not even none would do.
    """
    needed = needed_unsafe(promise)
    if rows < needed:
        raise ConfigError(
            f"A promised miss rate of {promise:g} needs at least {needed} unsafe calibration examples that are judged; "
            f"there are {rows}. Add {needed - rows}, or promise {1 / (rows + 1):.2g} or more."
        )
    # 1e-9 for rounding: 0.29 * 100 is 28.999999999999996.
    return math.floor(promise * (rows + 1) + 1e-9) - 1


def _family(losses: ArrayLike) -> Array:
    """(N, L) losses that are checked to be monotone in the level, which the theorem needs."""
    table = np.asarray(losses, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.all((table >= 0) & (table <= 1)):
        raise ConfigError(f"Losses are (rows, levels) in [0, 1], without NaN; got shape {table.shape}.")
    if np.any(np.diff(table, axis=1) < 0) or np.any(table[:, 0] > 0):
        raise ConfigError(
            "Losses must be 0 at the first level and never fall from a level to the next, or nothing is promised."
        )
    return table


def split_by_label(truth: ArrayLike, probability: ArrayLike) -> tuple[Array, Array]:
    """Probabilities of the unsafe and of the safe rows that are labelled and judged.

    Args:
        truth: (N,) 1 or 0, NaN where not labelled.
        probability: (N,) in [0, 1], NaN where not judged.

    Returns:
        (U,) and (S,) probabilities, in the order of the rows.

    Raises:
        ConfigError: other shapes than (N,), or values that are neither labels nor probabilities.
    """
    label, score = np.asarray(truth, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise ConfigError(f"truth has shape {label.shape}, probability {score.shape}; both must be (N,).")
    if np.any((label != 0) & (label != 1) & ~np.isnan(label)) or np.any((score < 0) | (score > 1)):
        raise ConfigError("truth holds 0, 1 or NaN, probability numbers in [0, 1] or NaN; got others.")
    judged = ~np.isnan(score)
    return score[judged & (label == 1)], score[judged & (label == 0)]


def split_both_labels(truth: ArrayLike, probability: ArrayLike) -> tuple[Array, Array]:
    """`split_by_label` where both kinds are needed, with the same (N,) arguments and (U,) and (S,) results.

    Raises:
        ConfigError: as `split_by_label`; or there is no unsafe or no safe row.
    """
    unsafe, safe = split_by_label(truth, probability)
    if not len(unsafe) or not len(safe):
        raise ConfigError(
            f"The calibration set has {len(unsafe)} unsafe and {len(safe)} safe examples that are labelled and judged; "
            "it takes both. Add the missing kind, or calibrate on another split."
        )
    return unsafe, safe
