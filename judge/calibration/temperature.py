"""Temperature scaling, so that a probability means a frequency (Guo et al. 2017, arXiv 1706.04599, section 4.2).

Logits are divided by one number, found by negative log-likelihood on held-out rows. It keeps the order of the scores,
and 0.5 stays 0.5.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from judge.errors import ConfigError
from judge.protocol import Scores, on_one_scale
from prompts.taxonomy import Taxonomy

from .conformal import split_both_labels, split_by_label

Array = NDArray[np.float64]

TEMPERATURES = (0.05, 20.0)
"""Smallest and largest temperature; for rows that a classifier separates without error, the optimum is 0."""
MIN_EXAMPLES = 20
"""Fewest unsafe and fewest safe examples for which a category gets a temperature of its own."""
_SMALLEST = 1e-12
"""Probabilities are clipped to this distance from 0 and 1 while a temperature is fitted."""


@dataclass(frozen=True)
class LabelledScores:
    """Scores of B images under one taxonomy of K categories, and the truth; NaN where not labelled."""

    taxonomy: Taxonomy
    scores: Scores
    unsafe: Array
    """(B,) 1 for unsafe, 0 for safe."""
    categories: Array
    """(B, K) 1 where violated, 0 where not, in the taxonomy's order."""


@dataclass(frozen=True)
class Calibration:
    """Temperatures of one classifier, each above 0; 1 changes nothing, more makes it less sure."""

    classifier: str = ""
    whole: float = 1.0
    """For p(unsafe)."""
    shared: float = 1.0
    """For categories that have none of their own."""
    categories: Mapping[str, float] = field(default_factory=dict)
    """By the category's key, which survives renaming."""

    def apply(self, scores: Scores, taxonomy: Taxonomy) -> Scores:
        """The same scores with every logit divided by its temperature, on one scale again; NaN stays NaN.

        Raises:
            ConfigError: scores of another number of categories.
        """
        if scores.categories.shape[1:] != (len(taxonomy),):
            raise ConfigError(
                f"Scores of shape {scores.categories.shape} do not belong to the {len(taxonomy)} categories of "
                f"{taxonomy.name!r}; pass the taxonomy that was judged under."
            )
        own = np.array([self.categories.get(key, self.shared) for key in taxonomy.keys])
        return on_one_scale(
            replace(
                scores,
                unsafe=divide_logits(scores.unsafe, self.whole),
                categories=divide_logits(scores.category_probabilities, own),
                separate=None,
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "categories": dict(self.categories)}


def divide_logits(probability: ArrayLike, temperature: ArrayLike) -> Array:
    """Probabilities of any shape, such as (B, K), with their logits divided by a temperature that broadcasts.

    0, 0.5, 1 and NaN stay as they are.
    """
    values: Array = expit(logit(np.asarray(probability, dtype=np.float64)) / temperature)
    return values


def fit_temperature(truth: ArrayLike, probability: ArrayLike) -> float:
    """The temperature of least negative log-likelihood, within `TEMPERATURES`.

    Args:
        truth: (N,) 1 or 0, NaN where not labelled.
        probability: (N,) in [0, 1], NaN where not judged.

    Raises:
        ConfigError: shapes or values are off, or no unsafe or no safe row is known and judged.
    """
    unsafe, safe = split_both_labels(truth, probability)
    # Positive where the classifier is right; the loss is convex in 1 / temperature, so one minimum is found.
    margins = np.concatenate([logit(_inside(unsafe)), -logit(_inside(safe))])
    coldest, hottest = TEMPERATURES
    # logaddexp(0, -m) is the negative log-likelihood log(1 + exp(-m)) without overflow.
    found = minimize_scalar(
        lambda inverse: float(np.logaddexp(0.0, -margins * inverse).mean()),
        bounds=(1 / hottest, 1 / coldest),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(1 / found.x)


def fit_calibration(
    answers: Iterable[LabelledScores], *, classifier: str = "", min_examples: int = MIN_EXAMPLES
) -> Calibration:
    """Fit one temperature for the whole, one for each category that has the data, one for all the others.

    Args:
        answers: scores and truth, as many taxonomies as there are.
        classifier: its name, stored with the temperatures.
        min_examples: fewest unsafe and fewest safe examples for which a category gets a temperature of its own. One
            that is never on the wrong side of 0.5 gets none, as it would be 0. The shared one is fitted to all
            categories together; where that is impossible, it is the whole's.

    Raises:
        ConfigError: no unsafe or no safe row.
    """
    truths: list[Array] = []
    scores: list[Array] = []
    by_key: dict[str, list[tuple[Array, Array]]] = {}
    for answer in answers:
        truths.append(np.asarray(answer.unsafe, dtype=np.float64))
        scores.append(answer.scores.unsafe)
        for place, key in enumerate(answer.taxonomy.keys):
            column = np.asarray(answer.categories[:, place], dtype=np.float64)
            by_key.setdefault(key, []).append((column, answer.scores.category_probabilities[:, place]))
    # An empty array in front: without any answers there are no rows, which is the same error as rows of one kind.
    whole = fit_temperature(np.concatenate([[], *truths]), np.concatenate([[], *scores]))
    columns = {
        key: (np.concatenate([t for t, _ in pairs]), np.concatenate([p for _, p in pairs]))
        for key, pairs in by_key.items()
    }
    all_truths, all_scores = (np.concatenate([pair[side] for pair in columns.values()]) for side in (0, 1))
    # Categories of few examples share one temperature rather than get a noisy one each.
    shared = fit_temperature(all_truths, all_scores) if _fits(all_truths, all_scores, min_examples) else whole
    own = {key: fit_temperature(*pair) for key, pair in sorted(columns.items()) if _fits(*pair, min_examples)}
    return Calibration(classifier, whole, shared, own)


def _fits(truth: Array, probability: Array, min_examples: int) -> bool:
    """Whether there are enough rows, and an error among them: without one, the optimum is a temperature of 0."""
    unsafe, safe = split_by_label(truth, probability)
    return min(len(unsafe), len(safe)) >= max(1, min_examples) and bool(
        unsafe.min() <= 0.5 or safe.max() >= 0.5
    )


def _inside(probability: Array) -> Array:
    return np.clip(probability, _SMALLEST, 1 - _SMALLEST)
