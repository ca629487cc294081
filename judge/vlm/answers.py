"""Log-probabilities of closed answers: one forward pass for the questions about several images.

A cached prefix (the policy), then each image with a token tree of its questions and answers (`judge.vlm.tree`). A tree
that is too large for one row runs as rows of a batch, after its image.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from .encode import Encoded
from .pack import Prefix, Visual, pack_bins, pack_trees
from .tree import EMPTY_TREE, Continuation, TokenTree, answer_log_probabilities, build_tree

MAX_CACHED_POLICIES = 16
"""Size of the cache of prefixes' keys and values; the least recently used is evicted."""
TREE_WIDTH = 512
"""Largest tree, in tokens, that is packed after its image in one row; a larger one is split into several rows."""


class AnswerScorer:
    """Scores the closed answers of encoded questions with one vision-language model.

    Args:
        model: an `AutoModelForImageTextToText` in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._prefixes: LRUCache[tuple[int, ...], Prefix] = LRUCache(MAX_CACHED_POLICIES)

    def log_probabilities(
        self, visual: Visual, encoded: Sequence[Encoded], *, keep_gradient: bool = False
    ) -> list[Tensor]:
        """Log-probabilities of B rows' continuations: B tensors (C,), each over the answers to its own questions.

        Args:
            visual: pixel tensors of the B images.
            encoded: B rows that share the prefix.
            keep_gradient: differentiable in `visual["pixel_values"]`.
        """
        # Rows with the same questions share a tree: without prompts, all of them.
        known: dict[tuple[Continuation, ...], TokenTree] = {}
        for row in encoded:
            if row.continuations not in known:
                known[row.continuations] = build_tree(row.continuations)
        trees = [known[row.continuations] for row in encoded]
        chains = [row.chain for row in encoded]
        with nullcontext() if keep_gradient else torch.no_grad():
            prefix = self._prefix(encoded[0].prefix)
            if max(len(tree.tokens) for tree in trees) > TREE_WIDTH:
                logits = self._large_tree_logits(chains, trees, prefix, visual)
            else:
                inputs = pack_trees(self.model, chains, trees, prefix, visual)
                # Without a prefix (image first) there is no cache to pass.
                cache = (
                    {"past_key_values": prefix.expand(len(chains)), "use_cache": True}
                    if prefix.length
                    else {}
                )
                logits = list(self.model(**inputs, **cache).logits)  # (J, V) each
        # Trees are read once for all rows that share them: (rows, J, V) -> (rows, C).
        found: dict[int, Tensor] = {}
        for tree in known.values():
            rows = [row for row, own in enumerate(trees) if own is tree]
            of_rows = torch.stack([logits[row][: len(tree.predictors)] for row in rows])
            found.update(zip(rows, answer_log_probabilities(tree, of_rows), strict=True))
        return [found[row] for row in range(len(trees))]

    def _large_tree_logits(
        self,
        chains: Sequence[tuple[int, ...]],
        trees: Sequence[TokenTree],
        prefix: Prefix,
        visual: Visual,
    ) -> list[Tensor]:
        """Logits (J, V) at the J predictors of B large trees: first the chains, then the bins as rows of a batch.

        In one row, attention between all pairs of nodes would be computed, and most of it masked.
        """
        stem = pack_trees(self.model, chains, [EMPTY_TREE] * len(chains), prefix, visual)
        first = self.model(**stem, past_key_values=prefix.expand(len(chains)), use_cache=True)
        # Keys and values of prefix and chains, (B, H, P + L, D) each; a row's own part is its cache for the bins.
        layers = [(layer.keys, layer.values) for layer in first.past_key_values.layers]
        found = []
        for row, (chain, tree) in enumerate(zip(chains, trees, strict=True)):
            bins = tree.bins(TREE_WIDTH)
            predictors = set(tree.predictors)
            # A node in several bins has equal logits in each; the last one is taken.
            order = [-1, *(node for nodes in bins for node in nodes if node in predictors)]
            place = {node: number for number, node in enumerate(order)}
            places = torch.tensor([place[node] for node in tree.predictors], device=first.logits.device)
            # The largest position of the row: padding repeats the last one, and M-RoPE has three per token.
            ends = stem["position_ids"][..., row : row + 1, :].amax(dim=-1, keepdim=True).cpu()
            cached = prefix.length + len(chain)  # without the padding of shorter chains
            own = Prefix(
                cached, tuple((k[row : row + 1, :, :cached], v[row : row + 1, :, :cached]) for k, v in layers)
            )
            inputs = pack_bins(self.model, tree, bins, cached, ends)
            output = self.model(**inputs, past_key_values=own.expand(len(bins)), use_cache=True)
            found.append(torch.cat([first.logits[row], output.logits.flatten(0, -2)])[places])
        return found

    def _prefix(self, tokens: tuple[int, ...]) -> Prefix:
        """Keys and values of the tokens before the image, cached."""
        from transformers import DynamicCache

        prefix = self._prefixes.get(tokens)
        if prefix is not None:
            return prefix
        layers: tuple[tuple[Tensor, Tensor], ...] = ()
        if tokens:
            ids = torch.tensor([tokens], device=self.model.device)
            # Without gradient even in attacks: it does not depend on the image.
            with torch.no_grad():
                # A cache that keeps all tokens: that of models with a sliding window would drop those outside it.
                cache = self.model(
                    input_ids=ids, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1
                ).past_key_values
            layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        prefix = self._prefixes[tokens] = Prefix(len(tokens), layers)
        return prefix

    def clear_cache(self) -> None:
        """Drop cached policies; call it after the weights have changed."""
        self._prefixes.clear()


def by_question(encoded: Encoded, scores: Tensor) -> tuple[Tensor, ...]:
    """The log-probabilities (C,) of a row's continuations, split by question."""
    return torch.split(scores, [len(question) for question in encoded.questions])
