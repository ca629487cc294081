"""Which category an image violates, and which one the verdict names: a table of counts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from eval.metrics.judged import JudgedRow

SAFE, UNJUDGED, UNNAMED = "safe", "unjudged", "unsafe, no category"


@dataclass(frozen=True)
class Cell:
    """How many rows, and which share of their line."""

    rows: int
    share: float
    right: bool


@dataclass(frozen=True)
class CategoryConfusion:
    """A line for each category that is violated, and one for safe images."""

    heads: tuple[str, ...]
    """What the verdict says."""
    lines: tuple[tuple[str, int, tuple[Cell, ...]], ...]
    """What the image violates, its rows, and a cell for each of `heads`."""


def category_confusion(rows: Sequence[JudgedRow], threshold: float = 0.5) -> CategoryConfusion | None:
    """Count rows by what is true and what was said, categories by key; None without a category on either side.

    Every row is counted once: one that violates several categories under the one that the verdict names, if it is
    among them, else under the first by name.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        key_of = dict(zip(row.policy, row.keys or row.policy, strict=True))
        violated = sorted(key_of.get(name, name) for name in row.violated)
        flagged = row.flagged(threshold)
        named = None if row.category is None else key_of.get(row.category, row.category)
        said = UNJUDGED if flagged is None else SAFE if not flagged else named or UNNAMED
        true = SAFE if not row.truth else said if said in violated else violated[0] if violated else UNNAMED
        counts[true, said] += 1
    # Both ends of the same names, so that what is right lies on the diagonal.
    categories = sorted({name for pair in counts for name in pair} - {SAFE, UNJUDGED, UNNAMED})
    if not categories:
        return None
    ends = [*categories, SAFE]
    heads = [*ends, *(name for name in (UNNAMED, UNJUDGED) if any(said == name for _, said in counts))]
    lines = []
    for true in [*ends, *([UNNAMED] if any(name == UNNAMED for name, _ in counts) else [])]:
        total = sum(number for (name, _), number in counts.items() if name == true)
        if total:
            cells = (Cell(counts[true, said], counts[true, said] / total, true == said) for said in heads)
            lines.append((true, total, tuple(cells)))
    return CategoryConfusion(tuple(heads), tuple(lines))
