"""Untrusted text, escaped for a terminal, a log or a report."""

import re
import unicodedata

_JOINERS = "\u200c\u200d"
"""Zero-width (non-)joiners: Persian, Hindi and emoji need them, and they reorder and hide nothing."""
# Nearly all text is ASCII, and images in a report are megabytes of it; the category of the rest only is looked up.
_SUSPECT = re.compile(r"[^\x20-\x7e]")


def printable(text: object) -> str:
    r"""The text on one line, with every character escaped that could control a terminal or mislead a reader.

    Control characters (C0, C1, delete), format characters (bidi overrides, zero width), line and paragraph separators
    and lone surrogates become `\n`, `\x1b` or `\u202e`. All others stay. Backslashes do too, so the original cannot be
    recovered: write what must be read back as JSON.
    """
    return _SUSPECT.sub(_escape, str(text))


def printable_lines(text: object) -> str:
    """As `printable`, but line breaks stay."""
    return "\n".join(map(printable, str(text).split("\n")))


def error_line(error: BaseException) -> str:
    """The message of an error on one printable line; the name of its class if it has none."""
    words = " ".join(str(error).split())
    return printable(words) or type(error).__name__


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character in _JOINERS or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return character
    return character.encode("unicode_escape").decode("ascii")
