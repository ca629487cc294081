"""Text of somebody else's choice, made fit for a terminal, a log or a report."""

import re
import unicodedata

_JOINERS = "\u200c\u200d"
"""Zero-width (non-)joiners: Persian, Hindi and emoji are spelt with them, and they move nothing."""
# ASCII is nearly all there is, and a report's pictures are megabytes of it: only the rest is looked up.
_SUSPECT = re.compile(r"[^\x20-\x7e]")


def printable(text: object) -> str:
    r"""One line that shows what is there and does nothing: what could steer a terminal or a reader is escaped.

    Control characters (C0, C1, delete), format characters (bidi overrides, zero width), line and paragraph separators
    and lone surrogates become `\n`, `\x1b` or `\u202e`. All else stays as it is, backslashes too: this is for eyes,
    and what must be read back exactly is written as JSON.
    """
    return _SUSPECT.sub(_escaped, str(text))


def printable_lines(text: object) -> str:
    """The same of a text of several lines, whose ends stay."""
    return "\n".join(map(printable, str(text).split("\n")))


def error_line(error: BaseException) -> str:
    """What went wrong on one printable line; errors without words are called by their names."""
    words = " ".join(str(error).split())
    return printable(words) or type(error).__name__


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if character in _JOINERS or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return character
    return character.encode("unicode_escape").decode("ascii")
