"""Policy families of logic: negation, exclusion, conjunction, exception. The truth is computed anew from the labels.

Categories to combine are chosen by the images asked about, so that both labels occur; the suite then balances them.
"""

from prompts.flip.conditions import Condition
from prompts.taxonomy import Category, Taxonomy

from .family import Policy, RefusedRewritingError, Setting, replace_categories

_Couple = tuple[int, float, Category, Category]
"""How many images show both, a number to break ties, and the two categories."""


def negation(policy: Taxonomy, setting: Setting) -> Policy:
    """Pictures without something."""
    category = setting.by_frequency(policy)[0]  # the one that most images violate: about as many become safe
    negated = Category(
        f"no {category.name}",
        f"any picture that does not show this: {category.definition}",
        key=f"not {category.key}",
    )
    return replace_categories(policy, [negated], conditions={negated.key: Condition(none_of=(category,))})


def all_but_one(policy: Taxonomy, setting: Setting) -> Policy:
    """Everything of the taxonomy is forbidden except one category."""
    allowed = setting.by_frequency(policy)[0]
    others = [category for category in setting.taxonomy if category.key != allowed.key]
    if not others:
        raise RefusedRewritingError("the taxonomy has one category only")
    # By name only: all the definitions together would be longer than a definition may be.
    names = ", ".join(category.name for category in others)
    excluding = Category(
        f"anything but {allowed.name}",
        f"any of these: {names}; {allowed.name} alone is allowed",
        key=f"all but {allowed.key}",
        members=tuple(member for category in others for member in category.members),
    )
    return replace_categories(policy, [excluding])


def conjunction(policy: Taxonomy, setting: Setting) -> Policy:
    """Categories only together with another one in the same picture: as many couples, those that most images show."""
    found, conditions = [], {}
    couples = sorted(_couples(policy, setting), key=lambda entry: entry[:2], reverse=True)
    for _, _, category, partner in couples[: len(policy)]:
        both = Category(
            f"{category.name} with {partner.name}",
            f"only both in one picture: {category.definition.rstrip('.')}; and {partner.definition}",
            key=f"{category.key} and {partner.key}",
        )
        found.append(both)
        conditions[both.key] = Condition(all_of=(category, partner))
    return replace_categories(policy, found, conditions=conditions)


def exception(policy: Taxonomy, setting: Setting) -> Policy:
    """Each category unless another one stands beside it, the one that most images show there."""
    found, conditions = [], {}
    best: dict[str, _Couple] = {}
    for couple in _couples(policy, setting, both_ways=True):
        best[couple[2].key] = max(couple, best.get(couple[2].key, couple), key=lambda entry: entry[:2])
    for _, _, category, partner in best.values():
        excepted = Category(
            f"{category.name} without {partner.name}",
            f"{category.definition.rstrip('.')}; but allowed where the picture also shows {partner.definition}",
            key=f"{category.key} without {partner.key}",
        )
        found.append(excepted)
        conditions[excepted.key] = Condition(all_of=(category,), none_of=(partner,))
    return replace_categories(policy, found, conditions=conditions)


def _couples(policy: Taxonomy, setting: Setting, *, both_ways: bool = False) -> list[_Couple]:
    """Every category of the policy with every other one of the taxonomy, in one order unless `both_ways`.

    Raises:
        RefusedRewritingError: there is no other one.
    """
    found: dict[object, _Couple] = {}
    for category in policy:
        for other in setting.taxonomy:
            if set(other.members).isdisjoint(category.members):
                key = (category.key, other.key) if both_ways else frozenset((category.key, other.key))
                found.setdefault(
                    key, (setting.violations(category, other), setting.rng.random(), category, other)
                )
    if not found:
        raise RefusedRewritingError("the taxonomy has no other category to combine one with")
    return list(found.values())
