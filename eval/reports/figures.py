"""What all figures of reports share: they are drawn off screen, without windows or global state of matplotlib."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

GREY, BLUE, GREEN, RED = "#9aa3ad", "#0b6e99", "#3a9d6e", "#c8443a"
"""Colours that stay apart in the common colour-vision deficiencies; line styles, markers and labels differ too."""
DPI = 130


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
