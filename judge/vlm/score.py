"""The judge as a classifier: probabilities over a closed set of answers, never generated text.

The model scores, token by token, the allowed answers only (constrained decoding of all branches at once). So P(unsafe)
and P(category) are parts of one distribution, and an invalid answer cannot occur. The tokens before the image (the
whole policy under `policy_first`) run once per taxonomy and their key-value cache is reused; the answers are packed
after each image as a token tree, so an image costs one forward pass. With several taxonomies or many categories, the
image runs first and the branches of its large tree run as rows of a batch; questions that taxonomies share are one
branch.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor, nn

from judge.category_margin import category_margin
from judge.encoders.pixels import preprocess
from judge.errors import ConfigError
from judge.inputs import check_prompts, validate_inputs_for_taxonomies
from judge.protocol import Scores, on_one_scale
from prompts.errors import ArbiterError
from prompts.taxonomy import Taxonomy
from prompts.template import render

from .encode import ChatEncoder, Encoded, Variant
from .pack import Prefix, Visual, pack_bins, pack_trees, stack_visual
from .tree import EMPTY_TREE, TokenTree, answer_log_probabilities, build_tree, one_vs_rest

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_CACHED_POLICIES = 16
"""Size of the cache of prefixes' keys and values; the least recently used is evicted."""
MAX_CACHED_QUESTIONS = 1024
"""Size of the cache of tokenised questions, for attacks; the least recently used is evicted."""
TREE_WIDTH = 256
"""Largest tree, in tokens, that is packed after its image in one row; a larger one is split into several rows."""


@dataclass
class VisionLanguageJudge:
    """A vision-language model as a classifier of any taxonomy.

    Attributes:
        model: an `AutoModelForImageTextToText` in evaluation mode.
        processor: its processor, with a chat template.
        template: one of `prompts.TEMPLATES`; a tuned judge keeps the one it was trained with.
        name: what verdicts and reports call it.
        default_taxonomy: used if the caller has none.
        batch_size: images in one forward pass.
    """

    model: Any
    processor: Any
    template: str = "policy_first"
    name: str = "judge"
    default_taxonomy: Taxonomy | None = None
    batch_size: int = 8
    _prefixes: "LRUCache[tuple[int, ...], Prefix]" = field(
        default_factory=lambda: LRUCache(MAX_CACHED_POLICIES), repr=False
    )
    _questions: "LRUCache[Any, Encoded]" = field(
        default_factory=lambda: LRUCache(MAX_CACHED_QUESTIONS), repr=False
    )
    _image_tokens: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict, repr=False)

    supports_multilabel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.encoder = ChatEncoder(self.processor, self.template)

    @property
    def image_processor(self) -> Any:
        """What resizes, crops and normalises the images; a part of `processor`."""
        return self.processor.image_processor

    def modules(self) -> tuple[nn.Module, ...]:
        """The model, with its adapter."""
        return (self.model,)

    def score(
        self,
        images: "Sequence[Image]",
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        multilabel: bool = False,
    ) -> Scores:
        """Score B images under one taxonomy of K categories.

        `unsafe` is the answer to the question about the whole policy in both cases. Without `multilabel`, a category's
        probability is that the answer names it: they sum to `unsafe`, so an image that violates two splits it between
        them. With `multilabel`, each category gets a question of its own, on the same image prefix. `categories` are
        these probabilities on one scale with the whole (`judge.protocol`), `separate` as such.

        An image whose text does not fit the context, or whose scores are not finite, is NaN with a reason.
        """
        return self.score_taxonomies(images, prompts, [taxonomy], multilabel=multilabel)[0]

    @validate_inputs_for_taxonomies
    def score_taxonomies(
        self,
        images: "Sequence[Image]",
        prompts: Sequence[str | None] | None,
        taxonomies: Sequence[Taxonomy],
        *,
        multilabel: bool = False,
    ) -> list[Scores]:
        """Score B images under several taxonomies; under `perspective` each image runs once for all of them."""
        prompts = check_prompts(len(images), prompts)
        tables = [_Table(len(images), taxonomy) for taxonomy in taxonomies]
        # With the image before the policy, all taxonomies are branches after it; else each has a prefix of its own.
        together = [list(range(len(taxonomies)))] if self.template == "perspective" else None
        for chosen in together or [[index] for index in range(len(taxonomies))]:
            for start in range(0, len(images), self.batch_size):
                rows = range(start, min(start + self.batch_size, len(images)))
                variants = [
                    [
                        variant
                        for index in chosen
                        for variant in self.encoder.variants(
                            taxonomies[index], prompts[row], multilabel=multilabel, index=index
                        )
                    ]
                    for row in rows
                ]
                for row, log_probabilities, reason in self._run([images[row] for row in rows], variants):
                    if log_probabilities is None:
                        self._check_policies([taxonomies[index] for index in chosen])
                    _fill(tables, start + row, variants[row], log_probabilities, reason)
        return [table.scores() for table in tables]

    def margins(self, visual: Visual, encoded: Sequence[Encoded], *, answer: int | None = None) -> Tensor:
        """Log P(unsafe) - log P(safe) of B rows, differentiable in `visual["pixel_values"]`; (B,) float32.

        Positive means unsafe. With `answer`, the logit of that answer against all others.

        Args:
            visual: pixel tensors of the B images.
            encoded: B rows that share prefix and continuations (one taxonomy, one question).
            answer: index among the continuations.
        """
        continuations = one_vs_rest(encoded[0].continuations, answer or 0)
        rows = [replace(row, continuations=continuations) for row in encoded]
        scores = self.log_probabilities(visual, rows, keep_gradient=True)
        margin = scores[:, 0] - scores[:, 1:].logsumexp(dim=1)
        return -margin if answer is None else margin  # answer 0 is the safe one

    def pixel_margins(
        self,
        pixels: Tensor,
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        category: str | None = None,
        focus: str | None = None,
    ) -> Tensor:
        """Log P(unsafe) - log P(safe), differentiable in the pixels of the images as they were posted.

        Args:
            pixels: (B, 3, H, W) floats in [0, 1]; resizing, cropping and normalising happen inside.
            prompts: B prompts, or None.
            taxonomy: the policy.
            category: the margin of this category's score, as without `multilabel`.
            focus: ask about this category only; then it is the logit of `Scores.separate` of `multilabel`, and
                `category` may only name the same one.

        Returns:
            (B,) float32, the logit of `Scores.unsafe` or of the category's score; positive means unsafe.

        Raises:
            TaxonomyError: no such category.
            ConfigError: a template whose answers do not name it.
            CheckpointError: a family whose image processor `pixels.preprocess` does not support.
            ArbiterError: a row does not fit the context.
        """
        prompts = check_prompts(len(pixels), prompts)
        place = None if category is None else self._answer_index(taxonomy, category, focus)
        # Gradients pass the resizing and normalisation; the image tokens depend on the size only.
        visual = {"pixel_values": preprocess(self.image_processor, pixels)}
        size = (int(pixels.shape[3]), int(pixels.shape[2]))
        encoded = [self._question(taxonomy, prompt, focus, size) for prompt in prompts]
        longest = max(map(len, encoded))
        if longest > self._context():
            raise ArbiterError(
                f"A row takes {longest} tokens and the model reads {self._context()}; shorten it."
            )
        if place is None or focus is not None:
            return self.margins(visual, encoded, answer=place)
        scores = self.log_probabilities(visual, encoded, keep_gradient=True)
        unsafe = scores[:, 1:].logsumexp(dim=1) - scores[:, 0]
        return category_margin(unsafe, scores[:, 1:], place - 1)

    def _question(
        self, taxonomy: Taxonomy, prompt: str | None, focus: str | None, size: tuple[int, int]
    ) -> Encoded:
        """The tokens of a question about an image of `size` (width, height), cached: attacks ask it at every step."""
        from PIL import Image

        if size not in self._image_tokens:
            self._image_tokens[size] = self.encoder.encode_image(Image.new("RGB", size))[0]
        key = (taxonomy, prompt, focus, size)
        encoded = self._questions.get(key)
        if encoded is None:
            chat = render(taxonomy, prompt, template=self.template, focus=focus)
            encoded = self._questions[key] = self.encoder.encode_row(
                [Variant(chat)], self._image_tokens[size]
            )
        return encoded

    def _answer_index(self, taxonomy: Taxonomy, category: str, focus: str | None) -> int:
        """Index of the answer that names a category."""
        place = taxonomy.index(category)
        answers = render(taxonomy, template=self.template, focus=focus).answers
        for number, answer in enumerate(answers):
            if answer.category == place:
                return number
        question = (
            f"asked about {focus!r} alone" if focus is not None else f"under the template {self.template!r}"
        )
        raise ConfigError(
            f"No answer names {category!r} {question}; use policy_first or perspective, and focus on it or on nothing."
        )

    def log_probabilities(
        self, visual: Visual, encoded: Sequence[Encoded], *, keep_gradient: bool = False
    ) -> Tensor:
        """Log-probabilities (B, C) of the C continuations that B rows share.

        Args:
            visual: pixel tensors of the B images.
            encoded: B rows that share prefix and continuations.
            keep_gradient: differentiable in `visual["pixel_values"]`.
        """
        tree = build_tree(encoded[0].continuations)
        chains = [row.chain for row in encoded]
        with nullcontext() if keep_gradient else torch.no_grad():
            prefix = self._prefix(encoded[0].prefix)
            bins = tree.bins(TREE_WIDTH)
            if len(bins) > 1:
                return answer_log_probabilities(
                    tree, self._large_tree_logits(chains, tree, bins, prefix, visual)
                )
            # Without a prefix (image first) there is no cache to pass.
            inputs = pack_trees(self.model, chains, tree, prefix, visual)
            cache = (
                {"past_key_values": prefix.expand(len(chains)), "use_cache": True} if prefix.length else {}
            )
            return answer_log_probabilities(tree, self.model(**inputs, **cache).logits)

    def _large_tree_logits(
        self,
        chains: Sequence[tuple[int, ...]],
        tree: TokenTree,
        bins: Sequence[Sequence[int]],
        prefix: Prefix,
        visual: Visual,
    ) -> Tensor:
        """Logits (B, J, V) at the J predictors of a large tree: first the chains, then the bins as rows of a batch.

        In one row, attention between all pairs of nodes would be computed, and most of it masked.
        """
        stem = pack_trees(self.model, chains, EMPTY_TREE, prefix, visual)
        first = self.model(**stem, past_key_values=prefix.expand(len(chains)), use_cache=True)
        # Keys and values of prefix and chains, (B, H, P + L, D) each; a row's own part is its cache for the bins.
        layers = [(layer.keys, layer.values) for layer in first.past_key_values.layers]
        predictors = set(tree.predictors)
        # A node in several bins has equal logits in each; the last one is taken.
        order = [-1, *(node for nodes in bins for node in nodes if node in predictors)]
        place = {node: number for number, node in enumerate(order)}
        places = torch.tensor([place[node] for node in tree.predictors], device=first.logits.device)
        found = []
        for row, chain in enumerate(chains):
            # The largest position of the row: padding repeats the last one, and M-RoPE has three per token.
            ends = stem["position_ids"][..., row : row + 1, :].amax(dim=-1, keepdim=True).cpu()
            cached = prefix.length + len(chain)  # without the padding of shorter chains
            own = Prefix(
                cached, tuple((k[row : row + 1, :, :cached], v[row : row + 1, :, :cached]) for k, v in layers)
            )
            inputs = pack_bins(self.model, tree, bins, cached, ends)
            output = self.model(**inputs, past_key_values=own.expand(len(bins)), use_cache=True)
            found.append(torch.cat([first.logits[row], output.logits.flatten(0, -2)])[places])
        return torch.stack(found)

    def _run(
        self, images: "Sequence[Image]", variants: Sequence[Sequence[Variant]]
    ) -> Iterator[tuple[int, Tensor | None, str | None]]:
        """Yield (row, log-probabilities (C,) of its continuations or None, reason)."""
        encoded, visual = self.encoder.encode(variants, images)
        limit = self._context()
        # One forward pass per set of rows with the same policy and answers.
        batches: dict[Any, list[int]] = {}
        for row, encoding in enumerate(encoded):
            if len(encoding) > limit:
                yield row, None, f"the text takes {len(encoding)} tokens, the model reads {limit}"
            else:
                batches.setdefault((encoding.prefix, encoding.continuations), []).append(row)
        for rows in batches.values():
            batch = stack_visual([visual[row] for row in rows])
            scores = self.log_probabilities(batch, [encoded[row] for row in rows]).cpu()
            for row, row_scores in zip(rows, scores, strict=True):
                finite = bool(torch.isfinite(row_scores).all())
                yield (
                    row,
                    row_scores if finite else None,
                    None if finite else "the model gave no finite score",
                )

    def _check_policies(self, taxonomies: Sequence[Taxonomy]) -> None:
        """Raise if a policy by itself does not fit, so that no image could be scored under it."""
        for taxonomy in taxonomies:
            question = self.encoder.variants(taxonomy, None, multilabel=False)
            tokens = len(self.encoder.encode_row(question, image_tokens=()))
            if tokens > self._context():
                raise ArbiterError(
                    f"The policy {taxonomy.name!r} takes {tokens} tokens and the model reads {self._context()}; "
                    "select fewer categories or shorten their definitions."
                )

    def _context(self) -> int:
        """Tokens that the language model reads at most."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 10**9)

    def _prefix(self, tokens: tuple[int, ...]) -> Prefix:
        """Keys and values of the tokens before the image, cached."""
        prefix = self._prefixes.get(tokens)
        if prefix is not None:
            return prefix
        layers: tuple[tuple[Tensor, Tensor], ...] = ()
        if tokens:
            ids = torch.tensor([tokens], device=self.model.device)
            # Without gradient even in attacks: it does not depend on the image.
            with torch.no_grad():
                cache = self.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
            layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        prefix = self._prefixes[tokens] = Prefix(len(tokens), layers)
        return prefix

    def clear_cache(self) -> None:
        """Drop cached policies; call it after the weights have changed."""
        self._prefixes.clear()


class _Table:
    """Arrays for the scores of one taxonomy, filled row by row."""

    def __init__(self, rows: int, taxonomy: Taxonomy) -> None:
        self.unsafe = np.full(rows, np.nan)
        self.categories = np.full((rows, len(taxonomy)), np.nan)
        self.reasons: list[str | None] = [None] * rows

    def scores(self) -> Scores:
        return on_one_scale(Scores(self.unsafe, self.categories, tuple(self.reasons)))


def _fill(
    tables: Sequence[_Table],
    row: int,
    variants: Sequence[Variant],
    log_probabilities: Tensor | None,
    reason: str | None,
) -> None:
    """Write a row's scores from the log-probabilities (C,) of its continuations, in the order of its variants."""
    start = 0
    for variant in variants:
        table, answers = tables[variant.taxonomy], variant.chat.answers
        if log_probabilities is None:
            table.reasons[row] = reason
            continue
        # In float64, so that a sum of probabilities near 1 keeps its distance to 1.
        probabilities = log_probabilities[start : start + len(answers)].double().exp().numpy()
        start += len(answers)
        if variant.focus is None:
            table.unsafe[row] = float(probabilities[1:].sum())  # all answers but the safe one
        for answer, probability in zip(answers, probabilities, strict=True):
            if answer.category is not None:
                table.categories[row, answer.category] = float(probability)
