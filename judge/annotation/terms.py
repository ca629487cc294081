"""Candidate search terms for collecting images of a taxonomy's categories (UnsafeBench, section 3.1).

The paper splits the definitions of its categories into keywords and lets a language model add ten examples to each. A
search term may be broader than the definition it comes from, unlike a phrase that decides (`judge.encoders.phrases`):
people look at what is found. So definitions are split here at every comma, "or" and "such as".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from judge.encoders.phrases import phrases
from prompts.taxonomy import Category, Taxonomy

COLUMNS = ("category", "term", "where")
_CUTS = re.compile(
    r"\s*[;:]\s*|(?<!e\.g)\.\s+|\s*,\s*|\s+(?:or|such as|for example|for instance|including|e\.g\.)\s+",
    re.IGNORECASE,
)
_BRACKETS = re.compile(r"\([^()]*\)")
_LEADS = re.compile(
    r"(?:and|or|otherwise|such as|for example|for instance|including|e\.g\.|any|an?|the|other|of|all)\s+",
    re.IGNORECASE,
)
_EXCLUSION = re.compile(r"(?:but|not|never|except|excluding|unless|apart from)\b", re.IGNORECASE)
_EMPTY = frozenset("and or otherwise etc others the like so on more not".split())


@dataclass(frozen=True)
class Term:
    """Words to search for."""

    category: str
    """Name of the category."""
    term: str
    where: str
    """Where it comes from: `name`, `alias`, `definition`, `example`, or `model NAME` for a language model."""


def candidate_terms(taxonomy: Taxonomy) -> list[Term]:
    """Terms in the taxonomy's own words: names, aliases, definitions in parts, examples; each once in a category."""
    return without_repeats(
        Term(category.name, text, where) for category in taxonomy for text, where in _texts(category)
    )


def without_repeats(terms: Iterator[Term] | list[Term]) -> list[Term]:
    """The terms without those that their category has before, case ignored."""
    found: dict[tuple[str, str], Term] = {}
    for term in terms:
        found.setdefault((term.category, term.term.casefold()), term)
    return list(found.values())


def split_definition(definition: str) -> list[str]:
    """The parts of a definition: between commas, semicolons, "or", "such as" and the like, without leading articles.

    What it excludes, such as "but not candles", is left out, and so is what stands in brackets.
    """
    parts = [_bare(part) for part in _CUTS.split(_BRACKETS.sub(" ", definition))]
    return [
        part
        for part in dict.fromkeys(parts)
        if part and part.casefold() not in _EMPTY and not _EXCLUSION.match(part)
    ]


def _texts(category: Category) -> Iterator[tuple[str, str]]:
    """(text, where from), repeats included. A condition on the prompt is nothing that an image could be found by."""
    for phrase in phrases(category):
        if phrase.kind in ("definition", "alternative"):
            yield from ((part, "definition") for part in split_definition(phrase.text))
        elif phrase.kind in ("name", "example"):
            yield phrase.text, phrase.kind
    yield from ((alias, "alias") for alias in category.aliases)


def _bare(part: str) -> str:
    text = " ".join(part.split()).strip(" .")
    while match := _LEADS.match(text):
        text = text[match.end() :]
    return text
