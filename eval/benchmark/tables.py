"""The tables of a benchmark, from what `measure` returns: the layouts of the paper's Tables 4 and 6, and the rest."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics.arrays import MetricError
from eval.reports.table import Table

from .aligned import ALL

Metrics = Mapping[str, Any]
Line = tuple[str, Sequence[Any]]
SOURCES = {"real": "Real-World", "generated": "AI-Generated", ALL: "Overall"}
"""What the paper's tables call the sources."""
NAMES = {
    "f1": "F1",
    "f1_interval": "95 % intervals of F1",
    "behind_best": "F1 behind the best",
    "behind_best_interval": "95 % intervals of F1 behind the best",
    "precision": "Precision",
    "recall": "Recall",
    "false_positive_rate": "False positive rate",
    "false_negative_rate": "False negative rate",
    "unsafe_rows": "Unsafe images",
    "rows": "Images",
}
"""Field of a cell -> what it is called."""
_COSTS = {
    "images/s": "images_per_second",
    "s/image": "seconds_per_image",
    "$/1,000 images": "price_per_1000",
}
"""Head -> field."""


def tables(metrics: Metrics) -> list[Table]:
    """Every table that the metrics have numbers for, in the order of a report."""
    fields = ["f1", "f1_interval", "precision", "recall", "false_positive_rate", "false_negative_rate"]
    if len(metrics["classifiers"]) > 1:
        fields += ["behind_best", "behind_best_interval"]
    found = [
        leaders(metrics),
        *(by_category(metrics, name) for name in fields),
        sizes(metrics),
        coverage(metrics),
        by_source(metrics),
        naming(metrics),
        severity(metrics),
        costs(metrics),
        failures(metrics),
    ]
    return [table for table in found if table.lines]


def starred(label: str, record: Metrics) -> str:
    """The name of a classifier in tables: a star marks zero-shot VLMs, as in the paper's Table 4."""
    return f"{label}*" if record["group"] == "zero_shot" else label


def ranking(metrics: Metrics) -> list[str]:
    """Labels, the best first: those that cover everything by their F1, then the others by theirs of what they cover."""

    def rank(label: str) -> tuple[bool, float]:
        record = metrics["classifiers"][label]
        found = record["covered"] if record["overall"] is None else record["overall"]
        return record["overall"] is None, -(found[ALL]["f1"] or 0.0)

    return sorted(metrics["classifiers"], key=rank)


def leaders(metrics: Metrics) -> Table:
    """One line a classifier, in the order of `ranking`."""
    columns = {
        "AUC": "auc",
        "average precision": "average_precision",
        "calibration error": "calibration_error",
        "category accuracy": "category_accuracy",
        "unjudged": "unjudged_share",
    }
    lines = []
    for label in ranking(metrics):
        record = metrics["classifiers"][label]
        overall = record["overall"][ALL] if record["overall"] else {}
        cells = [len(record["covers"]), record["rows"], overall.get("f1"), overall.get("f1_interval")]
        cells.append("best" if overall.get("best") else overall.get("behind_best"))
        cells.append(overall.get("behind_best_interval"))
        cells += [record["covered"][ALL]["f1"], record["mean_f1"][ALL]["f1"]]
        cells += [*map(record.get, columns.values()), *map(record["cost"].get, _COSTS.values())]
        lines.append((starred(label, record), cells))
    heads = ["categories", "images", "F1", "95 %", "behind", "95 %", "F1, covered", "mean F1"]
    note = (
        "F1: of all images, where every category is covered; behind: the best F1 minus this one, with a paired "
        "interval that does not know of the luck in choosing the best. F1, covered: on the images of the categories "
        "that are covered; mean F1: over these categories. Neither these nor AUC, average precision and calibration "
        "error compare classifiers that cover different categories. Unjudged images are errors. * zero-shot VLM."
    )
    return Table("Leader table", [*heads, *columns, *_COSTS], lines, note)


def by_category(metrics: Metrics, field: str = "f1") -> Table:
    """The paper's Table 4: a block for each source and one for all, classifiers as lines, categories as columns.

    Args:
        metrics: of `measure`.
        field: of a cell, as in `NAMES`.
    """
    categories = metrics["categories"]
    lines: list[Line] = []
    for source in _blocks(metrics):
        for number, (label, record) in enumerate(metrics["classifiers"].items()):
            row = [record["cells"].get(one["key"], {}).get(source, {}) for one in categories]
            row.append(record["overall"][source] if record["overall"] else {})
            leads = field.startswith("behind_best")
            cells = ["best" if leads and cell.get("best") else cell.get(field) for cell in row]
            # The name of a block stands on its first line only.
            lines.append(("" if number else SOURCES.get(source, source), [starred(label, record), *cells]))
    heads = ["classifier", *(one["name"] for one in categories), "Overall"]
    return Table(f"{NAMES[field]} by category", heads, lines, _cells_note(metrics))


def _cells_note(metrics: Metrics) -> str:
    left_out = {one["name"]: one["left_out"] for one in metrics["categories"] if one["left_out"]}
    note = (
        "A dash: not covered, or undefined. The images of a category are those that violate it and those that violate "
        "nothing; Overall asks for any violation. Unjudged images are errors. * zero-shot VLM."
    )
    if left_out:
        counts = ", ".join(f"{name} {count}" for name, count in left_out.items())
        why = "their labels do not say on which side they are or what they were collected for"
        note += f" Left out, as {why}: {counts}."
    return note


def sizes(metrics: Metrics) -> Table:
    """Unsafe and all images of each category, in the layout of the paper's Table 9, as the classifiers got them."""
    lines: list[Line] = []
    for source in _blocks(metrics):
        for number, field in enumerate(("unsafe_rows", "rows")):
            cells = [
                next((r["cells"][one["key"]][source][field] for r in _covering(metrics, one["key"])), None)
                for one in metrics["categories"]
            ]
            whole = next(
                (r["overall"][source][field] for r in metrics["classifiers"].values() if r["overall"]), None
            )
            lines.append(("" if number else SOURCES.get(source, source), [NAMES[field], *cells, whole]))
    heads = ["", *(one["name"] for one in metrics["categories"]), "Overall"]
    return Table("Images by category", heads, lines, "A dash: no classifier covers it.")


def coverage(metrics: Metrics) -> Table:
    """The paper's Figure 3: how many classifiers cover a category, and their mean F1."""
    lines = [
        (
            one["name"],
            [
                metrics["by_category"][one["key"]]["classifiers"],
                *(metrics["by_category"][one["key"]]["mean_f1"][source] for source in _blocks(metrics)),
            ],
        )
        for one in metrics["categories"]
    ]
    heads = ["classifiers", *(f"mean F1, {SOURCES.get(source, source)}" for source in _blocks(metrics))]
    return Table("Classifiers that cover a category", heads, lines)


def by_source(metrics: Metrics) -> Table:
    """The paper's Figure 4: mean F1 of each classifier's categories on real and on generated images."""
    blocks = _blocks(metrics)
    if len(blocks) == 1:
        return Table("Mean F1 by source", [], [])
    lines = [
        (
            starred(label, record),
            [record["mean_f1"][source][field] for source in blocks for field in ("f1", "f1_interval")],
        )
        for label, record in metrics["classifiers"].items()
    ]
    heads = [head for source in blocks for head in (SOURCES.get(source, source), "95 %")]
    return Table("Mean F1 by source", heads, lines, "Over the categories that a classifier covers.")


def naming(metrics: Metrics) -> Table:
    """How often harms that were held out of training are found, and named."""
    lines = [
        (
            starred(label, record),
            [
                found["rows"],
                found["found"],
                found["named"],
                found["named_interval"],
                ", ".join(found["keys"]),
            ],
        )
        for label, record in metrics["classifiers"].items()
        if (found := record["naming"])
    ]
    note = "Named: found, and the highest score is of a category that the image violates."
    heads = ["unsafe images", "found", "named", "95 %", "held out"]
    return Table("Naming of unseen harms", heads, lines, note)


def severity(metrics: Metrics) -> Table:
    """Rank correlation of score and severity, and the share flagged of each grade."""
    records = {label: one for label, one in metrics["classifiers"].items() if one["severity"]}
    grades = sorted({grade["grade"] for one in records.values() for grade in one["severity"]["grades"]})
    lines = []
    for label, record in records.items():
        found = record["severity"]
        flagged = {grade["grade"]: grade["flagged_share"] for grade in found["grades"]}
        cells = [found["rows"], found["unjudged"], found["tau_b"], found["tau_b_interval"]]
        lines.append((starred(label, record), [*cells, *map(flagged.get, grades)]))
    note = (
        "Kendall's tau-b of score and grade; an unjudged image is ordered wrongly against every other grade."
    )
    heads = ["images", "unjudged", "tau-b", "95 %", *(f"flagged, grade {grade}" for grade in grades)]
    return Table("Severity", heads, lines, note)


def costs(metrics: Metrics) -> Table:
    """Time and money for each classifier."""
    lines = [
        (starred(label, record), [record["rows"], *map(record["cost"].get, _COSTS.values())])
        for label, record in metrics["classifiers"].items()
    ]
    return Table("Cost", ["images", *_COSTS], lines, "Time is each image's share of its batch.")


def failures(metrics: Metrics) -> Table:
    """Why images were not judged; a line for each classifier and reason."""
    lines = [
        (starred(label, record), [count, count / record["rows"], reason])
        for label, record in metrics["classifiers"].items()
        for reason, count in record["failures"].items()
    ]
    return Table("Images that could not be judged", ["images", "share", "reason"], lines)


def across_data_sets(all_metrics: Sequence[Metrics], trained_on: Sequence[str] = ()) -> Table:
    """The paper's Table 6: overall F1 of each classifier on several data sets, and the average of the others.

    Args:
        all_metrics: of `measure`, of one data set each.
        trained_on: names of the data sets that are in distribution; the average is over the others, and None for a
            classifier without a number on one of them.

    Raises:
        MetricError: one data set twice, or a name in `trained_on` that is none of them.
    """
    names = [metrics["dataset"] for metrics in all_metrics]
    unknown = sorted(set(trained_on) - set(names))
    if unknown or len(set(names)) < len(names):
        raise MetricError(
            f"Got the data sets {', '.join(names)}"
            + (f"; {unknown[0]!r} is none of them." if unknown else "; give each of them once.")
        )
    labels = dict.fromkeys(
        (label, starred(label, record))
        for metrics in all_metrics
        for label, record in metrics["classifiers"].items()
    )
    lines = []
    for label, name in labels:
        found = [_overall_f1(metrics, label) for metrics in all_metrics]
        others = [value for value, dataset in zip(found, names, strict=True) if dataset not in trained_on]
        complete = bool(others) and None not in others
        lines.append((name, [*found, float(np.mean(np.array(others))) if complete else None]))
    heads = [f"{name} (in distribution)" if name in trained_on else name for name in names]
    note = "A dash: not every category is covered, not measured, or no average as one is missing."
    return Table("F1 by data set", [*heads, "OOD average" if trained_on else "average"], lines, note)


def _overall_f1(metrics: Metrics, label: str) -> float | None:
    record = metrics["classifiers"].get(label)
    return record["overall"][ALL]["f1"] if record and record["overall"] else None


def _blocks(metrics: Metrics) -> list[str]:
    """Sources with a block of their own, then all; only all where there is one source."""
    return [*metrics["sources"], ALL] if len(metrics["sources"]) > 1 else [ALL]


def _covering(metrics: Metrics, key: str) -> list[Metrics]:
    return [record for record in metrics["classifiers"].values() if key in record["cells"]]
