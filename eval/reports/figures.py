"""What all figures of reports share: they are drawn off screen, without windows or global state of matplotlib."""

from io import BytesIO
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from eval.metrics.arrays import calibration_error, reliability
from prompts.printable import printable

GREY, BLUE, GREEN, RED = "#9aa3ad", "#0b6e99", "#3a9d6e", "#c8443a"
"""Colours that stay apart in the common colour-vision deficiencies; line styles, markers and labels differ too."""
DPI = 130
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def new_axes(x_label: str, y_label: str, *, width: float = 5.2, height: float = 3.7) -> tuple[Figure, Axes]:
    """A figure of one plot with labels and a grid; sizes in inches."""
    figure, panels = new_panels(1, 1, width=width, height=height)
    axes: Axes = panels[0, 0]
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def new_panels(
    rows: int, columns: int, *, width: float, height: float, share_y: bool = False
) -> tuple[Figure, NDArray[Any]]:
    """A figure and its array (R, C) of empty plots, for R `rows` and C `columns`; sizes of the whole in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # a canvas that needs no window, whatever backend is configured
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=share_y)


def plain_label(text: object) -> str:
    """A stranger's text as a label: printable, and neither a formula, which could be broken, nor left out.

    Matplotlib reads what stands between dollar signs as a formula, and legends leave out what begins with `_`.
    """
    label = printable(text).replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def svg_bytes(figure: Figure) -> bytes:
    """A figure as SVG without a background; equal figures give equal files, whatever the day."""
    saved = BytesIO()
    with rc_context({"svg.hashsalt": "arbiter"}):
        figure.savefig(saved, format="svg", transparent=True, metadata=_NO_METADATA)
    return saved.getvalue()


def plot_diagonal(axes: Axes) -> None:
    """Draw the line of perfect calibration, below everything else."""
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, zorder=0)


def plot_reliability(axes: Axes, truth: ArrayLike, unsafe: ArrayLike, *, name: str, colour: str) -> bool:
    """Plot the share of unsafe rows against the mean probability of each bin, and label the line with its error.

    Args:
        axes: to draw into.
        truth: (N,) labels.
        unsafe: (N,) probabilities; NaN is left out of the line, but counts in the calibration error.
        name: of the line.
        colour: of the line.

    Returns:
        False, without drawing, if no row is judged.
    """
    table = reliability(truth, unsafe)
    if not len(table.rows):
        return False
    label = f"{name} (calibration error {calibration_error(truth, unsafe):.3f})"
    axes.plot(table.probability, table.share_unsafe, color=colour, linewidth=1.2, label=label)
    size = 12 + 160 * table.rows / table.rows.sum()  # area of the markers: a bin of few rows is noisy
    axes.scatter(table.probability, table.share_unsafe, s=size, color=colour, zorder=3)
    return True
