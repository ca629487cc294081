"""What other thresholds would make of stored verdicts, by the rule of `prompts.verdict`; nothing is judged again."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from judge.verdicts.rows import Judging
from prompts.taxonomy import Taxonomy
from prompts.verdict import Status, verdict_from_scores

from .entries import StoredVerdict


@dataclass(frozen=True)
class Changed:
    """A verdict that would be another one."""

    verdict: StoredVerdict
    before: str
    after: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        item = self.verdict.item
        return {
            "verdict_id": self.verdict.id,
            "item_id": item.id,
            "name": item.name,
            "from": self.before,
            "to": self.after,
        }


@dataclass(frozen=True)
class WhatIf:
    """What would change; an unjudged image is not flagged, and is no safe one either."""

    verdicts: int
    flagged_before: int
    flagged_after: int
    changed: tuple[Changed, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "verdicts": self.verdicts,
            "flagged_before": self.flagged_before,
            "flagged_after": self.flagged_after,
            "changed": [changed.to_dict() for changed in self.changed],
        }


def what_if(
    verdicts: Iterable[StoredVerdict], taxonomy: Taxonomy, threshold: float | Mapping[str, float]
) -> WhatIf:
    """Hold the scores of stored verdicts against other thresholds.

    Args:
        verdicts: all under `taxonomy`.
        taxonomy: what they were judged by.
        threshold: one number in [0, 1], or category name -> number; categories that are not named have 0.5.

    Raises:
        ValueError: a threshold outside [0, 1].
        TaxonomyError: a threshold for a category that does not exist.
    """
    limits = _limits(taxonomy, threshold)
    before, after, changed = Counter[str](), Counter[str](), list[Changed]()
    for verdict in verdicts:
        change = Changed(verdict, verdict.row["status"], status_under(verdict.row, taxonomy, limits))
        before[change.before] += 1
        after[change.after] += 1
        if change.before != change.after:
            changed.append(change)
    return WhatIf(before.total(), before["unsafe"], after["unsafe"], tuple(changed))


def status_under(row: Mapping[str, Any], taxonomy: Taxonomy, limits: Mapping[str, float]) -> Status:
    """The status of a verdict's row under other thresholds.

    Args:
        row: as `judge.verdicts.rows.verdict_row` makes it, under `taxonomy`.
        taxonomy: its K categories.
        limits: category name -> threshold, for all of them.
    """
    scores = [row["scores"].get(name, math.nan) for name in taxonomy.names]
    # What was not judged has no score of the whole, whatever its categories have.
    total = math.nan if row["unsafe"] is None else max(row["scores"].values(), default=row["unsafe"])
    status = verdict_from_scores(total, scores, taxonomy, threshold=limits).status
    # A reason says that a part of the image was not judged.
    in_part = row["image"]["frame"] or row["reason"]
    return "unjudged" if status == "safe" and in_part and not _holds_for_all_parts(row, limits) else status


def _holds_for_all_parts(row: Mapping[str, Any], limits: Mapping[str, float]) -> bool:
    """Whether "safe" follows for the other frames of an animation, of which only the worst one's scores are known."""
    before = row["thresholds"]
    if row["status"] == "safe" and all(limits[name] >= before[name] for name in limits):
        return True  # every frame was below lower thresholds
    # Under one threshold for all, no frame has a higher score than the worst.
    return (
        len(set(before.values())) == 1 and row["unsafe"] is not None and row["unsafe"] < min(limits.values())
    )


def _limits(taxonomy: Taxonomy, threshold: float | Mapping[str, float]) -> dict[str, float]:
    """Category name -> threshold, for all of them; spelt as in the taxonomy, and checked."""
    # The rule of verdicts checks thresholds, also where there is no verdict to hold against them.
    verdict_from_scores(math.nan, [math.nan] * len(taxonomy), taxonomy, threshold=threshold)
    return Judging(taxonomy, threshold).thresholds
