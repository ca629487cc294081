"""The numbers of a run for its card, read from metrics.json of whatever kind: value, 95 % interval, number of rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LABELS = {
    "f1": "F1",
    "precision": "precision: flagged images that are unsafe",
    "recall": "recall: unsafe images that are flagged",
    "accuracy": "accuracy",
    "safe_to_unsafe": "flips, safe to unsafe: answered rightly once the policy forbids the image",
    "unsafe_to_safe": "flips, unsafe to safe: answered rightly once the policy allows it",
    "pair_score": "pairs of opposite policies with both answers right",
    "category_accuracy": "right category among unsafe images that were flagged",
    "auc": "area under the ROC curve",
    "calibration_error": "calibration error",
    "unjudged_share": "images that could not be judged (counted as errors)",
    "miss_rate": "unsafe images missed",
    "false_alarm_rate": "safe images flagged",
}
_APART = (
    ("heldout_f1", "heldout_rows", "F1 on categories that no lesson named"),
    ("lying_prompt_f1", "lying_prompt_rows", "F1 where the prompt lies about the image"),
)


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    key: str
    label: str
    value: float
    interval: tuple[float, float] | None = None
    """Of 95 %."""
    rows: int | None = None
    """Questions it was measured on; None where the run does not say."""


def main_summary(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the numbers of a run, those of the finished classifier on its test questions; empty where there are none."""
    after = metrics.get("after")
    places = (
        after,
        after.get("clean") if isinstance(after, Mapping) else None,
        metrics,
        metrics.get("by_name"),
    )
    return next(
        (place for place in places if isinstance(place, Mapping) and _number(place.get("f1")) is not None), {}
    )


def results(summary: Mapping[str, Any]) -> list[Result]:
    """The numbers that a card shows, as far as there are any."""
    intervals, rows = summary.get("intervals"), summary.get("rows")
    count = rows if isinstance(rows, int) else None
    found = []
    for key, label in LABELS.items():
        value = _number(summary.get(key))
        if value is not None:
            bounds = _interval(intervals.get(key)) if isinstance(intervals, Mapping) else None
            # Pairs and flips are a part of the rows, whose number no run keeps.
            whole = key not in ("pair_score", "safe_to_unsafe", "unsafe_to_safe", "category_accuracy")
            found.append(Result(key, label, value, bounds, count if whole else None))
    for key, counted, label in _APART:
        value, number = _number(summary.get(key)), summary.get(counted)
        if value is not None:
            found.append(Result(key, label, value, None, number if isinstance(number, int) else None))
    return found


def by_category(summary: Mapping[str, Any]) -> list[tuple[str, Result, int]]:
    """(category, its F1, unsafe rows among its rows) of every category that was asked about."""
    found = []
    groups = summary.get("by_category")
    for name, about in (groups if isinstance(groups, Mapping) else {}).items():
        value = _number(about.get("f1"))
        if value is not None:
            one = Result("f1", name, value, _interval(about.get("f1_interval")), about.get("rows"))
            found.append((name, one, int(about.get("unsafe_rows") or 0)))
    return found


def obedience(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the finished classifier made of other wordings; empty where it was not asked."""
    found = metrics.get("obedience")
    after = found.get("after") if isinstance(found, Mapping) else None
    return after if isinstance(after, Mapping) else {}


def robust_accuracy(metrics: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(budget, robust accuracy) of a run that was attacked by its own recipe."""
    found = metrics.get("robust_accuracy")
    if isinstance(found, Mapping):
        return [(str(budget), value) for budget, value in found.items() if _number(value) is not None]
    value = _number(metrics.get("defended_robust_accuracy"))
    return [] if value is None else [("its own attack", value)]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _interval(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = map(_number, value)
    return None if low is None or high is None else (low, high)
