"""Figures of a robustness report: robust accuracy against epsilon and steps, margins, and the sheet of pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from eval.robustness.trials import VictimResults

COLOURS = ("#0b6e99", "#c8443a", "#3a9d6e", "#8a5fb0", "#c98a1b", "#5c6670", "#2b3a8c", "#a0527a")
"""One a victim; markers tell them apart too."""
MARKERS = "osD^vPX*"
GAIN = 20
"""By how much the sheet multiplies the difference, as at true size nobody would see it."""
CELL = 96
"""Side of a picture on the sheet, in pixels."""


@dataclass(frozen=True)
class ImagePair:
    """One attacked image for the sheet of pictures."""

    caption: str
    clean: Tensor
    """(3, H, W) in [0, 1]."""
    results: Tensor
    """(3, H, W) in [0, 1]."""


def draw_epsilons(summaries: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Robust accuracy against epsilon, on bytes, with 95 % intervals by image; one line a victim."""
    figure, axes = _figure("epsilon, grey levels (L-inf)", "robust accuracy")
    for number, (name, summary) in enumerate(summaries.items()):
        points = [(_levels(key), entry) for key, entry in summary["by_epsilon"].items()]
        levels = [level for level, _ in points]
        values = np.array([entry["robust_accuracy"] for _, entry in points])
        low, high = np.array([entry["interval"] for _, entry in points], dtype=float).T
        colour = COLOURS[number % len(COLOURS)]
        axes.fill_between(levels, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(levels, values, color=colour, marker=MARKERS[number % len(MARKERS)], label=name)
    return _save(figure, axes, path)


def draw_steps(summaries: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Robust accuracy against the steps of each gradient attack at the headline budget; one panel a victim."""
    figure = Figure(figsize=(4.2 * len(summaries), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(summaries), squeeze=False, sharey=True)[0]
    for axes, (name, summary) in zip(panels, summaries.items(), strict=True):
        for number, (attack, steps) in enumerate(summary["by_steps"].items()):
            marks = [int(mark) for mark in steps]
            axes.plot(
                marks, list(steps.values()), color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)], markersize=4, label=attack,
            )  # fmt: skip
        axes.set(title=name, xlabel="steps", ylim=(-0.02, 1.02))
        axes.set_xscale("symlog", linthresh=1)
        if summary["by_steps"]:  # attacks that only ask have no curve
            axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("robust accuracy")
    figure.savefig(path, dpi=130)
    return path


def draw_margins(victims: Mapping[str, VictimResults], epsilon: float, path: Path) -> Path:
    """Margins on the attacker's terms, clean and after the worst attack at a budget; below 0 the verdict is wrong."""
    figure = Figure(figsize=(4.2 * len(victims), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, results) in zip(
        figure.subplots(1, len(victims), squeeze=False)[0], victims.items(), strict=True
    ):
        clean, worst = margins(results, epsilon)
        if len(clean):
            edges = np.linspace(min(clean.min(), worst.min()), max(clean.max(), worst.max()) + 1e-6, 31)
            axes.hist(clean, bins=list(edges), color=COLOURS[2], alpha=0.55, label="clean")
            axes.hist(worst, bins=list(edges), color=COLOURS[1], alpha=0.55, hatch="///", label="attacked")
            axes.legend(frameon=False, fontsize=8)
        axes.axvline(0, color="#333333", linestyle=":", linewidth=1.2)
        axes.set(title=name, xlabel="margin (logits)", ylabel="images")
    figure.savefig(path, dpi=130)
    return path


def margins(results: VictimResults, epsilon: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(M,) margins of the attacked images, clean and after the worst trial up to a budget."""
    clean: dict[str, float] = {}
    worst: dict[str, float] = {}
    for trial in results.trials:
        if trial.epsilon <= epsilon + 1e-9:
            clean[trial.id] = trial.gap_clean
            worst[trial.id] = min(trial.gap, worst.get(trial.id, trial.gap_clean))
    return np.array(list(clean.values())), np.array([worst[name] for name in clean])


def draw_sheet(exhibits: Sequence[ImagePair], path: Path) -> Path:
    """A row an image: clean, attacked, difference times `GAIN` around grey."""
    columns = min(2, max(1, len(exhibits)))
    rows = (len(exhibits) + columns - 1) // columns
    figure = Figure(figsize=(columns * 5.4, max(1, rows) * 2.1), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(max(1, rows), 3 * columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, exhibit in enumerate(exhibits):
        row, start = number // columns, 3 * (number % columns)
        difference = ((exhibit.results - exhibit.clean) * GAIN * 0.5 + 0.5).clamp(0, 1)
        titles = ("clean", exhibit.caption, f"difference x {GAIN}")
        for place, (picture, title) in enumerate(
            zip((exhibit.clean, exhibit.results, difference), titles, strict=True)
        ):
            axes = grid[row][start + place]
            axes.imshow(np.asarray(_image(picture)), interpolation="nearest")
            axes.set_title(title, fontsize=7)
    figure.savefig(path, dpi=110)
    return path


def _image(pixels: Tensor) -> Image.Image:
    values = (pixels.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(values)
    picture.thumbnail((CELL * 2, CELL * 2))
    return picture


def _levels(key: str) -> float:
    return float(key.partition("/")[0])


def _figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label, ylim=(-0.02, 1.02))
    axes.grid(color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: Path) -> Path:
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    return path
