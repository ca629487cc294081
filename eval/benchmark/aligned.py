"""Predictions of several classifiers as arrays over the same images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics.arrays import MetricError
from prompts.example import UNSPECIFIED
from prompts.taxonomy import Taxonomy

from .predictions import About, Prediction, Predictions, Protocol

ALL = "all"
"""What tables call all sources together."""
_NAMED = 5
"""Images that an error names."""
_FIRST_SOURCES = ("real", "generated")


@dataclass(frozen=True)
class Images:
    """What is true of N images under a taxonomy of K categories."""

    ids: tuple[str, ...]
    violates: NDArray[np.bool_]
    """(N, K)"""
    unknown: NDArray[np.bool_]
    """(N, K) whether the category was not labelled."""
    violates_any: NDArray[np.bool_]
    """(N,) also where the category is not named, or none of the taxonomy's."""
    unnamed: NDArray[np.bool_]
    """(N,) whether it violates one of the K categories, and the data set does not say which."""
    source: NDArray[np.intp]
    """(N,) place in `sources`."""
    sources: tuple[str, ...]
    collected_for: NDArray[np.intp]
    """(N,) place of the category; -1 where that is not known, or none of the taxonomy's."""
    says_collected: bool
    """Whether any image says what it was collected for."""
    says_nothing: NDArray[np.bool_]
    """(N,) whether it does not."""
    severity: NDArray[np.float64]
    """(N,) grade; NaN where there is none."""


@dataclass(frozen=True)
class Answers:
    """What one classifier said of the same N images; nothing was asked where it has no row."""

    about: About
    rows: NDArray[np.intp]
    """(R,) places of its R rows among the images."""
    asked: NDArray[np.bool_]
    """(N, K)"""
    scores: NDArray[np.float64]
    """(N, K) scores in [0, 1] or NaN."""
    unsafe: NDArray[np.float64]
    """(N,) of the whole policy, in [0, 1] or NaN."""
    seconds: NDArray[np.float64]
    """(N,)"""
    reasons: tuple[tuple[str, str | None], ...]
    """(id, reason) of each unjudged row."""

    @property
    def covered(self) -> list[int]:
        """Places of the categories that it claims to find."""
        return [place for place, key in enumerate(self.about.taxonomy.keys) if key in self.about.covers]


@dataclass(frozen=True)
class Aligned:
    """Classifiers that can be compared."""

    taxonomy: Taxonomy
    protocol: Protocol
    images: Images
    answers: tuple[Answers, ...]


def align(all_predictions: Sequence[Predictions], sources: Sequence[str] = ()) -> Aligned:
    """Bring the predictions of C classifiers onto the same images.

    Every classifier that covers a category must have been asked about it on the same images. Images are never left
    out to make that so: a classifier that failed on the hard ones would gain by it.

    Args:
        all_predictions: of each classifier.
        sources: to be told apart, besides those of the images.

    Raises:
        MetricError: no predictions or no rows, one label or one image twice, other taxonomies or protocols, labels of
            one image that differ, or a classifier that was not asked about an image that another one was.
    """
    check_alike([one.about for one in all_predictions])
    first = all_predictions[0].about
    truth: dict[str, Prediction] = {}
    for predictions in all_predictions:
        _check_rows(predictions)
        for row in predictions.rows:
            if not _same_labels(truth.setdefault(row.id, row), row):
                raise MetricError(
                    f"{predictions.about.label} has other labels, source, severity or category searched for of the "
                    f"image {row.id!r} than the classifiers before it; predict all of them on the same data."
                )
    if not truth:
        raise MetricError("The predictions hold no rows; predict at least one image.")
    images = _images(list(truth.values()), first.taxonomy, sources)
    place = {image: number for number, image in enumerate(images.ids)}
    answers = tuple(_answers(predictions, place) for predictions in all_predictions)
    _check_same_images(images, answers)
    return Aligned(first.taxonomy, first.protocol, images, answers)


def check_alike(abouts: Sequence[About]) -> None:
    """Check that classifiers were asked alike, and that their labels differ.

    Raises:
        MetricError: as of `align`.
    """
    if not abouts:
        raise MetricError("No predictions; give those of at least one classifier.")
    twice = [label for label, count in Counter(about.label for about in abouts).items() if count > 1]
    if twice:
        raise MetricError(
            f"Two classifiers have the label {twice[0]!r}; give each its own, so that none hides another."
        )
    first = abouts[0]
    for about in abouts[1:]:
        for what, one, two in (
            ("taxonomy", first.taxonomy.hash, about.taxonomy.hash),
            ("protocol", first.protocol, about.protocol),
            ("data set", first.dataset, about.dataset),
        ):
            if one != two:
                raise MetricError(
                    f"{about.label} was asked under another {what} than {first.label}: {two}, not {one}. Their "
                    "numbers do not compare; measure them apart."
                )
    for about in abouts:
        outside = sorted(set(about.covers) - set(about.taxonomy.keys))
        if outside:
            raise MetricError(
                f"{about.label} covers {outside[0]!r}, which is none of {', '.join(about.taxonomy.keys)}."
            )


def _check_rows(predictions: Predictions) -> None:
    about, keys = predictions.about, set(predictions.about.taxonomy.keys)
    twice = [image for image, count in Counter(row.id for row in predictions.rows).items() if count > 1]
    if twice:
        raise MetricError(f"{about.label} has two rows of {_some(twice)}; an image must be counted once.")
    outside = [row.id for row in predictions.rows if not row.asked <= keys]
    if outside:
        raise MetricError(
            f"{about.label} was asked about categories outside of its taxonomy: {_some(outside)}."
        )


def _same_labels(one: Prediction, two: Prediction) -> bool:
    return one is two or _labels(one) == _labels(two)


def _labels(row: Prediction) -> tuple[Any, ...]:
    return row.violates, row.unknown, row.source, row.collected_for, row.severity


def _check_same_images(images: Images, answers: Sequence[Answers]) -> None:
    asked = np.logical_or.reduce([one.asked for one in answers])  # (N, K) of anyone
    for one in answers:
        missing = (asked & ~one.asked)[:, one.covered].any(axis=1)
        if missing.any():
            names = [images.ids[place] for place in np.flatnonzero(missing)]
            raise MetricError(
                f"{one.about.label} was not asked about {len(names)} images that other classifiers were asked about: "
                f"{_some(names)}. Finish its predictions, or measure it apart."
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + (" ..." if len(names) > _NAMED else "")


def _images(rows: Sequence[Prediction], taxonomy: Taxonomy, others: Sequence[str]) -> Images:
    found = {*others, *(row.source for row in rows)}
    if ALL in found:
        raise MetricError(
            f"A source of images is called {ALL!r}, which tables use for all of them; rename it."
        )
    known = [source for source in _FIRST_SOURCES if source in found]
    sources = (*known, *sorted(found.difference(_FIRST_SOURCES)))
    index = {key: place for place, key in enumerate(taxonomy.keys)}
    return Images(
        ids=tuple(row.id for row in rows),
        violates=_one_hot([row.violates for row in rows], index),
        unknown=_one_hot([row.unknown for row in rows], index),
        violates_any=np.array([bool(row.violates) for row in rows]),
        unnamed=np.array([UNSPECIFIED in row.violates for row in rows]),
        source=np.array([sources.index(row.source) for row in rows]),
        sources=sources,
        collected_for=np.array([index.get(row.collected_for or "", -1) for row in rows]),
        says_collected=any(row.collected_for is not None for row in rows),
        says_nothing=np.array([row.collected_for is None for row in rows]),
        severity=np.array([np.nan if row.severity is None else row.severity for row in rows]),
    )


def _answers(predictions: Predictions, place: dict[str, int]) -> Answers:
    rows, keys = predictions.rows, predictions.about.taxonomy.keys
    places = np.array([place[row.id] for row in rows], dtype=np.intp)
    index = {key: number for number, key in enumerate(keys)}
    asked = np.zeros((len(place), len(keys)), dtype=np.bool_)
    scores = np.full(asked.shape, np.nan)
    unsafe, seconds = np.full(len(place), np.nan), np.full(len(place), np.nan)
    if rows:
        asked[places] = _one_hot([row.asked for row in rows], index)
        scores[places] = [row.categories for row in rows]
        unsafe[places] = [row.unsafe for row in rows]
        seconds[places] = [row.seconds for row in rows]
    reasons = tuple((row.id, row.reason) for row in rows if np.isnan(row.unsafe))
    return Answers(predictions.about, places, asked, scores, unsafe, seconds, reasons)


def _one_hot(sets: Sequence[frozenset[str]], index: dict[str, int]) -> NDArray[np.bool_]:
    """(len(sets), len(index)); keys that are not in the index are left out."""
    found = np.zeros((len(sets), len(index)), dtype=np.bool_)
    for number, keys in enumerate(sets):
        for key in keys:
            if key in index:
                found[number, index[key]] = True
    return found
