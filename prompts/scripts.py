"""The scripts a text is written in, by the Unicode names of its letters: Latin, Cyrillic, Han, Arabic, ..."""

import unicodedata
from collections import Counter
from functools import lru_cache

MIN_SHARE = 0.1
"""Share of a text's letters from which on a script counts: one letter that looks like another makes no other script."""
_FAMILIES = {
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "HIRAGANA": "Kana",
    "KATAKANA": "Kana",
    "KATAKANA-HIRAGANA": "Kana",
}
"""First word of a letter's name -> script, where that is not the word itself."""
_COMMON = frozenset({"MODIFIER", "FEMININE", "MASCULINE", "MICRO", "CIRCLED", "PARENTHESIZED", "SQUARED"})
"""First words of letters that belong to every script."""


def scripts(text: str) -> frozenset[str]:
    """Scripts that at least a tenth of the text's letters are written in.

    Digits, punctuation, symbols and emoji are common to all scripts and count for none, so a text without letters has
    none. Compatibility forms count as the letters they stand for (NFKC).
    """
    found = Counter(map(_script, unicodedata.normalize("NFKC", text)))
    found.pop(None, None)
    least = MIN_SHARE * found.total()
    return frozenset(script for script, letters in found.items() if script and letters >= least)


@lru_cache(maxsize=4096)
def _script(character: str) -> str | None:
    """The script of a letter; None for everything else."""
    if not unicodedata.category(character).startswith("L"):
        return None
    first = unicodedata.name(character, "UNKNOWN").split()[0]
    return None if first in _COMMON else _FAMILIES.get(first, first.capitalize())
