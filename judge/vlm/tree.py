"""Many continuations of one text as a tree of tokens (a trie), so that shared tokens are computed once.

The closed answers of a template ("safe", "unsafe: Hate", ...), the questions about each category and whole
taxonomies after an image are all continuations. Packed into one sequence under a mask that lets a node attend to its
ancestors only, all are scored in one forward pass, exactly as if each had been run alone.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Continuation:
    """Tokens that may follow the text; those from `answer_start` on are the answer whose probability is wanted."""

    tokens: tuple[int, ...]
    answer_start: int


@dataclass(frozen=True)
class TokenTree:
    """The union of continuations, as T nodes. Parents have smaller numbers than their children."""

    tokens: tuple[int, ...]
    """(T,) token of each node that is an input: those with a choice after them."""
    parents: tuple[int, ...]
    """(T,) node before this one, -1 for the end of the text."""
    depths: tuple[int, ...]
    """(T,) tokens between the end of the text and this node, from 0."""
    steps: tuple[tuple[tuple[int, int], ...], ...]
    """For each continuation, the choices along its answer: (node that predicts, token).

    A token that is the only one allowed has probability one, so it is no choice and needs no prediction.
    """

    def ancestor_mask(self) -> Tensor:
        """(T, T) bool: the nodes that each node attends to, its ancestors and itself."""
        size = len(self.tokens)
        mask = torch.eye(size, dtype=torch.bool)
        for node, parent in enumerate(self.parents):  # parents first, so their rows are complete
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask

    def bins(self, width: int) -> tuple[tuple[int, ...], ...]:
        """Subtrees that together contain every choice; each has all ancestors of its nodes, so bins run independently.

        Continuations are added in order while a bin has at most `width` nodes, or a quarter more than the longest
        continuation if that is larger; nodes shared by bins are in each of them.
        """
        paths: list[frozenset[int]] = []
        for node, parent in enumerate(self.parents):
            paths.append((paths[parent] if parent >= 0 else frozenset()) | {node})
        needed = [frozenset().union(*(paths[node] for node, _ in steps if node >= 0)) for steps in self.steps]
        width = max(width, max(map(len, needed), default=0) * 5 // 4)
        found: list[frozenset[int]] = [frozenset()]
        for nodes in needed:
            if len(found[-1] | nodes) <= width:
                found[-1] |= nodes
            elif not any(nodes <= place for place in found):
                found.append(nodes)
        return tuple(tuple(sorted(place)) for place in found if place)

    @property
    def predictors(self) -> tuple[int, ...]:
        """(J,) nodes whose logits are needed, in order; -1 is the last token of the text."""
        return tuple(sorted({node for steps in self.steps for node, _ in steps})) or (-1,)


EMPTY_TREE = TokenTree((), (), (), ())
"""A tree without nodes: only the end of the text predicts."""


def build_tree(continuations: Sequence[Continuation]) -> TokenTree:
    """Merge continuations by their common prefixes.

    Raises:
        ValueError: an empty answer, or no continuation.
    """
    if not continuations or any(c.answer_start >= len(c.tokens) for c in continuations):
        raise ValueError(
            "A token tree needs at least one continuation, each with an answer of one token or more."
        )
    children: dict[tuple[int, int], int] = {}
    steps: list[list[tuple[int, int]]] = []
    for continuation in continuations:
        node, path = -1, []
        for depth, token in enumerate(continuation.tokens):
            if depth >= continuation.answer_start:
                path.append((node, token))
            # A new node gets the next number, so parents are numbered before their children.
            node = children.setdefault((node, token), len(children))
        steps.append(path)
    # How many tokens may follow each node: where it is one, there is no choice.
    allowed = Counter(node for node, _ in {step for path in steps for step in path})
    choices = [[(node, token) for node, token in path if allowed[node] > 1] for path in steps]
    return _prune(children, choices)


def one_vs_rest(continuations: Sequence[Continuation], place: int = 0) -> tuple[Continuation, ...]:
    """The closed answers to one question, truncated to what the probability of one of them needs.

    After the first token at which an answer differs from that one, the probabilities of all its continuations sum to
    one. So truncating there changes nothing and keeps the tree small: P(unsafe) needs no category.

    Args:
        continuations: all answers.
        place: index of the one; 0 is the safe one.

    Returns:
        The one in full, then the distinct beginnings of the others.
    """
    one = continuations[place]
    found = [one]
    for other in (*continuations[:place], *continuations[place + 1 :]):
        pairs = zip(one.tokens, other.tokens, strict=False)
        shared = next((depth for depth, (left, right) in enumerate(pairs) if left != right), len(one.tokens))
        found.append(Continuation(other.tokens[: shared + 1], other.answer_start))
    return tuple(dict.fromkeys(found))


def _prune(children: dict[tuple[int, int], int], choices: Sequence[Sequence[tuple[int, int]]]) -> TokenTree:
    """The part of a tree, given as (parent, token) -> node, that leads to choices."""
    edges = list(children)
    needed: set[int] = set()
    for node in {node for path in choices for node, _ in path}:
        while node >= 0 and node not in needed:
            needed.add(node)
            node = edges[node][0]
    # Renumber what is left, in order.
    places = {-1: -1} | {node: place for place, node in enumerate(sorted(needed))}
    depths = {-1: -1}
    for node in sorted(needed):
        depths[node] = depths[edges[node][0]] + 1
    return TokenTree(
        tokens=tuple(edges[node][1] for node in sorted(needed)),
        parents=tuple(places[edges[node][0]] for node in sorted(needed)),
        depths=tuple(depths[node] for node in sorted(needed)),
        steps=tuple(tuple((places[node], token) for node, token in path) for path in choices),
    )


def answer_log_probabilities(tree: TokenTree, logits: Tensor) -> Tensor:
    """Log-probability of each continuation's answer among the allowed answers to its question.

    At every step the model chooses only among tokens that continue an allowed answer: the distribution of constrained
    decoding, which sums to one over the answers to a question. (Normalising probabilities of whole sequences instead
    would penalise long answers: probability of disallowed tokens after "unsafe" would count for "safe".)

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
    log_probabilities = {}
    for node, tokens in allowed.items():
        index = torch.tensor(tokens, dtype=torch.long, device=logits.device)  # empty if there is no choice
        # Softmax over the allowed tokens only, (B, tokens), in float32: 16-bit logits would cost digits.
        chosen = logits[:, places[node], index].float().log_softmax(dim=-1)
        log_probabilities.update({(node, token): chosen[:, place] for place, token in enumerate(tokens)})
    certain = logits.new_zeros(len(logits), dtype=torch.float32)
    return torch.stack(
        [sum((log_probabilities[step] for step in steps), certain) for steps in tree.steps], dim=1
    )
