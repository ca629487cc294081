"""One image under two policies of opposite label, as a picture: what a judge that obeys a policy does."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from eval.metrics.judged import JudgedRow
from prompts.taxonomy import Taxonomy

SHORT = 4
"""Categories of a policy that can be taken in at a glance; pairs with such policies are shown where there are any."""


@dataclass(frozen=True)
class Line:
    """A category of a policy."""

    name: str
    definition: str
    only_here: bool
    """Whether the other policy of the pair lacks it."""
    violated: bool


@dataclass(frozen=True)
class Side:
    """The image under one of the two policies."""

    row: JudgedRow
    policy: tuple[Line, ...]
    verdict: str
    """`safe`, `unsafe` or `unjudged`."""
    right: bool


@dataclass(frozen=True)
class FlipPair:
    """What is shown of a pair: the unsafe side first."""

    sides: tuple[Side, Side]

    @property
    def right(self) -> bool:
        """Whether both verdicts are."""
        return all(side.right for side in self.sides)

    @property
    def row(self) -> JudgedRow:
        """Either row, for the image and the prompt, which both sides share."""
        return self.sides[0].row


def choose_pair(rows: Sequence[JudgedRow], threshold: float = 0.5) -> tuple[JudgedRow, JudgedRow] | None:
    """The unsafe and the safe row of the pair to show; None where no image is under two policies.

    Of the pairs that were judged right, if any, those without a prompt, without categories that combine several, and
    of short policies, where there are any; of them the one of middling certainty, neither the best nor the worst.
    """
    found: defaultdict[str, list[JudgedRow]] = defaultdict(list)
    for row in rows:
        if row.pair is not None:
            found[row.pair].append(row)
    pairs = [
        (pair[0], pair[1]) for pair in (sorted(p, key=lambda row: not row.truth) for p in found.values())
    ]
    right = [pair for pair in pairs if all(row.correct(threshold) for row in pair)]
    chosen = right or pairs
    for fits in (
        lambda row: row.prompt is None,
        lambda row: "custom" not in row.keys,
        lambda row: len(row.policy) <= SHORT,
    ):
        chosen = [pair for pair in chosen if all(map(fits, pair))] or chosen
    candidates = sorted(chosen, key=lambda pair: (_certainty(pair, threshold), pair[0].id))
    return candidates[len(candidates) // 2] if candidates else None


def flip_pair(
    rows: Sequence[JudgedRow], taxonomy: Taxonomy | None = None, threshold: float = 0.5
) -> FlipPair | None:
    """The pair that `choose_pair` takes, ready to be shown; None where there is none.

    Args:
        rows: judged rows.
        taxonomy: where definitions are looked up; without, names stand alone.
        threshold: p(unsafe) from which a row is flagged.
    """
    pair = choose_pair(rows, threshold)
    if pair is None:
        return None
    unsafe, safe = pair
    return FlipPair((_side(unsafe, safe, taxonomy, threshold), _side(safe, unsafe, taxonomy, threshold)))


def _certainty(pair: tuple[JudgedRow, JudgedRow], threshold: float) -> float:
    """Distance of the less certain score from the threshold; -1 where one is unjudged."""
    return min(abs(row.unsafe - threshold) if row.judged else -1.0 for row in pair)


def _side(row: JudgedRow, other: JudgedRow, taxonomy: Taxonomy | None, threshold: float) -> Side:
    definitions = {category.key: category.definition for category in taxonomy or ()}
    keys = row.keys or row.policy
    lines = tuple(
        Line(name, definitions.get(key, ""), key not in (other.keys or other.policy), name in row.violated)
        for name, key in zip(row.policy, keys, strict=True)
    )
    return Side(row, lines, verdict_word(row, threshold), row.correct(threshold))


def verdict_word(row: JudgedRow, threshold: float = 0.5) -> str:
    """`safe`, `unsafe` or `unjudged`."""
    return {None: "unjudged", True: "unsafe", False: "safe"}[row.flagged(threshold)]
