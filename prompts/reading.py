"""How an untrusted prompt is read: in clean characters, and a long one in windows.

A prompt may hide words from a filter (zero-width characters, look-alike forms of letters) or bury an image under
thousands of harmless ones. So what a reader would not see is removed and counted, compatibility forms become plain
letters (NFKC), and a long prompt is read in windows of the length that training shows, each by itself.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import ArbiterError

PromptMode = Literal["max", "use", "ignore"]
"""`max`: the image alone and with its prompt, whichever scores higher. `use`: with its prompt only. `ignore`: alone."""
WINDOW = 300
"""Characters of a prompt that are read at a time."""
OVERLAP = 40
"""Characters that consecutive windows share at least, so that a phrase that one window cuts is whole in another."""
MAX_WINDOWS = 24
"""Windows that are read at most: some 6,000 characters. A longer prompt is not read at all."""
_MAX_CHARACTERS = WINDOW * MAX_WINDOWS * 10
"""Prompts longer than this, invisible characters included, are not even cleaned."""
_BREAKS = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029")
_JOINERS = frozenset("\u200c\u200d\u00ad\ufe0e\ufe0f\ufeff")
"""Invisible, but ordinary in emoji, Persian, Hindi, hyphenated text and at the start of files: removed, not counted."""
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5")
"""Letters and marks that show nothing."""
_MAX_MARKS = 4
"""Combining marks on one letter; no script needs more, and hundreds of them hide the letter."""


@dataclass(frozen=True)
class CleanText:
    """A text as a reader would see it."""

    text: str
    """On one line, in NFKC, without invisible characters."""
    hidden: int
    """Characters that were removed because a reader would not see them; joiners of emoji and scripts do not count."""


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as classifiers read it."""

    windows: tuple[str, ...]
    """At most `MAX_WINDOWS` clean texts; empty without a prompt, and for one that is not read."""
    hidden: int = 0
    """As in `CleanText`."""
    note: str | None = None
    """Why the prompt was not read; None where it was, or where there is none."""


def clean(text: str) -> CleanText:
    """Remove what a reader would not see: control, zero-width, bidi and unassigned characters, heaps of marks.

    Compatibility forms become plain characters (NFKC): full-width and mathematical letters, ligatures, circled digits.
    Line breaks and runs of spaces become one space. Letters of other scripts that only look alike stay as they are.
    """
    if text.isascii() and text.isprintable():
        return CleanText(" ".join(text.split()), 0)
    kept: list[str] = []
    hidden = marks = 0
    for character in unicodedata.normalize("NFKC", text):
        if character in _BREAKS:
            kept.append(" ")
            continue
        kind = unicodedata.category(character)
        marks = marks + 1 if kind == "Mn" else 0
        if character in _JOINERS:
            continue
        # Control, format, surrogate, private and unassigned characters; variation selectors carry hidden bytes.
        if kind[0] == "C" or character in _BLANK or marks > _MAX_MARKS or _selects_variation(character):
            hidden += 1
        else:
            kept.append(character)
    return CleanText(" ".join("".join(kept).split()), hidden)


def read_prompt(prompt: str | None) -> ReadPrompt:
    """Clean a prompt and cut it into windows; one of more than `MAX_WINDOWS` is not read, and `note` says so."""
    if prompt is None or not prompt:
        return ReadPrompt(())
    if len(prompt) > _MAX_CHARACTERS:
        return ReadPrompt((), note=_too_long(len(prompt)))
    cleaned = clean(prompt)
    windows = []
    for window in _windows(cleaned.text):
        windows.append(window)
        if len(windows) > MAX_WINDOWS:
            return ReadPrompt((), cleaned.hidden, _too_long(len(prompt)))
    return ReadPrompt(tuple(dict.fromkeys(windows)), cleaned.hidden)


def check_prompt_mode(mode: str) -> PromptMode:
    """The mode, if it is one.

    Raises:
        ArbiterError: it is not.
    """
    for allowed in get_args(PromptMode):
        if mode == allowed:
            return allowed  # type: ignore[no-any-return]
    raise ArbiterError(f"No prompt mode {mode!r}; choose one of {', '.join(get_args(PromptMode))}.")


def _windows(text: str) -> Iterator[str]:
    """Parts of at most `WINDOW` characters that overlap by `OVERLAP` or more, cut between words where there are any."""
    start = 0
    while len(text) - start > WINDOW:
        end = start + WINDOW
        # A cut within the last OVERLAP characters keeps at least WINDOW - OVERLAP of them.
        space = text.rfind(" ", end - OVERLAP, end + 1)
        end = space if space >= 0 else end
        yield text[start:end].strip()
        space = text.rfind(" ", end - 2 * OVERLAP, end - OVERLAP)
        start = space + 1 if space >= 0 else end - OVERLAP
    if text[start:].strip():
        yield text[start:].strip()


def _selects_variation(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0d" or "\U000e0100" <= character <= "\U000e01ef"


def _too_long(length: int) -> str:
    most = WINDOW + (MAX_WINDOWS - 1) * (WINDOW - OVERLAP)
    return f"the prompt was not read: it has {length:,} characters, and about {most:,} are read at most"
