"""How sure classifiers are, and how wrong: confidence and loss by source (UnsafeBench, section 4.2, Figures 8, 15)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.benchmark.predictions import Prediction, Predictions

from .effects import compare, distribution
from .outcomes import divide_sources, outcome

CONFIDENCE_EDGES = np.linspace(0.5, 1.0, 21).tolist()
"""Bins of confidence."""
LOSS_EDGES = np.linspace(0.0, 8.0, 33).tolist()
"""Bins of loss in nats; larger ones count in the last bin."""
LEAST_PROBABILITY = 1e-7
"""Probabilities closer to 0 or 1 count as this, as losses would be infinite."""

Floats = NDArray[np.float64]


def confidence(unsafe: Floats) -> Floats:
    """The larger of the two class probabilities, (N,) in [0.5, 1], of probabilities (N,) of being unsafe."""
    larger: Floats = np.maximum(unsafe, 1 - unsafe)
    return larger


def cross_entropy(unsafe: Floats, truth: NDArray[np.bool_]) -> Floats:
    """Minus the logarithm of the probability of the true class, (N,) in nats."""
    loss: Floats = -np.log(np.clip(np.where(truth, unsafe, 1 - unsafe), LEAST_PROBABILITY, 1.0))
    return loss


def describe_confidence(
    all_predictions: Sequence[Predictions], *, threshold: float = 0.5, seed: int = 0
) -> dict[str, Any]:
    """Confidence and loss of every classifier, by source and by whether the verdict was right.

    Confidence is of p(unsafe) as such; only right and wrong depend on the threshold.

    Returns:
        `confidence_edges`, `loss_edges`, and `classifiers`: label -> `reference` (a source), `left_out`
        (further sources, of which nothing is told -> rows), `unjudged` and `unknown`
        (source -> rows without a score and without a truth, which have neither), `sources` (source -> `right`,
        `wrong` and `all` -> `confidence` and `loss`, an `effects.distribution` each), and `against_reference`
        (source -> `confidence` and `loss`, an `effects.compare` each, positive where that source has more of it).
    """
    return {
        "confidence_edges": CONFIDENCE_EDGES,
        "loss_edges": LOSS_EDGES,
        "classifiers": {
            predictions.about.label: _describe(predictions.rows, threshold, seed)
            for predictions in all_predictions
        },
    }


def _describe(rows: Sequence[Prediction], threshold: float, seed: int) -> dict[str, Any]:
    sources, left_out = divide_sources(row.source for row in rows)
    outcomes = [outcome(row, threshold) for row in rows]
    parts: dict[str, Any] = {}
    samples: dict[str, dict[str, Floats]] = {}
    for source in sources:
        judged = [
            (row, found)
            for row, found in zip(rows, outcomes, strict=True)
            if row.source == source and found not in ("unjudged", "unknown")
        ]
        unsafe = np.array([row.unsafe for row, _ in judged], dtype=np.float64)
        truth = np.array([row.truth for row, _ in judged], dtype=np.bool_)
        right = np.array([found == "right" for _, found in judged], dtype=np.bool_)
        samples[source] = {"confidence": confidence(unsafe), "loss": cross_entropy(unsafe, truth)}
        members = {"all": np.ones(len(judged), dtype=np.bool_), "right": right, "wrong": ~right}
        parts[source] = {
            name: {
                "confidence": distribution(samples[source]["confidence"][chosen], CONFIDENCE_EDGES),
                "loss": distribution(samples[source]["loss"][chosen], LOSS_EDGES),
            }
            for name, chosen in members.items()
        }
    counts = Counter((found, row.source) for row, found in zip(rows, outcomes, strict=True))
    return {
        "reference": sources[0] if sources else None,
        "left_out": left_out,
        "unjudged": {source: counts["unjudged", source] for source in sources},
        "unknown": {source: counts["unknown", source] for source in sources},
        "sources": parts,
        "against_reference": {
            source: {
                name: compare(samples[sources[0]][name], samples[source][name], seed=seed)
                for name in ("confidence", "loss")
            }
            for source in sources[1:]
        },
    }
