"""Length and character attacks: prompts that are read wrongly, where those of `families` are believed wrongly.

A long harmless text may outweigh the picture, or dilute a harmful prompt that is buried in it; a prompt in other
characters means the same to a generator or a reader and nothing to a filter. Makers as in `families`; none depends on
the wanted verdict.
"""

from collections.abc import Callable
from random import Random

from . import characters
from .families import Maker, distinct, has_text, random_for
from .harmless import WORDS, Place, bury, harmless_text
from .sentences import Target

LENGTHS = (60, 300, 1000, 4000, 8000)
"""Characters of the harmless texts."""
BURIED_IN = 1500
"""Characters of harmless prose around a buried prompt."""
REPEATED = 1000
"""Characters of a repeated word."""


def harmless(length: int) -> Maker:
    """Prose, and a caption, of so many characters in the place of the prompt."""

    def make(prompt: str | None, target: Target, seed: int) -> list[str | None]:
        draw = random_for(prompt, seed)
        return distinct(prompt, [harmless_text(style, length, draw) for style in ("prose", "caption")])

    return make


def repeated_word(prompt: str | None, target: Target, seed: int) -> list[str | None]:
    """One harmless word again and again in the place of the prompt."""
    word = random_for(prompt, seed).choice(WORDS)
    return distinct(prompt, [" ".join([word] * (REPEATED // len(word)))])


def buried(place: Place) -> Maker:
    """The prompt at a place of long harmless prose."""

    def make(prompt: str | None, target: Target, seed: int) -> list[str | None]:
        if not has_text(prompt):
            return []
        return distinct(prompt, [bury(str(prompt), BURIED_IN, place, random_for(prompt, seed))])

    return make


def written_in(change: Callable[[str, Random], str]) -> Maker:
    """The prompt in other characters, by a function of `characters`."""

    def make(prompt: str | None, target: Target, seed: int) -> list[str | None]:
        if not has_text(prompt):
            return []
        return distinct(prompt, [change(str(prompt), random_for(prompt, seed))])

    return make


HARMLESS: dict[str, Maker] = {
    **{f"harmless_{length}": harmless(length) for length in LENGTHS},
    "repeated_word": repeated_word,
}
"""Texts in the place of the prompt."""
DISGUISES: dict[str, Maker] = {
    "buried_start": buried("start"),
    "buried_middle": buried("middle"),
    "buried_end": buried("end"),
    "zero_width": written_in(characters.zero_width),
    "null_bytes": written_in(characters.null_bytes),
    "bidi": written_in(characters.bidi),
    "full_width": written_in(characters.full_width),
    "emoji": written_in(characters.emoji),
    "homoglyphs": written_in(characters.homoglyphs),
    "spaced_letters": written_in(characters.spaced),
    "combining_marks": written_in(characters.marked),
}
"""Texts that still hold the prompt."""
