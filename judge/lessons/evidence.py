"""What is known of a classifier's answers about a category: trained, measured, or nothing.

A category is what a classifier reads of it: its definition (or its name, where no definition is shown), case ignored.
A trained key under a wording of the user's own is another text, of which nothing is known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from prompts.flip import Row
from prompts.taxonomy import Category, Taxonomy

TRAINED, NONE = "trained", "none"


@dataclass(frozen=True)
class Evidence:
    """Texts of categories that lessons showed on images, and F1 of those that were only measured."""

    trained: frozenset[str] = frozenset()
    """As `read_text` gives them."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """Text -> F1 of the questions about it."""

    def of_category(self, category: Category) -> str:
        """`trained`, `measured 0.96` or `none`."""
        return _level(self._known(read_text(category)))

    def of_policy(self, taxonomy: Taxonomy) -> str:
        """The weakest of its categories."""
        return _level(min(self._known(read_text(category)) for category in taxonomy))

    def without(self, taxonomy: Taxonomy) -> list[str]:
        """Names of the categories of which nothing is known."""
        return [category.name for category in taxonomy if self.of_category(category) == NONE]

    def weaker(self, other: "Evidence") -> "Evidence":
        """What is known of two classifiers that answer together: the weaker of both, text by text."""
        trained = self.trained & other.trained
        texts = ({*self.trained, *self.measured} & {*other.trained, *other.measured}) - trained
        return Evidence(trained, {text: min(self._known(text), other._known(text)) for text in texts})

    def _known(self, text: str) -> float:
        """Infinite for trained, F1 for measured, below 0 for neither."""
        return inf if text in self.trained else self.measured.get(text, -1.0)


@runtime_checkable
class HasEvidence(Protocol):
    """A classifier of which it is known what it was trained and measured on."""

    @property
    def evidence(self) -> Evidence | None:
        """None where nothing was kept."""
        ...


def evidence_of(classifier: object) -> Evidence:
    """What is known of a classifier; of a base, a server or a run of an older version nothing."""
    found = classifier.evidence if isinstance(classifier, HasEvidence) else None
    return found or Evidence()


def read_text(category: Category) -> str:
    """What identifies a category: its definition, or its name where that is all that is shown; case ignored."""
    return _folded(category.name if category.name_only else category.definition)


def trained_texts(rows: Iterable["Row"], taxonomy: Taxonomy) -> frozenset[str]:
    """Names and definitions of the taxonomy that unsafe rows gave as their answer.

    A category that lessons only ever had beside others, on no image of its own, was not trained. Wordings of the
    lessons that the taxonomy does not hold (clauses, typos) are endless and stay out.
    """
    # By object: rows of a group share their policy, and `index` is asked once for each of its categories.
    shown = {(id(row.taxonomy), row.category): row for row in rows if row.category is not None}
    found = set()
    for row in shown.values():
        category = row.taxonomy.categories[row.taxonomy.index(str(row.category))]
        found |= (
            {_folded(category.name)}
            if category.name_only
            else {
                _folded(category.name),
                _folded(category.definition),
            }
        )
    return own_texts(taxonomy) & found


def own_texts(categories: Iterable[Category]) -> frozenset[str]:
    """Every name and definition that these categories have."""
    return frozenset(
        _folded(text)
        for category in categories
        for text in (category.name, category.definition, *category.aliases, *category.rewordings)
    )


def _folded(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()


def _level(known: float) -> str:
    return TRAINED if known == inf else NONE if known < 0 else f"measured {known:.2f}"
