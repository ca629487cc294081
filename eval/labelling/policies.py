"""Several taxonomies about the same things: subsets of one, in other orders and in other words of its own."""

from dataclasses import replace
from random import Random

from prompts.taxonomy import Category, Taxonomy

SHARE = (0.4, 1.0)
"""Of the categories, that a drawn taxonomy has at least and at most."""


def draw_taxonomies(taxonomy: Taxonomy, count: int, seed: int = 0) -> list[Taxonomy]:
    """The taxonomy itself and `count` - 1 others, named `NAME-2` and so on.

    Their categories are drawn from its own, in another order; about half of them go by an alias, about half are
    defined by one of their rewordings. So lessons about the taxonomy, which show such policies, cover them.
    """
    draw = Random(seed)
    found = [replace(taxonomy, categories=tuple(_bare(category) for category in taxonomy))]
    for number in range(2, count + 1):
        size = round(draw.uniform(*SHARE) * len(taxonomy))
        chosen = draw.sample(list(taxonomy), max(1, size))
        categories = tuple(_reworded(category, draw) for category in chosen)
        found.append(replace(taxonomy, name=f"{taxonomy.name}-{number}", categories=categories))
    return found


def _reworded(category: Category, draw: Random) -> Category:
    names, definitions = [category.name], [category.definition]
    if draw.random() < 0.5:
        names = list(category.aliases) or names
    if draw.random() < 0.5:
        definitions = list(category.rewordings) or definitions
    return replace(_bare(category), name=draw.choice(names), definition=draw.choice(definitions))


def _bare(category: Category) -> Category:
    return replace(category, aliases=(), rewordings=(), languages=())
