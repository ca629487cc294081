"""The figures of a report on detectors inside the diffusion loop."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from eval.reports.figures import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    PALE,
    RED,
    new_axes,
    new_panels,
    plain_label,
    plot_diagonal,
    plot_reliability,
)

from .comparison import BOTH, DECODED, DETECTOR, NAMES, TEXT, TOGETHER
from .tables import part_name

Metrics = Mapping[str, Any]
STYLES = {
    DETECTOR: {"color": BLUE, "marker": "o", "linewidth": 2.0},
    TEXT: {"color": GREY, "linestyle": ":", "linewidth": 1.6},
    DECODED: {"color": RED, "marker": "s", "linewidth": 1.3},
    BOTH: {"color": RED, "marker": "s", "linestyle": "--", "markerfacecolor": "white", "linewidth": 1.1},
    TOGETHER: {"color": BLUE, "marker": "o", "linestyle": "--", "markerfacecolor": "white", "linewidth": 1.1},
    "flowguard": {"color": GREEN, "marker": "^", "linewidth": 1.1},
    "ndm": {"color": GREEN, "marker": "v", "linestyle": "--", "linewidth": 1.1},
}
_PANEL = 3.3
"""Width of a panel in inches."""


def draw_areas(metrics: Metrics) -> Figure:
    """AUC against log-SNR, a panel for each part of the test pictures; the upper axis has the steps."""
    areas, log_snr = metrics["areas"], metrics["log_snr"]
    parts = list(next(iter(areas[DETECTOR].values())))
    figure, panels = new_panels(1, len(parts), width=_PANEL * len(parts), height=3.4, share_y=True)
    for axes, part in zip(panels[0], parts, strict=True):
        steps = list(areas[DETECTOR])
        for who, by_step in areas.items():
            points = [(log_snr[step], by_step[step][part]) for step in steps if step in by_step]
            points = [(place, area) for place, area in points if area["auc"] is not None]
            if not points:
                continue
            places, values = zip(*((place, area["auc"]) for place, area in points), strict=True)
            style: dict[str, Any] = {"markersize": 4, **STYLES.get(who, {})}
            axes.plot(places, values, label=plain_label(NAMES.get(who, who)), **style)
            if who == DETECTOR:
                ends = list(zip(*(area["interval"] for _, area in points), strict=True))
                axes.fill_between(places, *ends, color=BLUE, alpha=0.15, linewidth=0)
        axes.set(xlabel="log-SNR", title=plain_label(part_name(part)))
        axes.title.set_fontsize(9)
        axes.grid(color=GRID, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        above = axes.secondary_xaxis("top")
        above.set_xticks([log_snr[step] for step in steps], [f"step {step}" for step in steps], fontsize=7)
    panels[0, 0].set_ylabel("AUC")
    panels[0, -1].legend(fontsize=7, loc="lower right")
    return figure


def draw_calibration(
    labels: Sequence[ArrayLike], scores: Sequence[ArrayLike], steps: Sequence[int]
) -> Figure:
    """Share of cells that violate against the detector's score, a line for each step.

    Args:
        labels: for each step (C,) bool, of cells (picture, category) with a known label.
        scores: for each step (C,) in [0, 1], NaN where not judged.
        steps: their numbers.
    """
    figure, axes = new_axes("score", "share that violates")
    plot_diagonal(axes)
    colours = (GREY, GREEN, BLUE, RED)
    for number, (truth, found, step) in enumerate(zip(labels, scores, steps, strict=True)):
        plot_reliability(axes, truth, found, name=f"step {step}", colour=colours[number % len(colours)])
    axes.legend(fontsize=7)
    return figure


def draw_promises(metrics: Metrics) -> Figure | None:
    """Measured miss rates against promised ones, and the false alarms that they cost; None where none held."""
    records = [record for record in metrics.get("promises", ()) if record["splits"]]
    if not records:
        return None
    figure, axes = new_axes("promised miss rate", "measured share")
    places = [record["promise"] for record in records]
    axes.plot([0, max(places)], [0, max(places)], color=PALE, linewidth=1, zorder=0)
    lines: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("miss_rate", "missed, mean over splits", {"color": BLUE, "marker": "o"}),
        ("worst", "missed, 95th percentile", {"color": BLUE, "linestyle": ":"}),
        ("false_alarms", "false alarms", {"color": RED, "marker": "s", "linestyle": "--"}),
    )
    for field, name, style in lines:
        axes.plot(
            places, [record[field] for record in records], label=name, linewidth=1.2, markersize=4, **style
        )
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
    return figure
