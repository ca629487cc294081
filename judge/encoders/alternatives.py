"""Split a definition into its alternatives: at semicolons, at "or", and at commas before an "or".

A part must mean by itself what it means in the definition: too broad a phrase flags images that the policy allows
("People or animals being attacked" is not about people). The whole definition remains a phrase in any case. So parts
are split only in clear cases:

- all sides begin alike: "any 2 drawn by hand or any 9 drawn by hand", "a gun, an axe, or a bomb";
- a list of bare words: "guns, knives or bombs";
- two sides share their beginning: "held at a knife or gun", "someone with a knife or a gun".

It compares words and parses no grammar. Imports no torch.
"""

import re
from collections.abc import Sequence

from prompts.cautions import relations

_PARTS = re.compile(r"\s*;\s*(?:(?:and|or)\s+)?")
_SHELTERED = re.compile(r"\([^()]*\)|(?<!\w)'[^']*'(?!\w)|‘[^’]*’|“[^”]*”")
"""Brackets and quotes, which count as one word."""
_FIXED = re.compile(
    r"\bwhether or not\b|\bmore or less\b|\bone or (?:more|two|several)\b|"
    r"\bor (?:not|so|more|less|fewer|other\w*|else|the like|similar\w*|both|all|any of)\b",
    re.IGNORECASE,
)
"""Phrases whose "or" joins no alternatives."""
_OR, _COMMA = re.compile(r",?\s+or\s+", re.IGNORECASE), re.compile(r",\s+")
_LEADS = frozenset(
    "a an the any some every each all this that these those his her their its our your my "
    "of by with at in on to for from against into near under over like".split()
)
"""Words with which a second side may begin: articles, determiners and prepositions."""

Words = list[str]


def alternatives(definition: str) -> list[str]:
    """The definition's alternatives in order; empty if there is only one."""
    parts = [part for part in _PARTS.split(definition.rstrip(".")) if part]
    found = list(dict.fromkeys(text for part in parts for text in _split_part(part)))
    return found if len(found) > 1 else []


def _split_part(part: str) -> list[str]:
    """Split the text between two semicolons in the clear cases; else return it whole."""
    if relations(part):  # a negation or exception: "a knife, but not a toy or a kitchen knife"
        return [part]
    sheltered: list[str] = []

    def hide(match: re.Match[str]) -> str:
        sheltered.append(match[0])
        return f"\0{len(sheltered) - 1}\0"

    def show(text: str) -> str:
        while "\0" in text:
            text = re.sub(r"\0(\d+)\0", lambda match: sheltered[int(match[1])], text)
        return text

    hidden = _FIXED.sub(hide, _SHELTERED.sub(hide, part))
    sides = [side.split() for side in _OR.split(hidden)]
    items = [item.split() for side in _OR.split(hidden) for item in _COMMA.split(side)]
    if len(sides) < 2 or not all(items):
        return [part]
    found = _parallel(items) or _parallel(sides) or (len(sides) == 2 and (_bare(items) or _headed(items)))
    return [show(" ".join(words)) for words in found] if found else [part]


def _parallel(sides: Sequence[Words]) -> list[Words]:
    """Sides that begin with the same word; an end that only the last one has is appended to all.

    "a knife or a gun shown to children" gives two phrases, both shown to children.

    Empty if one side is much shorter than another, or if the common word occurs twice in the first ("a man with a knife
    or a gun"): it is not clear then that each side is complete.
    """
    first = [word.lower() for word in sides[0]]
    lengths = [len(side) for side in sides]
    begins = {"a" if side[0].lower() == "an" else side[0].lower() for side in sides}
    if len(begins) > 1 or first.count(first[0]) > 1:
        return []
    if min(lengths) < 2 or 2 * min(lengths[1:]) < max(lengths):
        return []
    *others, last = sides
    more = len(last) - max(map(len, others))
    # One more word counts if it is a participle: "a man or a woman smoking".
    added = more >= 2 or (more == 1 and last[-1].lower().endswith(("ing", "ed")))
    return [side + last[len(side) :] if added else side for side in others] + [last]


def _bare(items: Sequence[Words]) -> list[Words]:
    """Items of one or two words; of two items, an adjective of the first or a noun of the last is shared by both.

    Longer lists whose items differ in length stay whole: "naked children, women or men" is not about women.
    """
    if any(len(item) > 2 or item[0].lower() in _LEADS for item in items):
        return []
    if len(items) > 2 and len(set(map(len, items))) > 1:
        return []
    first, last = items[0], items[-1]
    if len(items) == 2 and len(first) == 2 and len(last) == 1:  # "naked children or adults"
        return [first, [first[0], *last]]
    if len(items) == 2 and len(first) == 1 and len(last) == 2:  # "erotic or pornographic imagery"
        return [[*first, last[1]], last]
    return list(items)


def _headed(items: Sequence[Words]) -> list[Words]:
    """Two sides with a common beginning: the second replaces the last words of the first."""
    if len(items) != 2:
        return []
    first, second = items
    lowered, lead = [word.lower() for word in first], second[0].lower()
    if lead in _LEADS and lead in lowered:  # "someone with a knife or a gun"
        start = len(lowered) - 1 - lowered[::-1].index(lead)
        alike = abs(len(second) - (len(first) - start)) <= 1
        return [first, first[:start] + second] if alike else []
    if len(second) == 1 and len(first) > 1 and lowered[-2] in _LEADS:  # "held at a knife or gun"
        return [first, first[:-1] + second]
    return []
