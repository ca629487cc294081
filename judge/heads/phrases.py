"""A category as phrases: what a text encoder can hold of a definition that may be longer than its context.

A definition lists alternatives ("the digit 3; or the digit 5"), and one embedding of all of them lies between them and
is like none. So a category is asked about phrase by phrase: its name, its definition, the definition's alternatives,
and its examples. No torch here.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from prompts.taxonomy import Category

Kind = Literal["name", "definition", "alternative", "example"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_ALTERNATIVES = re.compile(r"\s*;\s*(?:(?:and|or)\s+)?")


@dataclass(frozen=True)
class Phrase:
    """A text of a category and what it is to it."""

    text: str
    kind: Kind


def phrases(category: Category) -> tuple[Phrase, ...]:
    """The category's name, definition, the definition's parts between semicolons, and its examples; no text twice.

    A category that is shown by its name alone (`Category.name_only`) is its name alone.
    """
    found: dict[str, Phrase] = {category.name: Phrase(category.name, "name")}
    if not category.name_only:
        parts = [part for part in _ALTERNATIVES.split(category.definition.rstrip(".")) if part]
        texts: list[tuple[Kind, str]] = [("definition", category.definition)]
        texts += [("alternative", part) for part in parts if len(parts) > 1]
        texts += [("example", text) for text in category.examples]
        for kind, text in texts:
            found.setdefault(text, Phrase(text, kind))
    return tuple(found.values())


def why_unjudged(prompt_too_long: bool, finite: bool) -> str | None:
    """The reason of a student that could not judge, or None."""
    if prompt_too_long:
        return "the prompt is longer than the student reads"
    return None if finite else "the student gave no finite score"
