"""`report.html` and `report.md` of a benchmark run: one page without network, scripts or other files, and its tables.

Everything from data (ids, reasons, names) is escaped by the template engine, and control characters and bidi overrides
in it are shown as escapes. Images are blurred in the embedded pixels (`contact_sheet`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.benchmark.compare import published_tables
from eval.benchmark.overlap import overlap_table, score_without
from eval.benchmark.policy_tables import policy_set_table, policy_tables
from eval.benchmark.predictions import Predictions, PredictionsError
from eval.benchmark.tables import failures, tables
from eval.reports.origin import origin_of
from eval.reports.page import Verdict, format_value, page_template
from eval.reports.table import Table
from judge.runs.files import write_atomically
from judge.runs.folder import RunDir

from .causes import CAUSES, explain_causes
from .contact_sheet import Images, Thumbnails, contact_sheets
from .figures import performance_plots
from .heat_map import heat_colour, heat_map
from .leaders import (
    LEADER_NOTE,
    PARTIAL_NOTE,
    Leader,
    leader_table,
    leaders,
    percent,
    seconds_text,
)
from .sections import facts, list_failures, run_table, skipped_table

Metrics = Mapping[str, Any]
_SHOWN = ("F1 by category", "Mean F1 by source", "Naming of unseen harms", "Severity")
"""Titles of `eval.benchmark.tables` that are unfolded when the page opens."""


def write_benchmark_report(
    folder: Path,
    metrics: Metrics,
    predictions: Sequence[Predictions],
    *,
    images: Images | None = None,
    blur: bool = True,
) -> Path:
    """Write `report.html` and `report.md` into a folder; returns the path of the page.

    Args:
        folder: made where it is missing.
        metrics: of `eval.benchmark.effectiveness.measure`. The page has further parts where these have further keys:
            `policies` (label -> record of `PolicyTests.measure`), `policy_sets` (name of a set -> label -> record of
            `measure_policy_set`), `published` (of `compare_published`), `overlap` (label -> record of `overlap`), and
            `causes` (of `explain_failures`), and `skipped` (label -> why it has no numbers).
        predictions: those that were measured.
        images: opens the image of an id for the contact sheets; None, or an error, gives a grey tile that says why.
        blur: the images. Without, the page shows what the data set contains.

    Raises:
        PredictionsError: the metrics are not of these predictions.
    """
    _check_labels(metrics, predictions)
    found = leaders(metrics)
    order = [one.label for one in found]
    by_label = {one.about.label: one for one in predictions}
    ordered = [by_label[label] for label in order]
    parts = _parts(metrics, ordered)
    figures = performance_plots(ordered, metrics)
    thumbnails = Thumbnails(images or (lambda name: None), blur=blur)
    causes = explain_causes(metrics.get("causes"), thumbnails)
    not_judged, run = failures(metrics), [run_table(ordered), skipped_table(metrics)]
    folder.mkdir(parents=True, exist_ok=True)
    middle = [*(table for part in parts.values() for table in part), *causes.tables]
    listed = [leader_table(found), *middle, not_judged, *run]
    write_atomically(folder / "report.md", _markdown(metrics, ordered, listed))
    page = page_template("benchmark.html").render(
        title=_title(predictions),
        verdict=_verdict(found),
        origin=origin_of(RunDir(folder)) if (folder / "run.json").is_file() else {},
        facts=facts(metrics, ordered),
        contents=_contents([*parts, *figures, *([CAUSES] if causes.tables else [])]) if found else [],
        leaders=found,
        leader_note=LEADER_NOTE,
        partial_note=PARTIAL_NOTE,
        percent=percent,
        seconds_text=seconds_text,
        heat_map=heat_map(metrics, order),
        heat_scale=[heat_colour(step / 10)[0] for step in range(11)],
        tables=parts,
        shown=_SHOWN,
        figures=figures,
        causes=causes,
        failures=list_failures(ordered),
        failure_table=not_judged,
        run_tables=run,
        sheets={one.about.label: contact_sheets(one, thumbnails, metrics["threshold"]) for one in ordered},
        blur=blur,
    )
    path = folder / "report.html"
    write_atomically(path, page)
    return path


def _check_labels(metrics: Metrics, predictions: Sequence[Predictions]) -> None:
    labels = [one.about.label for one in predictions]
    if sorted(labels) != sorted(metrics["classifiers"]):
        raise PredictionsError(
            f"The metrics are of {', '.join(metrics['classifiers']) or 'no classifier'}, the predictions of "
            f"{', '.join(labels) or 'none'}; measure these predictions."
        )


def _verdict(found: Sequence[Leader]) -> Verdict:
    """Who leads, by how much, and whether that can be told."""
    ranked = [one for one in found if one.f1 is not None and not one.partial]
    if not ranked:
        return Verdict("No classifier that covers every category was measured.")
    first = ranked[0]
    shown = f"{first.label} has the highest F1, {format_value(first.f1)}"
    if first.interval is None:
        return Verdict(f"{shown}.")
    low, high = first.interval
    shown += f" ({format_value(low)} to {format_value(high)})"
    close = [one.label for one in ranked[1:] if one.interval is not None and one.interval[1] >= low]
    others = f"; within its interval: {', '.join(close)}" if close else ""
    return Verdict(f"{shown}, of {len(ranked)} classifiers that cover every category{others}.")


def _title(predictions: Sequence[Predictions]) -> str:
    names = dict.fromkeys(one.about.dataset for one in predictions)
    return f"Benchmark on {', '.join(names)}" if names else "Benchmark"


def _contents(middle: Sequence[str]) -> list[str]:
    return ["Leaders", "Categories", *middle, "Failures to judge", "Wrong verdicts", "How it was run"]


def _parts(metrics: Metrics, ordered: Sequence[Predictions]) -> dict[str, list[Table]]:
    """Heading -> its tables, for each part that the run has."""
    order = [one.about.label for one in ordered]
    found: dict[str, list[Table]] = {}
    if order:
        found["Tables"] = [one for one in tables(metrics) if one != failures(metrics)]
    policies, sets = metrics.get("policies") or {}, metrics.get("policy_sets") or {}
    if policies or sets:
        records = {label: policies[label] for label in order if label in policies}
        found["Policy tests"] = [*policy_tables(records), *map(policy_set_table, sets.values())]
    if metrics.get("published"):
        found["Published numbers"] = published_tables(metrics["published"])
    if metrics.get("overlap"):
        found["Overlap with training"] = [_overlap(metrics, ordered)]
    return {name: group for name, group in found.items() if any(table.lines for table in group)}


def _overlap(metrics: Metrics, ordered: Sequence[Predictions]) -> Table:
    """The copies of training images, and what the score is without them."""
    records = {label: metrics["overlap"].get(label) for label in (one.about.label for one in ordered)}
    known = {label: record for label, record in records.items() if record}
    scores = {
        one.about.label: record.get("scores") or score_without(one, record["ids"] or (), metrics["threshold"])
        for one in ordered
        if (record := known.get(one.about.label))
    }
    return overlap_table(known, {label: found for label, found in scores.items() if found})


def _markdown(metrics: Metrics, ordered: Sequence[Predictions], listed: Sequence[Table]) -> str:
    about = Table("Benchmark", [""], [(name, [value]) for name, value in facts(metrics, ordered).items()])
    return "\n".join(table.to_markdown() for table in (about, *listed) if table.lines)
