"""`report.html` of an obedience run: tables, a bar a family, and wrong verdicts of the worst families."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from eval.metrics.judged import JudgedRow
from eval.questions import Question
from eval.reports.figures import BLUE, DPI, GREY, RED, new_axes
from eval.reports.page import format_value, page_template, png_data_uri
from judge.data.images import open_image
from judge.runs.folder import RunDir

from .lessons import unjudged_table
from .suite import Answers, Rewritten
from .tables import Metrics, headline, refusals, tables

WORST_FAMILIES = 10
WRONG_ROWS = 4
"""Wrong verdicts shown of each of the worst families."""
_SHOWN_CHARACTERS = 300
"""Of a prompt or a policy line on the page."""
_SIDE = 96
"""Of a picture on the page, in pixels."""


@dataclass(frozen=True)
class WrongVerdict:
    """One wrong verdict for the sheet."""

    picture: str
    """As a `data:` URI."""
    verdict: str
    prompt: str
    policy: tuple[str, ...]
    """Its lines."""


def write_obedience_report(
    run: RunDir,
    metrics: Metrics,
    before: Metrics | None,
    rewritten: Mapping[str, Rewritten],
    answers: Mapping[str, Answers],
    threshold: float = 0.5,
) -> Path:
    """Write `report.html`, and its figure to `plots/`; returns the path of the report.

    Args:
        run: the run folder.
        metrics: what `measure_all` gave.
        before: the same of the untrained base, or None.
        rewritten: the questions, for their pictures and policies.
        answers: the judge's answers to them.
        threshold: P(unsafe) from which a row is flagged.
    """
    figure = draw_families(metrics, before, run.plots / "families.png")
    sheets = {
        f"{name} (F1 {format_value(metrics['families'][name]['f1'])})": wrong_verdicts(
            rewritten[name].questions, answers[name].rows, threshold
        )
        for name in worst_families(metrics)
    }
    page = page_template("obedience.html").render(
        title=run.path.name,
        tables=[
            headline(metrics, before),
            *tables(metrics, before),
            refusals(metrics),
            unjudged_table(metrics.get("left_unjudged", {})),
        ],
        figure=png_data_uri(figure.read_bytes()),
        sheets={name: sheet for name, sheet in sheets.items() if sheet},
    )
    return run.write_text("report.html", page)


def draw_families(metrics: Metrics, before: Metrics | None, path: Path) -> Path:
    """F1 of every family as a bar, the base's in grey above it; the red line is the plain wording."""
    records = {name: record for name, record in metrics["families"].items() if record["f1"] is not None}
    order = sorted(records, key=lambda name: (records[name]["kind"], not records[name]["in_lessons"]))[::-1]
    figure, axes = new_axes("F1", "", width=7.2, height=1.2 + 0.2 * len(order))
    height = 0.8 if before is None else 0.4
    for place, name in enumerate(order):
        record = records[name]
        axes.barh(
            place - (0 if before is None else height / 2),
            record["f1"],
            height,
            color=BLUE if record["in_lessons"] else "white",
            edgecolor=BLUE,
            hatch="" if record["in_lessons"] else "////",
        )
        earlier = None if before is None else before["families"].get(name, {}).get("f1")
        if earlier is not None:
            axes.barh(place + height / 2, earlier, height, color=GREY)
    plain = metrics["references"]["plain"]["f1"]
    if plain is not None:
        axes.axvline(plain, color=RED, linestyle=":", linewidth=1.2)
    axes.set_yticks(range(len(order)), order, fontsize=7)
    axes.set(xlim=(0, 1.01), ylim=(-0.8, len(order) - 0.2))
    axes.set_title(
        "solid: lessons may use it; hatched: never in lessons; dotted: plain wording"
        + ("" if before is None else "; grey: before training"),
        fontsize=7,
        loc="right",
    )
    figure.savefig(path, dpi=DPI)
    return path


def worst_families(metrics: Metrics, count: int = WORST_FAMILIES) -> list[str]:
    """The families with the lowest F1, the lowest first."""
    values = {name: record["f1"] for name, record in metrics["families"].items() if record["f1"] is not None}
    return sorted(values, key=values.__getitem__)[:count]


def wrong_verdicts(
    questions: Sequence[Question], rows: Sequence[JudgedRow], threshold: float = 0.5, count: int = WRONG_ROWS
) -> list[WrongVerdict]:
    """The wrong verdicts that were surest, those that were not judged first."""
    wrong = [
        (question, row) for question, row in zip(questions, rows, strict=True) if not row.correct(threshold)
    ]
    # Not judged at all is the worst; then by distance from the threshold.
    wrong.sort(key=lambda pair: -abs(pair[1].unsafe - threshold) if pair[1].judged else -1.0)
    found = []
    for question, row in wrong[:count]:
        said = f"p(unsafe) {row.unsafe:.3f}" if row.judged else f"not judged: {row.reason}"
        lines = (c.name if c.name_only else f"{c.name}: {c.definition}" for c in question.row.taxonomy)
        found.append(
            WrongVerdict(
                _thumbnail(question),
                f"{'unsafe' if row.truth else 'safe'} in truth; {said}",
                _shortened(row.prompt or "no prompt"),
                tuple(map(_shortened, lines)),
            )
        )
    return found


def _thumbnail(question: Question) -> str:
    picture = open_image(question.row.example.image).copy()
    picture.thumbnail((_SIDE, _SIDE))
    saved = BytesIO()
    picture.save(saved, "PNG")
    return png_data_uri(saved.getvalue())


def _shortened(text: str) -> str:
    return (
        text
        if len(text) <= _SHOWN_CHARACTERS
        else f"{text[:_SHOWN_CHARACTERS]} ... ({len(text):,} characters)"
    )
