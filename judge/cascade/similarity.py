"""Stage one of the cascade: how near a prompt or an image comes to the user's categories, from pooled embeddings.

Nothing is trained on categories: a category is its phrases (`judge.encoders.phrases`), a similarity is the largest
cosine between the pooled embedding and one of them. Two numbers (Platt 1999) turn it into a probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from cachetools import LRUCache
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from torch import Tensor
from torch.nn import functional as F

from judge.calibration.conformal import split_both_labels
from judge.encoders.dual import DualEncoder
from judge.encoders.phrase_embeddings import PhraseEmbeddings
from judge.encoders.phrases import MAX_CACHED_TAXONOMIES
from prompts.taxonomy import Taxonomy

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Platt:
    """p(unsafe) = sigmoid(slope * similarity + intercept)."""

    slope: float
    intercept: float

    def __call__(self, similarity: Array) -> Array:
        """Similarities to probabilities, of the same shape; NaN stays NaN."""
        probability: Array = expit(self.slope * similarity + self.intercept)
        return probability

    def logits(self, similarity: Tensor) -> Tensor:
        """The logits of those probabilities, differentiable in the similarities."""
        return self.slope * similarity + self.intercept

    @classmethod
    def fit(cls, truth: ArrayLike, similarity: ArrayLike) -> "Platt":
        """Logistic regression on (N,) labels 1 or 0 (NaN unknown) and (N,) cosines (NaN where there is none).

        A filter that knows nothing, or less than nothing, gets slope 0: it is never sure.

        Raises:
            ConfigError: no unsafe or no safe row.
        """
        from sklearn.linear_model import LogisticRegression

        # Probabilities are expected there; a cosine is one after moving it from [-1, 1] to [0, 1].
        moved = (np.clip(np.asarray(similarity, dtype=np.float64), -1, 1) + 1) / 2
        unsafe, safe = split_both_labels(truth, moved)
        values = np.concatenate([unsafe, safe]) * 2 - 1
        labels = np.repeat([1, 0], [len(unsafe), len(safe)])
        centre, scale = float(values.mean()), float(values.std())
        prior = float(logit(labels.mean()))
        if scale < 1e-9:
            return cls(0.0, prior)
        # Cosines of a CLIP differ in the second digit; unscaled, the penalty would flatten them.
        model = LogisticRegression(C=1e3).fit(((values - centre) / scale)[:, None], labels)
        slope = float(model.coef_[0, 0]) / scale
        return cls(slope, float(model.intercept_[0]) - slope * centre) if slope > 0 else cls(0.0, prior)


@dataclass
class Similarities:
    """Cosines of images and prompts to a taxonomy's categories."""

    encoder: DualEncoder
    _cached: "LRUCache[str, tuple[Tensor, Tensor]]" = field(
        default_factory=lambda: LRUCache(MAX_CACHED_TAXONOMIES), repr=False
    )

    def __post_init__(self) -> None:
        self._book = PhraseEmbeddings(self.encoder)

    def image_similarities(self, tokens: Tensor, taxonomy: Taxonomy) -> Array:
        """(B, 1 + P, D) image tokens, of which the pooled one, the first, counts -> (B, K) cosines in [-1, 1]."""
        return self._cosines(tokens[:, 0], taxonomy)

    def prompt_similarities(self, prompts: Sequence[str | None], taxonomy: Taxonomy) -> Array:
        """B prompts -> (B, K) cosines; NaN where there is no prompt."""
        found = np.full((len(prompts), len(taxonomy)), np.nan)
        there = [place for place, prompt in enumerate(prompts) if prompt and prompt.strip()]
        if there:
            # Users repeat prompts; those of a batch are read once.
            texts = list(dict.fromkeys(str(prompts[place]) for place in there))
            cosines = self._cosines(self.encoder.encode_texts(texts)[0][:, 0], taxonomy)
            found[there] = cosines[[texts.index(str(prompts[place])) for place in there]]
        return found

    def cosines(self, pooled: Tensor, taxonomy: Taxonomy) -> Tensor:
        """(B, D) pooled embeddings of images or texts -> (B, K) float32 cosines, differentiable in them."""
        phrases, missing = self._phrases(taxonomy)
        cosines = torch.einsum("bd,kmd->bkm", F.normalize(pooled.float(), dim=-1), phrases)
        return cosines.masked_fill(missing, -torch.inf).amax(dim=-1)

    def _cosines(self, pooled: Tensor, taxonomy: Taxonomy) -> Array:
        with torch.no_grad():
            best = self.cosines(pooled, taxonomy)
        found: Array = np.clip(best.double().cpu().numpy(), -1, 1)
        return found

    def _phrases(self, taxonomy: Taxonomy) -> tuple[Tensor, Tensor]:
        """Unit vectors (K, M, D) of the categories' phrases, and (K, M) where there is none; kept."""
        found = self._cached.get(taxonomy.hash)
        if found is None:
            embeddings, kinds = self._book.embed([taxonomy])
            device = self.encoder.device
            found = F.normalize(embeddings[0].to(device), dim=-1), (kinds[0] < 0).to(device)
            self._cached[taxonomy.hash] = found
        return found
