"""Which names and definitions a policy may contain, and which name was probably meant."""

import unicodedata
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from .errors import TaxonomyError

MARKUP = frozenset('<>[]{}|\\"')
"""Characters that open or close tokens and quotes in chat templates; refused in every text of a category."""
RESERVED_NAMES = frozenset({"safe", "unsafe", "none"})
"""Words that the answers consist of."""
MAX_NAME_LENGTH = 80
MAX_TEXT_LENGTH = 2000


def nearest(word: str, known: Mapping[str, str] | Iterable[str]) -> str:
    """` (did you mean ...?)` for an unknown word, or an empty string when no known word is similar.

    Args:
        word: the unknown word.
        known: the words allowed, or case-folded word -> the name to propose for it.
    """
    name = nearest_name(word, known)
    return "" if name is None else f" (did you mean {name!r}?)"


def nearest_name(word: str, known: Mapping[str, str] | Iterable[str]) -> str | None:
    """The known word that `nearest` proposes; None where none is similar."""
    names = known if isinstance(known, Mapping) else {name.casefold(): name for name in known}
    close = get_close_matches(word.casefold(), list(names), n=1, cutoff=0.6)
    return names[close[0]] if close else None


def check_name(name: object, what: str) -> None:
    """Refuse what cannot be the name of a category or a taxonomy.

    Raises:
        TaxonomyError: not a short line of plain text, or a word or sign that answers and policies are made of.
    """
    check_text(name, what, MAX_NAME_LENGTH)
    if ":" in str(name):
        raise TaxonomyError(f"A colon ends a name in the policy, so it cannot be in one: {what}, {name!r}.")
    if str(name).casefold() in RESERVED_NAMES:
        raise TaxonomyError(f"{name!r} is a word of the answers and cannot be {what}; choose another.")


def check_text(text: object, what: str, max_length: int) -> None:
    """Refuse what is not one line of at most `max_length` characters without markup.

    Raises:
        TaxonomyError: what was given, and what is allowed; `what` names the text.
    """
    if not isinstance(text, str):
        raise TaxonomyError(f"Expected text for {what}, got {text!r}; in YAML, put it in quotes.")
    if not text.strip():
        raise TaxonomyError(f"Empty text for {what}.")
    if len(text) > max_length:
        raise TaxonomyError(f"Too long: {what} has {len(text)} characters, at most {max_length} are allowed.")
    # `split` without arguments also splits at Unicode spaces and line separators.
    if text != " ".join(text.split()):
        raise TaxonomyError(f"Line breaks, tabs or stray spaces in {what}: {text!r}; write it on one line.")
    bad = sorted({character for character in text if is_markup(character)})
    if bad:
        raise TaxonomyError(
            f"Not allowed in {what}: {', '.join(f'{c!r} (U+{ord(c):04X})' for c in bad)}. Markup and "
            "invisible characters could pass for control tokens of a model; use plain words, round brackets."
        )


def is_markup(character: str) -> bool:
    """Whether a character could help to form a token, a marker or a line of its own in a prompt.

    True for the characters of `MARKUP`, for control, format (bidi, zero-width, tags), surrogate, line and
    paragraph separator characters, and for whatever a normalising tokenizer would turn into one of them.
    """
    if character in MARKUP:
        return True
    if character.isascii():
        return not character.isprintable()
    # A tokenizer that normalises turns full-width brackets, for example, into plain ones.
    return any(
        part in MARKUP or unicodedata.category(part) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        for part in unicodedata.normalize("NFKD", character)
    )
