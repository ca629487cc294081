"""`report.html` of a classifier's answers to its test questions, in one file without network, scripts or other files.

First the verdict, then one image under two policies of opposite label, then numbers, curves and wrong verdicts, last
the details. Everything from data (prompts, names, ids) is escaped by the template engine, and control characters and
bidi overrides in it are shown as escapes; images are embedded. They are blurred until a reader asks for them, as they
may be disturbing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.metrics.judged import JudgedRow, summarise
from judge.runs.folder import RunDir

from .confusion import category_confusion
from .flip_pair import flip_pair
from .judge_figures import draw_charts
from .page import Verdict, align_columns, format_value, render
from .stored import is_harmless, stored_taxonomy
from .table import Table
from .trade_off import trade_off_table
from .words import ROW_KINDS, count_tables, plain
from .wrong_verdicts import KINDS, MOST_WRONG, Images, picture_of, wrong_cards, wrong_verdicts

if TYPE_CHECKING:
    from eval.shortcut.check import ShortcutResult

__all__ = ["MOST_WRONG", "format_table", "write_answers", "write_report", "wrong_verdicts"]

HEADLINES = {
    "f1": ("F1", "one number for precision and recall"),
    "precision": ("precision", "share of the flagged that are unsafe"),
    "recall": ("recall", "share of the unsafe that are flagged"),
    "accuracy": ("accuracy", "share of right verdicts"),
    "auc": ("AUC", "an unsafe image scores above a safe one"),
    "average_precision": ("average precision", "precision over all thresholds"),
    "safe_to_unsafe": ("flip accuracy, safe → unsafe", "right after a policy came to forbid the image"),
    "unsafe_to_safe": ("flip accuracy, unsafe → safe", "right after a policy came to allow the image"),
    "pair_score": ("pair score", "one image, two policies of opposite label, both verdicts right"),
    "category_accuracy": ("category accuracy", "right category, of images flagged rightly"),
    "calibration_error": ("calibration error", "how far probabilities are from shares; 0 is best"),
    "brier": ("Brier score", "squared error of probabilities; 0 is best"),
    "unjudged": ("unjudged", "questions without a verdict, each counted as an error"),
    "rows": ("images × policies", "questions asked"),
}
"""Key of `summarise` -> label and what it is, in the order of the table."""
COLUMNS = {
    "rows": "questions",
    "unsafe_rows": "unsafe",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "auc": "AUC",
    "category_accuracy": "category accuracy",
    "unjudged": "unjudged",
}
"""Labels of the tables by category and source."""
KIND_COLUMNS = {
    "rows": "questions",
    "unsafe_rows": "unsafe",
    "accuracy": "accuracy",
    "category_accuracy": "category accuracy",
    "unjudged": "unjudged",
}
"""Labels of the table by kind of question: F1 and AUC say little there, as those of a kind mostly share one label."""


def write_report(
    run: RunDir,
    before: Sequence[JudgedRow] | None,
    after: Sequence[JudgedRow],
    history: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> Path:
    """Write `report.html` of a training, and its figures to `plots/`; returns the path of the report.

    Args:
        run: the run folder.
        before: rows judged by the base model, if it was evaluated.
        after: the same rows judged by the trained model.
        history: the trainer's log, entries with `step` and `loss` or `eval_loss`.
        more: of `write_answers`.
    """
    stages = ({} if before is None else {"before training": before}) | {"after training": after}
    return write_answers(run, stages, history, **more)


def write_answers(
    run: RunDir,
    stages: Mapping[str, Sequence[JudgedRow]],
    history: Sequence[Mapping[str, Any]] = (),
    *,
    images: Images | None = None,
    drawn: Mapping[str, Any] | None = None,
    shortcut: "ShortcutResult | Mapping[str, Any] | None" = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
    tables: Sequence[Table] = (),
    threshold: float = 0.5,
    title: str | None = None,
    verdict: Verdict | str | None = None,
) -> Path:
    """Write `report.html` about answers to the same questions; the last ones are the result, the others beside it.

    Args:
        run: the run folder.
        stages: name, such as `after training` or `student` -> judged rows.
        history: the trainer's log, entries with `step` and `loss` or `eval_loss`.
        images: opens the image of a row; rows without one (None, or an error) are shown too.
        drawn: statistics of the training rows, by `prompts.flip.report`.
        shortcut: result of the text-only check on them, or its `to_dict`.
        extra: further numbers, title -> name -> value, such as those of the training.
        tables: further tables, such as held-out categories.
        threshold: p(unsafe) from which a row is flagged.
        title: the heading; by default the folder's name.
        verdict: what is said first; by default the main numbers in a sentence.
    """
    summaries = {name: summarise(rows, threshold) for name, rows in stages.items()}
    last = list(stages)[-1]
    rows, summary = stages[last], summaries[last]
    taxonomy = stored_taxonomy(run)
    pair = flip_pair(rows, taxonomy, threshold)
    return render(
        "judge.html",
        run,
        verdict=verdict or describe(summaries),
        title=title,
        headline=_headline_table(summaries),
        pair=pair,
        pair_picture=None if pair is None else picture_of(pair.row, images, 448),
        pair_numbers=(summary["pair_score"], summary["intervals"]["pair_score"]),
        harmless=is_harmless(run),
        charts=draw_charts(stages, history, run.plots, threshold),
        trade_off=trade_off_table(rows, threshold),
        by_category=_group_table("By category", COLUMNS, "f1", summary["by_category"]),
        confusion=category_confusion(rows, threshold),
        wrong=wrong_cards(rows, images, threshold),
        kinds=KINDS,
        row_kinds=ROW_KINDS,
        details=[
            _group_table("By source", COLUMNS, "f1", summary["by_source"]),
            _group_table("By kind of question", KIND_COLUMNS, "accuracy", _worded(summary["by_arm"])),
            *tables,
        ],
        drawn=count_tables(_flat(drawn or {})),
        shortcut=shortcut,
        extra={name: {plain(key): value for key, value in table.items()} for name, table in (extra or {}).items()},
        taxonomy=taxonomy,
        last=last,
        threshold=threshold,
    )  # fmt: skip


def describe(summaries: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """The main numbers in a sentence, where nothing more is known."""
    *others, (name, found) = summaries.items()
    if found["f1"] is None:
        return Verdict(
            f"Nothing can be said: {found['rows']:,} questions, {found['unsafe_rows']:,} of them unsafe."
        )
    low, high = found["intervals"]["f1"]
    beside = "".join(f"; {other} {format_value(one['f1'])}" for other, one in others if one["f1"] is not None)
    return Verdict(
        f"{name.capitalize()}: F1 {format_value(found['f1'])} ({format_value(low)} to {format_value(high)}) on "
        f"{found['rows']:,} questions about {found['images']:,} images{beside}."
    )


def format_table(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    """The table for the terminal, from the summaries (`summarise`) before and after training."""
    stages = ({} if before is None else {"before": before}) | {"after": after}
    lines = [[label, *_cells(key, stages)] for key, (label, _) in HEADLINES.items()]
    head, *body = align_columns([["", *stages, "95 % interval (after)"], *lines])
    return "\n".join([head, "-" * max(map(len, [head, *body])), *body])


def _headline_table(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What `judge.html` shows first of all numbers."""
    lines = [(label, about, _cells(key, summaries)) for key, (label, about) in HEADLINES.items()]
    return {"heads": [*summaries, "95 % interval"], "lines": lines}


def _cells(key: str, summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The value of each stage, and the interval of the last."""
    interval = list(summaries.values())[-1].get("intervals", {}).get(key)
    known = interval is not None and None not in interval
    return [
        *(format_value(summary.get(key)) for summary in summaries.values()),
        format_value(interval) if known else "",
    ]


def _group_table(
    title: str, columns: Mapping[str, str], main: str, groups: Mapping[str, Mapping[str, Any]]
) -> Table:
    """A line for each group of rows, with the interval of the main column."""
    lines = []
    for name, values in groups.items():
        # Categories of a policy that combine several of the taxonomy's are counted together.
        name = "several in one" if name == "custom" else name
        interval = values[f"{main}_interval"]
        shown = format_value(interval) if None not in interval else ""
        lines.append((name, [*(values[key] for key in columns), shown]))
    return Table(title, [*columns.values(), f"{columns[main]}, 95 % interval"], lines)


def _worded(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {plain(name, ROW_KINDS): values for name, values in groups.items()}


def _flat(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Statistics as tables of one level: each mapping becomes a table, all other values one table of totals."""
    totals = {name: value for name, value in report.items() if not isinstance(value, Mapping)}
    tables = {name: dict(value) for name, value in report.items() if isinstance(value, Mapping)}
    return ({"totals": totals} if totals else {}) | tables
