"""Texts of strangers, before they are stored."""

from judge.errors import first_line
from prompts.printable import printable

from .errors import EntryError

MAX_PERSON = 100
"""Characters of what somebody is called."""


def checked_text(text: str | None, most: int, what: str) -> str | None:
    """The text, or None for an empty one.

    Raises:
        EntryError: it is too long, or holds characters that no database stores.
    """
    if text is None or not text.strip():
        return None
    if len(text) > most:
        raise EntryError(f"{what} has {len(text):,} characters; at most {most:,} are allowed.")
    try:
        text.encode()  # fails on half a surrogate pair
    except UnicodeEncodeError as error:
        raise EntryError(f"{what} is no text: {first_line(error)}.") from error
    if "\0" in text:  # PostgreSQL stores none
        raise EntryError(f"{what} holds a NUL character.")
    return text


def person(name: str | None) -> str | None:
    """What somebody is called, on one printable line; None for nobody."""
    text = printable((checked_text(name, MAX_PERSON, "The moderator's name") or "").strip())
    return text[:MAX_PERSON] or None
