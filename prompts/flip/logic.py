"""Policies of logic: negation, conjunction, exception, and one category in two. Truth follows from the labels alone.

Which categories are combined depends on the data as a whole and never on the images of a group. Sizes, colours and the
like would split a category as well, but nobody labelled those; "by itself" and "beside another of the list" are known.
"""

from collections.abc import Callable, Collection, Sequence
from random import Random

from prompts.names import MAX_NAME_LENGTH, MAX_TEXT_LENGTH
from prompts.taxonomy import Category

from .conditions import Condition, Conditional
from .policy_texts import (
    ALONE,
    BESIDE,
    CONJUNCTION_NAMES,
    CONJUNCTIONS,
    EXCEPTION_NAMES,
    EXCEPTIONS,
    NEGATION_NAMES,
    NEGATIONS,
)
from .wording import inside

Couples = Collection[frozenset[str]]
"""Keys of which the data have images that violate both."""


def negate(
    entries: Sequence[Category], others: Sequence[Category], couples: Couples, rng: Random
) -> list[Category]:
    """A policy of one negated category, with at most one other beside it: of more, hardly an image would be safe."""
    first, *rest = entries
    texts = _texts(NEGATION_NAMES, NEGATIONS, rng, first)
    found = _made(texts, Condition(none_of=(first,)), "no", (first,))
    kept = [found, *rest[: rng.choice((0, 0, 1))]] if found else list(entries)
    rng.shuffle(kept)
    return kept


def conjoin(
    entries: Sequence[Category], others: Sequence[Category], couples: Couples, rng: Random
) -> list[Category]:
    """Categories that take two things in one picture; one of them, or as many as the data have couples for."""
    return _with_partners(
        entries, others, couples, rng, (CONJUNCTION_NAMES, CONJUNCTIONS, "and"),
        lambda category, other: Condition(all_of=(category, other)),
    )  # fmt: skip


def make_exceptions(
    entries: Sequence[Category], others: Sequence[Category], couples: Couples, rng: Random
) -> list[Category]:
    """Categories that are allowed beside another thing; one of them, or as many as the data have couples for."""
    return _with_partners(
        entries, others, couples, rng, (EXCEPTION_NAMES, EXCEPTIONS, "without"),
        lambda category, other: Condition(all_of=(category,), none_of=(other,)),
    )  # fmt: skip


def split(
    entries: Sequence[Category], others: Sequence[Category], couples: Couples, rng: Random
) -> list[Category]:
    """One or more categories in two: by itself, and beside another of the list. Together they are the category."""
    if len(entries) < 2:
        return list(entries)
    number, found = rng.choice((1, len(entries))), list[Category]()
    names, more = rng.choice(ALONE), rng.choice(BESIDE)
    for place, category in enumerate(entries):
        rest = tuple(other for other in entries if other is not category)
        halves = [
            _made(_texts((names[0],), (names[1],), rng, category),
                  Condition(all_of=(category,), none_of=rest), "alone", (category,)),
            _made(_texts((more[0],), (more[1],), rng, category),
                  Condition(all_of=(category,), any_of=rest), "beside", (category,)),
        ]  # fmt: skip
        made = [half for half in halves if half is not None]
        found += made if place < number and len(made) == 2 else [category]
    rng.shuffle(found)
    return found


LOGIC: dict[str, Callable[[Sequence[Category], Sequence[Category], Couples, Random], list[Category]]] = {
    "negation": negate,
    "conjunction": conjoin,
    "exception": make_exceptions,
    "split": split,
}
"""Option -> (entries of a policy, all categories to combine with, couples, generator) -> new entries."""


def _with_partners(
    entries: Sequence[Category],
    others: Sequence[Category],
    couples: Couples,
    rng: Random,
    texts: tuple[Sequence[str], Sequence[str], str],
    condition: Callable[[Category, Category], Condition],
) -> list[Category]:
    """One entry or all, each combined with a category that some images show beside it; the others stay."""
    names, definitions, word = texts
    # One wording for the list, as its author would write it.
    names, definitions = (rng.choice(names),), (rng.choice(definitions),)
    number, made, found = rng.choice((1, len(entries))), 0, list[Category]()
    for category in entries:
        partners = [
            other for other in others
            if any(frozenset((one, two)) in couples for one in category.members for two in other.members)
            and set(other.members).isdisjoint(category.members)
        ]  # fmt: skip
        combined = None
        if made < number and partners:
            other = rng.choice(partners)
            both = _texts(names, definitions, rng, category, other)
            combined = _made(both, condition(category, other), word, (category, other))
        made += combined is not None
        found.append(combined or category)
    return found


def _texts(
    names: Sequence[str],
    definitions: Sequence[str],
    rng: Random,
    category: Category,
    other: Category | None = None,
) -> tuple[str, str]:
    """A name and a definition for a category made of one or two."""
    known = {"name": category.name, "definition": inside(category.definition)}
    if other is not None:
        known |= {"other": other.name, "others": inside(other.definition)}
    return rng.choice(names).format(**known), rng.choice(definitions).format(**known)


def _made(
    texts: tuple[str, str], condition: Condition, word: str, parts: Sequence[Category]
) -> Conditional | None:
    """The category, or None where a text would be too long."""
    name, definition = texts
    if len(name) > MAX_NAME_LENGTH or len(definition) > MAX_TEXT_LENGTH:
        return None
    members = tuple(dict.fromkeys(member for part in parts for member in part.members))
    key = f"{word} {'+'.join(part.key for part in parts)}"
    return Conditional(name, definition, key=key, members=members, condition=condition)
