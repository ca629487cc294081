"""A category as phrases: what a text encoder can hold of a definition that may be longer than its context.

A definition lists alternatives ("the digit 3; or the digit 5"), and one embedding of all of them lies between them and
is like none. So a category is asked about phrase by phrase: its name, its definition, the definition's alternatives
(`judge.encoders.alternatives`), and its examples. No torch here.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from prompts.taxonomy import Category

from .alternatives import alternatives

Kind = Literal["name", "definition", "alternative", "example"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_CACHED_PHRASES = 100_000
"""Phrases whose embeddings are cached; with more, the whole cache is emptied."""
MAX_CACHED_TAXONOMIES = 64
"""Taxonomies whose embedded phrases or queries are cached; the least recently used is evicted."""


@dataclass(frozen=True)
class Phrase:
    """A text of a category and what it is to it."""

    text: str
    kind: Kind


def phrases(category: Category) -> tuple[Phrase, ...]:
    """The category's name, its definition, the definition's alternatives, and its examples; no text twice.

    A category that is shown by its name alone (`Category.name_only`) is its name alone.
    """
    found: dict[str, Phrase] = {category.name: Phrase(category.name, "name")}
    if not category.name_only:
        texts: list[tuple[Kind, str]] = [("definition", category.definition)]
        texts += [("alternative", part) for part in alternatives(category.definition)]
        texts += [("example", text) for text in category.examples]
        for kind, text in texts:
            found.setdefault(text, Phrase(text, kind))
    return tuple(found.values())


def unjudged_reason(prompt_too_long: bool, finite: bool) -> str | None:
    """The reason of a student that could not judge, or None."""
    if prompt_too_long:
        return "the prompt is longer than the student reads"
    return None if finite else "the student gave no finite score"


def unreadable(phrase: str, tokens: int, context: int) -> str:
    """The error about a phrase that no number of windows holds."""
    return (
        f"A phrase of a category takes {tokens} tokens, more than all the windows of {context} that the text encoder "
        f"reads of a text: {phrase[:60]!r}... Shorten it, or part it with semicolons."
    )
