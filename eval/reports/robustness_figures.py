"""Figures of a robustness report: robust accuracy against the size of the change and steps, and margins."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from eval.robustness.trials import VictimResults

from .attack_words import attack_name
from .charts import Chart, chart
from .figures import AMBER, BLUE, GREEN, INK, NAVY, PLUM, RED, SLATE, VIOLET, new_axes, plain_label

COLOURS = (BLUE, RED, GREEN, VIOLET, AMBER, SLATE, NAVY, PLUM)
"""One a line; markers differ too."""
MARKERS = "osD^vPX*"
_SIZES = {"linf": "largest change of a colour value, of 255", "l2": "L2 length of the change"}


def draw_robustness(
    metrics: Mapping[str, Any],
    results: Mapping[str, VictimResults],
    epsilon: float,
    folder: Path,
) -> list[Chart]:
    """The figures of a report, as files, too, in `folder`.

    Args:
        metrics: those of `recipes/attack.py`.
        results: each victim's rows and trials.
        epsilon: the main size of the change, of pixels in [0, 1].
        folder: exists.
    """
    summaries, norm = metrics["pixels"], metrics["suite"]["threat"]["norm"]
    about = (
        "Share of questions judged right after every attack of at most this size, on stored images; bands are 95 % "
        "intervals."
    )
    figures = [("size", draw_sizes(summaries, _SIZES[norm]), "Robust accuracy by size of the change", about)]
    for number, (name, summary) in enumerate(summaries.items()):
        if summary["by_steps"]:  # an attack by queries has no steps
            about = "How it falls as attacks go on; a curve that still falls at its end needs more steps."
            figures.append((f"steps-{number}", draw_steps(summary), f"{name}: steps of each attack", about))
    for number, (name, found) in enumerate(results.items()):
        clean, worst = worst_margins(found, epsilon)
        if len(clean):
            about = "How far verdicts are from turning, before and after the worst attack; below 0 they are wrong."
            figures.append((f"margins-{number}", draw_margins(clean, worst), f"{name}: margins", about))
    return [
        chart(figure, title, about, file=folder / f"{file}.svg") for file, figure, title, about in figures
    ]


def draw_sizes(summaries: Mapping[str, Mapping[str, Any]], label: str = _SIZES["linf"]) -> Figure:
    """Robust accuracy of stored images against the size of the change, one line a victim."""
    figure, axes = new_axes(label, "robust accuracy")
    for number, (name, summary) in enumerate(summaries.items()):
        # Budgets are written as fractions of 255, such as "2/255"; those in L2 as they are.
        points = [(float(key.partition("/")[0]), entry) for key, entry in summary["by_epsilon"].items()]
        levels = [level for level, _ in points]
        values = np.array([entry["robust_accuracy"] for _, entry in points])
        low, high = np.array([entry["interval"] for _, entry in points], dtype=float).T
        colour = COLOURS[number % len(COLOURS)]
        axes.fill_between(levels, low, high, color=colour, alpha=0.12, linewidth=0)
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(levels, values, color=colour, marker=marker, markersize=5, label=plain_label(name))
    axes.set(ylim=(-0.02, 1.03))
    axes.legend(frameon=False, fontsize=9)
    return figure


def draw_steps(summary: Mapping[str, Any]) -> Figure:
    """Robust accuracy of one victim against the steps of each gradient attack, at the main size of the change."""
    figure, axes = new_axes("steps", "robust accuracy")
    for number, (attack, steps) in enumerate(summary["by_steps"].items()):
        marks = [int(mark) for mark in steps]
        axes.plot(
            marks, list(steps.values()), color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)], markersize=4, label=plain_label(attack_name(attack)),
        )  # fmt: skip
    axes.set(ylim=(-0.02, 1.03))
    axes.set_xscale("symlog", linthresh=1)  # logarithmic, but with a place for step 0
    ticks = sorted({0, 1, *(10**power for power in range(1, 4) if 10**power <= axes.get_xlim()[1])})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=9)
    return figure


def draw_margins(clean: NDArray[np.float64], worst: NDArray[np.float64]) -> Figure:
    """Margins (M,) before and after attacks as histograms."""
    figure, axes = new_axes("margin, in logits", "questions")
    # A little wider, as all margins may be equal.
    edges = list(np.linspace(min(clean.min(), worst.min()), max(clean.max(), worst.max()) + 1e-6, 25))
    axes.hist(clean, bins=edges, color=GREEN, alpha=0.6, label="clean")
    axes.hist(worst, bins=edges, color=RED, alpha=0.6, hatch="///", label="attacked")
    axes.axvline(0, color=INK, linestyle=":", linewidth=1.2)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    return figure


def worst_margins(results: VictimResults, epsilon: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Margins (M,) of the attacked images, clean and after the worst trial up to `epsilon` (pixels in [0, 1])."""
    clean: dict[str, float] = {}
    worst: dict[str, float] = {}
    for trial in results.trials:
        if trial.epsilon <= epsilon + 1e-9:  # equal up to rounding
            clean[trial.id] = trial.gap_clean
            # The clean image is within every budget.
            worst[trial.id] = min(trial.gap, worst.get(trial.id, trial.gap_clean))
    return np.array(list(clean.values())), np.array([worst[name] for name in clean])
