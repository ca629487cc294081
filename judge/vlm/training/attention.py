"""Attention in which many rows share one policy, in a single ordinary forward call.

A packed sequence holds one policy of P tokens followed by G rows of L tokens each (image, prompt, question, answer).
A row attends to the policy and to itself, never to another row; positions restart after the policy. So the policy runs
once, with gradient, instead of G times, and the result equals that of G separate sequences. As an attention
implementation, instead of a second forward over a key-value cache, it needs one plain call of the model, which gradient
checkpointing, DDP and ZeRO expect.

The 4-D attention mask (N, G, L, P + L) of N packed sequences carries the layout: which of the policy's P and the row's
own L keys each of a row's L queries may attend to; models whose kinds of layers see different tokens get one a kind.
No ordinary mask has this shape, whose third dimension is not the length of the sequence, so other calls of the same
model (with a 2-D mask or none) go to sdpa.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMPLEMENTATION = "policy_grouped"


def policy_grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of the packed layout above; with any other mask, transformers' own sdpa.

    Args:
        module: the attention module (for its dropout state and key-value groups).
        query: (N, H, S, D) with S = P + G * L.
        key: (N, H', S, D), H a multiple of H' (grouped-query attention).
        value: as `key`.
        attention_mask: (N, G, L, P + L), True, or 0 if additive, where attention is allowed.
        dropout: probability on attention weights.
        scaling: factor on the scores; 1 / sqrt(D) if None.
        kwargs: passed on to sdpa; `sliding_window` is that of the layer, for the policy (the rows' is in their mask).

    Returns:
        (N, S, H, D), and None instead of attention weights.
    """
    length = query.shape[2]
    if attention_mask is None or attention_mask.ndim != 4 or attention_mask.shape[2] == length:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    sequences, rows, row_length, keys = attention_mask.shape
    policy = keys - row_length  # P
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))

    def split_rows(states: Tensor) -> Tensor:
        """(N, H, S, D) -> (N * G, H, L, D)."""
        heads, width = states.shape[1], states.shape[3]
        packed = states[:, :, policy:].reshape(sequences, heads, rows, row_length, width)  # (N, H, G, L, D)
        return packed.transpose(1, 2).reshape(sequences * rows, heads, row_length, width)

    def prepend_policy(states: Tensor) -> Tensor:
        """(N, H, S, D) -> (N * G, H, P + L, D)."""
        heads, width = states.shape[1], states.shape[3]
        # Autograd sums the gradients of the G copies: that of the policy comes from all its rows.
        shared = states[:, None, :, :policy].expand(sequences, rows, heads, policy, width)
        return torch.cat([shared.reshape(sequences * rows, heads, policy, width), split_rows(states)], dim=2)

    window = window_mask(policy, kwargs.get("sliding_window"), query.device)
    policy_output = attend(
        query[:, :, :policy], key[:, :, :policy], value[:, :, :policy], window, dropout, scaling
    )
    mask = attention_mask.reshape(sequences * rows, 1, row_length, keys)
    row_output = attend(split_rows(query), prepend_policy(key), prepend_policy(value), mask, dropout, scaling)
    heads, width = query.shape[1], query.shape[3]
    # (N * G, H, L, D) -> (N, H, G * L, D), behind the policy -> (N, H, S, D).
    row_output = row_output.reshape(sequences, rows, heads, row_length, width).transpose(1, 2)
    row_output = row_output.reshape(sequences, heads, rows * row_length, width)
    packed = torch.cat([policy_output, row_output], dim=2)
    return packed.transpose(1, 2).contiguous(), None


def window_mask(length: int, window: int | None, device: Any) -> Tensor | None:
    """(L, L) bool of a causal text whose tokens see the last `window` of it; None where that is all of it."""
    if window is None or window >= length:
        return None
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return causal.triu(1 - window)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float | None
) -> Tensor:
    """Attention (N, H, Q, D) of queries to keys (N, H, K, D), causal where there is no mask.

    The fused kernel of CPUs is half as fast backwards in bfloat16 as plain products, so those are used there.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or dropout:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


def register() -> str:
    """Register the implementation with transformers and return its name; may be called again."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, policy_grouped_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    return IMPLEMENTATION
