"""What became of an image: judged right, one of two kinds of errors, not judged, or without a known truth."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, get_args

from eval.benchmark.predictions import Prediction

Failure = Literal["false_negatives", "false_positives", "unjudged"]
FAILURES: tuple[Failure, ...] = get_args(Failure)
Outcome = Literal["right", "false_negatives", "false_positives", "unjudged", "unknown"]
MOST_SOURCES = 6
"""Sources that are compared; more of them are counted and left out."""


def outcome(row: Prediction, threshold: float = 0.5) -> Outcome:
    """The outcome of one prediction; `unknown` where the labels do not say whether the image is unsafe.

    An unjudged row is an error of its own kind, on either side: it is no false negative, which would call it safe.
    """
    if row.truth is None:
        return "unknown"
    if row.unsafe != row.unsafe:  # NaN
        return "unjudged"
    if (row.unsafe >= threshold) == row.truth:
        return "right"
    return "false_negatives" if row.truth else "false_positives"


def divide_sources(sources: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """The sources that are compared, and those beyond `MOST_SOURCES` with their number of rows.

    The first one is the reference: `real` where there is one, else the one of most rows; the others by falling number.
    """
    counts = Counter(sources)
    ordered = sorted(counts, key=lambda source: (source != "real", -counts[source], source))
    return ordered[:MOST_SOURCES], {source: counts[source] for source in ordered[MOST_SOURCES:]}
