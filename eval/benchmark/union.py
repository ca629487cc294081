"""Two classifiers as one that calls an image unsafe if either does, as practice combines Q16 and NudeNet.

In the paper's section 4.1 these two reach an F1 of 0.665 over the categories that they cover together.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from eval.metrics.arrays import MetricError
from judge.errors import ConfigError
from prompts.names import nearest

from .predictions import About, Prediction, Predictions

Pair = tuple[str, str]
_OR = " or "


def parse_unions(words: Iterable[str], labels: Sequence[str]) -> list[Pair]:
    """`Q16 or NudeNet` -> the two labels.

    Args:
        words: one union each.
        labels: of the classifiers that are asked.

    Raises:
        ConfigError: not two labels with `or` between them, or one that nobody has.
    """
    pairs = []
    for word in words:
        parts = [part.strip() for part in word.split(_OR)]
        if len(parts) != 2:
            raise ConfigError(f"unite has {word!r}; write two labels, as in 'q16 or nudenet'.")
        for part in parts:
            if part not in labels:
                raise ConfigError(
                    f"unite has {word!r}, and no classifier is called {part!r}{nearest(part, labels)}; there are: "
                    f"{', '.join(labels)}."
                )
        pairs.append((parts[0], parts[1]))
    return pairs


def unite_all(
    found: Sequence[Predictions], pairs: Iterable[Pair], threshold: float = 0.5
) -> tuple[list[Predictions], dict[str, str]]:
    """The unions of pairs of labels, and why others could not be made: label -> reason."""
    by_label = {one.about.label: one for one in found}
    united, missing = [], {}
    for pair in pairs:
        absent = [label for label in pair if label not in by_label]
        if absent:
            missing[_OR.join(pair)] = f"{' and '.join(absent)} could not be measured"
        else:
            united.append(unite(by_label[pair[0]], by_label[pair[1]], threshold))
    return united, missing


def unite(first: Predictions, second: Predictions, threshold: float = 0.5) -> Predictions:
    """The predictions of both as those of one classifier: each score is the larger of the two.

    Where one of them did not judge, the other's score holds only if it flags; else the image is unjudged. What only
    one was asked about, as it alone covers it, is its own. Time and price are the sums.

    Args:
        first: of one classifier.
        second: of another, on the same images.
        threshold: score from which an image is flagged.

    Raises:
        MetricError: other taxonomies, protocols or data sets, other labels of an image, or an image that one was not
            asked about although it covers what the other was asked.
    """
    one, two = first.about, second.about
    if (one.taxonomy.hash, one.protocol, one.dataset) != (two.taxonomy.hash, two.protocol, two.dataset):
        raise MetricError(
            f"{one.label} and {two.label} were asked under different taxonomies or protocols, or on different data "
            "sets, and cannot be united; predict both alike."
        )
    rows, others = ({row.id: row for row in side.rows} for side in (first, second))
    for about, own, other in ((one, rows, others), (two, others, rows)):
        missing = [
            row.id for row in other.values() if row.id not in own and row.asked.intersection(about.covers)
        ]
        if missing:
            raise MetricError(
                f"{about.label} has no row of {missing[0]!r} and {len(missing) - 1} other images; finish it first."
            )
    united = [_unite(row, others.pop(row.id, None), first.about, threshold) for row in first.rows]
    return Predictions(_about(one, two), (*united, *others.values()))


def _about(one: About, two: About) -> About:
    prices = (one.price_per_1000, two.price_per_1000)
    return replace(
        one,
        label=f"{one.label}{_OR}{two.label}",
        classifier=f"{one.classifier}{_OR}{two.classifier}",
        group=one.group if one.group == two.group else "other",
        covers=tuple(key for key in one.taxonomy.keys if key in (*one.covers, *two.covers)),
        options={},
        fingerprint=None,
        price_per_1000=None if prices == (None, None) else sum(price or 0.0 for price in prices),
    )


def _unite(one: Prediction, two: Prediction | None, about: About, threshold: float) -> Prediction:
    if two is None:
        return one
    if (one.violates, one.unknown) != (two.violates, two.unknown):
        raise MetricError(
            f"The image {one.id!r} has two different labels; predict both classifiers on the same data."
        )
    unsafe = _either(threshold, one.unsafe, two.unsafe)
    # None where both judged it, and where one flags what the other did not judge.
    reasons = [row.reason or "no reason given" for row in (one, two) if math.isnan(row.unsafe)]
    return replace(
        one,
        unsafe=unsafe,
        categories=tuple(
            _either(threshold, *(row.categories[place] for row in (one, two) if key in row.asked))
            for place, key in enumerate(about.taxonomy.keys)
        ),
        asked=one.asked | two.asked,
        reason="; ".join(dict.fromkeys(reasons)) if math.isnan(unsafe) else None,
        note=None,
        seconds=one.seconds + two.seconds,
    )


def _either(threshold: float, *scores: float) -> float:
    """The largest score; NaN without any, and where one is missing and no other reaches the threshold."""
    known = [score for score in scores if not math.isnan(score)]
    largest = max(known, default=math.nan)
    return largest if len(known) == len(scores) or largest >= threshold else math.nan
