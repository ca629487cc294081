"""Categories that no image of the data violates, to fill policies up with.

That an image shows nothing of a category is knowledge, not a default: no data set is labelled for other people's
taxonomies. So a user names taxonomies of which he knows it (the digits that ship show digits and nothing else).
"""

from collections.abc import Iterable, Sequence

from .errors import TaxonomyError
from .example import Example
from .names import MAX_NAME_LENGTH
from .taxonomy import Category, Taxonomy


def unrelated_categories(
    taxonomies: Sequence[Taxonomy], taxonomy: Taxonomy, examples: Iterable[Example]
) -> tuple[Category, ...]:
    """The categories of other taxonomies, each with a key of its own; names that come twice are used once.

    Their examples are for `from_examples`: what fills a policy up is rendered without, or they would be most of it.

    Args:
        taxonomies: of which no image violates anything.
        taxonomy: the one that is asked about.
        examples: the images.

    Raises:
        TaxonomyError: one of them shares a name, alias, code or key with the taxonomy or with the images' labels, so
            an image may well violate it.
    """
    ours = {word.casefold() for category in taxonomy for word in _words(category)}
    ours |= {key.casefold() for example in examples for key in example.violates | example.unknown}
    found: dict[str, Category] = {}
    for other in taxonomies:
        for category in other:
            shared = sorted(word for word in _words(category) if word.casefold() in ours)
            if shared:
                raise TaxonomyError(
                    f"{other.name!r} is not unrelated to {taxonomy.name!r}: both speak of {shared[0]!r}, so images "
                    "may violate it. Leave it out, or give a taxonomy without it."
                )
            key = f"{other.name}/{category.key}"
            plain = Category(category.name, category.definition, category.examples, key=key)
            found.setdefault(category.name.casefold(), plain)  # the first taxonomy keeps the name
    return tuple(found.values())


def from_examples(categories: Iterable[Category]) -> list[Category]:
    """A short category for each example that the categories give: in few words, so that many fit into a context."""
    return [
        Category(example, "shown", key=f"{category.key}/{example}")
        for category in categories
        for example in category.examples
        if len(example) <= MAX_NAME_LENGTH and ":" not in example
    ]


def _words(category: Category) -> set[str]:
    codes = {category.code} if category.code else set()
    return {category.name, category.key, *category.members, *category.aliases, *codes}
