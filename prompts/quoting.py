"""Untrusted text as one quoted line of data: escaped so that nothing in it can close the quotes, and never too long."""

import re

from .errors import TemplateError
from .names import is_markup

PROMPT_LIMIT = 1000
"""Characters of the generating prompt that are shown to the judge."""
_MIN_LIMIT = 60
_SHORT_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SHORT_UNESCAPES = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}
_ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|U(000[1-9a-f][0-9a-f]{4}|0010[0-9a-f]{4})|([\\nrt]))")


def quote(prompt: str) -> str:
    r"""The prompt as one line in double quotes, which nothing in it can close; `unquote` reverses it.

    Quotes, backslashes, markup (`< > [ ] { } |` and what normalises to them), control, bidi and zero-width
    characters, line separators and lone surrogates become JSON-style escapes, so no raw quote is left inside.
    Outside the basic plane the escape is `\U` with eight digits: JSON's surrogate pairs could be confused
    with lone surrogates.
    """
    return '"' + "".join(map(_escaped, prompt)) + '"'


def unquote(quoted: str) -> str:
    """The text that `quote` was given.

    Raises:
        TemplateError: the text is not what `quote` returns.
    """
    inside = quoted[1:-1]
    if (
        len(quoted) < 2
        or quoted[0] != '"'
        or quoted[-1] != '"'
        or re.search(r'["\\]', _ESCAPE.sub("", inside))
    ):
        raise TemplateError(f"Not a quoted prompt: {quoted!r}; pass what quote() returned.")
    return _ESCAPE.sub(_unescaped, inside)


def shorten(prompt: str, limit: int = PROMPT_LIMIT) -> str:
    """The prompt in at most `limit` characters: its beginning and end, and between them how many were left out."""
    if limit < _MIN_LIMIT:
        raise TemplateError(f"A prompt limit of {limit} leaves no room; give at least {_MIN_LIMIT}.")
    if len(prompt) <= limit:
        return prompt
    # Room for the note is taken at its longest; the final count may have fewer digits.
    room = limit - len(_left_out(len(prompt)))
    head, tail = room - room // 2, room // 2
    return prompt[:head] + _left_out(len(prompt) - head - tail) + prompt[-tail:]


def _left_out(count: int) -> str:
    return f" ... {count} characters left out ... "


def _escaped(character: str) -> str:
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    if not is_markup(character):
        return character
    # JSON's own escapes where they exist; `\\U` beyond the basic plane.
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _unescaped(match: re.Match[str]) -> str:
    short, long, letter = match.groups()
    return _SHORT_UNESCAPES[letter] if letter else chr(int(short or long, 16))
