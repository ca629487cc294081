"""The detector after Wukong (arXiv 2508.00591): categories are queries, in the pipeline's own words.

Wukong's abstract says that a transformer decoder with a query per category reuses the cross-attention parameters of the
U-Net and reads it at an early step. Here the queries are not learned: the category's name and definition go through the
pipeline's text encoder and through the projections `to_k` and `to_v` of the watched attention layers, which is how the
denoiser itself reads words. So a category is an argument, a new one needs no training, and the score of one does not
depend on the others. Layers, sizes, losses and the log-SNR in place of a step's number are choices of ours.

A look becomes a grid of tokens: the predicted picture, the noisy latents and the image tokens of the watched layers, at
the same places, with one token of the prompt among them. Three kinds of evidence make a category's logit, each a few
numbers: cosines with tokens of two pictures in an image encoder's space, the *finished* one, which the grid foretells,
and the one predicted now (targets that need no labels, so what is known of a category does not depend on having been
trained on it); attention of the category's queries to the grid; and the likeness of category and prompt, word by word.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from judge.errors import PipelineError
from prompts.taxonomy import Category, Taxonomy

from .category_texts import MAX_CACHED, CategoryTexts
from .layouts import attention_layers, layout_of
from .learned import MARGIN, LearnedDetector, Lessons, denoiser_of
from .look import Look

WITHOUT_PROMPT = 0.3
"""Share of training looks whose prompt is hidden."""


@dataclass(frozen=True)
class ReaderConfig:
    """Sizes of the head."""

    channels: int
    """C of the latents."""
    text_width: int
    """E, width of the prompt's embeddings."""
    layers: tuple[int, ...]
    """Widths of the image tokens of the watched layers."""
    keys: int
    """Width of keys and values of all watched layers together."""
    joint: int = 128
    """Width of the space in which the finished picture is foretold."""
    grid: int = 5
    """The look becomes grid x grid tokens."""
    stem: int = 32
    """Channels of the convolutions on the latents, at twice the grid's size."""
    width: int = 64
    depth: int = 1
    heads: int = 4
    queries: int = 4
    """Queries of a category to the grid."""
    words: int = 2
    """Ways in which words of category and prompt are compared."""
    word_width: int = 24
    context: int = 8
    """Numbers that tell of the look as a whole, such as whether the prompt names anything."""


class Queries(NamedTuple):
    """The taxonomy's side, computed once per taxonomy."""

    grid: Tensor
    """(K, queries, width) what is looked for in the grid."""
    joint: Tensor
    """(K, joint) unit vectors in the space of finished pictures."""
    words: Tensor
    """(K, words, word_width) unit vectors."""


class Reading(NamedTuple):
    """What the head makes of B looks."""

    logits: Tensor
    """(B, K)."""
    foretold: Tensor
    """(B, 1 + grid * grid, joint) the finished picture's pooled embedding and its tokens, as foretold: means of unit
    vectors, shorter the less is known, so that products with a category's vector are expected cosines."""
    perceived: Tensor
    """(B, 1 + grid * grid, joint) the same of the picture that is predicted at this step."""
    grid: Tensor
    """(B, grid * grid, width)."""


class LookReader(nn.Module):
    """Looks and queries to logits."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.from_latents = nn.Sequential(
            nn.Conv2d(2 * config.channels, config.stem, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(config.stem, config.stem, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(config.stem, width, 3, stride=2, padding=1),
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.from_layers = nn.ModuleList(nn.Linear(depth, width) for depth in config.layers)
        self.from_prompt = nn.Linear(2 * config.text_width, width)
        self.from_level = nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, width))
        self.places = nn.Parameter(0.02 * torch.randn(config.grid**2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.last_norm = nn.LayerNorm(width)
        self.foretell = nn.Linear(width, config.joint)
        self.perceive = nn.Linear(width, config.joint)
        for start in (self.foretell, self.perceive):  # nothing at first
            nn.init.zeros_(start.weight)
            nn.init.zeros_(start.bias)
        self.context = nn.Linear(width, config.context)
        # Category texts: which words count, as queries to the grid, and as a point among finished pictures.
        self.pool = nn.Linear(2 * config.keys, config.queries)
        self.to_grid = nn.Linear(2 * config.keys, width)
        self.to_joint = nn.Linear(2 * config.text_width, config.joint)
        self.word_pool = nn.Linear(config.text_width, config.words)
        self.word = nn.Linear(config.text_width, config.words * config.word_width, bias=False)
        found = 8 + 2 * config.queries + 2 * config.words + config.context + 1
        self.weigh = nn.Sequential(nn.Linear(found, 48), nn.GELU(), nn.Dropout(0.1), nn.Linear(48, 1))
        self.plain = nn.Linear(found, 1)

    def queries(self, text: Tensor, mask: Tensor, keys: Tensor) -> Queries:
        """The taxonomy's side.

        Args:
            text: (K, L, E) embeddings of the categories' words.
            mask: (K, L) True at words.
            keys: (K, L, 2 keys) keys and values of the watched layers, one after the other.
        """
        config = self.config
        hidden = ~mask[..., None]
        pooled = torch.einsum("kls,kld->ksd", self.pool(keys).masked_fill(hidden, -1e4).softmax(1), keys)
        chosen = self.word_pool(text).masked_fill(hidden, -1e4).softmax(1)
        words = self.word(text).unflatten(-1, (config.words, config.word_width))
        return Queries(
            self.to_grid(pooled),
            F.normalize(self.to_joint(summary(text, mask)), dim=-1),
            F.normalize(torch.einsum("kls,klsr->ksr", chosen, words), dim=-1),
        )

    def forward(self, look: Look, queries: Queries) -> Reading:
        """Score a look's B pictures under K categories."""
        config = self.config
        text = look.text.float()
        if self.training:
            # Otherwise what is easily read in the prompt would never be learnt to be seen in the picture.
            text = text * (torch.rand(len(text), 1, 1, device=text.device) >= WITHOUT_PROMPT)
        grid = self.read(look, text)
        foretold, perceived = self.foretell(grid), self.perceive(grid)
        cosines = torch.stack([foretold, perceived], -1).mT @ queries.joint.T  # (B, 1 + T, 2, K)
        near = cosines[:, 1:]
        sharp = (20 * near).softmax(1)
        seen = torch.einsum("btd,ksd->bkst", grid[:, 1:], queries.grid) / config.width**0.5
        words = F.normalize(self.word(text).unflatten(-1, (config.words, config.word_width)), dim=-1)
        alike = torch.einsum("blsr,ksr->bksl", words, queries.words)
        level = torch.full_like(seen[..., :1, 0], look.log_snr / 5)
        found = torch.cat(
            [
                # (B, 2, K) each.
                torch.cat([cosines[:, 0], near.amax(1), (sharp * near).sum(1), near.mean(1)], 1).mT,
                seen.logsumexp(-1),
                seen.mean(-1),
                alike.amax(-1),
                alike.mean(-1),
                self.context(grid[:, :1]).expand(-1, seen.shape[1], -1),
                level,
            ],
            dim=-1,
        )
        logits = (self.weigh(found) + self.plain(found)).squeeze(-1)
        return Reading(logits, foretold, perceived, grid[:, 1:])

    def read(self, look: Look, text: Tensor) -> Tensor:
        """(B, 1 + grid * grid, width) the prompt's token and those of the grid."""
        size = self.config.grid
        latents = torch.cat([look.clean, look.noisy], 1).float()
        if latents.shape[-2:] != (2 * size, 2 * size):
            latents = F.adaptive_avg_pool2d(latents, 2 * size)
        # Convolutions of few channels are faster with the channels last, on CPUs too.
        latents = latents.contiguous(memory_format=torch.channels_last)
        rows = self.from_latents(latents).flatten(2).transpose(1, 2)
        for layer, tokens in zip(self.from_layers, look.tokens.values(), strict=True):
            tokens = F.layer_norm(tokens.float(), tokens.shape[-1:])
            rows = rows + layer(on_grid(tokens, size, look.clean.shape[-2:]))
        prompt = self.from_prompt(torch.cat([text.mean(1), text[:, -1]], -1))
        level = self.from_level(torch.full((1,), look.log_snr / 5, device=rows.device))
        rows = torch.cat([prompt[:, None], rows], 1) + self.places + level
        for block in self.blocks:
            rows = block(rows)
        read: Tensor = self.last_norm(rows)
        return read


class Block(nn.Module):
    """A transformer block, norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width)
        )

    def forward(self, rows: Tensor) -> Tensor:
        """(B, T, width) -> the same."""
        # (B, T, 3 width) -> three of (B, heads, T, width / heads).
        query, key, value = (
            self.to_qkv(self.first(rows)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        rows = rows + self.out(mixed)
        added: Tensor = rows + self.mlp(self.second(rows))
        return added


class InLoopDetector(LearnedDetector):
    """Scores looks under any taxonomy whose words its lessons knew."""

    kind = "cross_attention"
    head: LookReader

    def __init__(
        self, pipeline: Any, head: LookReader, *, layers: tuple[str, ...] = (), name: str = ""
    ) -> None:
        super().__init__(pipeline, head, layers=layers, name=name)
        self.texts = CategoryTexts(pipeline)
        self._joint = layout_of(pipeline).attention == "joint"
        self._queries: dict[tuple[Taxonomy, float | None], tuple[Tensor, Queries]] = {}

    @classmethod
    def for_pipeline(
        cls, pipeline: Any, layers: Sequence[str], *, joint: int = 128, name: str = "", **sizes: int
    ) -> "InLoopDetector":
        """An untrained detector that fits a pipeline.

        Args:
            pipeline: any that can be watched.
            layers: names of the attention layers to read.
            joint: width of the encoder that foretold pictures are compared with while training.
            name: of the detector.
            sizes: any other field of `ReaderConfig`.
        """
        known, denoiser = attention_layers(pipeline), denoiser_of(pipeline)
        for layer in layers:
            if layer not in known:
                raise PipelineError(f"There is no attention layer {layer!r}; there are {', '.join(known)}.")
        probe = Taxonomy("probe", "1", (Category("a", "a", name_only=True),))
        texts = CategoryTexts(pipeline)
        text, _ = texts.encode(probe)
        # An MMDiT packs 2 x 2 patches of latents into its channels.
        packed = 4 if layout_of(pipeline).packed else 1
        config = ReaderConfig(
            channels=int(denoiser.config.in_channels) // packed,  # type: ignore[union-attr,arg-type]
            text_width=text.shape[-1],
            layers=tuple(int(known[layer].to_q.in_features) for layer in layers),  # type: ignore[union-attr,arg-type]
            keys=sum(texts.keys(probe, layer).keys.shape[-1] for layer in layers),
            joint=joint,
            **sizes,
        )
        return cls(pipeline, LookReader(config), layers=tuple(layers), name=name)

    @classmethod
    def of_sizes(
        cls, pipeline: Any, sizes: dict[str, Any], *, layers: tuple[str, ...] = (), name: str = ""
    ) -> "InLoopDetector":
        """A detector that was not trained, of the sizes that `sizes` gave."""
        config = ReaderConfig(**{**sizes, "layers": tuple(sizes["layers"])})
        return cls(pipeline, LookReader(config), layers=layers, name=name)

    def sizes(self) -> dict[str, Any]:
        """What `of_sizes` needs."""
        return asdict(self.head.config)

    def logits(self, look: Look, taxonomy: Taxonomy) -> Tensor:
        """(B, K) float32 logits, differentiable in the head's weights."""
        return self.read(look, taxonomy).logits

    def read(self, look: Look, taxonomy: Taxonomy) -> Reading:
        """Logits, and the finished picture as foretold."""
        reading: Reading = self.head(look, self.queries(taxonomy, look.log_snr))
        return reading

    def queries(self, taxonomy: Taxonomy, log_snr: float) -> Queries:
        """The taxonomy's side; computed once, except while training, and where the pipeline's own weights change.

        Joint attention reads texts differently at each noise level, so there it is computed once for each.
        """
        text, _ = self.texts.encode(taxonomy)
        place = (taxonomy, log_snr if self._joint else None)
        kept = self._queries.get(place)
        if kept is not None and kept[0] is text:
            return kept[1]
        made = self._made(taxonomy, log_snr)
        if self.lessons is not None:
            while len(self._queries) >= MAX_CACHED:
                self._queries.pop(next(iter(self._queries)))
            self._queries[place] = (text, made)
        return made

    def outside_lessons(self, taxonomy: Taxonomy) -> str | None:
        """What of a taxonomy the detector cannot know; None where it may answer."""
        for name, part in self.texts.unread(taxonomy).items():
            return f"the pipeline's text encoder does not read the end of {name!r} ({part!r:.60}); shorten it"
        return super().outside_lessons(taxonomy)

    def finish(self, lessons: Lessons, log_snrs: tuple[float, float], margin: float = MARGIN) -> None:
        """Say what it was trained on: from now on it answers there, and `margin` beyond the log-SNRs."""
        self._queries.clear()
        super().finish(lessons, log_snrs, margin)

    def _made(self, taxonomy: Taxonomy, log_snr: float) -> Queries:
        text, mask = self.texts.encode(taxonomy)
        projected = [self.texts.keys(taxonomy, layer, log_snr) for layer in self.layers]
        keys = torch.cat([part.float() for pair in projected for part in pair], -1)
        found: Queries = self.head.queries(text.float(), mask, keys)
        return found


def summary(text: Tensor, mask: Tensor) -> Tensor:
    """(K, L, E) -> (K, 2 E): the mean of a text's words, and its last one, which causal encoders put all into."""
    weights = mask.float() / mask.sum(1, keepdim=True)
    last = mask.float().cumsum(1).argmax(1)
    return torch.cat([(weights[..., None] * text).sum(1), text[torch.arange(len(text)), last]], -1)


def on_grid(tokens: Tensor, size: int, shape: torch.Size) -> Tensor:
    """Image tokens (B, T, D) of a picture of `shape` -> (B, size * size, D), by means over places."""
    count = tokens.shape[1]
    if count == size * size and shape[0] == shape[1]:
        return tokens
    height = max(1, round((count * shape[0] / shape[1]) ** 0.5))
    while count % height:
        height -= 1
    image = tokens.transpose(1, 2).reshape(len(tokens), -1, height, count // height)
    return F.adaptive_avg_pool2d(image, size).flatten(2).transpose(1, 2)
