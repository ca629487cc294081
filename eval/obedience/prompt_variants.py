"""Prompt families: by length, by kind of character, by what they say of the picture, and orders to the judge."""

from collections.abc import Callable, Sequence
from random import Random

from adversarial.texts.harmless import Style, harmless_text
from prompts.flip import Row
from prompts.taxonomy import Category

from .family import PromptRewriter, RefusedRewritingError, Setting, Wanted
from .texts import NOTHING_SHOWN, PROMPT_FORGERIES, PROMPT_ORDERS, SHOWING, UNRELATED_PROMPTS

LENGTHS = (10, 60, 300, 500, 1000, 4000)
"""Characters, from a few words to more than any template shows."""


def of_length(style: Style, length: int) -> PromptRewriter:
    """A harmless prompt of exactly `length` characters: prose, a caption, or one word."""
    return lambda row, setting: harmless_text(style, length, setting.rng)


def with_characters(change: Callable[[str, Random], str]) -> PromptRewriter:
    """A harmless caption in or among characters of another kind."""

    def rewrite(row: Row, setting: Setting) -> str:
        return change(setting.rng.choice(UNRELATED_PROMPTS), setting.rng)

    return rewrite


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
