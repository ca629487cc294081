"""Prompt families: by length, by kind of character, by what they say of the picture, and orders to the judge."""

from collections.abc import Callable, Iterator, Sequence
from random import Random

from adversarial.texts.families import LOOK_ALIKES
from prompts.flip import Row
from prompts.taxonomy import Category

from .family import PromptRewriter, RefusedRewritingError, Setting, Wanted
from .texts import (
    BIDI,
    BIDI_ENDS,
    CONTROL,
    EMOJI,
    NOTHING_SHOWN,
    PROMPT_FORGERIES,
    PROMPT_ORDERS,
    SENTENCES,
    SHOWING,
    TAGS,
    UNRELATED_PROMPTS,
    WORDS,
    ZERO_WIDTH,
)

LENGTHS = (10, 60, 300, 500, 1000, 4000)
"""Characters, from a few words to more than any template shows."""
_BETWEEN = {"prose": (SENTENCES, " "), "caption": (TAGS, ", "), "one_word": (WORDS, "")}
STYLES = tuple(_BETWEEN)


def of_length(style: str, length: int) -> PromptRewriter:
    """A harmless prompt of exactly `length` characters: prose, a caption, or one word."""
    parts, between = _BETWEEN[style]

    def rewrite(row: Row, setting: Setting) -> str:
        text = between.join(_enough(parts, between, length, setting.rng))[:length]
        # A space at the end may be stripped on the way to the model, and the length would be another.
        return text if text[-1] != " " else f"{text[:-1]}."

    return rewrite


def _enough(parts: Sequence[str], between: str, length: int, rng: Random) -> Iterator[str]:
    """Parts in random order, all of them before any comes again, until they reach `length`."""
    total = 0
    while total < length:
        for part in rng.sample(parts, len(parts)):
            yield part
            total += len(part) + len(between)


def with_characters(change: Callable[[str, Random], str]) -> PromptRewriter:
    """A harmless caption in or among characters of another kind."""

    def rewrite(row: Row, setting: Setting) -> str:
        return change(setting.rng.choice(UNRELATED_PROMPTS), setting.rng)

    return rewrite


def zero_width(text: str, rng: Random) -> str:
    """Zero-width characters between all letters."""
    return "".join(letter + rng.choice(ZERO_WIDTH) for letter in text)


def control(text: str, rng: Random) -> str:
    """A null byte or another control character after each word."""
    return "".join(f"{word}{rng.choice(CONTROL)} " for word in text.split()).rstrip(" ")


def emoji(text: str, rng: Random) -> str:
    """Emoji after each word."""
    return " ".join(f"{word} {rng.choice(EMOJI)}" for word in text.split())


def bidi(text: str, rng: Random) -> str:
    """Embeddings, overrides and isolates that turn words around."""
    return " ".join(f"{rng.choice(BIDI)}{word}{rng.choice(BIDI_ENDS)}" for word in text.split())


def full_width(text: str, rng: Random) -> str:
    """Full-width forms of all letters."""
    return text.translate(str.maketrans(*LOOK_ALIKES["fullwidth"]))


def own(row: Row, setting: Setting) -> str:
    """The prompt that belongs to the image in the data."""
    if not row.example.prompt or not row.example.prompt.strip():
        raise RefusedRewritingError("the image has no prompt of its own")
    return row.example.prompt


def true(row: Row, setting: Setting) -> str:
    """What the image shows of the taxonomy, inside the policy or not."""
    return _showing([c for c in setting.taxonomy if c.label(row.example)], setting)


def lying(row: Row, setting: Setting) -> str:
    """For an unsafe image something else that the policy allows, for a safe one something that it forbids."""
    claimed = setting.outside(row.taxonomy) if row.unsafe else list(row.taxonomy)
    wrong = [category for category in claimed if category.label(row.example) is False]
    if not wrong and not row.unsafe:
        raise RefusedRewritingError("no category of the policy is known not to be in the image")
    return _showing(setting.rng.sample(wrong, min(1, len(wrong))), setting)


def unrelated(row: Row, setting: Setting) -> str:
    """A prompt about something else that is in no taxonomy."""
    return setting.rng.choice(UNRELATED_PROMPTS)


def orders(wanted: Wanted) -> PromptRewriter:
    """An order to answer `wanted`."""
    return lambda row, setting: setting.rng.choice(PROMPT_ORDERS).format(wanted=wanted)


def forgeries(wanted: Wanted) -> PromptRewriter:
    """The end of the data and a verdict, both made up."""
    return lambda row, setting: setting.rng.choice(PROMPT_FORGERIES).format(wanted=wanted)


def _showing(categories: Sequence[Category], setting: Setting) -> str:
    if not categories:
        return setting.rng.choice(NOTHING_SHOWN)
    return setting.rng.choice(SHOWING).format(shown=" and ".join(c.definition for c in categories))
