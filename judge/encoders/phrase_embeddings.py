"""A taxonomy's phrases through a text encoder, once: the queries of student and filters."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from judge.errors import ConfigError
from prompts.taxonomy import Taxonomy

from .dual import DualEncoder
from .phrases import KINDS, MAX_CACHED_PHRASES, phrases, unreadable


@dataclass
class PhraseEmbeddings:
    """Text embeddings of phrases, each encoded once; one longer than the context in windows, as prompts are."""

    encoder: DualEncoder
    _known: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def embed(self, taxonomies: Sequence[Taxonomy]) -> tuple[Tensor, Tensor]:
        """Pad the phrases of G taxonomies: embeddings (G, K, M, D) and kinds (G, K, M), -1 where there is none.

        Raises:
            ConfigError: a phrase is longer than the text encoder reads in all its windows.
        """
        listed = [[phrases(category) for category in taxonomy] for taxonomy in taxonomies]
        self._learn([phrase.text for taxonomy in listed for category in taxonomy for phrase in category])
        categories = max(map(len, listed))
        longest = max(len(category) for taxonomy in listed for category in taxonomy)
        embeddings = torch.zeros(len(listed), categories, longest, self.encoder.width)
        kinds = torch.full((len(listed), categories, longest), -1)
        for g, taxonomy in enumerate(listed):
            for k, category in enumerate(taxonomy):
                for m, phrase in enumerate(category):
                    embeddings[g, k, m] = self._known[phrase.text]
                    kinds[g, k, m] = KINDS.index(phrase.kind)
        return embeddings, kinds

    def _learn(self, texts: Sequence[str]) -> None:
        if len(self._known) > MAX_CACHED_PHRASES:
            self._known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for text in new:
            if self.encoder.too_long(text):
                raise ConfigError(unreadable(text, self.encoder.token_count(text), self.encoder.context))
        new.sort(key=len)  # what is read together is padded to the longest
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            pooled = self.encoder.encode_texts(part)[0][:, 0].cpu()
            self._known.update(zip(part, pooled, strict=True))
