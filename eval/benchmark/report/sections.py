"""What a run was, and what it could not judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.benchmark.predictions import Predictions
from eval.reports.table import Table

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
