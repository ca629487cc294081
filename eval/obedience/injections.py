"""Policy families that talk to the model: orders inside a definition, and a category that is nothing but an order.

None of the texts says what a category covers, so every image keeps its label.
"""

from dataclasses import replace

from prompts.taxonomy import Category, Taxonomy

from .family import Policy, PolicyRewriter, Setting, Wanted, for_each, replace_categories
from .texts import DEFINITION_ORDERS, NOTES

_KEY = "note to the model"


def ordering_definition(wanted: Wanted) -> PolicyRewriter:
    """Every definition goes on with the same order to answer `wanted`."""

    def rewrite(policy: Taxonomy, setting: Setting) -> Policy:
        order = setting.rng.choice(DEFINITION_ORDERS).format(wanted=wanted)
        return for_each(policy, lambda c, _: replace(c, definition=f"{c.definition.rstrip('.')}. {order}"))

    return rewrite


def talking_category(wanted: Wanted) -> PolicyRewriter:
    """One more category, under which nothing falls, whose definition claims a verdict for the others."""

    def rewrite(policy: Taxonomy, setting: Setting) -> Policy:
        name, text = setting.rng.choice(NOTES)
        note = Category(name, text.format(wanted=wanted), key=_KEY)
        found = list(policy)
        found.insert(setting.rng.randint(0, len(found)), note)
        return replace_categories(policy, found, absent=frozenset({_KEY}))

    return rewrite
