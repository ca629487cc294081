"""Distribution shift in what images show: a map of embeddings, and how well a line tells the sources apart.

UnsafeBench (section 3.1, Figure 11) draws embeddings of CLIP ViT-L/14 with t-SNE. A picture of that kind shows clusters
that need not be there, so a number stands behind it: the AUC of a linear classifier on the embeddings themselves.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from judge.errors import ConfigError
from prompts.example import Example

from .effects import compare
from .outcomes import divide_sources
from .variations import Variation

if TYPE_CHECKING:
    from judge.encoders.dual import DualEncoder

Projection = Literal["tsne", "pca"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
MOST_POINTS = 900
"""Points on a map, the same number of each source where there are enough."""
FOLDS = 5
UNCACHED = 256
"""Images that are encoded at a time where nothing is cached."""
PERPLEXITY = 30.0
"""Of t-SNE, as scikit-learn has it by default; less where there are few images."""

Floats = NDArray[np.float64]


def embed_images(encoder: "DualEncoder", examples: Sequence[Example], cache: Path | None) -> Floats:
    """Pooled embeddings of N readable images, (N, D), each of length 1.

    Raises:
        ImageError: an image cannot be opened; `shift.measure_images` finds these first.
        CheckpointError: the cache is damaged or belongs to something else.
    """
    import torch

    from judge.encoders.features import encode_images

    # Without a cache the tokens of all patches would stay in memory, of which only the pooled ones are needed.
    size = UNCACHED if cache is None else max(1, len(examples))
    parts = [
        encode_images(encoder, examples[start : start + size], cache=cache, progress=False).pooled
        for start in range(0, len(examples), size)
    ]
    pooled = torch.cat([torch.empty(0, encoder.width), *parts]).numpy().astype(np.float64)
    unit: Floats = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
    return unit


def similarity_to_originals(
    encoder: "DualEncoder", variations: Sequence[Variation]
) -> dict[str, dict[str, float]]:
    """Cosine of each variation's embedding with that of its original: name -> `median` and `lowest`, each in [-1, 1].

    A low one says that something changed, be it the style or the content; only a person can say which.
    """
    examples = [Example(f"{v.id}/{v.name}", v.image) for v in variations]
    vectors = embed_images(encoder, examples, cache=None)
    originals = {v.id: vectors[place] for place, v in enumerate(variations) if v.kind == "original"}
    cosines: dict[str, list[float]] = {}
    for place, variation in enumerate(variations):
        if variation.kind != "original":
            cosine = float(vectors[place] @ originals[variation.id])
            cosines.setdefault(variation.name, []).append(min(1.0, cosine))
    return {name: {"median": float(np.median(c)), "lowest": min(c)} for name, c in cosines.items()}


def embedding_map(
    vectors: Floats, examples: Sequence[Example], *, projection: Projection = "tsne", seed: int = 0
) -> dict[str, Any]:
    """Project embeddings (N, D) of N examples to the plane.

    Returns:
        `projection` and `images` N; `points` of at most `MOST_POINTS` images as columns: `x` and `y` scaled to
        [-1, 1], `source`, and `violates`, the first violated key in alphabetical order, None for a safe image; and
        `left_out`, sources beyond `outcomes.MOST_SOURCES` and their images. t-SNE needs at least five images and is
        replaced by PCA below.

    Raises:
        ConfigError: no such projection.
    """
    if projection not in PROJECTIONS:
        raise ConfigError(f"projection is {projection!r}; it is one of {', '.join(PROJECTIONS)}.")
    sources, left_out = divide_sources(example.source for example in examples)
    of = np.array([example.source for example in examples])
    order = np.random.default_rng(seed).permutation(len(examples))
    each = MOST_POINTS // max(1, len(sources))
    drawn = np.sort(np.concatenate([np.zeros(0, int), *(order[of[order] == one][:each] for one in sources)]))
    used: Projection = projection if len(drawn) >= 5 else "pca"
    places = _project(vectors[drawn], used, seed)
    return {
        "projection": used,
        "images": len(examples),
        "left_out": left_out,
        "points": {
            "x": places[:, 0].round(3).tolist(),
            "y": places[:, 1].round(3).tolist(),
            "source": of[drawn].tolist(),
            "violates": [min(examples[place].violates, default=None) for place in drawn],
        },
    }


def _project(vectors: Floats, projection: Projection, seed: int) -> Floats:
    """(M, D) -> (M, 2), centred and scaled to [-1, 1]; all zeros where the vectors are equal."""
    places = np.zeros((len(vectors), 2))
    if len(np.unique(vectors, axis=0)) > 1:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE

        if projection == "tsne":
            # Fifty components, as the authors of t-SNE advise, for speed.
            few = PCA(min(50, *vectors.shape), random_state=seed).fit_transform(vectors)
            perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
            places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(few)
        else:
            size = min(2, *vectors.shape)
            places[:, :size] = PCA(size, random_state=seed).fit_transform(vectors)
    centred: Floats = np.asarray(places, dtype=np.float64) - places.mean(axis=0) if len(places) else places
    return centred / max(float(np.abs(centred).max(initial=0.0)), 1e-12)


def separation(vectors: Floats, examples: Sequence[Example], *, seed: int = 0) -> dict[str, Any]:
    """How well a logistic regression on embeddings (N, D) tells each source from the reference.

    Near copies of one picture in several folds help it, and so does a difference in what the sources show.

    Returns:
        `reference`, and `sources`: source -> `auc` over the held-out scores of a cross-validation of `folds`, 0.5
        being chance, with its 95 % `interval` over the images (not over the fitting, so it is a little narrow), and
        `rows` of both. `auc` is None where a side has less than two
        images.
    """
    sources, _ = divide_sources(example.source for example in examples)
    of = np.array([example.source for example in examples])
    found = {}
    for source in sources[1:]:
        chosen = np.isin(of, [sources[0], source])
        found[source] = _held_out_auc(vectors[chosen], of[chosen] == source, seed)
    return {"reference": sources[0] if sources else None, "sources": found}


def _held_out_auc(vectors: Floats, second: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    rows = [int((~second).sum()), int(second.sum())]
    folds = min(FOLDS, *rows)
    if folds < 2:
        return {"auc": None, "interval": None, "rows": rows, "folds": 0}
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
        vectors,
        second,
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        method="decision_function",
    )
    effect = compare(scores[~second], scores[second], seed=seed)
    interval = [(edge + 1) / 2 for edge in effect["interval"]]
    return {"auc": effect["auc"], "interval": interval, "rows": rows, "folds": folds}
