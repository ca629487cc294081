"""Split a definition that puts a condition on the prompt: "alcohol, if the prompt speaks of driving".

What an image shows and what its prompt speaks of are two questions, and one phrase of both is close to neither. So such
a definition becomes a subject, which is compared with the image, and a topic, which is compared with the prompt alone
(`judge.encoders.phrases`, `judge.student.head`).

As in `judge.encoders.alternatives`, a definition is split in clear cases only; any other stays whole. It compares words
and parses no grammar. Imports no torch.
"""

import re

from prompts.cautions import relations

_PROMPT = (
    r"(?:(?:the|its|their|a|an|any|this|that)\s+)?(?:(?:accompanying|attached|posted|user['’]?s?)\s+)?"
    r"(?:prompt|text|caption|description|message|title)"
)
_SPEAKS = (
    r"(?:(?:also|clearly|explicitly|even)\s+)?"
    r"(?:(?:speaks?|talks?|tells?)\s+(?:of|about)|(?:is|are)\s+about|refers?\s+to|asks?\s+(?:for|about)|deals?\s+with|"
    r"has\s+to\s+do\s+with|says\s+something\s+about|mentions?|names?|describes?|concerns?|contains?|includes?)"
)
_LINK = r"(?:if|when|whenever|where|wherever|while|provided(?:\s+that)?|as\s+long\s+as|in\s+case)"
_CONDITION = rf"{_PROMPT}\s+{_SPEAKS}\s+"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"(?:only\s+)?{_LINK}\s+{_CONDITION}(?P<topic>[^:]+):\s+(?P<subject>.+)",
        # Of several commas, it is not clear which one ends the condition.
        rf"(?:only\s+)?{_LINK}\s+{_CONDITION}(?P<topic>[^:,]+),\s+(?:then\s+)?(?P<subject>[^,]+)",
        rf"(?P<subject>.+?),?\s+(?:(?:but|and)\s+)?(?:only\s+)?{_LINK}\s+{_CONDITION}(?P<topic>.+)",
        rf"(?P<subject>.+?),?\s+(?:and|whose)\s+{_CONDITION}(?P<topic>.+)",
        # A poster may show a text or a title, so these words are not enough here.
        rf"(?P<subject>.+?),?\s+with\s+(?:the|a|its)\s+(?:prompt|caption)\s+(?:that\s+{_SPEAKS}|about|on)\s+(?P<topic>.+)",
    )
)
_SPEAKS_OF_A_PROMPT = re.compile(rf"\b{_PROMPT}\s+(?:that\s+)?{_SPEAKS}\b", re.IGNORECASE)
MOST_WORDS = 16
"""Of a topic; a longer one holds more than a topic."""


def split_condition(definition: str) -> tuple[str, str] | None:
    """What the image shows and what the prompt speaks of, such as ("alcohol", "driving").

    None where a definition has no condition on the prompt, or one that is not clear: negated, two of them, for a part
    of the definition only, or too long.
    """
    text = " ".join(definition.split()).rstrip(".")
    match = next(filter(None, (form.fullmatch(text) for form in _FORMS)), None)
    if match is None:
        return None
    subject, topic = match["subject"].strip(" ,"), match["topic"].strip(" ,")
    whole = f"{subject} | {topic}"
    if not subject or not topic or ";" in whole or ". " in whole or _SPEAKS_OF_A_PROMPT.search(whole):
        return None
    if relations(topic) or len(topic.split()) > MOST_WORDS:
        return None
    return subject, topic
