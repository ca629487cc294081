"""An encoder alone, zero-shot, on signs: does it find what pictures show, by words it knows and by new ones?

A picture's score for some words is the largest cosine between one of its patches and the mean of the words' embeddings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from eval.metrics.arrays import roc_auc
from judge.encoders.dual import DualEncoder
from judge.encoders.features import encode_images
from judge.standins.signs.examples import shown_concepts
from judge.standins.signs.glyphs import concepts, groups
from prompts import Example, Taxonomy

from .new_words import new_words

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scenes:
    """N pictures as an encoder sees them, and what they show."""

    patches: Tensor
    """(N, P, D) unit vectors."""
    shown: tuple[frozenset[str], ...]
    """Names of concepts."""

    @classmethod
    def encode(cls, encoder: DualEncoder, examples: Sequence[Example], cache: Path | None) -> "Scenes":
        """Encode examples of the data `signs`."""
        tokens, _ = encode_images(encoder, examples, cache=cache).rows(range(len(examples)))
        shown = tuple(shown_concepts(example.id) for example in examples)
        return cls(F.normalize(tokens[:, 1:], dim=-1), shown)

    def cosines(self, words: Tensor) -> Array:
        """(N, W) largest cosine of each picture's patches with unit vectors (W, D)."""
        parts = [(part @ words.T).amax(1) for part in torch.split(self.patches, 200)]
        found: Array = torch.cat(parts).double().numpy()
        return found

    def truth(self, covered: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
        """(N, W) whether a picture shows one of the concepts that each of W words covers."""
        return np.array([[not shown.isdisjoint(each) for each in covered] for shown in self.shown])


def measure_encoder(encoder: DualEncoder, taxonomy: Taxonomy, scenes: Mapping[str, Scenes]) -> dict[str, Any]:
    """Zero-shot numbers of an encoder.

    Args:
        encoder: whose space the scenes are in.
        taxonomy: `signs`, for the groups' names.
        scenes: `validation`, `test` and `new_styles`.

    Returns:
        `threshold`, fitted on `validation`, one for all concepts, and by it `f1` of the concepts on `test`. Mean AUC of
        the groups by listing their concepts (`auc_listed`: the best of them counts) and by their bare names
        (`auc_names`), and of words that no lesson holds (`auc_new_words`). All but the first also with the suffix
        `_new_styles`. Words of which a split has no picture are left out there.
    """
    known, fresh = concepts(), new_words()
    listed = [groups()[key] for key in taxonomy.keys]
    embedded = {
        "concepts": torch.stack([mean_embedding(encoder, concept.words) for concept in known.values()]),
        "names": torch.stack([mean_embedding(encoder, [name]) for name in taxonomy.names]),
        "fresh": torch.stack([mean_embedding(encoder, [word]) for word in fresh]),
    }
    each = [(name,) for name in known]
    fitted = scenes["validation"]
    threshold = best_threshold(fitted.truth(each), fitted.cosines(embedded["concepts"]))
    found: dict[str, Any] = {"threshold": threshold}
    for split, suffix in (("test", ""), ("new_styles", "_new_styles")):
        seen = scenes[split]
        cosines = seen.cosines(embedded["concepts"])
        found[f"f1{suffix}"] = f1_at(seen.truth(each), cosines, threshold)
        places = {name: place for place, name in enumerate(known)}
        best = np.stack([cosines[:, [places[name] for name in group]].max(1) for group in listed], axis=1)
        found[f"auc_listed{suffix}"] = mean_auc(seen.truth(listed), best)
        found[f"auc_names{suffix}"] = mean_auc(seen.truth(listed), seen.cosines(embedded["names"]))
        words = seen.truth(list(fresh.values())), seen.cosines(embedded["fresh"])
        found[f"auc_new_words{suffix}"] = mean_auc(*words)
        found[f"new_words{suffix}"] = dict(zip(fresh, _aucs(*words), strict=True))
    return found


def mean_embedding(encoder: DualEncoder, words: Sequence[str]) -> Tensor:
    """The unit vector (D,) in the direction of the mean of the words' unit vectors."""
    pooled = F.normalize(encoder.encode_texts(words)[0][:, 0], dim=-1)
    return F.normalize(pooled.mean(0), dim=-1)


def best_threshold(truth: NDArray[np.bool_], scores: Array) -> float:
    """The threshold from which the largest F1 over all entries of two arrays of one shape is reached."""
    order = np.argsort(-scores, axis=None)
    hits = np.cumsum(truth.ravel()[order])
    f1 = 2 * hits / (np.arange(1, truth.size + 1) + truth.sum())
    return float(scores.ravel()[order[int(f1.argmax())]])


def f1_at(truth: NDArray[np.bool_], scores: Array, threshold: float) -> float:
    """F1 over all entries of two arrays of one shape."""
    found = scores >= threshold
    return float(2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1))


def mean_auc(truth: NDArray[np.bool_], scores: Array) -> float:
    """Mean over the columns of (N, W) arrays, without those that are all true or all false."""
    return float(np.nanmean(_aucs(truth, scores)))


def _aucs(truth: NDArray[np.bool_], scores: Array) -> list[float]:
    return [
        # The metric takes probabilities; it looks at their order only.
        roc_auc(column, (score + 1) / 2) if 0 < column.sum() < len(column) else float("nan")
        for column, score in zip(truth.T, scores.T, strict=True)
    ]
