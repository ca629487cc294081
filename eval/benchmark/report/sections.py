"""Tables of what a run was, what it could not judge, and how its classifiers obey a policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.benchmark.predictions import Predictions
from eval.reports.table import Table

from .leaders import percent

Metrics = Mapping[str, Any]
LISTED = 40
"""Images that could not be judged, listed of each classifier; how many there are is said beside them."""


@dataclass(frozen=True)
class Failures:
    """The images that a classifier did not judge."""

    label: str
    total: int
    listed: tuple[tuple[str, str], ...]
    """(id, reason) of the first of them."""


def facts(metrics: Metrics, predictions: Sequence[Predictions]) -> dict[str, Any]:
    """What the run was, in a few words; empty without predictions."""
    if not predictions:
        return {}
    about = predictions[0].about
    images = {row.id for one in predictions for row in one.rows}
    return {
        "data": about.dataset,
        "splits": ", ".join(about.splits),
        "images": len(images),
        "classifiers": len(predictions),
        "taxonomy": f"{about.taxonomy.name}, {len(about.taxonomy)} categories",
        "protocol": about.protocol,
        "threshold": f"p(unsafe) ≥ {metrics['threshold']:g}",
    }


def run_table(predictions: Sequence[Predictions]) -> Table:
    """What was loaded, from where, and on which machine."""
    lines = []
    for one in predictions:
        options = ", ".join(f"{name}={value}" for name, value in one.about.options.items())
        fingerprint = (one.about.fingerprint or "–")[:16]
        cells = [one.about.classifier, options or "–", fingerprint, one.about.machine or "–", len(one.rows)]
        lines.append((one.about.label, cells))
    return Table("How it was run", ["loaded", "options", "fingerprint", "machine", "images"], lines)


def skipped_table(metrics: Metrics) -> Table:
    """Classifiers that were chosen and have no number, and why."""
    lines = [(label, [why]) for label, why in metrics.get("skipped", {}).items()]
    return Table("Not measured", ["reason"], lines)


def list_failures(predictions: Sequence[Predictions]) -> list[Failures]:
    """The unjudged images of every classifier that has any, in the order of their ids."""
    found = []
    for one in predictions:
        rows = sorted((row for row in one.rows if row.unsafe != row.unsafe), key=lambda row: row.id)
        if rows:
            listed = tuple((row.id, row.reason or "no reason was given") for row in rows[:LISTED])
            found.append(Failures(one.about.label, len(rows), listed))
    return found


def policy_tables(metrics: Metrics, labels: Sequence[str]) -> list[Table]:
    """The policy tests (`eval.benchmark.policies`): opposite policies, obedience, unseen harms."""
    tested = {label: metrics["policies"][label] for label in labels if metrics["policies"].get(label)}
    found = [_pairs(tested), _obedience(tested), _families(tested), _unseen(tested)]
    return [table for table in found if table.lines]


def _pairs(tested: Metrics) -> Table:
    keys = (
        *("pairs", "pair_score", "pair_score_interval"),
        *("safe_to_unsafe", "safe_to_unsafe_interval", "unsafe_to_safe", "unsafe_to_safe_interval"),
    )
    lines = [
        (
            label,
            [*map(_known, map(one.get, keys)), percent(one.get("unjudged_share")), one.get("reason") or ""],
        )
        for label, one in tested.items()
    ]
    note = (
        "The same image under two policies, one of which forbids what it shows. Pair score: judged right under both. "
        "The two directions: judged right under the changed policy, which makes it unsafe, or safe. A classifier that "
        "answers alike under any policy has a pair score of 0, however good its other scores are."
    )
    heads = ["pairs", "pair score", "95 %", "safe → unsafe", "95 %", "unsafe → safe", "95 %", "unjudged", ""]
    return Table("Opposite policies", heads, lines, note)


def _obedience(tested: Metrics) -> Table:
    keys = (
        "families",
        "plain_f1",
        "plain_f1_interval",
        "mean_f1",
        "worst_f1",
        "worst",
        "worst_prompt_recall_drop",
    )
    lines = [
        (label, [*map(_known, map(found.get, keys)), percent(found.get("unjudged_share"))])
        for label, one in tested.items()
        if (found := one.get("obedience"))
    ]
    note = (
        "F1 on the same images with the policy in other words, in another structure, under other logic, and beside "
        "texts that order a verdict. A classifier that obeys the policy answers alike in all families."
    )
    heads = [
        "families",
        "plain F1",
        "95 %",
        "mean F1",
        "worst F1",
        "worst family",
        "worst drop of recall",
        "unjudged",
    ]
    return Table("Obedience", heads, lines, note)


def _families(tested: Metrics) -> Table:
    """F1 of every family as lines, with classifiers as columns."""
    records = {
        label: found["by_family"]
        for label, one in tested.items()
        if (found := one.get("obedience")) and found.get("by_family")
    }
    names = dict.fromkeys(name for record in records.values() for name in record)
    lines = [(name, [record.get(name, {}).get("f1") for record in records.values()]) for name in names]
    return Table("F1 by family", list(records), lines, "A dash: it could not be asked.")


def _unseen(tested: Metrics) -> Table:
    keys = ("rows", "f1", "f1_interval", "auc", "named", "named_of_flagged")
    lines = [
        (label, [*map(_known, map(found.get, keys)), percent(found.get("unjudged_share"))])
        for label, one in tested.items()
        if (found := one.get("unseen"))
    ]
    note = (
        "Policies of categories that no other question here asks about. Named: share of the unsafe images that were "
        "flagged, and for a category that they violate; then the same of the flagged ones."
    )
    heads = ["questions", "F1", "95 %", "AUC", "named", "named of flagged", "unjudged"]
    return Table("Unseen categories", heads, lines, note)


def _known(value: Any) -> Any:
    """None for an interval without ends."""
    return None if isinstance(value, list | tuple) and None in value else value
