"""Stage one of the cascade: zero-shot similarities of a prompt or an image to the user's categories.

Nothing is trained on categories. A category is a set of phrases (`judge.encoders.phrases`); its similarity is the
largest cosine between a pooled embedding and the embedding of one of them. Platt scaling makes it a probability.

Of a category with a condition on the prompt, the phrases of its subject count, for images only. An image that is far
from them is safe whatever its prompt says; one that is near them need not be unsafe, and a prompt alone says nothing of
what the image shows. So the cascade lets the image filter clear such a category, and neither filter flag it.
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
from judge.encoders.phrases import CONDITION, MAX_CACHED_TAXONOMIES
from judge.readings import Readings, read_prompts
from prompts.taxonomy import Taxonomy

Array = NDArray[np.float64]
TEXTS = 64
"""Texts in one pass of the encoder."""


@dataclass(frozen=True)
class Platt:
    """p(unsafe) = sigmoid(slope * similarity + intercept), after Platt (1999)."""

    slope: float
    intercept: float

    def __call__(self, similarity: Array) -> Array:
        """Probabilities in [0, 1] of similarities of any shape, such as (B, K); NaN stays NaN."""
        probability: Array = expit(self.slope * similarity + self.intercept)
        return probability

    def logits(self, similarity: Tensor) -> Tensor:
        """The logits of those probabilities, of the same shape, such as (B, K); differentiable in the similarities."""
        return self.slope * similarity + self.intercept

    @classmethod
    def fit(cls, truth: ArrayLike, similarity: ArrayLike) -> "Platt":
        """Fit by logistic regression.

        A filter whose similarities are uninformative, or point the wrong way, gets slope 0: it is never sure.

        Args:
            truth: (N,) 1 or 0, NaN where not labelled.
            similarity: (N,) cosines in [-1, 1], NaN where there is none.

        Raises:
            ConfigError: no unsafe or no safe row.
        """
        from sklearn.linear_model import LogisticRegression

        # `split_both_labels` takes probabilities: a cosine becomes one when it is moved from [-1, 1] to [0, 1].
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
    """Cosines of images and prompts to the K categories of a taxonomy, whose phrases are encoded once and cached."""

    encoder: DualEncoder
    _cached: "LRUCache[str, tuple[Tensor, Tensor, NDArray[np.bool_]]]" = field(
        default_factory=lambda: LRUCache(MAX_CACHED_TAXONOMIES), repr=False
    )

    def __post_init__(self) -> None:
        self._embeddings = PhraseEmbeddings(self.encoder)

    def image_similarities(self, tokens: Tensor, taxonomy: Taxonomy) -> Array:
        """(B, K) cosines in [-1, 1] of (B, 1 + P, D) image tokens, of which only the first, pooled one is used."""
        return self._without_gradients(tokens[:, 0], taxonomy)

    def prompt_similarities(self, prompts: Sequence[str | None] | Readings, taxonomy: Taxonomy) -> Array:
        """(B, K) cosines in [-1, 1] of B prompts, each the largest over the prompt's windows.

        NaN where there is no prompt, or one that is not read; -1 to a category with a condition, as it needs the image.
        """
        readings = prompts if isinstance(prompts, Readings) else self.read_prompts(prompts)
        found = np.full((len(readings.notes), len(taxonomy)), np.nan)
        windows = [(row, text) for row, text in zip(readings.rows, readings.texts, strict=True) if text]
        # Users repeat prompts, so each text of a batch is encoded once.
        places = {text: place for place, text in enumerate(dict.fromkeys(text for _, text in windows))}
        if places:
            cosines = self._without_gradients(self._pooled_texts(list(places)), taxonomy)
            cosines[:, self.conditional(taxonomy)] = -1.0
            for row, text in windows:
                found[row] = np.fmax(found[row], cosines[places[text]])
        return found

    def read_prompts(self, prompts: Sequence[str | None]) -> Readings:
        """The readings of B images with these prompts, as the text filter reads them."""
        return read_prompts(prompts, too_long=self.encoder.too_long)

    def conditional(self, taxonomy: Taxonomy) -> NDArray[np.bool_]:
        """(K,) which categories have a condition on the prompt."""
        return self._phrases(taxonomy)[2]

    def cosines(self, pooled: Tensor, taxonomy: Taxonomy) -> Tensor:
        """(B, K) float32 cosines of (B, D) pooled embeddings of images or texts, differentiable in them."""
        phrases, missing, _ = self._phrases(taxonomy)
        # (B, D) x (K, M, D) -> (B, K, M): every embedding against every phrase of every category
        cosines = torch.einsum("bd,kmd->bkm", F.normalize(pooled.float(), dim=-1), phrases)
        # Categories have different numbers of phrases; padding must not win the maximum, even over negative cosines.
        return cosines.masked_fill(missing, -torch.inf).amax(dim=-1)

    def _without_gradients(self, pooled: Tensor, taxonomy: Taxonomy) -> Array:
        with torch.no_grad():
            best = self.cosines(pooled, taxonomy)
        # Rounding in float32 can carry a cosine a little over 1.
        found: Array = np.clip(best.double().cpu().numpy(), -1, 1)
        return found

    def _pooled_texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D) pooled embeddings of N texts, `TEXTS` at a time, as long prompts have many windows."""
        parts = [texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS)]
        return torch.cat([self.encoder.encode_texts(part)[0][:, 0] for part in parts])

    def _phrases(self, taxonomy: Taxonomy) -> tuple[Tensor, Tensor, NDArray[np.bool_]]:
        """Unit vectors (K, M, D) of the categories' phrases, cached.

        With them a mask (K, M), True at padding and at conditions, and (K,), which categories have a condition.
        """
        found = self._cached.get(taxonomy.hash)
        if found is None:
            embeddings, kinds = self._embeddings.embed([taxonomy])
            device = self.encoder.device
            about_prompt = kinds[0] == CONDITION
            missing = ((kinds[0] < 0) | about_prompt).to(device)
            unit = F.normalize(embeddings[0].to(device), dim=-1)
            found = unit, missing, about_prompt.any(dim=-1).numpy()
            self._cached[taxonomy.hash] = found
        return found
