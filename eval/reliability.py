"""How well probabilities agree with frequencies on labelled rows, as scored and after temperature scaling."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.calibration.temperature import Calibration, LabelledScores, fit_calibration

from .metrics.arrays import calibration_error
from .reports.figures import BLUE, GREY, new_panels, plot_diagonal, plot_reliability, svg_bytes

Pairs = tuple[NDArray[np.bool_], NDArray[np.float64]]
"""Truth (N,) and probability (N,)."""


def compare_calibration(
    name: str, held_out: Sequence[LabelledScores], test: Sequence[LabelledScores]
) -> tuple[dict[str, Any], dict[str, Pairs]]:
    """Fit temperatures on held-out rows, and compare test rows before and after.

    Args:
        name: the classifier's.
        held_out: its scores to fit on.
        test: its scores to compare on.

    Returns:
        The calibration as a dict, with `whole_calibration_error`, `whole_log_loss` and the same of `category`, as
        scored and with the suffix `_after`; and the whole's pairs for `draw_reliability`, by label.
    """
    fitted = fit_calibration(held_out, classifier=name)
    before, after = _pairs(test, None), _pairs(test, fitted)
    found = fitted.to_dict()
    for part in before:
        for suffix, pair in (("", before[part]), ("_after", after[part])):
            found[f"{part}_calibration_error{suffix}"] = calibration_error(*pair)
            found[f"{part}_log_loss{suffix}"] = log_loss(*pair)
    return found, {"as scored": before["whole"], "calibrated": after["whole"]}


def log_loss(truth: NDArray[np.bool_], probability: NDArray[np.float64]) -> float:
    """Mean negative log-likelihood in nats of probabilities (N,) in [0, 1], given the truth (N,); NaN is left out."""
    likelihood = np.where(truth, probability, 1 - probability)
    return float(-np.log(np.clip(likelihood[~np.isnan(likelihood)], 1e-12, None)).mean())


def draw_reliability(curves: Mapping[str, Mapping[str, Pairs]], path: Path) -> None:
    """Write a reliability diagram per classifier as SVG: share of unsafe rows against the probability of a bin."""
    figure, panels = new_panels(1, len(curves), width=4.2 * len(curves), height=3.9)
    for axes, (name, lines) in zip(panels[0], curves.items(), strict=True):
        plot_diagonal(axes)
        for (label, pair), colour in zip(lines.items(), (GREY, BLUE), strict=True):
            plot_reliability(axes, *pair, name=label, colour=colour)
        axes.set(title=name, xlabel="p(unsafe), mean of the bin", ylabel="share that is unsafe")
        axes.legend(loc="lower right", frameon=False, fontsize=8)
    path.write_bytes(svg_bytes(figure))


def _pairs(scored: Sequence[LabelledScores], calibration: Calibration | None) -> dict[str, Pairs]:
    """Truth and probability of the whole and of all categories with a known label, calibrated or as scored."""
    scores = [calibration.apply(one.scores, one.taxonomy) if calibration else one.scores for one in scored]
    truth = np.concatenate([one.categories.ravel() for one in scored])
    values = np.concatenate([score.category_probabilities.ravel() for score in scores])
    known = ~np.isnan(truth)
    return {
        "whole": (
            np.concatenate([one.unsafe for one in scored]) == 1,
            np.concatenate([score.unsafe for score in scores]),
        ),
        "category": (truth[known] == 1, values[known]),
    }
