"""Which images the case study varies: unsafe ones that the classifiers recognise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from eval.benchmark.predictions import Prediction, Predictions
from judge.errors import ConfigError
from prompts.example import Example

from .outcomes import outcome

IMAGES = 20
"""As in the paper, for each of its two categories."""


@dataclass(frozen=True)
class ChosenImages:
    """The images of a case study, and whose verdicts chose them."""

    examples: tuple[Example, ...]
    labels: tuple[str, ...]
    """Of the classifiers, all of which judge these images right."""
    candidates: int
    """Images from which `examples` were drawn."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Label of a classifier that is not asked -> why."""


def choose_images(
    examples: Sequence[Example],
    all_predictions: Sequence[Predictions],
    *,
    labels: Sequence[str] | None = None,
    images: int = IMAGES,
    source: str = "real",
    category: str | None = None,
    threshold: float = 0.5,
    seed: int = 0,
) -> ChosenImages:
    """Draw unsafe images of one source that every classifier flags that was asked about a category they violate.

    Args:
        examples: that can be opened.
        all_predictions: of each classifier.
        labels: of the classifiers, none of which is then left out. By default all of them; but as a classifier that
            finds little would leave no image, those with the lowest recall are left out, as many as are needed for half
            of the `images` (or half of the most that there can be).
        images: how many, at most.
        source: of the images.
        category: key of a category that they violate; None for any.
        threshold: probability from which a verdict is unsafe.
        seed: of the draw.

    Raises:
        ConfigError: a label without predictions.
    """
    rows = {one.about.label: {row.id: row for row in one.rows} for one in all_predictions}
    wrong = [label for label in labels or () if label not in rows]
    if wrong:
        raise ConfigError(f"There are no predictions of {', '.join(wrong)}; there are of {', '.join(rows)}.")
    names = [e.id for e in examples if e.source == source and (category is None or category in e.violates)]
    chosen = list(labels or rows)
    recall = {label: _recall(rows[label], names, threshold) for label in chosen}
    order = sorted(chosen, key=lambda label: -recall[label])  # stable
    fewest = len(chosen) if labels is not None else 1
    # How many classifiers, those of the highest recall -> ids.
    tried = {n: _candidates(rows, order[:n], names, threshold) for n in range(len(chosen), fewest - 1, -1)}
    enough = min(images, max(map(len, tried.values()), default=0)) / 2
    best = max((n for n, found in tried.items() if len(found) >= enough), default=0)
    candidates = tried.get(best, [])
    drawn = np.random.default_rng(seed).permutation(len(candidates))[:images]
    ids = {candidates[place] for place in drawn}
    left_out = {
        label: f"flags {recall[label]:.0%} of the unsafe images of source {source!r}; too few would be left"
        for label in order[best:]
    }
    for label in order[:best]:
        if ids and not any(rows[label][name].truth for name in ids & rows[label].keys()):
            left_out[label] = "covers nothing that these images show"
    kept = [label for label in chosen if label not in left_out]
    return ChosenImages(tuple(e for e in examples if e.id in ids), tuple(kept), len(candidates), left_out)


def _recall(rows: Mapping[str, Prediction], names: Sequence[str], threshold: float) -> float:
    asked = [outcome(rows[name], threshold) for name in names if name in rows and rows[name].truth]
    # Who was asked about none of them is in nobody's way.
    return asked.count("right") / len(asked) if asked else 1.0


def _candidates(
    rows: Mapping[str, Mapping[str, Prediction]],
    labels: Sequence[str],
    names: Sequence[str],
    threshold: float,
) -> list[str]:
    """Ids of the images that are unsafe to somebody, and right by everybody to whom they are."""
    found = []
    for name in names:
        asked = [rows[label][name] for label in labels if name in rows[label] and rows[label][name].truth]
        if asked and all(outcome(row, threshold) == "right" for row in asked):
            found.append(name)
    return found
