"""What misclassified images have in common: KMeans clusters of their embeddings (UnsafeBench, section 4.1, Figure 5).

False negatives and false positives of each source are clustered apart, and a cluster is shown by the images nearest to
its centre. The paper takes images that all of a group of classifiers misclassify; single classifiers count here too.
An image that could not be judged is an error of a third kind, as nobody called it safe or unsafe.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.benchmark.predictions import Prediction, Predictions
from judge.errors import ConfigError

from .outcomes import FAILURES, Failure, Outcome, divide_sources, outcome

CLUSTERS = 4
"""As in the paper, "for better visualization purposes"."""
STARTS = 10
"""Times that KMeans starts anew; the best result counts."""
SHOWN = 4
"""Images named of each cluster, the nearest to its centre first."""
COMMON = 3
"""Violated categories counted of each cluster, the most frequent ones."""

Floats = NDArray[np.float64]
Rows = Mapping[str, Prediction]
"""Id of an image -> what one classifier said of it."""


def cluster_failures(
    vectors: Floats,
    ids: Sequence[str],
    all_predictions: Sequence[Predictions],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    category: str | None = None,
    clusters: int = CLUSTERS,
    threshold: float = 0.5,
    seed: int = 0,
) -> dict[str, Any]:
    """Cluster the failures of each classifier, and those that a whole group of classifiers shares.

    Args:
        vectors: (N, D) embeddings of the images that could be opened (`embedding.embed_images`).
        ids: their N ids.
        all_predictions: of each classifier; an image without an embedding is counted and in no cluster.
        groups: name -> labels of classifiers, all of which have to fail. By default those of one kind
            (`About.group`), and all classifiers, where these are several.
        category: key of the category whose images are looked at: those collected for it, where the data set says
            so, else those that violate it (then there are no false positives); None takes all images.
        clusters: of each kind of failure in each source; fewer where there are fewer different images.
        threshold: probability from which a verdict is unsafe.
        seed: of KMeans.

    Raises:
        ConfigError: a group without classifiers, or of one without predictions.

    Returns:
        `clusters`, `category`, and `groups`: name -> `labels`; `images`, how many all of them were asked about and
        have a known truth; `mixed`, how many all of them got wrong in ways that differ (one unjudged, one false
        negative); `left_out`, sources beyond `outcomes.MOST_SOURCES` and their images; and `failures`: kind -> source
        -> `images`, `of` (images of that source that can fail that way), `without_embedding`, `clusters`, and `note`,
        why there are fewer of them than asked for, else None. A cluster is its `size`; `nearest`, ids of up to
        `SHOWN` images by their distance from the centre; and `violates`, key -> images.
    """
    places = {name: place for place, name in enumerate(ids)}
    rows: dict[str, Rows] = {
        predictions.about.label: {row.id: row for row in predictions.rows if _about(row, category)}
        for predictions in all_predictions
    }
    if groups is None:
        groups = default_groups(all_predictions)
    for name, labels in groups.items():
        if not labels or not set(labels) <= rows.keys():
            raise ConfigError(
                f"The group {name!r} is of {', '.join(labels) or 'nobody'}; there are: {', '.join(rows)}."
            )
    named = {label: [label] for label in rows} | {name: list(labels) for name, labels in groups.items()}
    found = {
        name: _group(
            vectors, places, {label: rows[label] for label in labels}, clusters, threshold, seed
        )
        for name, labels in named.items()
    }  # fmt: skip
    return {"clusters": clusters, "category": category, "groups": found}


def default_groups(all_predictions: Sequence[Predictions]) -> dict[str, list[str]]:
    """The classifiers of each kind, and all of them, where these are several: name -> labels.

    Those that cover no category of the benchmark have no rows, and are in no group.
    """
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    asked = [predictions.about for predictions in all_predictions if predictions.rows]
    for about in asked:
        kinds[f"all of {about.group}"].append(about.label)
    kinds["all"] = [about.label for about in asked]
    # A kind that is everyone is named once.
    several = {tuple(labels): name for name, labels in kinds.items() if len(labels) > 1}
    return {name: list(labels) for labels, name in several.items()}


def _about(row: Prediction, category: str | None) -> bool:
    if category is None:
        return True
    return category in row.violates if row.collected_for is None else row.collected_for == category


def _group(
    vectors: Floats,
    places: Mapping[str, int],
    rows: Mapping[str, Rows],
    clusters: int,
    threshold: float,
    seed: int,
) -> dict[str, Any]:
    """The failures that all classifiers of `rows` share."""
    first = next(iter(rows.values()))
    outcomes: dict[str, set[Outcome]] = {}
    for name in first:
        if all(name in one for one in rows.values()):
            kinds = {outcome(one[name], threshold) for one in rows.values()}
            if "unknown" not in kinds:
                outcomes[name] = kinds
    sources, left_out = divide_sources(first[name].source for name in outcomes)
    failures: dict[Failure, dict[str, Any]] = {kind: {} for kind in FAILURES}
    for kind in FAILURES:
        for source in sources:
            mine = [name for name in outcomes if first[name].source == source]
            failed = [first[name] for name in mine if outcomes[name] == {kind}]
            failures[kind][source] = {
                "images": len(failed),
                "of": sum(_can_fail(first[name], kind) for name in mine),
                "without_embedding": sum(row.id not in places for row in failed),
                **_clusters(vectors, places, [r for r in failed if r.id in places], clusters, seed),
            }
    return {
        "labels": list(rows),
        "images": len(outcomes),
        "mixed": sum(len(kinds) > 1 and "right" not in kinds for kinds in outcomes.values()),
        "left_out": left_out,
        "failures": failures,
    }


def _can_fail(row: Prediction, kind: Failure) -> bool:
    return kind == "unjudged" or row.truth is (kind == "false_negatives")


def _clusters(
    vectors: Floats, places: Mapping[str, int], rows: Sequence[Prediction], asked: int, seed: int
) -> dict[str, Any]:
    """`clusters` by falling size, and `note`."""
    if not rows:
        return {"clusters": [], "note": None}
    mine = vectors[[places[row.id] for row in rows]]  # (M, D)
    different = len(np.unique(mine, axis=0))
    count = min(asked, different)
    from sklearn.cluster import KMeans

    model = KMeans(count, n_init=STARTS, random_state=seed).fit(mine)
    distance = np.linalg.norm(mine - model.cluster_centers_[model.labels_], axis=1)  # (M,)
    found = []
    for number in range(count):
        members = np.flatnonzero(model.labels_ == number)
        nearest = members[np.argsort(distance[members], kind="stable")][:SHOWN]
        violates = Counter(key for place in members.tolist() for key in sorted(rows[place].violates))
        found.append(
            {
                "size": len(members),
                "nearest": [rows[place].id for place in nearest.tolist()],
                "violates": dict(violates.most_common(COMMON)),
            }
        )
    note = f"{count} instead of {asked}, as many as there are different images" if count < asked else None
    return {"clusters": sorted(found, key=lambda one: (-one["size"], one["nearest"])), "note": note}
