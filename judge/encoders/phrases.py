"""A category as short phrases, each of which a text encoder embeds well.

A definition lists alternatives ("the digit 3; or the digit 5"), and one embedding of all of them lies between them and
is close to none. So a category becomes several phrases: its name, its definition, the definition's alternatives
(`judge.encoders.alternatives`), and its examples. Imports no torch, because exported students use it too.
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

NOT_FINITE = "the student gave no finite score"


@dataclass(frozen=True)
class Phrase:
    """A text of a category and its role."""

    text: str
    kind: Kind


def phrases(category: Category) -> tuple[Phrase, ...]:
    """The category's name, its definition, the definition's alternatives, and its examples, without duplicates.

    Of a category shown by name only (`Category.name_only`) just the name.
    """
    found: dict[str, Phrase] = {category.name: Phrase(category.name, "name")}
    if not category.name_only:
        texts: list[tuple[Kind, str]] = [("definition", category.definition)]
        texts += [("alternative", part) for part in alternatives(category.definition)]
        texts += [("example", text) for text in category.examples]
        for kind, text in texts:
            found.setdefault(text, Phrase(text, kind))
    return tuple(found.values())


def without_surrogates(text: str) -> str:
    """The text with lone surrogates replaced, as tokenizers raise on them; untrusted prompts may contain some."""
    return text.encode("utf-8", "replace").decode("utf-8")


def too_long_message(phrase: str, tokens: int, context: int) -> str:
    """The error message for a phrase longer than all windows of the text encoder."""
    return (
        f"A phrase of a category takes {tokens} tokens, more than all the windows of {context} that the text encoder "
        f"reads of a text: {phrase[:60]!r}... Shorten it, or part it with semicolons."
    )
