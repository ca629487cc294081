"""Text embeddings of a taxonomy's phrases, computed once: the queries of student and filters."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from judge.errors import ConfigError
from prompts.taxonomy import Taxonomy

from .dual import DualEncoder
from .phrases import KINDS, MAX_CACHED_PHRASES, phrases, too_long_message


@dataclass
class PhraseEmbeddings:
    """Embeds taxonomies, each phrase once; one longer than the context is encoded in windows, as prompts are."""

    encoder: DualEncoder
    _cache: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def embed(self, taxonomies: Sequence[Taxonomy]) -> tuple[Tensor, Tensor]:
        """Pooled embeddings of G taxonomies of up to K categories of up to M phrases.

        Returns:
            Embeddings (G, K, M, D), zeros at padding, and kinds (G, K, M): indices into `KINDS`, -1 at padding.

        Raises:
            ConfigError: a phrase is longer than all windows of the text encoder.
        """
        listed = [[phrases(category) for category in taxonomy] for taxonomy in taxonomies]
        self._encode_new([phrase.text for taxonomy in listed for category in taxonomy for phrase in category])
        # Padded in both dimensions: taxonomies differ in categories, categories in phrases.
        categories = max(map(len, listed))
        longest = max(len(category) for taxonomy in listed for category in taxonomy)
        embeddings = torch.zeros(len(listed), categories, longest, self.encoder.width)
        kinds = torch.full((len(listed), categories, longest), -1)
        for g, taxonomy in enumerate(listed):
            for k, category in enumerate(taxonomy):
                for m, phrase in enumerate(category):
                    embeddings[g, k, m] = self._cache[phrase.text]
                    kinds[g, k, m] = KINDS.index(phrase.kind)
        return embeddings, kinds

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Pooled embeddings (P, D) of at least one phrase, on the CPU; errors as of `embed`."""
        self._encode_new(texts)
        return torch.stack([self._cache[text] for text in texts])

    def _encode_new(self, texts: Sequence[str]) -> None:
        # Emptied as a whole: `embed` needs all phrases of its taxonomies at once, so none of them may be evicted.
        if len(self._cache) > MAX_CACHED_PHRASES:
            self._cache.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        for text in new:
            if self.encoder.too_long(text):
                raise ConfigError(
                    too_long_message(text, self.encoder.token_count(text), self.encoder.context)
                )
        new.sort(key=len)  # a batch is padded to its longest text
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            pooled = self.encoder.encode_texts(part)[0][:, 0].cpu()
            self._cache.update(zip(part, pooled, strict=True))
