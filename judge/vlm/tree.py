"""Many continuations of one text as a tree of tokens, so that shared tokens are computed once.

The closed answers of a template ("safe", "unsafe: Hate", ...), the questions about each category and whole
taxonomies after an image are all continuations. Packed one node after another under a mask that lets a node read
its ancestors only, all of them are scored in one forward pass, exactly as if each had been run alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Continuation:
    """Tokens that may follow; those from `answer` on are the answer whose probability is asked for."""

    tokens: tuple[int, ...]
    answer: int


@dataclass(frozen=True)
class TokenTree:
    """The union of continuations. Node numbers are in depth-first order: parents come before children."""

    tokens: tuple[int, ...]
    """(T,) token of each node that has to be fed: the last token of an answer is predicted, never fed."""
    parents: tuple[int, ...]
    """(T,) node before this one, -1 for the end of the text itself."""
    depths: tuple[int, ...]
    """(T,) tokens between the end of the text and this node, from 0."""
    steps: tuple[tuple[tuple[int, int], ...], ...]
    """For each continuation, its answer's tokens as (node that predicts, token predicted)."""

    def ancestry(self) -> Tensor:
        """(T, T) bool: which nodes each node reads, itself included."""
        size = len(self.tokens)
        reads = torch.eye(size, dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                reads[node] |= reads[parent]
        return reads

    @property
    def predictors(self) -> tuple[int, ...]:
        """Nodes whose logits are needed, in order; -1 is the last token of the text."""
        return tuple(sorted({node for steps in self.steps for node, _ in steps}))


def build_tree(continuations: Sequence[Continuation]) -> TokenTree:
    """Merge continuations that begin alike.

    Raises:
        ValueError: an empty answer, or no continuation.
    """
    if not continuations or any(c.answer >= len(c.tokens) for c in continuations):
        raise ValueError(
            "A token tree needs at least one continuation, each with an answer of one token or more."
        )
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    children: dict[tuple[int, int], int] = {}
    steps = []
    for continuation in continuations:
        node, wanted = -1, []
        for depth, token in enumerate(continuation.tokens):
            if depth >= continuation.answer:
                wanted.append((node, token))
            if depth == len(continuation.tokens) - 1:
                break
            if (node, token) not in children:
                children[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
                depths.append(depth)
            node = children[node, token]
        steps.append(tuple(wanted))
    return TokenTree(tuple(tokens), tuple(parents), tuple(depths), tuple(steps))


def answer_log_probabilities(tree: TokenTree, logits: Tensor) -> Tensor:
    """Log-probability of each continuation's answer among those that may stand in its place.

    At every step the model chooses between the tokens with which an allowed answer goes on, and nothing else: the
    distribution of constrained decoding, which sums to one over the answers to one question. (Normalising whole
    sequences instead would punish an answer for its length: what the model puts on other ways to go on after
    "unsafe" would count for "safe".)

    Args:
        tree: of C continuations.
        logits: (B, J, V) at the tree's J `predictors`, in their order.

    Returns:
        (B, C) float32.
    """
    places = {node: place for place, node in enumerate(tree.predictors)}
    allowed: dict[int, list[int]] = {node: [] for node in places}
    for node, token in dict.fromkeys(step for steps in tree.steps for step in steps):
        allowed[node].append(token)
    chances = {}
    for node, tokens in allowed.items():
        chosen = logits[:, places[node], torch.tensor(tokens, device=logits.device)].float().log_softmax(dim=-1)
        chances.update({(node, token): chosen[:, place] for place, token in enumerate(tokens)})
    totals = [torch.stack([chances[step] for step in steps]).sum(dim=0) for steps in tree.steps]
    return torch.stack(totals, dim=1)
