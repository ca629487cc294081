"""Prompts in characters of another kind: what a reader hardly notices, and a filter may not see through.

Each function takes a text and a generator of random draws, and keeps the letters in their order. Invisible and
look-alike characters: Boucher et al. 2022, "Bad Characters".
"""

from random import Random

from .families import LOOK_ALIKES

EMOJI = "🌿🌞🍎🎨🏔🌊🎻🍞🚲🐈🌧🕯"
ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
CONTROL = "\x00\x01\x02\x07\x08\x0b\x1b\x7f"
BIDI = "\u202a\u202b\u202d\u202e\u2066\u2067\u2068"
BIDI_ENDS = "\u202c\u2069"
MARKS = "\u0301\u0308\u0323\u0331\u0336"
"""Combining accent, dots above and below, line below and line through."""


def zero_width(text: str, rng: Random) -> str:
    """Zero-width characters between all letters."""
    return "".join(letter + rng.choice(ZERO_WIDTH) for letter in text)


def control(text: str, rng: Random) -> str:
    """A null byte or another control character after each word."""
    return "".join(f"{word}{rng.choice(CONTROL)} " for word in text.split()).rstrip(" ")


def null_bytes(text: str, rng: Random) -> str:
    """A null byte after each letter."""
    return "".join(f"{letter}\x00" for letter in text)


def emoji(text: str, rng: Random) -> str:
    """Emoji after each word."""
    return " ".join(f"{word} {rng.choice(EMOJI)}" for word in text.split())


def bidi(text: str, rng: Random) -> str:
    """Embeddings, overrides and isolates that turn words around."""
    return " ".join(f"{rng.choice(BIDI)}{word}{rng.choice(BIDI_ENDS)}" for word in text.split())


def full_width(text: str, rng: Random) -> str:
    """Full-width forms of all letters."""
    return text.translate(str.maketrans(*LOOK_ALIKES["fullwidth"]))


def homoglyphs(text: str, rng: Random) -> str:
    """Cyrillic letters that look the same, and Greek ones where there is none."""
    return text.translate(str.maketrans(*LOOK_ALIKES["greek"]) | str.maketrans(*LOOK_ALIKES["cyrillic"]))


def spaced(text: str, rng: Random) -> str:
    """A space between the letters of each word, and three between words."""
    return "   ".join(" ".join(word) for word in text.split())


def marked(text: str, rng: Random) -> str:
    """One to three combining marks on each letter."""
    return "".join(
        letter + "".join(rng.choices(MARKS, k=rng.randint(1, 3))) if letter.isalpha() else letter
        for letter in text
    )
