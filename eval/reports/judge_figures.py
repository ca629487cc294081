"""Figures of a report about one classifier's answers: precision and recall, thresholds, scores, reliability, loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eval.metrics.arrays import average_precision, precision_recall, reliability
from eval.metrics.judged import JudgedRow, truth_and_scores

from .charts import Chart, chart
from .figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    RED,
    RELIABILITY,
    VIOLET,
    name_powers,
    new_axes,
    new_panels,
    plain_label,
    plot_diagonal,
    plot_reliability,
)
from .trade_off import draw_trade_off

SAFE, UNSAFE = GREEN, RED
OTHERS = ((GREY, "--"), (VIOLET, ":"), (RED, "-."))
"""Colour and line of the stages before the last, which is blue and drawn through."""
POINTS = 300
"""Of a curve; more cannot be seen."""

Stages = Mapping[str, Sequence[JudgedRow]]
"""Name of a stage (before training, after training) -> its judged rows; the last is the result."""


def draw_charts(
    stages: Stages, history: Sequence[Mapping[str, Any]], folder: Path, threshold: float
) -> list[Chart]:
    """Each figure that has data, in the order of the report; as files, too, in `folder`."""
    last = list(stages)[-1]
    about_curve = (
        "How many flags are right, against how many unsafe images are found, as the threshold falls."
    )
    figures = {
        "threshold": (draw_trade_off(stages[last], threshold), "Threshold", f"What others would do, {last}."),
        "precision_recall": (_precision_recall(stages), "Precision and recall", about_curve),
        "scores": (_scores(stages[last], threshold), f"Scores, {last}", "How sure the verdicts are."),
        "reliability": (_reliability(stages), "Reliability", RELIABILITY),
        "loss": (_loss(history), "Training loss", "On training and held-out questions."),
    }  # fmt: skip
    return [
        chart(figure, title, about, file=folder / f"{name}.svg")
        for name, (figure, title, about) in figures.items()
        if figure is not None
    ]


def _precision_recall(stages: Stages) -> Figure | None:
    figure, axes = new_axes("recall of unsafe images", "precision")
    for (name, rows), (colour, line) in zip(stages.items(), _looks(stages), strict=True):
        truth, unsafe = truth_and_scores(rows)
        # The curve has no points then.
        if not truth.any() or np.isnan(unsafe).all():
            continue
        curve = precision_recall(truth, unsafe)
        shown = np.unique(np.linspace(0, len(curve.recall) - 1, POINTS).round().astype(np.int64))
        axes.step(
            # The curve starts at recall 0 with the precision of its first point.
            np.append(0, curve.recall[shown]), np.append(curve.precision[:1], curve.precision[shown]), where="pre",
            color=colour, label=f"{plain_label(name)} (average {average_precision(truth, unsafe):.3f})",
            linestyle=line, linewidth=1.8,
        )  # fmt: skip
    if not axes.lines:
        return None
    axes.set(xlim=(0, 1.01), ylim=(0, 1.04))
    axes.legend(loc="lower left", frameon=False, fontsize=9)
    return figure


def _scores(rows: Sequence[JudgedRow], threshold: float) -> Figure | None:
    truth, unsafe = truth_and_scores(rows)
    judged = ~np.isnan(unsafe)
    if not judged.any():
        return None
    figure, axes = new_axes("p(unsafe)", "questions (log scale)")
    edges = np.linspace(0, 1, 41)  # the same bins for both classes
    for name, members, colour, hatch in (
        ("safe in truth", ~truth, SAFE, ""),
        ("unsafe in truth", truth, UNSAFE, "///"),
    ):
        axes.hist(
            unsafe[judged & members], bins=list(edges), color=colour, alpha=0.6, label=name, hatch=hatch,
            edgecolor="white", linewidth=0.3,
        )  # fmt: skip
    axes.axvline(threshold, color=INK, linestyle=":", linewidth=1.2, label=f"threshold {threshold:g}")
    # Otherwise the rows between the extremes, the errors among them, would not be visible.
    axes.set_yscale("log")
    name_powers(axes.yaxis, (1.0,) if axes.get_ylim()[1] > 300 else (1.0, 2.0, 5.0))
    axes.set(xlim=(0, 1))
    axes.legend(fontsize=9, loc="upper center", edgecolor="none", framealpha=0.9)
    return figure


def _reliability(stages: Stages) -> Figure | None:
    """Dots above, and below them how many questions each bin of the last stage has."""
    figure, panels = new_panels(2, 1, width=4.4, height=4.1, ratios=(3.4, 1))
    above, below = panels[:, 0]
    plot_diagonal(above)
    drawn = [
        plot_reliability(
            above, *truth_and_scores(rows), name=plain_label(name), colour=colour, intervals=colour == BLUE
        )
        for (name, rows), (colour, _) in zip(stages.items(), _looks(stages), strict=True)
    ]
    if not any(drawn):
        return None
    last = reliability(*truth_and_scores(list(stages.values())[-1]))
    below.bar(last.probability, last.rows, width=0.045, color=BLUE)
    if len(last.rows):
        below.set_yscale("symlog", linthresh=1)
        most = int(last.rows.max())
        below.set_yticks(sorted({1, most}), [f"{count:,}" for count in sorted({1, most})])
        below.set_yticks([], minor=True)
    above.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), ylabel="share that is unsafe", xticklabels=[])
    below.set(xlim=(-0.03, 1.03), xlabel="p(unsafe), mean of the bin", ylabel="questions")
    # Above the plot, as dots may lie anywhere in it.
    above.legend(loc="lower left", bbox_to_anchor=(-0.03, 1), frameon=False, fontsize=9, borderaxespad=0.1)
    return figure


def _loss(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Plot the trainer's log: entries with `step` and `loss`, some with `eval_loss`."""
    figure, axes = new_axes("step", "loss (log scale)")
    for key, name, colour, marker in (("loss", "training", GREY, ""), ("eval_loss", "held out", BLUE, "o")):
        points = [
            (entry["step"], entry[key]) for entry in history if entry.get(key) is not None and "step" in entry
        ]
        # A line needs two points, a marker one.
        if len(points) > (0 if marker else 1):
            steps, losses = np.array(points, dtype=np.float64).T  # (N,) each
            axes.plot(steps, losses, color=colour, marker=marker, markersize=4, linewidth=1.0, label=name)
            if key == "loss" and len(points) >= 20:
                axes.plot(steps, _smooth(losses), color=RED, linewidth=1.8, label="training, smoothed")
    if not axes.lines:
        return None
    # A loss of 0 has no logarithm.
    if all((np.asarray(line.get_ydata()) > 0).all() for line in axes.lines):
        axes.set_yscale("log")
        name_powers(axes.yaxis, (1.0, 2.0, 5.0))
    axes.legend(frameon=False, fontsize=9)
    return figure


def _smooth(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of (N,) losses over a window of a twentieth of the run, shorter at the ends."""
    window = np.ones(max(3, len(losses) // 20))
    sums = np.convolve(losses, window, mode="same")
    # Divided by how many losses the window covers, as zero padding would pull the ends down.
    smooth: NDArray[np.float64] = sums / np.convolve(np.ones(len(losses)), window, mode="same")
    return smooth


def _looks(stages: Stages) -> list[tuple[str, str]]:
    """Colour and line style of each stage."""
    return [*(OTHERS[number % len(OTHERS)] for number in range(len(stages) - 1)), (BLUE, "-")]
