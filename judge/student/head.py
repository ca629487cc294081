"""The cross-attention head: categories are queries, prompt tokens and image patches are keys.

Attention weights choose tokens; the score is the cosine between the category's phrases and the chosen tokens, in the
encoder's joint space. A head free to turn attended patches into a logit would memorise its training categories. Here
cosines are the only path from a category to its logit, so an unseen category is one more query. What is learned: which
tokens to attend to (depending on the prompt's words), a small shared correction of the joint space, and how to weigh
the cosines.

A category with a condition on the prompt ("alcohol, if the prompt speaks of driving") is met by neither half alone. Its
logit is the soft minimum of two: that of its subject, which is scored as any category, and that of its condition, whose
phrases are compared with the prompt's tokens only, and which is not met where there is no prompt.

The idea of text and image tokens attending to each other comes from arXiv 2504.11707 (whose released code attends
over a single key, so that its text has no effect), categories as queries from open-vocabulary detection (OWL-ViT,
Minderer et al. 2022, section 3.1), similarity over tokens from FILIP (Yao et al. 2022, section 3.1).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from judge.encoders.phrases import CONDITION
from judge.errors import ConfigError

from .mutual_attention import MutualAttention

PADDED_LOGIT = -1e4
"""Logit of padding: adds nothing to a log-sum-exp and, unlike minus infinity, gives no NaN gradients."""

_CACHED = 2**18
"""Numbers that fit a processor's cache (a megabyte): attention is computed for so many at a time."""


@dataclass(frozen=True)
class HeadConfig:
    """Shape of the head.

    Raises:
        ConfigError: sizes that do not fit each other.
    """

    width: int
    """D, width of the encoder's joint space."""
    inner: int = 256
    """Width of the image and prompt streams between which attention runs."""
    heads: int = 4
    """Attention heads; each attends to tokens of its own and gives one cosine per phrase."""
    depth: int = 1
    """Blocks of mutual attention between image and prompt."""
    rank: int = 32
    """Rank of the correction of the joint space."""

    def __post_init__(self) -> None:
        if (
            min(self.width, self.inner, self.heads, self.rank) < 1
            or self.depth < 0
            or self.inner % self.heads
        ):
            raise ConfigError(
                f"A head cannot have inner width {self.inner}, {self.heads} heads, rank {self.rank} and depth "
                f"{self.depth}: give positive sizes, and an inner width that is a multiple of the heads."
            )


class Queries(NamedTuple):
    """The taxonomy side, computed once per taxonomy: G taxonomies of K categories of M phrases, padded."""

    phrases: Tensor
    """(G, K, M, D) corrected unit vectors."""
    attention: Tensor
    """(G, K, M, H, inner / H) query vector of each head."""
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
        # Initially the heads attend to the tokens most similar to the phrase, each at a temperature of its own.
        self.sharpness = nn.Parameter(torch.linspace(1.5, 3.5, heads))
        # Two paths from cosines to a logit: an MLP that starts at zero, and a linear layer that starts as their mean.
        last = nn.Linear(16, 1)
        self.weigh = nn.Sequential(nn.Linear(2 * heads + 1, 16), nn.GELU(), last)
        self.plain = nn.Linear(2 * heads + 1, 1)
        # Of the kinds before `CONDITION`. Conditions have their own way from cosines to a logit: a weight for each
        # head, one for the prompt's pooled embedding, and a shift.
        self.kind_bias = nn.Parameter(torch.zeros(CONDITION))
        self.condition = nn.Parameter(torch.tensor([10.0 / (heads + 1)] * (heads + 1) + [-4.0]))
        self.whole = nn.Parameter(torch.tensor([0.0, 0.0]))
        self.calibration: Tensor
        self.register_buffer("calibration", torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        for start in (last.weight, last.bias, self.show_image.weight, self.show_prompt.weight):
            nn.init.zeros_(start)
        with torch.no_grad():
            self.plain.weight.fill_(0.0)
            # The image's cosines; those of the prompt start without weight.
            self.plain.weight[0, : heads + 1] = 10.0 / (heads + 1)
            self.plain.bias.fill_(-4.0)

    def scales(self) -> list[nn.Parameter]:
        """The few numbers that make logits of cosines, whatever the tokens are: weights and shifts."""
        return [*self.plain.parameters(), self.condition, self.kind_bias, self.whole]

    def queries(self, phrases: Tensor, kinds: Tensor) -> Queries:
        """Compute the taxonomy side.

        Args:
            phrases: (G, K, M, D) pooled text embeddings of the phrases; values at padding do not matter.
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
            prompt_mask: (G, N, L) True at prompt tokens; all False for an image without prompt.
            queries: of G taxonomies.

        Returns:
            Logits that anything is violated (G, N), and of the categories (G, N, K); about `PADDED_LOGIT` for padding.
        """
        phrases = self.phrase_logits(image, prompt, prompt_mask, queries)
        return self.policy_logits(phrases, queries.kinds)

    def policy_logits(self, phrases: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` from the logits of the phrases (G, N, K, M), as `phrase_logits` gives them, and kinds (G, K, M)."""
        # A category is any of its phrases: (G, N, K, M) -> (G, N, K).
        about_prompt = (kinds == CONDITION)[:, None]  # (G, 1, K, M)
        subject = phrases.masked_fill(about_prompt, PADDED_LOGIT).logsumexp(-1)
        condition = phrases.masked_fill(~about_prompt, PADDED_LOGIT).logsumexp(-1)
        # One with a condition is its subject *and* its condition: a soft minimum, -logaddexp(-subject, -condition),
        # written so that no exponential overflows in ONNX Runtime either.
        both = torch.minimum(subject, condition) - F.softplus(-(subject - condition).abs())
        category = torch.where(about_prompt.any(-1), both, subject)
        (scale, shift), (unsafe_scale, unsafe_shift) = self.calibration
        return self.unsafe_logit(category) * unsafe_scale + unsafe_shift, category * scale + shift

    def similarity(self, image: Tensor, queries: Queries) -> Tensor:
        """(G, N, K) cosine in [-1, 1] of each category with the most similar token of the image (G, N, T, D).

        Conditions on the prompt have no part in it.
        """
        tokens = self.image_correction(F.normalize(image, dim=-1))
        found = _cosines(tokens, queries.phrases).amax(-2)
        found = found.reshape(*found.shape[:2], *queries.kinds.shape[1:])
        about_image = (queries.kinds >= 0) & (queries.kinds != CONDITION)
        return found.masked_fill(~about_image[:, None], -1.0).amax(-1)

    def phrase_logits(self, image: Tensor, prompt: Tensor, prompt_mask: Tensor, queries: Queries) -> Tensor:
        """Logits of single phrases, before calibration.

        Args:
            image: (G, N, T, D), as in `forward`.
            prompt: (G, N, L, D).
            prompt_mask: (G, N, L).
            queries: of G taxonomies.

        Returns:
            (G, N, K, M); `PADDED_LOGIT` for padding, and for a condition where there is no prompt.
        """
        # Phrases are in one row, P = K * M, and the last dimension of all that is large.
        attention, kinds = queries.attention.flatten(1, 2), queries.kinds.flatten(1)
        about_prompt = (kinds == CONDITION)[:, None]  # (G, 1, P)
        # A graph holds all ways, and DDP waits for a gradient of every parameter.
        everything = self.training or torch.compiler.is_exporting()
        if everything or prompt_mask.any():
            image, prompt = F.normalize(image, dim=-1), F.normalize(prompt, dim=-1)
            image_cosines = _cosines(self.image_correction(image), queries.phrases)
            image_keys, prompt_keys, prompt_mask, no_prompt = self.fuse(image, prompt, prompt_mask)
            prompt_cosines = _cosines(self.text_correction(prompt), queries.phrases)
            by_prompt = self.attend(attention, prompt_keys, prompt_cosines, prompt_mask)
            by_prompt = by_prompt * ~no_prompt[:, :, None, None]
        else:
            image_cosines = self.image_correction.cosines(image, queries.phrases)
            image_keys, prompt_cosines = self.fuse_alone(image), None
            by_prompt = image.new_zeros(1).expand(*image.shape[:2], kinds.shape[1], self.config.heads)
        by_image = self.attend(attention, image_keys, image_cosines, None)
        # (G, N, P, 2 H + 1): a cosine of each head, and that of the pooled image embedding (token 0).
        features = torch.cat([by_image, image_cosines[:, :, 0, :, None], by_prompt], dim=-1)
        logits: Tensor = (self.plain(features) + self.weigh(features)).squeeze(-1)
        logits = logits + self.kind_bias[kinds.clamp(min=0, max=CONDITION - 1)][:, None]
        if prompt_cosines is None:
            logits = logits.masked_fill(about_prompt, PADDED_LOGIT)
        elif everything or about_prompt.any():  # most policies have no condition
            met = self.condition_logits(prompt_cosines, prompt_mask)
            met = met.masked_fill(no_prompt[:, :, None], PADDED_LOGIT)
            logits = torch.where(about_prompt, met, logits)
        logits = logits.masked_fill((kinds < 0)[:, None], PADDED_LOGIT)
        return logits.reshape(*logits.shape[:2], *queries.kinds.shape[1:])

    def condition_logits(self, cosines: Tensor, mask: Tensor) -> Tensor:
        """(G, N, P) logits that prompts speak of phrases, whatever the images show.

        Args:
            cosines: (G, N, L, P) of the phrases with the prompts' tokens, the pooled embedding first.
            mask: (G, N, L) True at tokens.
        """
        scores = self.sharpness.exp()[:, None, None, None] * cosines[:, None]  # (G, H, N, L, P)
        scores = scores.masked_fill(~mask[:, None, :, :, None], float("-inf"))
        by_head = (scores.softmax(-2) * cosines[:, None]).sum(-2).movedim(1, -1)  # (G, N, P, H)
        features = torch.cat([by_head, cosines[:, :, 0, :, None]], dim=-1)
        logits: Tensor = (features * self.condition[:-1]).sum(-1) + self.condition[-1]
        return logits

    def fuse(
        self, image: Tensor, prompt: Tensor, prompt_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mutual attention of image and prompt.

        Args:
            image: (G, N, T, D) unit vectors.
            prompt: (G, N, L, D) unit vectors.
            prompt_mask: (G, N, L).

        Returns:
            Keys of the image tokens (G, N, T, inner) and of the prompt tokens (G, N, L, inner), a mask (G, N, L) with
            at least one True per row, and (G, N), True where there is no prompt.
        """
        groups = image.shape[:2]
        no_prompt = ~prompt_mask.any(-1)
        # A softmax over an empty set is NaN, so a learned vector takes the place of a missing prompt's first token.
        placeholder = no_prompt[..., None] & (torch.arange(prompt.shape[2], device=prompt.device) == 0)
        patches, words = self.image_in(image), self.prompt_in(prompt)
        words = torch.where(placeholder[..., None], self.no_prompt, words)
        mask = prompt_mask | placeholder
        # (G, N, ...) -> (G * N, ...): rows of all groups are one batch to the blocks.
        patches, words, flat_mask = patches.flatten(0, 1), words.flatten(0, 1), mask.flatten(0, 1)
        for block in self.blocks:
            patches, words = block(patches, words, flat_mask)
        return (
            self.show_image(patches).unflatten(0, groups),
            self.show_prompt(words).unflatten(0, groups),
            mask,
            no_prompt,
        )

    def fuse_alone(self, image: Tensor) -> Tensor:
        """`fuse` of images without prompt: keys (G, N, T, inner) of their tokens (G, N, T, D) of any length."""
        # `image_in` of unit vectors, divided by the length afterwards, where they are shorter.
        patches = F.linear(image, self.image_in.weight) / _lengths(image) + self.image_in.bias
        patches = patches.flatten(0, 1)
        words = self.no_prompt.expand(len(patches), 1, -1)
        for number, block in enumerate(self.blocks, start=1):
            last = number == len(self.blocks)  # of which the prompt's stream is not needed
            patches, words = block(patches, words, None, alone=last)
        keys: Tensor = self.show_image(patches).unflatten(0, image.shape[:2])
        return keys

    def attend(self, queries: Tensor, keys: Tensor, similarity: Tensor, mask: Tensor | None) -> Tensor:
        """Mean cosine of each phrase with the tokens, weighted by each head's attention.

        Args:
            queries: (G, P, H, inner / H) of the phrases.
            keys: (G, N, T, inner) of the tokens.
            similarity: (G, N, T, P) cosines, which take the place of values and also raise the attention.
            mask: (G, N, T) True at tokens that may be attended to; None for all.

        Returns:
            (G, N, P, H).
        """
        if similarity.device.type != "cpu" or torch.compiler.is_exporting():
            spans = [slice(None)]
        else:
            groups, images, tokens, phrases = similarity.shape
            most = max(1, _CACHED // (groups * self.config.heads * tokens * phrases))
            spans = [slice(start, start + most) for start in range(0, max(images, 1), most)]
        parts = []
        for rows in spans:
            some, allowed = similarity[:, rows], None if mask is None else mask[:, rows]
            weights = self.attention_weights(queries, keys[:, rows], some, allowed)
            parts.append((weights * some[:, None]).sum(-2))
        return torch.cat(parts, dim=2).movedim(1, -1)

    def attention_weights(
        self, queries: Tensor, keys: Tensor, similarity: Tensor, mask: Tensor | None
    ) -> Tensor:
        """(G, H, N, T, P) weights of each phrase's heads over the tokens; arguments as in `attend`."""
        heads, (groups, images, tokens, phrases) = self.config.heads, similarity.shape
        # (G, H, N * T, inner / H) times (G, H, inner / H, P): one product a head.
        by_head = keys.reshape(groups, images * tokens, heads, -1).transpose(1, 2)
        wanted = (queries * queries.shape[-1] ** -0.5).permute(0, 2, 3, 1)
        scores = (by_head @ wanted).reshape(groups, heads, images, tokens, phrases)
        scores = torch.addcmul(scores, self.sharpness.exp()[:, None, None, None], similarity[:, None])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, :, :, None], float("-inf"))
        weights: Tensor = scores.softmax(-2)
        return weights

    def image_attention(
        self, image: Tensor, prompt: Tensor, prompt_mask: Tensor, queries: Queries
    ) -> tuple[Tensor, Tensor]:
        """Where phrases find what they look for, to show it to people.

        Args:
            image: (G, N, T, D), as in `forward`.
            prompt: (G, N, L, D).
            prompt_mask: (G, N, L).
            queries: of G taxonomies.

        Returns:
            (G, N, K, M) logits of the phrases about the image, `PADDED_LOGIT` for all others; and (G, N, K, M, T) the
            weights of the image tokens, on average over the heads.
        """
        logits = self.phrase_logits(image, prompt, prompt_mask, queries)
        image, prompt = F.normalize(image, dim=-1), F.normalize(prompt, dim=-1)
        keys = self.fuse(image, prompt, prompt_mask)[0]
        cosines = _cosines(self.image_correction(image), queries.phrases)
        weights = self.attention_weights(queries.attention.flatten(1, 2), keys, cosines, None)
        # (G, H, N, T, P) -> (G, N, K, M, T)
        weights = weights.mean(1).transpose(-2, -1).reshape(*logits.shape, -1)
        return logits.masked_fill((queries.kinds == CONDITION)[:, None], PADDED_LOGIT), weights

    def unsafe_logit(self, category: Tensor) -> Tensor:
        """Logit (...) that any category is violated, from category logits (..., K).

        A log-sum-exp is a noisy-or of rare events; its sharpness is learned, so that many low scores need not add up to
        a high one. Logits are sorted first, so that rounding does not depend on the order of categories.
        """
        sharpness = self.whole[0].exp()
        return (category.sort(-1).values * sharpness).logsumexp(-1) / sharpness + self.whole[1]


class LowRank(nn.Module):
    """A low-rank correction of unit vectors, the identity at first: normalise(x + up(down(x)))."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, unit: Tensor) -> Tensor:
        """(..., D) unit vectors -> (..., D) unit vectors."""
        return F.normalize(unit + self.up(self.down(unit)), dim=-1)

    def cosines(self, tokens: Tensor, phrases: Tensor) -> Tensor:
        """`_cosines` of corrected tokens of any length, without writing down unit vectors and corrected ones.

        These are the largest tensors of the head. With d = down(x), the corrected x + U d has the squared length
        |x|^2 + d (2 U'x + U'U d), and (x + U d) p = x p + d (U'p).
        """
        up, small = self.up.weight, self.down(tokens)  # (D, R), (G, N, T, R)
        square = _lengths(tokens)[..., 0] ** 2 + (small * (2 * (tokens @ up) + small @ (up.mT @ up))).sum(-1)
        across = (phrases.flatten(1, 2) @ up).mT  # (G, R, K * M)
        found = torch.baddbmm(tokens.flatten(1, 2) @ phrases.flatten(1, 2).mT, small.flatten(1, 2), across)
        cosines: Tensor = found.reshape(*tokens.shape[:3], -1) * square.rsqrt()[..., None]
        return cosines


def _lengths(tokens: Tensor) -> Tensor:
    """(..., D) -> (..., 1) lengths, as `F.normalize` divides by them."""
    lengths: Tensor = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
    return lengths.clamp_min(1e-12)


def _cosines(tokens: Tensor, phrases: Tensor) -> Tensor:
    """Unit vectors (G, N, T, D) and (G, K, M, D) -> (G, N, T, K * M) cosines of every token with every phrase."""
    found = tokens.flatten(1, 2) @ phrases.flatten(1, 2).mT
    return found.reshape(*tokens.shape[:3], -1)
