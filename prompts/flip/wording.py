"""How a policy is worded: names, definitions, case and orders, drawn once for a list as its author has one style.

A style is drawn from the options alone, before any image, so it cannot hint at a label.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from random import Random

from prompts.names import MAX_NAME_LENGTH, MAX_TEXT_LENGTH
from prompts.taxonomy import Category

from .conditions import Conditional
from .options import FlipOptions
from .policy_texts import (
    CLAUSES,
    CODAS,
    CODES,
    DEFINITION_ORDERS,
    LEGAL_ENDINGS,
    LEGAL_MIDDLES,
    LEGAL_OPENINGS,
    ONSETS,
    PHRASES,
    VOWELS,
)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CASES = {"upper": str.upper, "title": str.title, "lower": str.lower}


@dataclass(frozen=True)
class Style:
    """One way to word categories; None leaves a part as the taxonomy has it."""

    name: str | None = None
    """A pattern around the name or in its place, or an empty one for a made-up word."""
    definition: str | None = None
    """A pattern around the definition, or an empty one for none."""
    order: str | None = None
    """A pattern that adds a sentence to the definition."""
    case: str | None = None
    parts: tuple[str, ...] = ()
    """The options that the style came from."""


def draw_style(options: FlipOptions, rng: Random) -> Style:
    """A style; a part without a style of its own is left as it is."""
    name = _first(("clauses", "codes", "nonsense"), options, rng)
    definition = _first(("names_only", "legal_prose", "phrases"), options, rng)
    if definition == "names_only" and name in ("codes", "nonsense"):
        definition = None  # nothing would say what is meant
    order = _first(("orders",), options, rng)
    case = _first(("case",), options, rng)
    names = {"clauses": CLAUSES, "codes": CODES, "nonsense": ("",)}
    definitions = {"names_only": ("",), "legal_prose": (_paragraph(rng),), "phrases": PHRASES}
    return Style(
        rng.choice(names[name]) if name else None,
        rng.choice(definitions[definition]) if definition else None,
        _ordering(rng) if order else None,
        rng.choice(("upper", "upper", "title", "lower")) if case else None,
        tuple(part for part in (name, definition, order, case) if part),
    )


def restyle(
    entries: Sequence[Category], style: Sequence[Style], rng: Random, *, meaningless: Collection[str] = ()
) -> list[Category]:
    """The entries in their styles, one a entry; a text that would be too long stays as it is.

    Args:
        entries: of one policy.
        style: of each entry.
        rng: source of numbers and made-up words.
        meaningless: names that say nothing; where one occurs in a name, the definition stays.
    """
    section, first, letter = rng.randint(1, 12), rng.choice((1, 1, rng.randint(2, 30))), rng.randrange(26)
    places: list[dict[str, int | str]] = [
        {"section": section, "number": first + place, "letter": LETTERS[(letter + place) % 26]}
        for place in range(len(entries))
    ]
    return [
        _restyled(entry, one, place, rng, any(name in entry.name for name in meaningless))
        for entry, one, place in zip(entries, style, places, strict=True)
    ]


def made_up_word(rng: Random) -> str:
    """A word that can be pronounced and means nothing."""
    syllables = (
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((2, 2, 3)))
    )
    return "".join(syllables)


def inside(definition: str) -> str:
    """A definition as part of a sentence: without its full stop, and in lower case at the start."""
    text = definition.rstrip(".")
    # "ID cards" and "X-rated pictures" stay as they are.
    return text if len(text) < 2 or not text[1].islower() else text[0].lower() + text[1:]


def fitting(text: str, otherwise: str, limit: int = MAX_TEXT_LENGTH) -> str:
    """The text, or the other one where it is longer than a policy's text may be."""
    return text if len(text) <= limit else otherwise


def _first(parts: Sequence[str], options: FlipOptions, rng: Random) -> str | None:
    """The first of the parts whose share comes up; every part is drawn, so that shares do not move one another."""
    drawn = [part for part in parts if rng.random() < getattr(options, part)]
    return drawn[0] if drawn else None


def _paragraph(rng: Random) -> str:
    """Legal prose: two or three of its parts, the middle one always."""
    parts = [rng.choice(LEGAL_OPENINGS), rng.choice(LEGAL_MIDDLES), rng.choice(LEGAL_ENDINGS)]
    kept = rng.choice((slice(0, 3), slice(0, 3), slice(0, 2), slice(1, 3)))
    return ", ".join(parts[kept])


def _ordering(rng: Random) -> str:
    order = rng.choice(DEFINITION_ORDERS).format(wanted=rng.choice(("safe", "unsafe")))
    return rng.choice(("{definition}. " + order, "{definition}. " + order + ".", order + ". {definition}"))


def _restyled(
    entry: Category, style: Style, place: dict[str, int | str], rng: Random, meaningless: bool
) -> Category:
    name, definition, examples = entry.name, entry.definition, entry.examples
    if isinstance(entry, Conditional):  # "no" before "without", or "any image with" before "images without"
        style = replace(
            style,
            name=None if style.name in CLAUSES else style.name,
            definition=None if style.definition else style.definition,
        )
    name_only = entry.name_only or (style.definition == "" and not meaningless)
    if style.name is not None:
        wanted = style.name.format(name=name, **place) if style.name else made_up_word(rng)
        name = fitting(wanted, name, MAX_NAME_LENGTH)
    if style.definition:
        wanted = style.definition.format(definition=inside(definition), **place)
        definition = fitting(wanted, definition)
    if style.order:
        definition = fitting(style.order.format(definition=definition.rstrip(".")), definition)
    if style.case:
        change = _CASES[style.case]
        name, definition = change(name), fitting(change(definition), definition)
        examples = tuple(fitting(change(example), example) for example in examples)
        name = fitting(name, entry.name, MAX_NAME_LENGTH)  # "ß" has two capitals
    return replace(entry, name=name, definition=definition, examples=examples, name_only=name_only)
