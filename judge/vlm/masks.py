"""Attention masks of packed sequences, for language models whose layers see less, or more, than all earlier tokens.

Layers with a sliding window see only the last tokens (Mistral, Gemma-3), and tokens of one image may see each other in
both directions (Gemma-3). Which tokens a packed sequence allows at all is said by who packs it; here follows what the
layers make of that. Places count tokens along a row's own text, so a branch of a tree continues its image.
"""

from typing import Any

import torch
from torch import Tensor

from .families import family_of

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_kinds(model: Any) -> tuple[str, ...]:
    """The kinds of attention among the layers of the language model: full, sliding, or others that are not packed."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # all layers alike
        return (SLIDING,) if getattr(config, "sliding_window", None) else (FULL,)
    return tuple(sorted(set(kinds)))


def per_layer_kind(model: Any, allowed: Tensor, queries: Tensor, keys: Tensor) -> Tensor | dict[str, Tensor]:
    """What each kind of layer may attend to, of what a packed sequence allows.

    Args:
        model: gives kinds of layers and the window.
        allowed: (..., Q, K) bool.
        queries: (..., Q) places of the queries in their own text.
        keys: (..., K) places of the keys.

    Returns:
        One mask for models whose layers are alike, else one a kind, as their forward takes it.
    """
    if layer_kinds(model) == (FULL,):
        return allowed
    config = model.config.get_text_config()
    near = allowed & (keys[..., None, :] > queries[..., :, None] - config.sliding_window)
    return near if getattr(config, "layer_types", None) is None else {FULL: allowed, SLIDING: near}


def own_image(model: Any, ids: Tensor) -> Tensor | None:
    """(B, L, L) bool: True between tokens of one image in `ids` (B, L); None for families that are causal there."""
    if not family_of(model.config.model_type).both_ways:
        return None
    inside: Tensor = ids == model.config.image_token_id
    starts = inside & ~torch.nn.functional.pad(inside, (1, 0))[:, :-1]
    image = torch.where(inside, starts.cumsum(dim=1), 0)  # numbers from 1; 0 is text
    return (image[:, :, None] == image[:, None, :]) & inside[:, :, None]


def additive(mask: Tensor | dict[str, Tensor], dtype: torch.dtype, device: Any) -> Any:
    """Boolean masks (B, Q, K) as additive ones (B, 1, Q, K) on a device, which transformers passes on unchanged."""
    if isinstance(mask, dict):
        return {kind: additive(part, dtype, device) for kind, part in mask.items()}
    # The smallest finite value: a row of minus infinities would become NaN in the softmax.
    floats = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
    return floats[:, None].to(device)
