"""A category as short phrases, each of which a text encoder embeds well.

A definition lists alternatives ("the digit 3; or the digit 5"), and one embedding of all of them lies between them and
is close to none. So a category becomes several phrases: its name, its definition, the definition's alternatives
(`judge.encoders.alternatives`), and its examples. A definition with a condition on the prompt
(`judge.encoders.conditions`) becomes phrases of its subject, and phrases of what the prompt has to speak of. Imports no
torch, because exported students use it too.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from prompts.taxonomy import Category

from .alternatives import alternatives
from .conditions import split_condition

Kind = Literal["name", "definition", "alternative", "example", "condition"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CONDITION = KINDS.index("condition")
"""Place in `KINDS` of the phrases that are compared with the prompt alone; all others are about the image."""
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

    Of a category shown by name only (`Category.name_only`) just the name. Of one with a condition on the prompt, its
    subject and what the prompt has to speak of, each with its alternatives: name and examples are about both at once,
    and would be met by either half alone.
    """
    kind: Kind = "name" if category.name_only else "definition"
    text = category.name if category.name_only else category.definition
    halves = split_condition(text)
    listed: list[tuple[str, Kind]]
    if halves is not None:
        subject, topic = halves
        listed = [(subject, kind), *((part, "alternative") for part in alternatives(subject))]
        listed += [(part, "condition") for part in (topic, *alternatives(topic))]
    elif category.name_only:
        listed = [(text, kind)]
    else:
        listed = [(category.name, "name"), (text, kind)]
        listed += [(part, "alternative") for part in alternatives(text)]
        listed += [(example, "example") for example in category.examples]
    found: dict[tuple[str, bool], Phrase] = {}
    for words, role in listed:
        found.setdefault((words, role == "condition"), Phrase(words, role))
    return tuple(found.values())


def has_condition(category: Category) -> bool:
    """Whether the prompt decides too."""
    return any(phrase.kind == "condition" for phrase in phrases(category))


def without_surrogates(text: str) -> str:
    """The text with lone surrogates replaced, as tokenizers raise on them; untrusted prompts may contain some."""
    return text.encode("utf-8", "replace").decode("utf-8")


def too_long_message(phrase: str, tokens: int, context: int) -> str:
    """The error message for a phrase longer than all windows of the text encoder."""
    return (
        f"A phrase of a category takes {tokens} tokens, more than all the windows of {context} that the text encoder "
        f"reads of a text: {phrase[:60]!r}... Shorten it, or part it with semicolons."
    )
