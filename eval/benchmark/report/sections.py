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


def list_failures(predictions: Sequence[Predictions]) -> list[Failures]:
    """The unjudged images of every classifier that has any, in the order of their ids."""
    found = []
    for one in predictions:
        rows = sorted((row for row in one.rows if row.unsafe != row.unsafe), key=lambda row: row.id)
        if rows:
            listed = tuple((row.id, row.reason or "no reason was given") for row in rows[:LISTED])
            found.append(Failures(one.about.label, len(rows), listed))
    return found


def failure_table(metrics: Metrics, labels: Sequence[str]) -> Table:
    """How many images each classifier did not judge, by reason."""
    lines = [
        (label, [reason, count, percent(count / one["rows"] if one["rows"] else None)])
        for label in labels
        for one in [metrics["classifiers"][label]]
        for reason, count in sorted(one["failures"].items(), key=lambda entry: (-entry[1], entry[0]))
    ]
    note = "An image that was not judged counts as an error in every table, whether it is safe or not."
    return Table("Failures to judge", ["reason", "images", "of all"], lines, note)


def policy_tables(metrics: Metrics, labels: Sequence[str]) -> list[Table]:
    """The policy tests: the same images under opposite policies, and the same policy in other words."""
    tested = {label: metrics["policies"][label] for label in labels if metrics["policies"].get(label)}
    pairs = (
        "pairs",
        "pair_score",
        "pair_score_interval",
        "safe_to_unsafe",
        "unsafe_to_safe",
        "unjudged_share",
    )
    flips = Table(
        "Opposite policies",
        ["pairs", "pair score", "95 %", "safe → unsafe", "unsafe → safe", "unjudged"],
        [(label, [one.get(key) for key in pairs]) for label, one in tested.items()],
        "The same image under two policies of opposite label. Pair score: both answers are right. The two directions: "
        "how often the answer follows when the policy is changed so that the image becomes unsafe, or safe.",
    )
    keys = ("families", "plain_f1", "mean_f1", "worst_f1", "worst", "worst_prompt_recall_drop")
    obedience = Table(
        "Obedience",
        ["families", "plain F1", "mean F1", "worst F1", "worst family", "worst drop of recall by a prompt"],
        [
            (label, [found.get(key) for key in keys])
            for label, one in tested.items()
            if (found := one.get("obedience"))
        ],
        "The same policy in other words, order and languages, and the same images beside other prompts: a classifier "
        "that obeys the policy answers alike.",
    )
    return [table for table in (flips, obedience) if table.lines]
