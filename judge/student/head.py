"""The cross-attention head: categories as queries, prompt tokens and image patches as what they look at.

Attention decides *where* to look, similarity decides *what* is seen. A head that is free to turn attended patches
into a logit memorises the categories it was trained on. Here the only way from a category to its logit leads through
cosines, in the encoders' joint space, between the category's phrases and the tokens attended to; so a category that was
never trained on is just another query. What is learned is where to look (and with which word of the prompt), a
small shared correction of the joint space, and how to weigh the similarities found.

The idea of text and image tokens attending to each other comes from arXiv 2504.11707 (whose released code attends
over a single key, so that its text has no effect), categories as queries from open-vocabulary detection (OWL-ViT,
Minderer et al. 2022, section 3.1), similarity over tokens from FILIP (Yao et al. 2022, section 3.1).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from judge.encoders.phrases import KINDS
from judge.errors import ConfigError

PADDED_LOGIT = -1e4
"""Logit of what is only padding: no chance in any sum, and, unlike minus infinity, with a gradient."""


@dataclass(frozen=True)
class HeadConfig:
    """Shape of the head.

    Raises:
        ConfigError: sizes that do not fit each other.
    """

    width: int
    """D, width of the encoder's joint space."""
    inner: int = 256
    """Width of the streams in which image and prompt read each other."""
    heads: int = 4
    """Attention heads; each looks at places of its own and reports a similarity of its own."""
    depth: int = 1
    """Blocks in which image and prompt read each other."""
    rank: int = 32
    """Rank of the correction of the joint space."""

    def __post_init__(self) -> None:
        if (
            min(self.width, self.inner, self.heads, self.rank) < 1
            or self.depth < 0
            or self.inner % self.heads
        ):
            raise ConfigError(
                f"A head of inner width {self.inner}, {self.heads} heads, rank {self.rank}, depth {self.depth} "
                "does not exist: give positive sizes, and an inner width that the heads divide."
            )


class Queries(NamedTuple):
    """The taxonomy side: computed once per taxonomy. G taxonomies of K categories of M phrases, padded."""

    phrases: Tensor
    """(G, K, M, D) corrected unit vectors."""
    attention: Tensor
    """(G, K, M, H, inner / H) what each head looks for."""
    kinds: Tensor
    """(G, K, M) indices into `phrases.KINDS`; -1 where there is no phrase."""


class CrossAttentionHead(nn.Module):
    """Scores images under any taxonomy; permuting the taxonomy permutes the scores and nothing else."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        width, inner, heads = config.width, config.inner, config.heads
        self.image_in = nn.Linear(width, inner)
        self.prompt_in = nn.Linear(width, inner)
        self.no_prompt = nn.Parameter(torch.zeros(inner))
        self.blocks = nn.ModuleList(MutualAttention(inner, heads) for _ in range(config.depth))
        self.look_for = nn.Linear(width, inner)
        self.show_image = nn.Linear(inner, inner)
        self.show_prompt = nn.Linear(inner, inner)
        self.image_correction = LowRank(width, config.rank)
        self.text_correction = LowRank(width, config.rank)
        # At the start the heads look where the phrase is most similar, each with a sharpness of its own.
        self.sharpness = nn.Parameter(torch.linspace(1.5, 3.5, heads))
        last = nn.Linear(16, 1)
        self.weigh = nn.Sequential(nn.Linear(2 * heads + 1, 16), nn.GELU(), last)
        self.plain = nn.Linear(2 * heads + 1, 1)
        self.kind_bias = nn.Parameter(torch.zeros(len(KINDS)))
        self.whole = nn.Parameter(torch.tensor([0.0, 0.0]))
        self.calibration: Tensor
        self.register_buffer("calibration", torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        for start in (last.weight, last.bias, self.show_image.weight, self.show_prompt.weight):
            nn.init.zeros_(start)
        with torch.no_grad():
            self.plain.weight.fill_(0.0)
            self.plain.weight[0, : heads + 1] = 10.0 / (heads + 1)
            self.plain.bias.fill_(-4.0)

    def queries(self, phrases: Tensor, kinds: Tensor) -> Queries:
        """Prepare taxonomies.

        Args:
            phrases: (G, K, M, D) pooled text embeddings of the phrases, padded with anything.
            kinds: (G, K, M) index into `phrases.KINDS`, -1 for padding.
        """
        unit = F.normalize(phrases, dim=-1)
        attention = self.look_for(unit).unflatten(-1, (self.config.heads, -1))
        return Queries(self.text_correction(unit), attention, kinds)

    def forward(
        self, image: Tensor, prompt: Tensor, prompt_mask: Tensor, queries: Queries
    ) -> tuple[Tensor, Tensor]:
        """Score G groups of N images, each group under its taxonomy.

        Args:
            image: (G, N, T, D) tokens of the images, the pooled embedding first.
            prompt: (G, N, L, D) tokens of the prompts, the pooled embedding first.
            prompt_mask: (G, N, L) which of them there are; all False for an image without prompt.
            queries: of G taxonomies.

        Returns:
            Logits of the whole (G, N), and of the categories (G, N, K); about `PADDED_LOGIT` for padded categories.
        """
        category = self.phrase_logits(image, prompt, prompt_mask, queries).logsumexp(-1)
        (scale, shift), (whole_scale, whole_shift) = self.calibration
        return self.unsafe_logit(category) * whole_scale + whole_shift, category * scale + shift

    def similarity(self, image: Tensor, queries: Queries) -> Tensor:
        """(G, N, K) cosine in [-1, 1] of each category with the token of the image (G, N, T, D) most like it."""
        tokens = self.image_correction(F.normalize(image, dim=-1))
        found = torch.einsum("gkmd,gntd->gnkmt", queries.phrases, tokens).amax(-1)
        return found.masked_fill((queries.kinds < 0)[:, None], -1.0).amax(-1)

    def phrase_logits(self, image: Tensor, prompt: Tensor, prompt_mask: Tensor, queries: Queries) -> Tensor:
        """(G, N, K, M) a logit for each phrase; `PADDED_LOGIT` for padding."""
        image, prompt = F.normalize(image, dim=-1), F.normalize(prompt, dim=-1)
        image_keys, prompt_keys, prompt_mask, missing = self.fuse(image, prompt, prompt_mask)
        seen = torch.einsum("gkmd,gntd->gnkmt", queries.phrases, self.image_correction(image))
        told = torch.einsum("gkmd,gnld->gnkml", queries.phrases, self.text_correction(prompt))
        by_image = self.attend(queries.attention, image_keys, seen, None)
        by_prompt = (
            self.attend(queries.attention, prompt_keys, told, prompt_mask) * ~missing[:, :, None, None, None]
        )
        features = torch.cat([by_image, seen[..., :1], by_prompt], dim=-1)
        logits: Tensor = (self.plain(features) + self.weigh(features)).squeeze(-1)
        logits = logits + self.kind_bias[queries.kinds.clamp(min=0)][:, None]
        return logits.masked_fill((queries.kinds < 0)[:, None], PADDED_LOGIT)

    def fuse(
        self, image: Tensor, prompt: Tensor, prompt_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image and prompt read each other; gives what they show to queries, the mask, and who has no prompt.

        Returns:
            (G, N, T, inner), (G, N, L, inner), (G, N, L) with one true entry at least, and (G, N).
        """
        groups = image.shape[:2]
        missing = ~prompt_mask.any(-1)
        nothing = missing[..., None] & (torch.arange(prompt.shape[2], device=prompt.device) == 0)
        pictures, words = self.image_in(image), self.prompt_in(prompt)
        words = torch.where(nothing[..., None], self.no_prompt, words)
        mask = prompt_mask | nothing
        pictures, words, flat = pictures.flatten(0, 1), words.flatten(0, 1), mask.flatten(0, 1)
        for block in self.blocks:
            pictures, words = block(pictures, words, flat)
        return (
            self.show_image(pictures).unflatten(0, groups),
            self.show_prompt(words).unflatten(0, groups),
            mask,
            missing,
        )

    def attend(self, attention: Tensor, keys: Tensor, similarity: Tensor, mask: Tensor | None) -> Tensor:
        """(G, N, K, M, H) the similarity that each head finds where it looks."""
        heads = self.config.heads
        keys = keys.reshape(*keys.shape[:-1], heads, -1)
        places = torch.einsum("gkmhd,gnthd->gnkmht", attention, keys) * keys.shape[-1] ** -0.5
        places = places + self.sharpness.exp()[:, None] * similarity[..., None, :]
        if mask is not None:
            places = places.masked_fill(~mask[:, :, None, None, None], float("-inf"))
        return torch.einsum("gnkmht,gnkmt->gnkmh", places.softmax(-1), similarity)

    def unsafe_logit(self, category: Tensor) -> Tensor:
        """Logit that any category is violated, from (..., K) category logits.

        A log-sum-exp is a noisy-or of rare events; its sharpness is learned, so that many quiet categories need not
        add up to an alarm. Sorted first, so that not even rounding depends on the order.
        """
        sharp = self.whole[0].exp()
        return (category.sort(-1).values * sharp).logsumexp(-1) / sharp + self.whole[1]


class MutualAttention(nn.Module):
    """Image tokens read the prompt, prompt tokens read the image, then each thinks for itself."""

    def __init__(self, inner: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(inner) for _ in range(4))
        self.image_reads = CrossAttention(inner, heads)
        self.prompt_reads = CrossAttention(inner, heads)
        self.image_thinks = _feed_forward(inner)
        self.prompt_thinks = _feed_forward(inner)

    def forward(self, image: Tensor, prompt: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, inner), (B, L, inner), (B, L) -> the two streams."""
        pictures, words = self.norms[0](image), self.norms[1](prompt)
        image = image + self.image_reads(pictures, words, prompt_mask)
        prompt = prompt + self.prompt_reads(words, pictures, None)
        image = image + self.image_thinks(self.norms[2](image))
        return image, prompt + self.prompt_thinks(self.norms[3](prompt))


class CrossAttention(nn.Module):
    """Multi-head attention of one stream over the other."""

    def __init__(self, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(inner, inner), nn.Linear(inner, 2 * inner)
        self.out = nn.Linear(inner, inner)

    def forward(self, reader: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """(B, R, inner) reads (B, S, inner), where `mask` (B, S) is true."""
        query = self.query(reader).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        allowed = None if mask is None else mask[:, None, None]
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        out: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return out


class LowRank(nn.Module):
    """A correction of unit vectors that starts as none: unit(x + up(down(x)))."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, unit: Tensor) -> Tensor:
        """(..., D) unit vectors -> unit vectors."""
        return F.normalize(unit + self.up(self.down(unit)), dim=-1)


def _feed_forward(inner: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inner, 2 * inner), nn.GELU(), nn.Linear(2 * inner, inner))
