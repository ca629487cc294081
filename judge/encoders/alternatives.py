"""A definition's alternatives: what is joined by semicolons, by "or", and by commas before an "or".

A part has to mean by itself what it means in the definition: a phrase too broad flags what nobody forbade ("People or
animals being attacked" is not about people), while the whole definition is asked about in any case. So a part is parted
further in plain cases only:

- all sides begin alike: "any 2 drawn by hand or any 9 drawn by hand", "a gun, a knife, or a bomb";
- all of it is a list of bare words: "guns, knives or bombs";
- two sides share what stands before: "held at a knife or gun", "someone with a knife or a gun".

No grammar, only words; no torch.
"""

import re
from collections.abc import Sequence

from prompts.cautions import relations

_PARTS = re.compile(r"\s*;\s*(?:(?:and|or)\s+)?")
_SHELTERED = re.compile(r"\([^()]*\)|(?<!\w)'[^']*'(?!\w)|‘[^’]*’|“[^”]*”")
"""Brackets and quotes, which are read as one word."""
_FIXED = re.compile(
    r"\bwhether or not\b|\bmore or less\b|\bone or (?:more|two|several)\b|"
    r"\bor (?:not|so|more|less|fewer|other\w*|else|the like|similar\w*|both|all|any of)\b",
    re.IGNORECASE,
)
"""An "or" that joins no alternatives."""
_OR, _COMMA = re.compile(r",?\s+or\s+", re.IGNORECASE), re.compile(r",\s+")
_LEADS = frozenset(
    "a an the any some every each all this that these those his her their its our your my "
    "of by with at in on to for from against into near under over like".split()
)
"""Words behind which two sides may part: articles, and what leads to one."""

Words = list[str]


def alternatives(definition: str) -> list[str]:
    """The definition's alternatives in order, or nothing where there is one only."""
    parts = [part for part in _PARTS.split(definition.rstrip(".")) if part]
    found = list(dict.fromkeys(text for part in parts for text in _of_part(part)))
    return found if len(found) > 1 else []


def _of_part(part: str) -> list[str]:
    """What stands between two semicolons, parted further where that is plain; else itself."""
    if relations(part):  # "a knife, but not a toy or a kitchen knife"
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
    """Sides that begin alike; what only the last one adds, as in "a knife or a gun shown to children", goes with all.

    Of one that is much shorter than another, or begins like a word within the first ("a man with a knife or a gun"), it
    is not plain that it stands for itself.
    """
    first = [word.lower() for word in sides[0]]
    lengths = [len(side) for side in sides]
    if any(side[0].lower() != first[0] for side in sides) or first.count(first[0]) > 1:
        return []
    if min(lengths) < 2 or 2 * min(lengths[1:]) < max(lengths):
        return []
    *others, last = sides
    more = len(last) - max(map(len, others))
    added = more >= 2 or (
        more == 1 and last[-1].lower().endswith(("ing", "ed"))
    )  # "a man or a woman smoking"
    return [side + last[len(side) :] if added else side for side in others] + [last]


def _bare(items: Sequence[Words]) -> list[Words]:
    """A list of one or two words each; of two, an adjective before the first or a noun behind the last go with both.

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
    """Two sides behind one head: the second takes the place of the first one's last words."""
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
