"""Attention in which many rows share one policy, in a single ordinary forward call.

A packed sequence holds one policy of P tokens followed by G rows of L tokens each (image, prompt, question, answer).
Every row reads the policy and itself, never another row; positions restart after the policy. So the policy runs
once, with gradient, instead of G times, and the result equals G separate sequences. Because it is an attention
implementation rather than a second forward over a key-value cache, gradient checkpointing, DDP and ZeRO see a
plain call of the model.

The layout is declared by the shape of the attention mask, (N, G, L, P + L) for N packed sequences: which of the
policy's P and the row's own L keys each of the L queries of each row may read.
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
    """Attend as the module text says; any other mask goes to transformers' own sdpa.

    Args:
        module: the attention module (for its dropout state and key-value groups).
        query: (N, H, S, D) with S = P + G * L.
        key: (N, H', S, D) with H a multiple of H'.
        value: as `key`.
        attention_mask: (N, G, L, P + L), True or 0 where reading is allowed.
        dropout: probability on attention weights.
        scaling: factor on the scores; 1 / sqrt(D) if None.
        kwargs: passed on to sdpa.

    Returns:
        (N, S, H, D) and None (no weights are kept).
    """
    length = query.shape[2]
    if attention_mask is None or attention_mask.ndim != 4 or attention_mask.shape[2] == length:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    sequences, rows, row_length, keys = attention_mask.shape
    policy = keys - row_length
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))

    def of_rows(states: Tensor) -> Tensor:
        """(N, H, S, D) -> (N * G, H, L, D)."""
        heads, width = states.shape[1], states.shape[3]
        packed = states[:, :, policy:].reshape(sequences, heads, rows, row_length, width)
        return packed.transpose(1, 2).reshape(sequences * rows, heads, row_length, width)

    def with_policy(states: Tensor) -> Tensor:
        """(N, H, S, D) -> (N * G, H, P + L, D)."""
        heads, width = states.shape[1], states.shape[3]
        shared = states[:, None, :, :policy].expand(sequences, rows, heads, policy, width)
        return torch.cat([shared.reshape(sequences * rows, heads, policy, width), of_rows(states)], dim=2)

    of_policy = F.scaled_dot_product_attention(
        query[:, :, :policy],
        key[:, :, :policy],
        value[:, :, :policy],
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
    )
    of_row = F.scaled_dot_product_attention(
        of_rows(query),
        with_policy(key),
        with_policy(value),
        attn_mask=attention_mask.reshape(sequences * rows, 1, row_length, keys),
        dropout_p=dropout,
        scale=scaling,
    )
    heads, width = query.shape[1], query.shape[3]
    of_row = of_row.reshape(sequences, rows, heads, row_length, width).transpose(1, 2)
    packed = torch.cat([of_policy, of_row.reshape(sequences, heads, rows * row_length, width)], dim=2)
    return packed.transpose(1, 2).contiguous(), None


def register() -> str:
    """Make the implementation known to transformers and return its name; safe to call again."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, policy_grouped_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    return IMPLEMENTATION
