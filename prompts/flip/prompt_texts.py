"""How lessons word prompts: descriptions in other words, long texts, orders to the judge, odd signs, in any case.

Each prompt belongs to one image and knows nothing of its label; `prompts.flip.draw` keeps or exchanges the prompts of a
pair of opposite labels with equal probability, whatever they say.
"""

from collections.abc import Sequence
from math import exp, log
from random import Random

from prompts.example import Example
from prompts.reading import read_prompt
from prompts.taxonomy import Category

from .options import PROMPT_PARTS, FlipOptions
from .prompt_words import (
    ADJECTIVES,
    CAPTIONS,
    EMOJI,
    EMPTY,
    NOUNS,
    PLACES,
    PROMPT_ORDERS,
    SENTENCES,
    SHOWN,
    SIGNS,
    TAGS,
    VERBS,
)
from .wording import inside

SHORTEST, LONGEST = 10, 2000
"""Characters of a harmless text."""


def draw_parts(options: FlipOptions, rng: Random) -> tuple[str, ...]:
    """What to do with the prompts of one pair of rows; nothing where they stay as they are."""
    if rng.random() >= options.reprompt:
        return ()
    return tuple(part for part in PROMPT_PARTS if rng.random() < getattr(options, part))


def rewrite_prompt(
    example: Example, parts: Sequence[str], categories: Sequence[Category], rng: Random
) -> str | None:
    """A prompt for one image; None where it has none of its own and gets none.

    Args:
        example: the image the prompt is to be of.
        parts: what to do, of `PROMPT_PARTS`.
        categories: what may be named, with aliases and rewordings.
        rng: source of every choice.
    """
    text = example.prompt if example.prompt and example.prompt.strip() else ""
    if "describe" in parts:
        text = describe(example, categories, rng)
    if "lengthen" in parts:
        text = _amid(text, harmless_text(_length(rng), rng), rng)
    if "inject" in parts:
        order = rng.choice(PROMPT_ORDERS).format(wanted=rng.choice(("safe", "unsafe")))
        text = rng.choice((order, f"{order} {text}", f"{text} {order}", f"{text}\n{order}"))
    if "odd" in parts:
        text = _odd(text, rng)
    return _window(text, rng) or None


def describe(example: Example, categories: Sequence[Category], rng: Random) -> str:
    """What the image shows of these categories, in any of their words; its own prompt where the labels do not say."""
    labels = [category.label(example) for category in categories]
    shown = [category for category, label in zip(categories, labels, strict=True) if label]
    if not shown:
        return (example.prompt or "") if None in labels else rng.choice(EMPTY)
    rng.shuffle(shown)
    words = [inside(rng.choice(_words(category))) for category in shown]
    return rng.choice(SHOWN).format(shown=rng.choice((" and ", ", ", " with ")).join(words))


def harmless_text(length: int, rng: Random) -> str:
    """About `length` characters of prose, tags or captions that say nothing of any category."""
    patterns, between = rng.choice(((SENTENCES, " "), (SENTENCES, " "), (TAGS, ", "), (CAPTIONS, "; ")))
    text = ""
    while len(text) < length:
        text += (between if text else "") + _filled(rng.choice(patterns), rng)
    return text[:length].rstrip()


def _words(category: Category) -> tuple[str, ...]:
    """Names and definitions of a category, each kind as likely as the other."""
    names, definitions = (category.name, *category.aliases), (category.definition, *category.rewordings)
    return (*names * len(definitions), *definitions * len(names))


def _filled(pattern: str, rng: Random) -> str:
    noun, second = rng.sample(NOUNS, 2)
    text = pattern.format(
        noun=noun, second=second, adjective=rng.choice(ADJECTIVES), place=rng.choice(PLACES),
        verb=rng.choice(VERBS), number=rng.randrange(1, 10_000),
    )  # fmt: skip
    return text[0].upper() + text[1:] if pattern in SENTENCES else text


def _length(rng: Random) -> int:
    """Short texts as often as long ones, on a scale of factors."""
    return round(exp(rng.uniform(log(SHORTEST), log(LONGEST))))


def _amid(text: str, around: str, rng: Random) -> str:
    """The text between two words of another; the place is drawn evenly, both ends included."""
    words = around.split(" ")
    place = rng.randint(0, len(words))
    return " ".join([*words[:place], *([text] if text else []), *words[place:]])


def _odd(text: str, rng: Random) -> str:
    kind = rng.choice(("upper", "emoji", "signs", "title"))
    if kind in ("upper", "title"):
        return text.upper() if kind == "upper" else text.title()
    signs = EMOJI if kind == "emoji" else SIGNS
    often = rng.choice((0.2, 1.0))
    return " ".join(
        f"{word} {rng.choice(signs)}" if rng.random() < often else word for word in text.split(" ")
    )


def _window(text: str, rng: Random) -> str:
    """One of the windows in which the text is read; empty where nothing is left of it."""
    windows = read_prompt(text).windows
    return rng.choice(windows) if windows else ""
