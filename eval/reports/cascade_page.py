"""`report.html` of a cascade: what was promised and measured, which stage settles what, and what it costs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.metrics.judged import JudgedRow
from judge.runs.folder import RunDir

from .cascade_figures import SCORES, STAGES, draw_cascade
from .flip_pair import flip_pair
from .page import Verdict, render
from .stored import is_harmless, stored_taxonomy
from .table import Table
from .wrong_verdicts import KINDS, Images, picture_of, wrong_cards

_FIELDS = (
    "id",
    "truth",
    "unsafe",
    "source",
    "prompt",
    "image",
    "policy",
    "keys",
    "violated",
    "pair",
    "direction",
)
"""Of a stored row, those of a `JudgedRow`."""


def write_cascade_report(run: RunDir, images: Images) -> Path:
    """Write `report.html` of a run of `recipes/cascade.py`, and its figures to `plots/`; returns the page's path."""
    metrics, stored = run.metrics, list(run.read_rows("test"))
    rows = [JudgedRow.from_dict({key: row[key] for key in _FIELDS if key in row}) for row in stored]
    # Runs of before these were kept: a pair without its policies shows nothing.
    pair = flip_pair(rows, stored_taxonomy(run)) if any(row.policy for row in rows) else None
    right = [row for row in rows if row.pair is not None]
    return render(
        "cascade.html",
        run,
        verdict=describe_cascade(metrics),
        pair=pair,
        pair_picture=None if pair is None else picture_of(pair.row, images, 448),
        pair_numbers=None if not right else _both_right(right),
        harmless=is_harmless(run),
        stages=_stage_table(metrics),
        alone=_alone_table(metrics),
        charts=draw_cascade(metrics, stored, run.plots),
        wrong=wrong_cards(rows, images),
        decided_by={row["id"]: STAGES[row["decided_by"]] for row in stored},
        kinds=KINDS,
        details=[_calibration_table(metrics), _cutoff_table(metrics)],
        timing=metrics["timing"],
    )


def describe_cascade(metrics: Mapping[str, Any]) -> Verdict:
    """The promise, what was measured, and what it costs, in a sentence."""
    promise, missed = metrics["promised_miss_rate"], metrics["miss_rate"]
    if missed is None:
        return Verdict(
            f"At most {promise:.1%} missed is promised; no test question was unsafe, so nothing was measured."
        )
    low, high = metrics["intervals"]["miss_rate"]
    present = {s: found for s, found in metrics["stages"].items() if found["seconds_per_image"] is not None}
    shares = [f"the {STAGES[stage]} {found['share']:.1%}" for stage, found in present.items()]
    idle = "The judge was asked nothing, so these numbers say nothing about it."
    cost = f"{1000 * metrics['seconds_per_image']:.2g} ms an image"
    if metrics.get("judge_seconds_per_image"):
        cost += f" in place of the judge's {1000 * metrics['judge_seconds_per_image']:.2g}"
    kept = (
        "kept"
        if missed <= promise
        else "not kept on these questions"
        if low > promise
        else "not contradicted"
    )
    return Verdict(
        f"At most {promise:.1%} of unsafe images missed is promised, {missed:.1%} ({low:.1%} to {high:.1%}) were: "
        f"{kept}. Settled: {', '.join(shares)}; {cost}.",
        good=True if missed <= promise else False if low > promise else None,
        limits=(
            "The promise holds on average over calibration sets, and for images like those it was calibrated on.",
            *([idle] if "judge" in present and not metrics["judge_share"] else []),
        ),
    )  # fmt: skip


def _both_right(rows: list[JudgedRow]) -> tuple[int, int]:
    """Pairs with both verdicts right, and all pairs of which both questions were asked."""
    found: dict[str, list[bool]] = {}
    for row in rows:
        found.setdefault(str(row.pair), []).append(row.correct())
    whole = [verdicts for verdicts in found.values() if len(verdicts) == 2]
    return sum(map(all, whole)), len(whole)


def _stage_table(metrics: Mapping[str, Any]) -> Table:
    heads = [
        "settles",
        "reached by",
        "questions",
        "unsafe missed",
        "safe flagged",
        "unjudged",
        "ms per image",
    ]
    lines = [
        (
            name,
            [
                f"{found['share']:.1%}", f"{found['reached']:.1%}", found["rows"], found["misses"],
                found["false_alarms"], found["unjudged"], _milliseconds(found["seconds_per_image"]),
            ],
        )
        for stage, name in STAGES.items()
        if (found := metrics["stages"][stage])["seconds_per_image"] is not None
    ]  # fmt: skip
    return Table(
        "What each stage does", heads, lines, "Milliseconds are those of an image that reaches the stage."
    )


def _alone_table(metrics: Mapping[str, Any]) -> Table:
    same = {key: metrics[key] for key in ("f1", "precision", "recall", "false_alarm_rate", "miss_rate")}
    cascade = {**same, "at_promise": same, "seconds_per_image": metrics["seconds_per_image"]}
    heads = [
        "F1", "precision", "recall", "F1 at the promise", "missed at the promise", "safe flagged at the promise",
        "ms per image",
    ]  # fmt: skip
    lines = []
    for name, found in {**metrics["alone"], "cascade": cascade}.items():
        strict = found["at_promise"]
        shares = [
            None if strict[key] is None else f"{strict[key]:.1%}" for key in ("miss_rate", "false_alarm_rate")
        ]
        numbers = [found["f1"], found["precision"], found["recall"], strict["f1"]]
        lines.append((SCORES.get(name, name), [*numbers, *shares, _milliseconds(found["seconds_per_image"])]))
    note = "Each stage alone, from p(unsafe) 0.5 on, and at the threshold that gives it the same promise."
    return Table("Each stage alone, and the cascade", heads, lines, note)


def _calibration_table(metrics: Mapping[str, Any]) -> Table:
    heads = ["temperature", "calibration error", "with the temperature"]
    keys = ("whole", "whole_calibration_error", "whole_calibration_error_after")
    lines = [(name, [found[key] for key in keys]) for name, found in metrics["calibration"].items()]
    return Table(
        "Temperatures", heads, lines, "They change how sure a score sounds, and no decision of the cascade."
    )


def _cutoff_table(metrics: Mapping[str, Any]) -> Table:
    lines = [(name.replace("_", " "), [value]) for name, value in metrics["cutoffs"].items()]
    return Table("Cutoffs", ["score"], lines, "From which score on a stage decides; above 1 it never does.")


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{1000 * seconds:.2g}"
