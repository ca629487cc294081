"""Constructions in definitions that are read poorly: negations, exceptions and conjunctions.

A definition that excludes something ("not", "except") or requires two things at once ("together with") is understood
only as far as the base model understands it: lessons hold such definitions (`prompts.flip.logic`), but small models do
not learn to read them (`recipes/obedience.py` measures it). A student, which compares an image with phrases, matches
the words and ignores the relation.
"""

import re

from .taxonomy import Category

_HARMLESS = re.compile(r"\bwhether or not\b|\bnot only\b|\bnot limited to\b|\bno matter\b", re.IGNORECASE)
_RELATIONS = {
    "negates": r"not|no|never|without|none|nothing|nobody|nor|neither|cannot|\w+n['’]t",
    "excepts": r"except|excepting|excluding|unless|but|other than|apart from|save for|outside of",
    "conjoins": r"together|both|combined with|along with|in combination|at the same time|only (?:if|when|where)",
}
_WORDS = {kind: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for kind, words in _RELATIONS.items()}


def relations(text: str) -> dict[str, str]:
    """Which of `negates`, `excepts` and `conjoins` a definition does, with the first word that does it."""
    # `whether or not` and the like contain a negation and negate nothing.
    plain = _HARMLESS.sub(" ", text)
    found = {kind: words.search(plain) for kind, words in _WORDS.items()}
    return {kind: match[0].lower() for kind, match in found.items() if match}


def cautions(category: Category) -> list[str]:
    """One warning for each construction in a category's definition that is read poorly; mostly none."""
    if category.name_only:
        return []
    return [
        f"{category.name}: the definition {kind} ({word!r}), which classifiers often read over. "
        "Say what falls under the category, and measure it on images of your own."
        for kind, word in relations(category.definition).items()
    ]
