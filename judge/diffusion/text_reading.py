"""Texts as a pipeline reads prompts: through its own `encode_prompt`, with its own tokenizers and text encoders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from judge.errors import PipelineError

from .layouts import layout_of


@dataclass(frozen=True)
class EmbeddedTexts:
    """N texts as the denoiser is given prompts."""

    embeddings: Tensor
    """(N, L, E)."""
    words: Tensor
    """(N, L) bool, True at words, the ends of the text among them; False at padding."""
    pooled: Tensor | None
    """(N, P) one vector of each text, where the denoiser is given one."""


def embed_texts(pipeline: Any, texts: Sequence[str]) -> EmbeddedTexts:
    """Read texts as prompts, all in one batch, without guidance.

    Where a text is longer than an encoder takes, its end is not read (`unread_parts`).

    Raises:
        PipelineError: a pipeline that cannot be watched, or without a text encoder.
    """
    layout = layout_of(pipeline)
    denoiser = getattr(pipeline, layout.denoiser)
    kind = _kind(denoiser)
    _limits(pipeline, kind)
    options: dict[str, Any] = {"prompt": list(texts), "num_images_per_prompt": 1}
    # Some pipelines have no default for these.
    if kind in ("UNet2DConditionModel", "SD3Transformer2DModel"):
        options["do_classifier_free_guidance"] = False
    if kind in ("SD3Transformer2DModel", "FluxTransformer2DModel"):
        options["prompt_2"] = None
    if kind == "SD3Transformer2DModel":
        options["prompt_3"] = None
    with torch.no_grad():
        read = pipeline.encode_prompt(device=pipeline._execution_device, **options)
    embeddings = read[0].to(denoiser.dtype)
    length = embeddings.shape[1]
    if kind == "QwenImageTransformer2DModel":
        mask = read[1]
        words = torch.ones(embeddings.shape[:2]) if mask is None else mask
        pooled = None
    elif kind == "FluxTransformer2DModel":
        words, pooled = _words(pipeline.tokenizer_2, texts, length), read[1]
    elif kind == "SD3Transformer2DModel":
        first = int(pipeline.tokenizer_max_length)
        words, pooled = _words(pipeline.tokenizer, texts, first), read[2]
        third = pipeline.tokenizer_3 if pipeline.text_encoder_3 is not None else None
        words = torch.cat([words, _words(third, texts, length - first)], 1)
    else:
        words = _words(pipeline.tokenizer or pipeline.tokenizer_2, texts, length)
        pooled = read[2] if len(read) > 2 else None
    return EmbeddedTexts(embeddings, words.bool().to(embeddings.device), pooled)


def unread_parts(pipeline: Any, texts: Sequence[str | None]) -> tuple[str | None, ...]:
    """The end of each text that no encoder of the pipeline reads, as a tokenizer spells it; None if there is none.

    Of SD3 and Flux the T5 encoder reads the most; SDXL's two encoders read the same.

    Raises:
        PipelineError: a pipeline that cannot be watched, or without a text encoder.
    """
    layout = layout_of(pipeline)
    tokenizer, limit = _limits(pipeline, _kind(getattr(pipeline, layout.denoiser)))
    room = limit - tokenizer.num_special_tokens_to_add()
    unread: list[str | None] = []
    for text in texts:
        tokens = [] if text is None else tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        unread.append(tokenizer.decode(tokens[room:]).strip() if len(tokens) > room else None)
    return tuple(unread)


def _kind(denoiser: Any) -> str:
    return type(getattr(denoiser, "_orig_mod", denoiser)).__name__


def _limits(pipeline: Any, kind: str) -> tuple[Any, int]:
    """The tokenizer of the encoder that reads the most, and how many tokens it takes."""
    if kind == "UNet2DConditionModel":
        names = ["" if getattr(pipeline, "tokenizer", None) is not None else "_2"]
        limit = None
    elif kind == "SD3Transformer2DModel":
        # The pipeline puts zeros in the place of a T5 that was left out.
        names = ["_3"] if pipeline.text_encoder_3 is not None else [""]
        limit = 256 if pipeline.text_encoder_3 is not None else None
    elif kind == "FluxTransformer2DModel":
        names, limit = ["_2", ""], 512
    elif kind == "QwenImageTransformer2DModel":
        names, limit = [""], 1024
    else:
        raise PipelineError(f"How prompts reach a {kind} is not known.")
    for name in names:
        if (
            getattr(pipeline, f"text_encoder{name}", None) is None
            or getattr(pipeline, f"tokenizer{name}", None) is None
        ):
            raise PipelineError(
                f"This {type(pipeline).__name__} has no `text_encoder{name}` or no `tokenizer{name}`, so categories "
                "cannot be read as its prompts are. Load it with its text encoders."
            )
    tokenizer = getattr(pipeline, f"tokenizer{names[0]}")
    return tokenizer, int(tokenizer.model_max_length if limit is None else limit)


def _words(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """(N, length) 1 at tokens of the texts, 0 at padding; all 0 without a tokenizer."""
    if tokenizer is None:
        return torch.zeros(len(texts), length)
    read = tokenizer(
        list(texts),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
        verbose=False,
    )
    mask: Tensor = read.attention_mask
    return mask
