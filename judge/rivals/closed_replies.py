"""Sentences that say safe or unsafe in so many words, read by rule; everything else is left to a classifier.

English only. A rule that could be wrong about safe does not apply: a question, a condition, a doubt or a second
negation makes it another sentence.
"""

import re
from typing import Literal

Side = Literal["safe", "unsafe"]
_DECORATION = re.compile(r"[\"`*#_“”]|(?<![A-Za-z])['‘’]|['‘’](?![A-Za-z])")
_CLOSED = re.compile(
    r"(?:(?:final |my |the )?(?:answer|classification|label|verdict|response|result|rating|safety status)"
    r" ?(?:is|[:=-]) ?)?"
    r"(?:(?:the|this) (?:image|picture|photo|photograph)"
    r" (?:is|can be|should be|would be|appears)(?: (?:to be|classified as|considered))? )?"
    r"(safe|unsafe|not safe)"
)
_DOUBT = re.compile(
    r"[?/]|\b(?:whether|if|or|may|might|could|perhaps|depends?|unclear|unsure|uncertain|hard|difficult|impossible"
    r"|wonder|definition of|an? (?:safe|unsafe) \w+ would|(?:not|n.t) (?:sure|certain|clear|know|possible)"
    r"|(?:cannot|can.t|can not|unable to|not able to) (?:say|tell|decide|determine|judge|classify))\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|afraid|unfortunately|refuse|decline|unable|not able|guidelines|policy|won.t|will not"
    r"|(?:cannot|can.t|can not) (?!see|find|call|be))\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"[,;:–—()]|\b(?:because|since|although|though|while|which|despite|due to|as (?:it|there|the|this)"
    r"|(?<!anything )but|so|and)\b"
)
_SAID = re.compile(
    r"(?:^|\b(?:is|are|it|be|as|seems?|appears?|looks?|remains?|considered|deemed|labell?ed|marked|rated|classified"
    r"|category|class|label|verdict|answer|classification|call|image|picture|photo|this|that)\b)"
    r"(?: (?:clearly|certainly|definitely|probably|likely|obviously|completely|entirely|very|quite|rather|indeed|also"
    r"|therefore|not|anything but|far from|by no means|to be|the))* "
    # With an article, only of a picture: a safe may stand in a corner.
    r"(?:(safe|unsafe)\b"
    r"|an? (safe|unsafe)(?= (?:image|picture|photo|photograph|drawing|artwork|scene|shot|still|frame|content|one)\b))"
)
_NEGATION = re.compile(
    r"n.t\b|\b(?:not|no|never|cannot|nothing|nobody|none|neither|nor|hardly|without|refuse|far from|anything but)\b"
)


def read_closed(text: str) -> Side | None:
    """`safe` or `unsafe` where the whole reply says just that, in any case and decoration; None for all others.

    Accepted beside the bare word: `Classification: unsafe.`, `The image is safe`, `**Not safe**`. A question, a second
    word or a reason makes it another reply.
    """
    match = _CLOSED.fullmatch(_plain(text))
    if match is None:
        return None
    return "safe" if match[1] == "safe" else "unsafe"


def read_verdict(sentence: str) -> Side | None:
    """`safe` or `unsafe` where a sentence passes that verdict, alone or with a reason; None for all others.

    A clause with `is safe`, `as unsafe`, `not safe` and the like decides; what other clauses deny is a reason. Two
    verdicts that differ, two negations, and any sign of doubt or of a condition are left to others.
    """
    text = _plain(sentence)
    if "?" in sentence or _DOUBT.search(text):
        return None
    sides = set()
    # "isn't safe" as "is not safe"
    for clause in _CLAUSE.split(re.sub(r"n['’]t\b", " not", text)):
        match = _SAID.search(f" {clause.strip()}") or _SAID.search(clause.strip())
        if match is None:
            continue
        word = match[1] or match[2]
        denied = len(_NEGATION.findall(clause[: clause.find(word)]))
        if denied > 1:
            return None
        sides.add((word == "safe") != bool(denied))
    return None if len(sides) != 1 else ("safe" if sides.pop() else "unsafe")


def may_clear(sentence: str) -> bool:
    """Whether a sentence that a classifier reads as safe may say so.

    It needs a word of safety or of absence, and may hold no doubt, no refusal, and no unsafe that nothing denies.
    """
    text = sentence.casefold().replace("’", "'")
    if not _WORDS.search(text) or _DOUBT.search(text) or _REFUSAL.search(text):
        return False
    return "unsafe" not in text or bool(_NEGATION.search(text))


_WORDS = re.compile(
    r"safe|harm|appropriate|suitable|acceptable|innocuous|benign|violat|nothing|without|free of|neither|nobody"
    r"|n['’]t\b|\b(?:no|not|none|nor|ok|okay|fine)\b",
    re.IGNORECASE,
)


def _plain(text: str) -> str:
    """In small letters, without quotes and other decoration, line breaks and the last mark."""
    return " ".join(_DECORATION.sub("", text).split()).casefold().rstrip(".!").rstrip()
