"""How well each category was judged, as evidence for later verdicts about it."""

from collections.abc import Sequence

from prompts.taxonomy import Category, Taxonomy

from .metrics.judged import JudgedRow, by_category


def measured_categories(
    judged: Sequence[JudgedRow], taxonomy: Taxonomy, threshold: float = 0.5
) -> list[tuple[Category, float, int]]:
    """The taxonomy's categories that judged rows violate, each with F1 and the number of rows about it.

    Args:
        judged: rows under policies of these categories, told apart by key.
        taxonomy: the categories as it words them.
        threshold: P(unsafe) from which a row is flagged.
    """
    found = by_category(judged, threshold)
    return [
        (category, found[category.key]["f1"], found[category.key]["rows"])
        for category in taxonomy
        if category.key in found and found[category.key]["unsafe_rows"]  # else F1 is undefined
    ]
