"""Drawing policies: which categories, under which names and definitions, in which order.

Nothing here depends on an image or a label, so the text of a policy cannot reveal a label.
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from prompts.names import MAX_NAME_LENGTH, MAX_TEXT_LENGTH
from prompts.taxonomy import Category, Taxonomy

from .options import FlipOptions


def draw_entries(
    taxonomy: Taxonomy, keys: Sequence[str], count: int, max_keys: int, options: FlipOptions, rng: Random
) -> list[Category]:
    """Categories for one policy, in random order, some renamed, reworded or merged into a custom one.

    Args:
        taxonomy: where categories, aliases and rewordings come from.
        keys: keys that may be used.
        count: how many categories to return.
        max_keys: most keys that the categories may cover together, at least `count`.
        options: shares of changes.
        rng: source of every choice.
    """
    # Merging needs keys beyond `count`, of which the data may not have enough.
    merged_count = min(rng.choice((2, 3)), max_keys - count + 1) if rng.random() < options.custom else 1
    by_key = dict(zip(taxonomy.keys, taxonomy.categories, strict=True))
    chosen = rng.sample(list(keys), count + merged_count - 1)
    varied = [_varied(by_key[key], options, rng) for key in chosen]
    # The first ones are merged into a custom category, so that the policy still has `count` entries.
    parts, singles = varied[:merged_count], varied[merged_count:]
    merged = _merged(parts, taxonomy, options, rng) if merged_count > 1 else None
    entries = [*singles, merged or parts[0]]
    rng.shuffle(entries)
    return entries


def _varied(category: Category, options: FlipOptions, rng: Random) -> Category:
    """The category as a policy states it: perhaps renamed or reworded, without its other names and texts."""
    name, definition, examples = category.name, category.definition, category.examples
    if category.aliases and rng.random() < options.rename:
        name = rng.choice(category.aliases)
    if category.rewordings and rng.random() < options.reword:
        definition, examples = rng.choice(category.rewordings), ()
    bare = replace(category, code=None, aliases=(), rewordings=(), languages=())
    return replace(bare, name=name, definition=definition, examples=examples)


def _merged(
    parts: Sequence[Category], taxonomy: Taxonomy, options: FlipOptions, rng: Random
) -> Category | None:
    """One custom category that covers all parts, named after them or by a neutral name.

    None where no free name or no definition of allowed length can be made.
    """
    used = {word.casefold() for category in taxonomy for word in (category.name, *category.aliases)}
    joined = " or ".join(part.name for part in parts)
    names = [joined]
    if options.names and (rng.random() < options.neutral_name or len(joined) > MAX_NAME_LENGTH):
        names = [*options.names]
    # A neutral name may be taken by a category of the user's.
    free = [name for name in names if name.casefold() not in used and len(name) <= MAX_NAME_LENGTH]
    definition = "; or ".join(part.definition.rstrip(".") for part in parts)
    if not free or len(definition) > MAX_TEXT_LENGTH:
        return None
    return Category(
        name=rng.choice(free),
        definition=definition,
        key="+".join(sorted(part.key for part in parts)),
        members=tuple(member for part in parts for member in part.members),
    )
