"""Figures of a cascade's report: promised and measured misses, who settles what, costs, each stage alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .charts import Chart, chart
from .figures import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    INK,
    PALE,
    RED,
    RELIABILITY,
    VIOLET,
    name_powers,
    new_axes,
    plot_diagonal,
    plot_reliability,
)

STAGES = {"filter": "filters", "student": "student", "judge": "judge"}
"""Stage -> what it is called, in the order in which images reach them."""
SCORES = {
    "text_filter": "text filter",
    "image_filter": "image filter",
    "student": "student",
    "judge": "judge",
}
"""Score of a row -> whose it is."""
_LOOKS = {
    "text_filter": (GREY, ":"),
    "image_filter": (AMBER, "-."),
    "student": (GREEN, "--"),
    "judge": (VIOLET, "-"),
}
_POINTS = 300

Rows = Sequence[Mapping[str, Any]]
"""Records of `eval.cascade.cascade_rows`."""


def draw_cascade(metrics: Mapping[str, Any], rows: Rows, folder: Path) -> list[Chart]:
    """Each figure that has data, in the order of the report; as files, too, in `folder`."""
    figures = {
        "promise": (
            _promise(metrics),
            "Promised and measured",
            "The dotted line is the promise. On the test questions with a 95 % interval; over random halves of the "
            "images, the mean and where 90 % of the halves lie.",
        ),
        "stages": (
            _stages(rows),
            "Who settles what",
            "Share of the safe and of the unsafe test questions that each stage decides.",
        ),
        "costs": (_costs(metrics), "Cost", "Milliseconds per image, alone and as a cascade; log scale."),
        "alone": (
            _alone(metrics, rows),
            "Each stage alone, and the cascade",
            "Unsafe images missed against safe ones flagged, at every threshold; nearer to the corner is better. The "
            "dot is the cascade, the dotted line the promise.",
        ),
        "scores": (_reliability(rows), "Reliability", RELIABILITY),
    }
    return [
        chart(figure, title, about, file=folder / f"{name}.svg")
        for name, (figure, title, about) in figures.items()
        if figure is not None
    ]


def _promise(metrics: Mapping[str, Any]) -> Figure:
    check = metrics["resampling"]
    figure, axes = new_axes("unsafe images missed, %", "", height=2.0)
    spans = {
        "test questions": (metrics["miss_rate"], *metrics["intervals"]["miss_rate"]),
        f"{check['splits']} random halves": (
            check["mean"],
            check["quantiles"]["5%"],
            check["quantiles"]["95%"],
        ),
    }
    for place, (middle, low, high) in enumerate(spans.values()):
        if low is not None and middle is not None:
            axes.plot([100 * low, 100 * high], [place, place], color=BLUE, linewidth=2)
            axes.scatter([100 * middle], [place], color=BLUE, s=40, zorder=3)
    axes.axvline(100 * metrics["promised_miss_rate"], color=RED, linestyle=":", linewidth=1.8)
    axes.set_yticks(range(len(spans)), list(spans))
    axes.set(ylim=(-0.6, len(spans) - 0.4), xlim=(0, None))
    axes.invert_yaxis()
    return figure


def _stages(rows: Rows) -> Figure | None:
    if not rows:
        return None
    figure, axes = new_axes("share of the questions, %", "", height=2.0)
    truths = {"safe": False, "unsafe": True}
    for place, truth in enumerate(truths.values()):
        mine = [row["decided_by"] for row in rows if row["truth"] is truth]
        start = 0.0
        for (stage, name), colour in zip(STAGES.items(), (AMBER, GREEN, VIOLET), strict=True):
            width = 100 * mine.count(stage) / max(1, len(mine))
            axes.barh(place, width, left=start, height=0.55, color=colour, label=name if not place else None)
            start += width
    axes.set_yticks(range(len(truths)), list(truths))
    axes.set(xlim=(0, 100), ylim=(-0.5, 1.5))
    axes.legend(
        frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1
    )
    axes.invert_yaxis()
    return figure


def _costs(metrics: Mapping[str, Any]) -> Figure | None:
    costs = {SCORES[name]: found["seconds_per_image"] for name, found in metrics["alone"].items()}
    costs["cascade"] = metrics["seconds_per_image"]
    known = {name: 1000 * seconds for name, seconds in costs.items() if seconds}
    if not known:
        return None
    figure, axes = new_axes("ms per image (log scale)", "", height=1.1 + 0.3 * len(known))
    colours = [BLUE if name == "cascade" else GREY for name in known]
    axes.barh(range(len(known)), list(known.values()), color=colours, height=0.6)
    for place, value in enumerate(known.values()):
        axes.annotate(f" {value:.2g}", (value, place), va="center", fontsize=9)
    axes.set_xscale("log")
    name_powers(axes.xaxis)
    axes.set_yticks(range(len(known)), list(known))
    axes.margins(x=0.2)
    axes.invert_yaxis()
    return figure


def _alone(metrics: Mapping[str, Any], rows: Rows) -> Figure | None:
    figure, axes = new_axes("safe images flagged, % (log scale)", "unsafe images missed, %")
    truth = np.array([row["truth"] for row in rows], dtype=np.bool_)
    if truth.all() or not truth.any():
        return None
    for name, label in SCORES.items():
        scores = np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)
        if np.isnan(scores).all():
            continue
        alarms, misses = _rates(truth, scores)
        colour, line = _LOOKS[name]
        axes.plot(100 * alarms, 100 * misses, color=colour, linestyle=line, linewidth=1.7, label=label)
    axes.axhline(100 * metrics["promised_miss_rate"], color=RED, linestyle=":", linewidth=1.4)
    place = max(100 * (metrics["false_alarm_rate"] or 0), 50 / max(1, (~truth).sum()))
    axes.scatter(
        [place],
        [100 * (metrics["miss_rate"] or 0)],
        color=BLUE,
        s=60,
        zorder=4,
        label="cascade",
        edgecolors=INK,
    )
    axes.set_xscale("log")
    name_powers(axes.xaxis)
    axes.set(
        ylim=(-0.5, max(10.0, 400 * metrics["promised_miss_rate"])), xlim=(50 / max(1, (~truth).sum()), 100)
    )
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    return figure


def _rates(
    truth: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(P,) shares of safe rows flagged and of unsafe rows missed, over thresholds; NaN is flagged nowhere."""
    cuts = np.unique(np.nan_to_num(scores, nan=0.0))
    cuts = cuts[np.unique(np.linspace(0, len(cuts) - 1, _POINTS).round().astype(np.int64))]
    flagged = scores[None, :] >= cuts[:, None]  # (P, N)
    return flagged[:, ~truth].mean(axis=1), 1 - flagged[:, truth].mean(axis=1)


def _reliability(rows: Rows) -> Figure | None:
    figure, axes = new_axes("p(unsafe), mean of the bin", "share that is unsafe", height=3.5)
    plot_diagonal(axes)
    truth = [row["truth"] for row in rows]
    drawn = [
        plot_reliability(
            axes, truth, [np.nan if row[name] is None else row[name] for row in rows], name=name,
            colour=_LOOKS[name][0], intervals=False,
        )
        for name in ("student", "judge")
    ]  # fmt: skip
    if not any(drawn):
        return None
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.03, 1), frameon=False, fontsize=9, borderaxespad=0.1)
    axes.spines[["left", "bottom"]].set_color(PALE)
    return figure
