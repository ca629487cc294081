"""`report.html`: what a run achieved, in one file that needs no network, no script and no other file.

Whatever comes from data (prompts, names, ids) is escaped by the template engine, and control characters and bidi
overrides in it are shown as escapes; pictures are inlined. Images are blurred until somebody points at them, because
who reads this judges unpleasant pictures for a living.
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
from .page import inline, page_template, show

if TYPE_CHECKING:
    from eval.shortcut.check import ShortcutResult

MOST_WRONG = 24
"""Wrong verdicts on the contact sheet."""
THUMBNAIL = 224
"""Longest side of a picture on the contact sheet, in pixels."""
HEADLINES = {
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "auc": "AUC",
    "average_precision": "average precision",
    "safe_to_unsafe": "flips safe → unsafe right",
    "unsafe_to_safe": "flips unsafe → safe right",
    "pair_score": "pair score",
    "category_accuracy": "category named right",
    "calibration_error": "calibration error",
    "brier": "Brier score",
    "unjudged": "unjudged",
    "rows": "images × policies",
}
"""Key of `summarise` -> what a reader sees, in the order of the tables."""
COLUMNS = {
    "rows": "rows",
    "unsafe_rows": "unsafe",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "auc": "AUC",
    "category_accuracy": "named right",
    "unjudged": "unjudged",
}
"""The same for the tables by category and source."""
ARM_COLUMNS = {
    "rows": "rows",
    "unsafe_rows": "unsafe",
    "accuracy": "right",
    "category_accuracy": "named right",
    "unjudged": "unjudged",
}
"""The same by arm, whose rows mostly share one label."""


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
    """Write `report.html`, and its figures to `plots/`; gives the report's path.

    Args:
        run: where to.
        before: rows judged by the base, if it was asked.
        after: the same rows judged by the trained judge.
        history: the trainer's log, entries with `step` and `loss` or `eval_loss`.
        images: opens the image of a row for the contact sheet; None, or any of our errors, leaves it out.
        drawn: what `prompts.flip.report` says of the training rows.
        shortcut: what the text-only check found in them.
        extra: further tables, title -> name -> value, such as held-out categories or speed.
        threshold: p(unsafe) from which a row is flagged.
        title: the heading; by default the folder's name.
    """
    stages = ({} if before is None else {"before": before}) | {"after": after}
    summaries = {name: summarise(rows, threshold) for name, rows in stages.items()}
    figures = draw_plots(stages, history, run.plots, threshold)
    wrong = worst(after, threshold)
    page = page_template("judge.html").render(
        title=title or run.path.name,
        manifest=run.manifest,
        headlines=[(label, _cells(key, summaries)) for key, label in HEADLINES.items()],
        stages=list(stages),
        tables={
            "By category": (COLUMNS, "f1", summaries["after"]["by_category"]),
            "By source": (COLUMNS, "f1", summaries["after"]["by_source"]),
            "By kind of row": (ARM_COLUMNS, "accuracy", summaries["after"]["by_arm"]),
        },
        figures={name: inline(path.read_bytes()) for name, path in figures.items()},
        wrong=[_sheet_entry(row, images, threshold) for row in wrong[:MOST_WRONG]],
        wrong_total=len(wrong),
        drawn=_flat(drawn or {}),
        shortcut=shortcut,
        extra=extra or {},
        threshold=threshold,
        show=show,
    )
    return run.write_text("report.html", page)


def format_table(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    """The short table for the terminal, from the summaries (`summarise`) before and after training."""
    stages = ({} if before is None else {"before": before}) | {"after": after}
    lines = [[label, *_cells(key, stages)] for key, label in HEADLINES.items()]
    head = ["", *stages, "95 % interval (after)"]
    widths = [max(len(row[column]) for row in [head, *lines]) for column in range(len(head))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(head), rule, *map(line, lines)])


def worst(rows: Sequence[JudgedRow], threshold: float = 0.5) -> list[JudgedRow]:
    """Wrong verdicts, unjudged ones first, then the surest."""
    wrong = [row for row in rows if not row.correct(threshold)]
    return sorted(
        wrong, key=lambda row: (row.judged, -abs(row.unsafe - threshold) if row.judged else 0, row.id)
    )


def _cells(key: str, summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One value a stage, and the interval of the last."""
    interval = list(summaries.values())[-1].get("intervals", {}).get(key)
    known = interval is not None and None not in interval
    return [*(show(summary.get(key)) for summary in summaries.values()), show(interval) if known else ""]


def _sheet_entry(
    row: JudgedRow, images: Callable[[JudgedRow], Image.Image | None] | None, threshold: float
) -> dict[str, Any]:
    """What the contact sheet shows of one wrong verdict."""
    picture = None
    if images is not None:
        try:
            picture = images(row)
        except (ArbiterError, OSError):  # it is shown without its picture; the verdict counts all the same
            picture = None
    return {
        "row": row,
        "verdict": {None: "not judged", True: "unsafe", False: "safe"}[row.flagged(threshold)],
        "picture": None if picture is None else _thumbnail(picture),
    }


def _thumbnail(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = BytesIO()
    small.save(buffer, "PNG")
    return inline(buffer.getvalue())


def _flat(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A report of drawn rows as tables of one level: mappings become tables, the rest one table of totals."""
    totals = {name: value for name, value in report.items() if not isinstance(value, Mapping)}
    tables = {name: dict(value) for name, value in report.items() if isinstance(value, Mapping)}
    return ({"totals": totals} if totals else {}) | tables
