"""What all figures of reports share: they are drawn off screen, without windows or global state of matplotlib."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from eval.metrics.arrays import calibration_error, reliability
from eval.metrics.intervals import wilson
from prompts.printable import printable

GREY, BLUE, GREEN, RED = "#9aa3ad", "#0b6e99", "#3a9d6e", "#c8443a"
"""Colours that stay apart in the common colour-vision deficiencies; line styles, markers and labels differ too."""
VIOLET, AMBER, SLATE, NAVY, PLUM = "#8a5fb0", "#c98a1b", "#5c6670", "#2b3a8c", "#a0527a"
"""Further ones, for figures with a line for each of many."""
INK, GROUND, GRID, PALE = "#000000", "#ffffff", "#e8e8e8", "#bbbbbb"
PALETTE = {
    INK: "var(--ink)", "#1d252c": "var(--ink)", "#333333": "var(--ink)", GROUND: "var(--ground)",
    GRID: "var(--grid)", PALE: "var(--pale)", **dict.fromkeys(("#a3acb5", "#c4cad0", "#cccccc"), "var(--pale)"),
    GREY: "var(--grey)", BLUE: "var(--blue)", GREEN: "var(--green)", RED: "var(--red)", VIOLET: "var(--violet)",
    AMBER: "var(--amber)", SLATE: "var(--slate)", NAVY: "var(--navy)", PLUM: "var(--plum)",
}  # fmt: skip
"""Colour -> the variable of `base.html` that it is in a page, where it has a second value for dark screens."""
DPI = 130
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def new_axes(x_label: str, y_label: str, *, width: float = 4.4, height: float = 3.2) -> tuple[Figure, Axes]:
    """A figure of one plot with labels and a grid; sizes in inches, so that letters can be read on a narrow screen."""
    figure, panels = new_panels(1, 1, width=width, height=height)
    axes: Axes = panels[0, 0]
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def new_panels(
    rows: int,
    columns: int,
    *,
    width: float,
    height: float,
    share_y: bool = False,
    ratios: Sequence[float] | None = None,
) -> tuple[Figure, NDArray[Any]]:
    """A figure and its array (R, C) of empty plots, for R `rows` and C `columns`; sizes of the whole in inches.

    `ratios` are the heights of the rows, relative to each other.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # a canvas that needs no window, whatever backend is configured
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=share_y, height_ratios=ratios)


def plain_label(text: object) -> str:
    """A stranger's text as a label: printable, and neither a formula, which could be broken, nor left out.

    Matplotlib reads what stands between dollar signs as a formula, and legends leave out what begins with `_`.
    """
    label = printable(text).replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def svg_bytes(figure: Figure, *, letters: bool = False) -> bytes:
    """A figure as SVG without a background; equal figures give equal files, whatever the day.

    Args:
        figure: to save.
        letters: keep text as text, in a font of whoever shows it, and not as outlines.
    """
    saved = BytesIO()
    with rc_context({"svg.hashsalt": "arbiter", "svg.fonttype": "none" if letters else "path"}):
        figure.savefig(saved, format="svg", transparent=True, metadata=_NO_METADATA)
    return saved.getvalue()


def name_powers(axis: Axis, subs: Sequence[float] = (1.0,)) -> None:
    """Label a logarithmic axis with plain numbers, such as 0.01, in place of powers of ten; `subs` times each power."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def plot_diagonal(axes: Axes) -> None:
    """Draw the line of perfect calibration, below everything else."""
    axes.plot([0, 1], [0, 1], color=PALE, linewidth=1, zorder=0)


def plot_reliability(
    axes: Axes, truth: ArrayLike, unsafe: ArrayLike, *, name: str, colour: str, intervals: bool = True
) -> bool:
    """Plot the share of unsafe rows against the mean probability of each bin, and label it with its error.

    The area of a dot grows with the rows of its bin; a bin of one row is a hollow one, as it says next to nothing.
    Lines up and down are 95 % intervals. No line joins the dots: it would give one row the weight of a thousand.

    Args:
        axes: to draw into.
        truth: (N,) labels.
        unsafe: (N,) probabilities; NaN is in no bin, but counts in the calibration error.
        name: of these rows.
        colour: of the dots.
        intervals: draw them.

    Returns:
        False, without drawing, if no row is judged.
    """
    table = reliability(truth, unsafe)
    if not len(table.rows):
        return False
    many = table.rows > 1
    if intervals:
        ends = [
            wilson(share * rows, rows) for share, rows in zip(table.share_unsafe, table.rows, strict=True)
        ]
        low, high = np.array(ends).T  # (M,) each
        axes.vlines(table.probability[many], low[many], high[many], color=colour, linewidth=1, alpha=0.6)
    size = 14 + 160 * table.rows / table.rows.sum()
    for members, face in ((many, colour), (~many, "none")):
        axes.scatter(
            table.probability[members], table.share_unsafe[members], s=size[members], facecolors=face,
            edgecolors=colour, linewidths=1, zorder=3,
        )  # fmt: skip
    label = f"{name} (calibration error {calibration_error(truth, unsafe):.3f})"
    axes.plot([], [], color=colour, marker="o", linestyle="", label=label)
    return True


RELIABILITY = (
    "On the diagonal, a probability means what it says. The larger a dot, the more questions; a hollow one stands for "
    "a single question. Lines are 95 % intervals."
)
"""Caption of a figure of `plot_reliability`."""
