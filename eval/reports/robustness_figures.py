"""Figures of a robustness report: robust accuracy against epsilon and steps, margins, and attacked images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adversarial.storing import to_images
from eval.robustness.trials import VictimResults

from .figures import BLUE, DPI, GREEN, RED, new_axes, new_panels

COLOURS = (BLUE, RED, GREEN, "#8a5fb0", "#c98a1b", "#5c6670", "#2b3a8c", "#a0527a")
"""One per victim; markers differ too."""
MARKERS = "osD^vPX*"
GAIN = 20
"""Factor by which differences are enlarged, as they would not be visible otherwise."""
THUMBNAIL = 192
"""Longest side of an image on the sheet, in pixels."""


@dataclass(frozen=True)
class ImagePair:
    """An image before and after an attack."""

    caption: str
    clean: Tensor
    """(3, H, W) in [0, 1]."""
    attacked: Tensor
    """(3, H, W) in [0, 1]."""


def draw_epsilons(summaries: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Plot robust accuracy of stored images against epsilon, with 95 % intervals by image; one line per victim."""
    figure, axes = new_axes("epsilon, grey levels (L-inf)", "robust accuracy", width=6.4, height=4.2)
    for number, (name, summary) in enumerate(summaries.items()):
        # Budgets are written as fractions of 255, such as "2/255".
        points = [(float(key.partition("/")[0]), entry) for key, entry in summary["by_epsilon"].items()]
        levels = [level for level, _ in points]
        values = np.array([entry["robust_accuracy"] for _, entry in points])
        low, high = np.array([entry["interval"] for _, entry in points], dtype=float).T
        colour = COLOURS[number % len(COLOURS)]
        axes.fill_between(levels, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(levels, values, color=colour, marker=MARKERS[number % len(MARKERS)], label=name)
    axes.set(ylim=(-0.02, 1.02))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=DPI)
    return path


def draw_steps(summaries: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Plot robust accuracy against the steps of each gradient attack at the headline epsilon; one panel per victim."""
    figure, panels = new_panels(1, len(summaries), width=4.2 * len(summaries), height=3.6, share_y=True)
    for axes, (name, summary) in zip(panels[0], summaries.items(), strict=True):
        for number, (attack, steps) in enumerate(summary["by_steps"].items()):
            marks = [int(mark) for mark in steps]
            axes.plot(
                marks, list(steps.values()), color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)], markersize=4, label=attack,
            )  # fmt: skip
        axes.set(title=name, xlabel="steps", ylim=(-0.02, 1.02))
        axes.set_xscale("symlog", linthresh=1)  # logarithmic, but with a place for step 0
        if summary["by_steps"]:  # query attacks have no curve
            axes.legend(frameon=False, fontsize=8)
    panels[0, 0].set_ylabel("robust accuracy")
    figure.savefig(path, dpi=DPI)
    return path


def draw_margins(victims: Mapping[str, VictimResults], epsilon: float, path: Path) -> Path:
    """Plot margins before and after the worst attack up to `epsilon` as histograms; below 0 the verdict is wrong."""
    figure, panels = new_panels(1, len(victims), width=4.2 * len(victims), height=3.4)
    for axes, (name, results) in zip(panels[0], victims.items(), strict=True):
        clean, worst = worst_margins(results, epsilon)
        if len(clean):
            # A little wider, as all margins may be equal.
            edges = np.linspace(min(clean.min(), worst.min()), max(clean.max(), worst.max()) + 1e-6, 31)
            axes.hist(clean, bins=list(edges), color=COLOURS[2], alpha=0.55, label="clean")
            axes.hist(worst, bins=list(edges), color=COLOURS[1], alpha=0.55, hatch="///", label="attacked")
            axes.legend(frameon=False, fontsize=8)
        axes.axvline(0, color="#333333", linestyle=":", linewidth=1.2)
        axes.set(title=name, xlabel="margin (logits)", ylabel="images")
    figure.savefig(path, dpi=DPI)
    return path


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


def draw_images(pairs: Sequence[ImagePair], path: Path) -> Path:
    """Draw each image clean, attacked, and the difference times `GAIN` around grey; two images side by side."""
    columns = min(2, len(pairs))
    rows = (len(pairs) + columns - 1) // columns
    figure, grid = new_panels(rows, 3 * columns, width=columns * 5.4, height=rows * 2.1)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, pair in enumerate(pairs):
        row, start = number // columns, 3 * (number % columns)
        difference = (pair.attacked - pair.clean) * GAIN * 0.5 + 0.5
        titles = ("clean", pair.caption, f"difference x {GAIN}")
        images = to_images(torch.stack([pair.clean, pair.attacked, difference]).float())
        for axes, image, title in zip(grid[row, start : start + 3], images, titles, strict=True):
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            axes.imshow(np.asarray(image), interpolation="nearest")
            axes.set_title(title, fontsize=7)
    figure.savefig(path, dpi=110)
    return path
