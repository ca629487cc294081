"""Texts at a layer of joint attention, in which image and text tokens are one sequence.

A block of an MMDiT (Esser et al. 2024, "Scaling rectified flow transformers", section 4) normalises its text tokens and
scales them by the time, before `add_k_proj` makes keys of them. In a real call these tokens have come through the
blocks before, where they were mixed with the image. A category's text is taken as it enters the first block, which is a
choice of ours: mixed with no image, it means the same in every call.
"""

import math
from typing import Any

import torch
from torch import Tensor

from judge.errors import PipelineError

from .text_reading import EmbeddedTexts

DISTILLED_GUIDANCE = 3.5
"""Guidance that a distilled Flux is told; the default of its pipeline."""


@torch.no_grad()
def joint_keys(denoiser: Any, layer: str, texts: EmbeddedTexts, log_snr: float) -> tuple[Tensor, Tensor]:
    """Keys and values that a layer would make of texts at a noise level.

    Args:
        denoiser: transformer of SD3, Flux or Qwen-Image.
        layer: name of an attention layer of a double block.
        texts: N of them.
        log_snr: of the latents; says the time, by flow matching's x = (1 - t) picture + t noise.

    Returns:
        keys and values, (N, L, D) each, the keys after the layer's norm of each head.
    """
    denoiser = getattr(denoiser, "_orig_mod", denoiser)
    block = denoiser.get_submodule(layer.rpartition(".")[0])
    attention = block.attn
    text = texts.embeddings
    time = torch.full((len(text),), 1 / (1 + math.exp(log_snr / 2)), dtype=text.dtype, device=text.device)
    kind = type(denoiser).__name__
    if kind == "QwenImageTransformer2DModel":
        entering = denoiser.txt_in(denoiser.txt_norm(text))
        shift, scale, _ = block.txt_mod(denoiser.time_text_embed(time, entering)).chunk(2, -1)[0].chunk(3, -1)
        normed = block.txt_norm1(entering) * (1 + scale[:, None]) + shift[:, None]
    elif kind in ("SD3Transformer2DModel", "FluxTransformer2DModel"):
        entering = denoiser.context_embedder(text)
        guidance = (
            [torch.full_like(time, 1000 * DISTILLED_GUIDANCE)]
            if getattr(denoiser.config, "guidance_embeds", False)
            else []
        )
        embedded = denoiser.time_text_embed(1000 * time, *guidance, texts.pooled)
        # The norm of SD3's last block returns the texts, all others gates too.
        last = getattr(block, "context_pre_only", False)
        normed = (
            block.norm1_context(entering, embedded)
            if last
            else block.norm1_context(entering, emb=embedded)[0]
        )
    else:
        raise PipelineError(f"How texts reach the joint attention of a {kind} is not known.")
    keys, values = attention.add_k_proj(normed), attention.add_v_proj(normed)
    if getattr(attention, "norm_added_k", None) is not None:
        keys = attention.norm_added_k(keys.unflatten(-1, (attention.heads, -1))).flatten(-2)
    return keys, values
