"""`report.html` of a training run, in one file without network, scripts or other files.

Everything from data (prompts, names, ids) is escaped by the template engine, and control characters and bidi overrides
in it are shown as escapes; images are embedded. They are blurred until a reader points at them, as they may be
disturbing.
"""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from eval.metrics.judged import JudgedRow, summarise
from judge.runs.folder import RunDir
from prompts.errors import ArbiterError

from .judge_figures import draw_plots
from .page import align_columns, format_value, page_template, png_data_uri

if TYPE_CHECKING:
    from eval.shortcut.check import ShortcutResult

MOST_WRONG = 24
"""Wrong verdicts on the contact sheet."""
THUMBNAIL = 224
"""Longest side of an image on the contact sheet, in pixels."""
HEADLINES = {
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "auc": "AUC",
    "average_precision": "average precision",
    "safe_to_unsafe": "flip accuracy, safe → unsafe",
    "unsafe_to_safe": "flip accuracy, unsafe → safe",
    "pair_score": "pair score",
    "category_accuracy": "category accuracy",
    "calibration_error": "calibration error",
    "brier": "Brier score",
    "unjudged": "unjudged",
    "rows": "images × policies",
}
"""Key of `summarise` -> label, in the order of the table."""
COLUMNS = {
    "rows": "rows",
    "unsafe_rows": "unsafe",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "auc": "AUC",
    "category_accuracy": "category accuracy",
    "unjudged": "unjudged",
}
"""Labels of the tables by category and source."""
ARM_COLUMNS = {
    "rows": "rows",
    "unsafe_rows": "unsafe",
    "accuracy": "accuracy",
    "category_accuracy": "category accuracy",
    "unjudged": "unjudged",
}
"""Labels of the table by arm: F1 and AUC say little there, as the rows of an arm mostly share one label."""


def write_report(
    run: RunDir,
    before: Sequence[JudgedRow] | None,
    after: Sequence[JudgedRow],
    history: Sequence[Mapping[str, Any]] = (),
    *,
    images: Callable[[JudgedRow], Image.Image | None] | None = None,
    drawn: Mapping[str, Any] | None = None,
    shortcut: "ShortcutResult | None" = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
    threshold: float = 0.5,
    title: str | None = None,
) -> Path:
    """Write `report.html`, and its figures to `plots/`; returns the path of the report.

    Args:
        run: the run folder.
        before: rows judged by the base model, if it was evaluated.
        after: the same rows judged by the trained model.
        history: the trainer's log, entries with `step` and `loss` or `eval_loss`.
        images: opens the image of a row for the contact sheet; rows without one (None, or an error) are shown too.
        drawn: statistics of the training rows, by `prompts.flip.report`.
        shortcut: result of the text-only check on them.
        extra: further tables, title -> name -> value, such as held-out categories or speed.
        threshold: p(unsafe) from which a row is flagged.
        title: the heading; by default the folder's name.
    """
    # In this order, as the last stage is the result and has the intervals.
    stages = ({} if before is None else {"before": before}) | {"after": after}
    summaries = {name: summarise(rows, threshold) for name, rows in stages.items()}
    figures = draw_plots(stages, history, run.plots, threshold)
    wrong = wrong_verdicts(after, threshold)
    page = page_template("judge.html").render(
        title=title or run.path.name,
        manifest=run.manifest,
        headlines=[(label, _cells(key, summaries)) for key, label in HEADLINES.items()],
        stages=list(stages),
        tables={
            "By category": (COLUMNS, "f1", summaries["after"]["by_category"]),
            "By source": (COLUMNS, "f1", summaries["after"]["by_source"]),
            # Title -> labels, the column whose interval is shown, rows.
            "By type of row": (ARM_COLUMNS, "accuracy", summaries["after"]["by_arm"]),
        },
        figures={name: png_data_uri(path.read_bytes()) for name, path in figures.items()},
        wrong=[_sheet_entry(row, images, threshold) for row in wrong[:MOST_WRONG]],
        wrong_total=len(wrong),
        drawn=_flat(drawn or {}),
        shortcut=shortcut,
        extra=extra or {},
        threshold=threshold,
    )
    return run.write_text("report.html", page)


def format_table(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    """The table for the terminal, from the summaries (`summarise`) before and after training."""
    stages = ({} if before is None else {"before": before}) | {"after": after}
    lines = [[label, *_cells(key, stages)] for key, label in HEADLINES.items()]
    head, *body = align_columns([["", *stages, "95 % interval (after)"], *lines])
    return "\n".join([head, "-" * max(map(len, [head, *body])), *body])


def wrong_verdicts(rows: Sequence[JudgedRow], threshold: float = 0.5) -> list[JudgedRow]:
    """Rows with a wrong verdict, unjudged ones first, then the most confident."""
    wrong = [row for row in rows if not row.correct(threshold)]
    return sorted(
        # False sorts before True, so unjudged rows are first; ids make the order of ties repeatable.
        wrong,
        key=lambda row: (row.judged, -abs(row.unsafe - threshold) if row.judged else 0, row.id),
    )


def _cells(key: str, summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The value of each stage, and the interval of the last."""
    interval = list(summaries.values())[-1].get("intervals", {}).get(key)
    known = interval is not None and None not in interval
    return [
        *(format_value(summary.get(key)) for summary in summaries.values()),
        format_value(interval) if known else "",
    ]


def _sheet_entry(
    row: JudgedRow, images: Callable[[JudgedRow], Image.Image | None] | None, threshold: float
) -> dict[str, Any]:
    """The variables of one card of the contact sheet."""
    picture = None
    if images is not None:
        try:
            picture = images(row)
        except (ArbiterError, OSError):  # the card is shown without an image, as the verdict counts anyway
            picture = None
    return {
        "row": row,
        "verdict": {None: "unjudged", True: "unsafe", False: "safe"}[row.flagged(threshold)],
        "picture": None if picture is None else _thumbnail(picture),
    }


def _thumbnail(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    # In place; never enlarges.
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = BytesIO()
    small.save(buffer, "PNG")
    return png_data_uri(buffer.getvalue())


def _flat(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Statistics as tables of one level: each mapping becomes a table, all other values one table of totals."""
    totals = {name: value for name, value in report.items() if not isinstance(value, Mapping)}
    tables = {name: dict(value) for name, value in report.items() if isinstance(value, Mapping)}
    return ({"totals": totals} if totals else {}) | tables
