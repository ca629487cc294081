"""Policy families of structure: the same things in another order, in more or fewer categories."""

from dataclasses import replace

from prompts.taxonomy import Category, Taxonomy
from prompts.unrelated import from_examples

from .family import Policy, PolicyRewriter, RefusedRewritingError, Setting, replace_categories

_SIZES = ("large", "taking up at least half of the picture"), ("small", "taking up less than half of it")

_SHORTEST = 100
"""Examples of unrelated categories that are drawn from, the shortest ones."""


def reversed_order(policy: Taxonomy, setting: Setting) -> Policy:
    """Last category first."""
    return replace_categories(policy, reversed(policy.categories))


def categories(count: int, *, whole: int = 10) -> PolicyRewriter:
    """Policies of exactly `count` categories, filled up with unrelated ones at random places.

    Of a longer policy the most violated category stays, and others drawn at random. Of the unrelated ones up to
    `whole` have their own definition; the others are examples of such categories, in few words, so that a hundred fit
    into a short context.
    """

    def rewrite(policy: Taxonomy, setting: Setting) -> Policy:
        if len(policy) >= count:
            # Without the most violated one, hardly an image would be unsafe under a short policy.
            first, *others = setting.by_frequency(policy)
            kept = {first.key, *(c.key for c in setting.rng.sample(others, count - 1))}
            return replace_categories(policy, (c for c in policy if c.key in kept))
        fillers = _fillers(setting, count - len(policy), whole)
        mixed = [*policy, *fillers]
        setting.rng.shuffle(mixed)
        return replace_categories(policy, mixed, absent=frozenset(c.key for c in fillers))

    return rewrite


def _fillers(setting: Setting, count: int, whole: int) -> list[Category]:
    """Unrelated categories, `whole` of them at most with their own definition, without a name twice."""
    known = list(setting.unrelated)
    setting.rng.shuffle(known)
    shown = sorted(from_examples(known), key=lambda category: len(category.name))[:_SHORTEST]
    setting.rng.shuffle(shown)
    chosen: dict[str, Category] = {}  # by case-folded name: two taxonomies may share one
    for category in [*known[: min(whole, count)], *shown, *known[whole:]]:
        if len(chosen) < count:
            chosen.setdefault(category.name.casefold(), replace(category, examples=()))
    if len(chosen) < count:
        raise RefusedRewritingError(
            f"it needs more unrelated categories than the {len(chosen)} known; name taxonomies of which no image "
            "violates anything as `unrelated`"
        )
    return list(chosen.values())


def duplicates(policy: Taxonomy, setting: Setting) -> Policy:
    """Every category a second time, under another name and, where there is one, another definition."""
    again = []
    for category in policy:
        full = setting.entry_of(category)
        name = setting.rng.choice(full.aliases) if full.aliases else f"{category.name}, again"
        definition = setting.rng.choice(full.rewordings) if full.rewordings else category.definition
        again.append(replace(category, name=name, definition=definition, key=f"{category.key}, again"))
    return replace_categories(policy, [*policy, *again])


def merged(policy: Taxonomy, setting: Setting) -> Policy:
    """Neighbours as one category; the last of an odd number stays alone."""
    found = []
    for first, *rest in (policy.categories[place : place + 2] for place in range(0, len(policy), 2)):
        found.append(_merge(first, rest[0]) if rest else first)
    return replace_categories(policy, found)


def _merge(one: Category, two: Category) -> Category:
    return Category(
        f"{one.name} or {two.name}",
        f"{one.definition.rstrip('.')}; or {two.definition}",
        key=f"{one.key} or {two.key}",
        members=one.members + two.members,
    )


def split(policy: Taxonomy, setting: Setting) -> Policy:
    """Every category as two, by size. Nobody labelled sizes, but together they are the category: the truth is known."""
    parts = [
        replace(
            category,
            name=f"{category.name}, {size}",
            definition=f"{category.definition.rstrip('.')}, {extent}",
            key=f"{category.key}, {size}",
        )
        for category in policy
        for size, extent in _SIZES
    ]
    return replace_categories(policy, parts)
