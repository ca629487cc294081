"""Many continuations of one text as a tree of tokens, so that shared tokens are computed once.

The closed answers of a template ("safe", "unsafe: Hate", ...), the questions about each category and whole
taxonomies after an image are all continuations. Packed one node after another under a mask that lets a node read
its ancestors only, all of them are scored in one forward pass, exactly as if each had been run alone.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Continuation:
    """Tokens that may follow; those from `answer_start` on are the answer whose probability is asked for."""

    tokens: tuple[int, ...]
    answer_start: int


@dataclass(frozen=True)
class TokenTree:
    """The union of continuations. Parents have smaller numbers than their children."""

    tokens: tuple[int, ...]
    """(T,) token of each node that has to be fed: those that a choice reads."""
    parents: tuple[int, ...]
    """(T,) node before this one, -1 for the end of the text itself."""
    depths: tuple[int, ...]
    """(T,) tokens between the end of the text and this node, from 0."""
    steps: tuple[tuple[tuple[int, int], ...], ...]
    """For each continuation, the choices on the way to the end of its answer: (node that predicts, token).

    A token that is the only one allowed has probability one: it is no choice, and nobody predicts it.
    """

    def ancestor_mask(self) -> Tensor:
        """(T, T) bool: which nodes each node reads, itself included."""
        size = len(self.tokens)
        reads = torch.eye(size, dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                reads[node] |= reads[parent]
        return reads

    def bins(self, width: int) -> tuple[tuple[int, ...], ...]:
        """Sets of nodes, each complete with all that its nodes read, that together hold every choice.

        Continuations are put together in their order while a bin has no more than `width` nodes, or a quarter more
        than the longest of them; what bins have in common stands in each. So bins can run side by side.
        """
        reads: list[frozenset[int]] = []
        for node, parent in enumerate(self.parents):
            reads.append((reads[parent] if parent >= 0 else frozenset()) | {node})
        needed = [frozenset().union(*(reads[node] for node, _ in steps if node >= 0)) for steps in self.steps]
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
        """Nodes whose logits are needed, in order; -1 is the last token of the text."""
        return tuple(sorted({node for steps in self.steps for node, _ in steps})) or (-1,)


EMPTY_TREE = TokenTree((), (), (), ())
"""Nothing but the end of the text itself."""


def build_tree(continuations: Sequence[Continuation]) -> TokenTree:
    """Merge continuations that begin alike.

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
        node, wanted = -1, []
        for depth, token in enumerate(continuation.tokens):
            if depth >= continuation.answer_start:
                wanted.append((node, token))
            node = children.setdefault((node, token), len(children))
        steps.append(wanted)
    allowed = Counter(node for node, _ in {step for wanted in steps for step in wanted})
    choices = [[(node, token) for node, token in wanted if allowed[node] > 1] for wanted in steps]
    return _pruned(children, choices)


def one_vs_rest(continuations: Sequence[Continuation], place: int = 0) -> tuple[Continuation, ...]:
    """The closed answers to one question, cut where they part from one of them: all that its probability needs.

    Behind the first token at which an answer leaves that one, none leads back, and the probabilities of all that may
    follow sum to one. So leaving it out changes nothing, and spares a tree its nodes: a verdict needs no category.

    Args:
        continuations: all answers.
        place: of the one; 0 is the safe one.

    Returns:
        The one, whole, and then, each once, the beginnings of the others.
    """
    one = continuations[place]
    found = [one]
    for other in (*continuations[:place], *continuations[place + 1 :]):
        pairs = zip(one.tokens, other.tokens, strict=False)
        shared = next((depth for depth, (left, right) in enumerate(pairs) if left != right), len(one.tokens))
        found.append(Continuation(other.tokens[: shared + 1], other.answer_start))
    return tuple(dict.fromkeys(found))


def _pruned(children: dict[tuple[int, int], int], choices: Sequence[Sequence[tuple[int, int]]]) -> TokenTree:
    """The part of a tree, given as (parent, token) -> node, that leads to nodes where something is chosen."""
    edges = list(children)
    needed: set[int] = set()
    for node in {node for wanted in choices for node, _ in wanted}:
        while node >= 0 and node not in needed:
            needed.add(node)
            node = edges[node][0]
    places = {-1: -1} | {node: place for place, node in enumerate(sorted(needed))}
    depths = {-1: -1}
    for node in sorted(needed):
        depths[node] = depths[edges[node][0]] + 1
    return TokenTree(
        tokens=tuple(edges[node][1] for node in sorted(needed)),
        parents=tuple(places[edges[node][0]] for node in sorted(needed)),
        depths=tuple(depths[node] for node in sorted(needed)),
        steps=tuple(tuple((places[node], token) for node, token in wanted) for wanted in choices),
    )


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
        index = torch.tensor(tokens, dtype=torch.long, device=logits.device)  # empty where all is certain
        chosen = logits[:, places[node], index].float().log_softmax(dim=-1)
        chances.update({(node, token): chosen[:, place] for place, token in enumerate(tokens)})
    certain = logits.new_zeros(len(logits), dtype=torch.float32)
    return torch.stack([sum((chances[step] for step in steps), certain) for steps in tree.steps], dim=1)
