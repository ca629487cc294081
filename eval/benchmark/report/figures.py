"""Figures of a benchmark report: one small plot a classifier, its own line in colour before the others in grey.

A page with all lines in one plot would need eight colours that nobody tells apart in print. They are SVG: sharp at any
size, and without a background, so that a page can show them on light and dark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eval.benchmark.predictions import Predictions
from eval.metrics.arrays import confusion, precision_recall, reliability
from eval.reports.charts import inline_svg
from eval.reports.figures import BLUE, new_axes, plot_diagonal, svg_bytes
from eval.reports.page import format_value
from prompts.printable import printable

OTHERS = "#a3acb5"
INK = "#1d252c"
POINTS = 300
"""Of a curve; more cannot be seen."""
_WIDTH, _HEIGHT = 2.7, 2.35
"""Of each plot, in inches."""
_CURVES = (
    "Over the categories that each classifier covers; the others in grey. The dot is the verdict at the threshold. "
    "Unsafe images that were not judged are found at no threshold: the hatched part, which no curve reaches. Safe ones "
    "count as flagged at every threshold."
)
_DIAGRAMS = (
    "The share of unsafe images among those with about the same p(unsafe); on the diagonal, a probability means what "
    "it says. Larger dots stand for more images. The error counts unjudged images as fully wrong."
)


@dataclass(frozen=True)
class Plot:
    """One figure of a page."""

    label: str
    caption: str
    svg: Markup
    """As an element of the page, in its colours."""


@dataclass(frozen=True)
class Answers:
    """What a classifier said over all categories that it was asked about, where the labels say what is true."""

    truth: NDArray[np.bool_]
    """(N,)"""
    unsafe: NDArray[np.float64]
    """(N,) probabilities; NaN where unjudged."""


def answers_of(predictions: Predictions) -> Answers:
    """The rows whose truth is known."""
    known = [row for row in predictions.rows if row.truth is not None]
    return Answers(
        np.array([row.truth for row in known], dtype=np.bool_),
        np.array([row.unsafe for row in known], dtype=np.float64),
    )


def performance_plots(
    predictions: Sequence[Predictions], metrics: Mapping[str, Any]
) -> dict[str, tuple[str, list[Plot]]]:
    """Heading -> what its plots show, and one for each classifier that has any."""
    answers = {one.about.label: answers_of(one) for one in predictions}
    found = {}
    for heading, about, svgs, name, key in (
        ("Precision and recall", _CURVES, draw_precision_recall(answers, metrics["threshold"]),
         "average precision", "average_precision"),
        ("Reliability", _DIAGRAMS, draw_reliability(answers), "calibration error", "calibration_error"),
    ):  # fmt: skip
        values = {label: metrics["classifiers"][label][key] for label in svgs}
        plots = [
            plot_of(heading, label, f"{name} {format_value(values[label])}", svg)
            for label, svg in svgs.items()
        ]
        if plots:
            found[heading] = (about, plots)
    return found


def plot_of(heading: str, label: str, caption: str, svg: bytes) -> Plot:
    """A figure for the page; heading, label and caption are its name for those who do not see it."""
    return Plot(label, caption, inline_svg(svg, f"{heading} of {printable(label)}: {printable(caption)}"))


def draw_precision_recall(answers: Mapping[str, Answers], threshold: float = 0.5) -> dict[str, bytes]:
    """Precision against recall as SVG, for each label with a judged row and an unsafe one.

    The dot is the verdict at the threshold. Unsafe images that were not judged are found at no threshold, so the curve
    ends where they begin: the hatched part.
    """
    curves = {label: curve for label, one in answers.items() if len((curve := _curve(one))[0])}
    return {label: _precision_recall(label, curves, answers[label], threshold) for label in curves}


def draw_reliability(answers: Mapping[str, Answers]) -> dict[str, bytes]:
    """The share of unsafe images against the probability as SVG, for each label with a judged row."""
    tables = {label: reliability(one.truth, one.unsafe) for label, one in answers.items()}
    lines = {label: (one.probability, one.share_unsafe) for label, one in tables.items() if len(one.rows)}
    found = {}
    for label in lines:
        figure, axes = new_axes("p(unsafe)", "share unsafe", width=_WIDTH, height=_HEIGHT)
        plot_diagonal(axes)
        _draw_others(axes, lines, label)
        axes.plot(*lines[label], color=BLUE, linewidth=1.4, zorder=3)
        rows = tables[label].rows
        # The area of a marker shows how many images it stands for.
        axes.scatter(*lines[label], s=8 + 110 * rows / rows.sum(), color=BLUE, edgecolor="white", zorder=4)
        axes.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06))
        found[label] = _svg(figure, axes)
    return found


def _curve(answers: Answers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(P,) recall and precision, from recall 0 on; P is 0 without judged rows or unsafe ones, else up to `POINTS`."""
    curve = precision_recall(answers.truth, answers.unsafe)
    if not len(curve.recall):
        return np.empty(0), np.empty(0)
    shown = np.unique(np.linspace(0, len(curve.recall) - 1, POINTS).round().astype(np.int64))
    recall, precision = curve.recall[shown], curve.precision[shown]
    return np.append(0.0, recall), np.append(precision[:1], precision)


def _precision_recall(
    label: str,
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    answers: Answers,
    threshold: float,
) -> bytes:
    figure, axes = new_axes("recall", "precision", width=_WIDTH, height=_HEIGHT)
    _draw_others(axes, curves, label)
    recall, precision = curves[label]
    axes.plot(recall, precision, color=BLUE, linewidth=1.9, zorder=3)
    unjudged = float(np.isnan(answers.unsafe[answers.truth]).mean())
    if unjudged:
        axes.axvspan(
            1 - unjudged, 1, facecolor="none", edgecolor=OTHERS, hatch="/////", linewidth=0, zorder=0
        )
    found = confusion(answers.truth, answers.unsafe, threshold)
    if found.true_positives:
        axes.scatter(found.recall, found.precision, s=34, color=INK, edgecolor="white", zorder=5)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.04))
    return _svg(figure, axes)


def _draw_others(
    axes: Axes, lines: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], label: str
) -> None:
    for other, line in lines.items():
        if other != label:
            axes.plot(*line, color=OTHERS, linewidth=0.7, zorder=1)


def _svg(figure: Figure, axes: Axes) -> bytes:
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.tick_params(labelsize=8)
    return svg_bytes(figure)
