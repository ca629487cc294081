"""Mutual attention of image and prompt: the blocks of the student's head."""

import torch.nn.functional as F
from torch import Tensor, nn


class MutualAttention(nn.Module):
    """A block of co-attention: image tokens attend to the prompt, prompt tokens to the image, then an MLP on each."""

    def __init__(self, inner: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(inner) for _ in range(4))
        self.image_reads = CrossAttention(inner, heads)
        self.prompt_reads = CrossAttention(inner, heads)
        self.image_thinks = _feed_forward(inner)
        self.prompt_thinks = _feed_forward(inner)

    def forward(
        self, image: Tensor, prompt: Tensor, prompt_mask: Tensor | None, *, alone: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Image (B, T, inner), prompt (B, L, inner) and its mask (B, L) or None -> both streams, of the same shapes.

        `alone` saves work where the prompt is one token (L = 1), and its stream is not needed: it is returned as it is.
        """
        if alone:
            image = image + self.image_reads.single(self.norms[1](prompt))
            return image + self.image_thinks(self.norms[2](image)), prompt
        patches, words = self.norms[0](image), self.norms[1](prompt)
        image = image + self.image_reads(patches, words, prompt_mask)
        prompt = prompt + self.prompt_reads(words, patches, None)
        image = image + self.image_thinks(self.norms[2](image))
        return image, prompt + self.prompt_thinks(self.norms[3](prompt))


class CrossAttention(nn.Module):
    """Multi-head attention of one stream over the other."""

    def __init__(self, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(inner, inner), nn.Linear(inner, 2 * inner)
        self.out = nn.Linear(inner, inner)

    def forward(self, target: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """Queries from `target` (B, R, inner), keys and values from `source` (B, S, inner) -> (B, R, inner).

        `mask` (B, S) is True at tokens that may be attended to; None for all.
        """
        # (B, R, inner) -> (B, H, R, inner / H); keys and values come out of one product.
        query = self.query(target).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        allowed = None if mask is None else mask[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out

    def single(self, source: Tensor) -> Tensor:
        """`forward` over a single token (B, 1, inner), to which every target attends: (B, 1, inner)."""
        out: Tensor = self.out(self.key_value(source).chunk(2, dim=-1)[1])
        return out


def _feed_forward(inner: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inner, 2 * inner), nn.GELU(), nn.Linear(2 * inner, inner))
