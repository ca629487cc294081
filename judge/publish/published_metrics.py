"""The numbers of a run as they are published: what its card shows, and nothing of the machine or the data."""

from collections.abc import Mapping
from typing import Any

from .card import Facts
from .card_sections import OPTIONS, data_words
from .results import LABELS

_SUMMARY = (
    *LABELS,
    *("rows", "images", "unsafe_rows", "threshold", "unjudged", "intervals", "by_category"),
    *("heldout_rows", "heldout_f1", "lying_prompt_rows", "lying_prompt_f1", "average_precision", "brier"),
)
"""Of the numbers on one set of questions."""
_WHOLE = (
    *("shortcut_auc", "image_shortcut_auc", "promised_miss_rate", "mean_miss_rate", "learned", "seconds"),
    *("robust_accuracy", "defended_robust_accuracy", "parameters", "taxonomy_hash"),
)
_ENVIRONMENT = ("arbiter", "python", "packages", "git")


def published_metrics(facts: Facts) -> dict[str, Any]:
    """metrics.json for others, from which the same card can be written again."""
    metrics = facts.metrics
    found = _summary(metrics) | {name: metrics[name] for name in _WHOLE if name in metrics}
    for name in ("before", "after", "by_name"):
        if isinstance(metrics.get(name), Mapping):
            inner = metrics[name].get("clean")  # of a run that was attacked
            found[name] = _summary(inner if isinstance(inner, Mapping) else metrics[name])
    obedience = metrics.get("obedience")
    if isinstance(obedience, Mapping):
        found["obedience"] = {"after": obedience.get("after")}
    options = {name: facts.config[name] for name in (*OPTIONS, "held_out") if name in facts.config}
    if facts.config.get("dataset"):
        options["dataset"] = data_words(str(facts.config["dataset"]))
    made = {name: facts.environment[name] for name in _ENVIRONMENT if name in facts.environment}
    return {**found, "made_with": {**made, "options": options}}


def _summary(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in _SUMMARY if name in metrics}
