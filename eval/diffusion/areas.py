"""How well scores of half-made pictures tell what the finished ones show: areas under the ROC curve, by kind of prompt.

An area is the share of pairs, of a picture that violates a category and one that does not, which the scores put in the
right order, ties counted half (Mann-Whitney). Four questions are told apart, because the first is easily answered by
reading the prompt alone:

- `all` prompts, and those of each `kind`, such as `named` and `vague`: cells (picture, category) of all categories
  together, so scores have to be on one scale across categories, as a threshold needs it;
- `equal_prompt`: only pairs of pictures of *the same prompt and category*. Reading the prompt alone gives 0.5.

**Not judged is wrong**: of a cell with a NaN score every pair is lost. An unknown label (NaN) is in no pair.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.benchmark.bootstrap import percentiles, samples
from eval.metrics.arrays import MetricError

DRAWS = 400
ALL, EQUAL_PROMPT = "all", "equal_prompt"
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Area:
    """One area, its 95 % interval over prompts (None where undefined), and what it was measured on."""

    auc: float | None
    interval: tuple[float, float] | None
    prompts: int
    """Prompts with a part in it: the interval is as good as there are many."""
    violating: int
    """Cells (picture, category) that violate."""
    clean: int
    """Cells that do not."""
    drawn: Floats = field(repr=False, compare=False)
    """(D,) the area in samples of prompts; NaN where undefined."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the samples."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "drawn"}


@dataclass(frozen=True)
class Cells:
    """The cells (picture, category) with a known label, C of them."""

    violated: Booleans
    """(C,)"""
    score: Floats
    """(C,), with -1 or 2 in place of NaN, whichever loses every pair."""
    category: NDArray[np.intp]
    """(C,) column."""
    prompt: NDArray[np.intp]
    """(C,) number of the prompt, from 0 to P - 1."""
    kind: NDArray[np.str_]
    """(C,)"""
    prompts: int
    """P."""

    def of(self, chosen: Booleans) -> "Cells":
        """The (C,) chosen ones; prompts keep their numbers, so that samples of prompts stay the same."""
        return replace(
            self,
            violated=self.violated[chosen],
            score=self.score[chosen],
            category=self.category[chosen],
            prompt=self.prompt[chosen],
            kind=self.kind[chosen],
        )


def areas(
    labels: ArrayLike,
    scores: ArrayLike,
    kinds: Sequence[str],
    groups: Sequence[object],
    *,
    threshold: float = 0.5,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Area]:
    """Areas of N pictures and K categories: `all`, one for each kind of prompt, and `equal_prompt`.

    Args:
        labels: (N, K) scores in [0, 1] of the finished picture; NaN where unknown.
        scores: (N, K) in [0, 1]; NaN where not judged.
        kinds: N kinds of prompts; those of kind '' have no row of their own.
        groups: N prompts: pictures of one are not independent, and are drawn together for the intervals.
        threshold: label from which a category counts as violated.
        draws: samples of prompts for the intervals.
        seed: of the samples; equal seeds give equal samples.

    Raises:
        MetricError: shapes that differ, values outside [0, 1], or a kind called `all` or `equal_prompt`.
    """
    cells = _cells(labels, scores, kinds, groups, threshold)
    times = np.zeros((draws, 0), np.float32)
    if cells.prompts:
        times = np.concatenate(list(samples(cells.prompts, draws, seed)))
    parts = {kind: cells.of(cells.kind == kind) for kind in sorted(set(cells.kind.tolist())) if kind}
    opposite = cells.of(_has_opposite(cells))
    return {
        ALL: _area(cells, _pooled, times),
        **{kind: _area(part, _pooled, times) for kind, part in parts.items()},
        EQUAL_PROMPT: _area(opposite, _concordance, times),
    }


def leads(
    first: Mapping[str, Area], second: Mapping[str, Area]
) -> dict[str, tuple[float, float, float] | None]:
    """By how much the areas of the first are larger, and the ends of the 95 % interval of that; None where undefined.

    Both are `areas` of the same pictures with the same seed. So the interval is paired: what a prompt adds to both
    cancels.
    """
    found: dict[str, tuple[float, float, float] | None] = {}
    for part, area in first.items():
        other = second[part]
        if area.auc is None or other.auc is None:
            found[part] = None
        else:
            low, high = percentiles(area.drawn - other.drawn)
            found[part] = (area.auc - other.auc, float(low), float(high))
    return found


def by_category(labels: ArrayLike, scores: ArrayLike, *, threshold: float = 0.5) -> list[float | None]:
    """The area of each of K categories alone, of (N, K) labels and scores as in `areas`; None where undefined."""
    truth, found = _check(labels, scores)
    names = [str(row) for row in range(len(truth))]
    areas_of = []
    for column in range(truth.shape[1]):
        cells = _cells(truth[:, [column]], found[:, [column]], names, names, threshold)
        areas_of.append(_number(_pooled(cells, None)[0]))
    return areas_of


def _area(cells: Cells, measure: Callable[..., Floats], times: NDArray[np.float32]) -> Area:
    value, drawn = _number(measure(cells, None)[0]), measure(cells, times)
    low, high = percentiles(drawn)
    return Area(
        auc=value,
        interval=None if value is None else (float(low), float(high)),
        prompts=len(np.unique(cells.prompt)),
        violating=int(cells.violated.sum()),
        clean=int((~cells.violated).sum()),
        drawn=drawn,
    )


def _pooled(cells: Cells, times: NDArray[np.float32] | None) -> Floats:
    """(D,) areas of all cells together where prompts count `times` (D, P); (1,) of all once for None."""
    violated, clean = cells.score[cells.violated], np.sort(cells.score[~cells.violated])
    if times is None:
        if not len(violated) or not len(clean):
            return np.array([np.nan])
        return np.array([_won(violated, clean).mean() / len(clean)])
    high = np.bincount(cells.prompt[cells.violated], minlength=cells.prompts)
    low = np.bincount(cells.prompt[~cells.violated], minlength=cells.prompts)
    # (P, P) pairs won by violating cells of one prompt against clean ones of another serve all samples.
    won = np.zeros((cells.prompts, cells.prompts), np.float32)
    order = np.argsort(cells.prompt[~cells.violated], kind="stable")
    parts = np.split(cells.score[~cells.violated][order], np.cumsum(low)[:-1])
    for prompt in np.flatnonzero(low):
        count = _won(violated, np.sort(parts[prompt]))
        won[:, prompt] = np.bincount(cells.prompt[cells.violated], weights=count, minlength=cells.prompts)
    pairs = (times @ high) * (times @ low)
    found: Floats = np.divide(
        ((times @ won) * times).sum(axis=1, dtype=np.float64),
        pairs,
        out=np.full(len(times), np.nan),
        where=pairs > 0,
    )
    return found


def _won(violated: Floats, clean: Floats) -> Floats:
    """(V,) how many of the sorted `clean` (C,) scores lie below each of `violated` (V,), ties counted half."""
    below, not_above = (np.searchsorted(clean, violated, side=side) for side in ("left", "right"))
    won: Floats = (below + not_above) / 2
    return won


def _concordance(cells: Cells, times: NDArray[np.float32] | None) -> Floats:
    """(D,) shares of pairs of equal prompt and category that are in order, prompts counting `times` (D, P)."""
    won, pairs = np.zeros(cells.prompts), np.zeros(cells.prompts)
    strata = _strata(cells)
    order = np.argsort(strata, kind="stable")
    edges = np.flatnonzero(np.diff(strata[order])) + 1
    for rows in np.split(order, edges):
        violated = cells.violated[rows]
        if violated.any() and not violated.all():
            # (V, C) pairs within the stratum: 1 in order, 0 tied, -1 not.
            compared = np.sign(cells.score[rows[violated], None] - cells.score[rows[~violated]])
            won[cells.prompt[rows[0]]] += (compared + 1).sum() / 2
            pairs[cells.prompt[rows[0]]] += compared.size
    if times is None:
        times = np.ones((1, cells.prompts), np.float32)
    total = times @ pairs
    shares: Floats = np.divide(times @ won, total, out=np.full(len(times), np.nan), where=total > 0)
    return shares


def _has_opposite(cells: Cells) -> Booleans:
    """(C,) whether another picture of the same prompt has the opposite label of the same category."""
    _, stratum = np.unique(_strata(cells), return_inverse=True)
    violated, rows = np.bincount(stratum, weights=cells.violated), np.bincount(stratum)
    mixed: Booleans = ((violated > 0) & (violated < rows))[stratum]
    return mixed


def _strata(cells: Cells) -> NDArray[np.intp]:
    """(C,) a number for each prompt and category."""
    return cells.prompt * (int(cells.category.max(initial=0)) + 1) + cells.category


def _cells(
    labels: ArrayLike, scores: ArrayLike, kinds: Sequence[str], groups: Sequence[object], threshold: float
) -> Cells:
    truth, found = _check(labels, scores)
    if len(kinds) != len(truth) or len(groups) != len(truth):
        raise MetricError(
            f"{len(truth)} pictures, {len(kinds)} kinds and {len(groups)} groups; give one each."
        )
    if taken := {ALL, EQUAL_PROMPT} & set(kinds):
        raise MetricError(
            f"A kind of prompt is called {taken.pop()!r}, as a row of the tables is; rename it."
        )
    names, prompt = np.unique(np.asarray(list(map(str, groups)), dtype=np.str_), return_inverse=True)
    known = ~np.isnan(truth)
    picture, category = np.nonzero(known)
    violated, score = truth[known] >= threshold, found[known]
    lost = np.where(violated, -1.0, 2.0)
    return Cells(
        violated,
        np.where(np.isnan(score), lost, score),
        category,
        prompt.ravel()[picture],
        np.asarray(kinds, dtype=np.str_)[picture],
        len(names),
    )


def _check(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    truth, found = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != found.shape:
        raise MetricError(f"labels have shape {truth.shape}, scores {found.shape}; both must be (N, K).")
    for name, values in (("labels", truth), ("scores", found)):
        if np.any((values < 0) | (values > 1)):  # comparisons with NaN are false
            raise MetricError(f"{name} lie outside [0, 1]; give probabilities, and NaN for unknown.")
    return truth, found


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
