"""Figures of a training report: precision and recall, scores, reliability, loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eval.metrics.arrays import average_precision, precision_recall
from eval.metrics.judged import JudgedRow, truth_and_scores

from .figures import BLUE, DPI, GREEN, GREY, RED, new_axes, plot_diagonal, plot_reliability

BEFORE, AFTER, SAFE, UNSAFE = GREY, BLUE, GREEN, RED

Stages = Mapping[str, Sequence[JudgedRow]]
"""Name of a stage (before, after) -> its judged rows, in the order they are drawn."""


def draw_plots(
    stages: Stages, history: Sequence[Mapping[str, Any]], folder: Path, threshold: float
) -> dict[str, Path]:
    """Draw each figure that has data as PNG into `folder`; title -> file, in the order of the report."""
    last = list(stages)[-1]
    figures = {
        "Precision and recall": ("precision_recall", _precision_recall(stages)),
        f"Scores {last} training": ("scores", _scores(stages[last], threshold)),
        "Reliability": ("reliability", _reliability(stages)),
        "Training loss": ("loss", _loss(history)),
    }
    paths = {}
    for title, (name, figure) in figures.items():
        if figure is not None:
            paths[title] = folder / f"{name}.png"
            figure.savefig(paths[title], dpi=DPI)
    return paths


def _precision_recall(stages: Stages) -> Figure | None:
    figure, axes = new_axes("recall of unsafe images", "precision")
    for (name, rows), colour in zip(stages.items(), _colours(stages), strict=True):
        truth, unsafe = truth_and_scores(rows)
        # The curve has no points then.
        if not truth.any() or np.isnan(unsafe).all():
            continue
        curve = precision_recall(truth, unsafe)
        label = f"{name} (average precision {average_precision(truth, unsafe):.3f})"
        axes.step(
            # The curve starts at recall 0 with the precision of its first point.
            np.append(0, curve.recall), np.append(curve.precision[:1], curve.precision),
            where="pre", color=colour, label=label, linestyle="-" if colour == AFTER else "--", linewidth=1.8,
        )  # fmt: skip
    if not axes.lines:
        return None
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    axes.legend(loc="lower left", frameon=False, fontsize=8)
    return figure


def _scores(rows: Sequence[JudgedRow], threshold: float) -> Figure | None:
    truth, unsafe = truth_and_scores(rows)
    judged = ~np.isnan(unsafe)
    if not judged.any():
        return None
    figure, axes = new_axes("p(unsafe)", "images (log scale)")
    edges = np.linspace(0, 1, 41)  # the same bins for both classes
    for name, members, colour, hatch in (("safe", ~truth, SAFE, ""), ("unsafe", truth, UNSAFE, "///")):
        axes.hist(
            unsafe[judged & members], bins=list(edges), color=colour, alpha=0.55, label=name, hatch=hatch,
            edgecolor="white", linewidth=0.3,
        )  # fmt: skip
    axes.axvline(threshold, color="#333333", linestyle=":", linewidth=1.2, label=f"threshold {threshold:g}")
    # Otherwise the rows between the extremes, the errors among them, would not be visible.
    axes.set_yscale("log")
    axes.set(xlim=(0, 1))
    axes.legend(
        fontsize=8, title="truth", title_fontsize=8, loc="upper center", edgecolor="none", framealpha=1
    )
    return figure


def _reliability(stages: Stages) -> Figure | None:
    figure, axes = new_axes("p(unsafe), mean of the bin", "share that is unsafe")
    plot_diagonal(axes)
    drawn = [
        plot_reliability(axes, *truth_and_scores(rows), name=name, colour=colour)
        for (name, rows), colour in zip(stages.items(), _colours(stages), strict=True)
    ]
    if not any(drawn):
        return None
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    return figure


def _loss(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Plot the trainer's log: entries with `step` and `loss`, some with `eval_loss`."""
    figure, axes = new_axes("step", "loss (log scale)")
    for key, name, colour, marker in (
        ("loss", "training", BEFORE, ""),
        ("eval_loss", "held out", AFTER, "o"),
    ):
        points = [(entry["step"], entry[key]) for entry in history if key in entry and "step" in entry]
        # A line needs two points, a marker one.
        if len(points) > (0 if marker else 1):
            steps, losses = np.array(points, dtype=np.float64).T  # (N,) each
            axes.plot(steps, losses, color=colour, marker=marker, markersize=4, linewidth=1.0, label=name)
            if key == "loss" and len(points) >= 20:
                axes.plot(steps, _smooth(losses), color=UNSAFE, linewidth=1.8, label="training, smoothed")
    if not axes.lines:
        return None
    # A loss of 0 has no logarithm.
    if all((np.asarray(line.get_ydata()) > 0).all() for line in axes.lines):
        axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _smooth(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of (N,) losses over a window of a twentieth of the run, shorter at the ends."""
    window = np.ones(max(3, len(losses) // 20))
    sums = np.convolve(losses, window, mode="same")
    # Divided by how many losses the window covers, as zero padding would pull the ends down.
    smooth: NDArray[np.float64] = sums / np.convolve(np.ones(len(losses)), window, mode="same")
    return smooth


def _colours(stages: Stages) -> list[str]:
    return [AFTER if name == list(stages)[-1] else BEFORE for name in stages]
