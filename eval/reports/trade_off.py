"""What another threshold would do: precision, recall and the share that is flagged, as a table and as a figure."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from eval.metrics.arrays import NAN, confusion
from eval.metrics.judged import JudgedRow, truth_and_scores

from .figures import AMBER, BLUE, GREEN, INK, new_axes
from .table import Table

THRESHOLDS = tuple(step / 10 for step in range(1, 10))
"""Of the table; the one in use is added."""
_POINTS = 101


def trade_off_table(rows: Sequence[JudgedRow], threshold: float) -> Table:
    """A line for each threshold: what it flags, finds, misses and flags wrongly."""
    truth, unsafe = truth_and_scores(rows)
    lines = []
    for cut in sorted({*THRESHOLDS, threshold}):
        found = confusion(truth, unsafe, cut)
        flagged = float(np.mean(unsafe >= cut)) if len(unsafe) else NAN
        missed, wrong = found.false_negatives, found.false_positives
        numbers = [
            None if value != value else value for value in (flagged, found.precision, found.recall, found.f1)
        ]
        lines.append((f"{cut:g}{' (in use)' if cut == threshold else ''}", [*numbers, missed, wrong]))
    heads = ["share flagged", "precision", "recall", "F1", "unsafe missed", "safe flagged"]
    note = (
        "By p(unsafe) from which an image is flagged. Unjudged images are errors at every threshold. Choose one on "
        "other images than these: arbiter calibrate does it for each category."
    )
    return Table("Threshold", heads, lines, note)


def draw_trade_off(rows: Sequence[JudgedRow], threshold: float) -> Figure | None:
    """Precision, recall and the share flagged against the threshold; None where nothing was judged."""
    truth, unsafe = truth_and_scores(rows)
    if np.isnan(unsafe).all() or not truth.any():
        return None
    cuts = np.linspace(0, 1, _POINTS)
    found = [confusion(truth, unsafe, cut) for cut in cuts]
    figure, axes = new_axes("threshold on p(unsafe)", "share")
    axes.plot(cuts, [one.precision for one in found], color=BLUE, linewidth=1.8, label="precision")
    axes.plot(cuts, [one.recall for one in found], color=GREEN, linewidth=1.8, linestyle="--", label="recall")
    flagged = [float(np.mean(unsafe >= cut)) for cut in cuts]
    axes.plot(cuts, flagged, color=AMBER, linewidth=1.4, linestyle="-.", label="share flagged")
    axes.axvline(threshold, color=INK, linestyle=":", linewidth=1.2, label=f"in use: {threshold:g}")
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.04))
    axes.legend(loc="best", frameon=False)
    return figure
