"""Definitions of categories as a pipeline's own text encoders and attention read them.

So a category is known to the pipeline as its prompts are, and a new one needs no training.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prompts.taxonomy import Category, Taxonomy

from .joint_attention import joint_keys
from .layouts import attention_layers, layout_of
from .text_reading import EmbeddedTexts, embed_texts, unread_parts

MAX_CACHED = 256
"""Taxonomies, times layers and noise levels, of which results are kept; the least recently used is dropped."""


class Projected(NamedTuple):
    """Keys and values of category texts at one attention layer."""

    keys: Tensor
    """(K, L, D)."""
    values: Tensor
    """(K, L, D)."""


class CategoryTexts:
    """Categories in the words of one pipeline, computed once per taxonomy.

    What was computed is dropped where the pipeline gets another text encoder or denoiser, or a LoRA is loaded, fused,
    scaled or switched off. After changing weights in another way, call `forget`.
    """

    def __init__(self, pipeline: Any) -> None:
        """Read nothing yet.

        Raises:
            PipelineError: a pipeline that cannot be watched.
        """
        self.layout = layout_of(pipeline)
        self._pipeline = pipeline
        self._layers = attention_layers(pipeline, self.layout)
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._made_with = _weights(pipeline)

    def encode(self, taxonomy: Taxonomy) -> tuple[Tensor, Tensor]:
        """The categories as the denoiser reads prompts.

        Returns:
            (K, L, E) embeddings of K categories, as long as the longest of them; and (K, L) bool, True where there is a
            word.
        """
        texts = self._texts(taxonomy)
        return texts.embeddings, texts.words

    def keys(self, taxonomy: Taxonomy, layer: str, log_snr: float = 0.0) -> Projected:
        """Keys and values that an attention layer makes of the categories, by its own projections.

        Args:
            taxonomy: K categories.
            layer: name of one of `attention_layers`.
            log_snr: of the look; joint attention reads texts differently at each time, cross-attention does not.
        """
        texts = self._texts(taxonomy)
        cross = self.layout.attention == "cross"
        place = (taxonomy.hash, layer, None if cross else log_snr)
        if place not in self._kept:
            with torch.no_grad():
                if cross:
                    attention: Any = self._layers[layer]
                    # The modules are called, as a LoRA wraps them and leaves their weights alone.
                    made = Projected(attention.to_k(texts.embeddings), attention.to_v(texts.embeddings))
                else:
                    denoiser = getattr(self._pipeline, self.layout.denoiser)
                    made = Projected(*joint_keys(denoiser, layer, texts, log_snr))
            self._keep(place, made)
        self._kept.move_to_end(place)
        projected: Projected = self._kept[place]
        return projected

    def unread(self, taxonomy: Taxonomy) -> dict[str, str]:
        """Name of a category -> the end of its text that the text encoders do not read, for those that are too long."""
        parts = unread_parts(self._pipeline, [text_of(category) for category in taxonomy.categories])
        return {
            category.name: part
            for category, part in zip(taxonomy.categories, parts, strict=True)
            if part is not None
        }

    def forget(self) -> None:
        """Drop what was computed, because weights have changed."""
        self._kept.clear()

    def _texts(self, taxonomy: Taxonomy) -> EmbeddedTexts:
        weights = _weights(self._pipeline)
        if weights != self._made_with:
            self.forget()
            self._layers = attention_layers(self._pipeline)
            self._made_with = weights
        if taxonomy.hash not in self._kept:
            read = embed_texts(self._pipeline, [text_of(category) for category in taxonomy.categories])
            used = read.words.any(dim=0)
            self._keep(
                taxonomy.hash, EmbeddedTexts(read.embeddings[:, used], read.words[:, used], read.pooled)
            )
        self._kept.move_to_end(taxonomy.hash)
        texts: EmbeddedTexts = self._kept[taxonomy.hash]
        return texts

    def _keep(self, place: Hashable, value: Any) -> None:
        self._kept[place] = value
        while len(self._kept) > MAX_CACHED:
            self._kept.popitem(last=False)


def text_of(category: Category) -> str:
    """A category as a prompt: its name, and its definition unless it is shown by name only."""
    return category.name if category.name_only else f"{category.name}: {category.definition}"


def _weights(pipeline: Any) -> Hashable:
    """What tells whether weights are other ones than before: the modules, the LoRAs in them, and those fused."""
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    fused = frozenset(getattr(pipeline, "fused_loras", ()))
    return (
        tuple(map(id, modules)),
        tuple(adapter for module in modules for adapter in _adapters(module)),
        fused,
    )


def _adapters(module: nn.Module) -> Iterator[Hashable]:
    """State of every LoRA layer of a module; nothing where peft has put none in."""
    if not getattr(module, "peft_config", None):
        return
    for part in module.modules():
        scaling = getattr(part, "scaling", None)
        if isinstance(scaling, dict):
            layer: Any = part
            state = (tuple(layer.active_adapters), layer.disable_adapters, tuple(layer.merged_adapters))
            yield (id(part), tuple(sorted(scaling.items())), *state)
