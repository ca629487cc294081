"""Who leads: each classifier's score, what it left unjudged, what it costs, and what it may have seen before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.benchmark.aligned import ALL
from eval.benchmark.tables import ranking
from eval.reports.table import Table

Metrics = Mapping[str, Any]


LEADER_NOTE = (
    "F1 over all categories, with a 95 % interval by bootstrap over images. An unjudged image counts as an error. Seen "
    "in training: share of the tested images with a copy among the training images, ≥ where not all of these are "
    "known; a score means little where it is large."
)
PARTIAL_NOTE = "Some categories only: F1 on the images of those, which compares with no other line"


@dataclass(frozen=True)
class Leader:
    """One line of the leader table."""

    label: str
    group: str
    partial: bool
    """Whether it covers some categories only."""
    covered: int
    """Categories that it claims to find."""
    categories: int
    """All of them."""
    f1: float | None
    """Over all categories; of a partial one, on the images of those that it covers."""
    interval: tuple[float, float] | None
    precision: float | None
    recall: float | None
    mean_f1: float | None
    """Of the covered categories whose F1 is defined."""
    overlap: str
    """The share of the tested images that were among its training images, as `overlap_text` writes it."""
    unjudged: float | None
    """Share of its images."""
    seconds: float | None
    """An image."""
    price: float | None
    """US dollars for 1,000 images."""


def leaders(metrics: Metrics) -> list[Leader]:
    """The classifiers, the best first (`tables.ranking`)."""
    size = len(metrics["categories"])
    return [_leader(metrics, label, size) for label in ranking(metrics)]


def leader_table(found: Sequence[Leader]) -> Table:
    """The leaders as a table."""
    heads = [
        "group", "categories", "F1", "95 %", "seen in training", "precision", "recall", "mean F1 of categories",
        "unjudged", "s / image", "$ / 1,000",
    ]  # fmt: skip
    lines = []
    for one in found:
        covered = f"{one.covered} of {one.categories}"
        scores = [one.f1, one.interval, one.overlap, one.precision, one.recall, one.mean_f1]
        costs = [percent(one.unjudged), seconds_text(one.seconds), one.price]
        lines.append((one.label, [one.group.replace("_", " "), covered, *scores, *costs]))
    return Table("Leaders", heads, lines, f"{LEADER_NOTE} {PARTIAL_NOTE}.")


def overlap_text(metrics: Metrics, label: str) -> str:
    """What share of the tested images a classifier has seen in training, at least; `unknown` where nothing says."""
    record = metrics.get("overlap", {}).get(label)
    if not record or record["share"] is None:
        return "unknown"
    return f"{'≥ ' if record['not_known'] else ''}{percent(record['share'])}"


def percent(share: float | None) -> str:
    """A share in percent, so that a small one is not shown as none."""
    if share is None:
        return "–"
    return f"{100 * share:.1f} %" if share >= 0.0005 or not share else "< 0.1 %"


def seconds_text(seconds: float | None) -> str:
    """Seconds with two digits that mean something."""
    return "–" if seconds is None else f"{seconds:.2g}"


def _leader(metrics: Metrics, label: str, size: int) -> Leader:
    one = metrics["classifiers"][label]
    partial = one["overall"] is None
    cell, cost = (one["covered"] if partial else one["overall"])[ALL], one["cost"]
    return Leader(
        label=label,
        group=one["group"],
        partial=partial,
        covered=len(one["covers"]),
        categories=size,
        f1=cell["f1"],
        interval=cell["f1_interval"],
        precision=cell["precision"],
        recall=cell["recall"],
        mean_f1=one["mean_f1"][ALL]["f1"],
        overlap=overlap_text(metrics, label),
        unjudged=one["unjudged_share"],
        seconds=cost["seconds_per_image"],
        price=cost["price_per_1000"],
    )
