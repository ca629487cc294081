"""Definitions of categories as a pipeline's own text encoders and attention read them.

So a category is known to the pipeline as its prompts are, and a new one needs no training.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from judge.errors import PipelineError
from prompts.taxonomy import Category, Taxonomy

from .layouts import attention_layers, layout_of

MAX_TAXONOMIES = 16
"""Taxonomies whose embeddings are kept; the oldest is dropped."""


class Projected(NamedTuple):
    """Keys and values of category texts at one attention layer."""

    keys: Tensor
    """(K, L, D)."""
    values: Tensor
    """(K, L, D)."""


class CategoryTexts:
    """Categories in the words of one pipeline, computed once per taxonomy."""

    def __init__(self, pipeline: Any) -> None:
        """Read nothing yet.

        Raises:
            PipelineError: a pipeline that cannot be watched.
        """
        self.layout = layout_of(pipeline)
        self._pipeline = pipeline
        self._embedded: dict[str, tuple[Tensor, Tensor]] = {}
        self._projected: dict[tuple[str, str], Projected] = {}

    def encode(self, taxonomy: Taxonomy) -> tuple[Tensor, Tensor]:
        """(K, L, E) embeddings as the denoiser reads prompts, and (K, L) bool, True where there is a word."""
        if taxonomy.hash not in self._embedded:
            self._embedded[taxonomy.hash] = self._encode(
                [text_of(category) for category in taxonomy.categories]
            )
        return self._embedded[taxonomy.hash]

    def keys(self, taxonomy: Taxonomy, layer: str) -> Projected:
        """Keys and values that the attention layer would make of the categories, by its own projections."""
        place = (taxonomy.hash, layer)
        if place not in self._projected:
            attention: Any = attention_layers(self._pipeline, self.layout)[layer]
            if self.layout.attention != "cross":
                raise PipelineError("Joint attention is not read yet.")
            text, _ = self.encode(taxonomy)
            with torch.no_grad():
                self._projected[place] = Projected(attention.to_k(text), attention.to_v(text))
        return self._projected[place]

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        pipeline = self._pipeline
        embeddings = pipeline.encode_prompt(texts, pipeline._execution_device, 1, False)[0]
        words = pipeline.tokenizer(
            texts,
            padding="max_length",
            max_length=pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        dtype = getattr(pipeline, self.layout.denoiser).dtype
        return embeddings.to(dtype), words.attention_mask.bool().to(embeddings.device)


def text_of(category: Category) -> str:
    """A category as a prompt: its name, and its definition unless it is shown by name only."""
    return category.name if category.name_only else f"{category.name}: {category.definition}"
