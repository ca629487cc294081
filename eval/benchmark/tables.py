"""The tables of a benchmark, from what `measure` returns: the layouts of the paper's Tables 4 and 6, and costs."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.reports.table import Table

from .effectiveness import ALL

Metrics = Mapping[str, Any]
_SOURCES = {"real": "Real-World", "generated": "AI-Generated", ALL: "Overall"}
_RATES = {"f1": "F1", "precision": "Precision", "recall": "Recall"}


def tables(metrics: Metrics) -> list[Table]:
    """Every table that the metrics have numbers for, in the order of a report."""
    found = [
        leaders(metrics),
        *(by_category(metrics, rate) for rate in _RATES),
        costs(metrics),
        failures(metrics),
    ]
    return [table for table in found if table.lines]


def starred(label: str, record: Metrics) -> str:
    """The name of a classifier in tables: a star marks zero-shot VLMs, as in the paper's Table 4."""
    return f"{label}*" if record["group"] == "zero_shot" else label


def leaders(metrics: Metrics) -> Table:
    """One line a classifier, the best first: those that cover everything by their F1, then the others by theirs."""

    def rank(entry: tuple[str, Metrics]) -> tuple[bool, float]:
        overall, covered = entry[1]["overall"], entry[1]["covered"][ALL]["f1"]
        found = covered if overall is None else overall[ALL]["f1"]
        return overall is None, -(found or 0.0)

    columns = {
        "rows": "rows",
        "AUC": "auc",
        "av. precision": "average_precision",
        "calibration error": "calibration_error",
        "category accuracy": "category_accuracy",
        "unjudged": "unjudged_share",
    }
    lines = []
    for label, record in sorted(metrics["classifiers"].items(), key=rank):
        overall = record["overall"][ALL] if record["overall"] else {}
        cells = [
            len(record["covers"]),
            overall.get("f1"),
            overall.get("f1_interval"),
            record["covered"][ALL]["f1"],
        ]
        cells += [record[key] for key in columns.values()]
        lines.append((starred(label, record), [*cells, *map(record["cost"].get, _COSTS.values())]))
    heads = ["categories", "F1", "95 %", "F1, covered", *columns, *_COSTS]
    note = (
        "F1 of all images, for classifiers that cover every category; `covered`: of the images of the categories that "
        "a classifier covers, so these do not compare between classifiers. Unjudged images are errors. * zero-shot VLM."
    )
    return Table("Leader table", heads, lines, note)


_COSTS = {
    "images/s": "images_per_second",
    "s/image": "seconds_per_image",
    "$/1,000 images": "price_per_1000",
}
"""Head -> field."""


def by_category(metrics: Metrics, rate: str = "f1") -> Table:
    """The paper's Table 4: a block for each source and one for all, classifiers as lines, categories as columns.

    Args:
        metrics: of `measure`.
        rate: `f1`, `precision` or `recall`.
    """
    categories = metrics["categories"]
    sources = [*metrics["sources"], ALL] if len(metrics["sources"]) > 1 else [ALL]
    lines: list[tuple[str, Sequence[Any]]] = []
    for source in sources:
        for number, (label, record) in enumerate(metrics["classifiers"].items()):
            cells = [record["cells"].get(one["key"], {}).get(source, {}).get(rate) for one in categories]
            whole = record["overall"][source][rate] if record["overall"] else None
            block = "" if number else _SOURCES.get(source, source)
            lines.append((block, [starred(label, record), *cells, whole]))
    note = (
        "A dash: not covered, or undefined. A category's images are those that violate it against those that violate "
        "nothing; Overall asks for any violation. Unjudged images are errors. * zero-shot VLM."
    )
    heads = ["classifier", *(one["name"] for one in categories), "Overall"]
    return Table(f"{_RATES[rate]} by category", heads, lines, note)


def costs(metrics: Metrics) -> Table:
    """Time and money for each classifier."""
    lines = [
        (starred(label, record), [record["rows"], *map(record["cost"].get, _COSTS.values())])
        for label, record in metrics["classifiers"].items()
    ]
    return Table("Cost", ["rows", *_COSTS], lines, "Time is each image's share of its batch.")


def failures(metrics: Metrics) -> Table:
    """Why images were not judged; a line for each classifier and reason."""
    lines = [
        (starred(label, record), [count, count / record["rows"], reason])
        for label, record in metrics["classifiers"].items()
        for reason, count in record["failures"].items()
    ]
    return Table("Images that could not be judged", ["images", "share", "reason"], lines)
