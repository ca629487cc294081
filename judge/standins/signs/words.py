"""What lessons about signs speak of: things with their names, and texts that cover several of them.

The things are the concepts of `signs`, and everyday things that no sign shows. What a text covers comes from the
lexicon of `small-clip`, without its texts about `HELD_OUT`. Some names and texts are kept out of the lessons, to
measure whether what was learned holds for others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from zlib import crc32

import yaml

from judge.standins.everyday import THINGS, with_article

from .glyphs import concepts

HELD_OUT = ("gambling", "danger", "music")
"""Groups of which lessons name the members, and never say what they have in common."""
KINDS: Mapping[str, tuple[str, ...]] = {
    "animal": ("animals", "an animal"),
    "tool": ("tools", "a tool"),
    "food": ("food", "a meal"),
    "clothing": ("clothes", "for wearing"),
    "plant": ("plants", "a plant"),
    "person": ("people", "a person"),
    "place": ("a place", "a building or a landscape"),
    "vehicle": ("transport", "a way to travel"),
    "weather": ("weather",),
    "furniture": ("household things", "a thing in a room"),
}
"""Kind of everyday things -> texts that cover all of them."""
_NEVER = {"forest", "singing"}
"""Everyday words that the evaluation of signs asks about."""
_UNLIKE_SIGNS = ("tool", "clothing", "person")


@dataclass(frozen=True)
class Thing:
    """What a picture may show."""

    name: str
    words: tuple[str, ...]
    """Names for it that lessons use."""
    unsaid: tuple[str, ...] = ()
    """Names that they do not use."""


@dataclass(frozen=True)
class Meaning:
    """A text and the things that it covers."""

    text: str
    things: frozenset[Thing]
    held_out: bool = False
    """Whether it speaks of a group of `HELD_OUT`."""
    unsaid: bool = False
    """Whether lessons leave it out."""


@cache
def signs() -> Mapping[str, Thing]:
    """The concepts of the data `signs` by name, in their order."""
    found = {}
    for concept in concepts().values():
        unsaid = tuple(word for word in concept.words[1:] if _kept_out(word, 5))
        words = tuple(word for word in concept.words if word not in unsaid)
        found[concept.name] = Thing(concept.name, words, unsaid)
    return found


@cache
def sign_meanings() -> tuple[Meaning, ...]:
    """The texts of the lexicon."""
    lexicon = yaml.safe_load((files(__package__) / "lexicon.yaml").read_text(encoding="utf-8"))
    groups = {name: concept.group for name, concept in concepts().items()}
    found = []
    for text, covered in lexicon.items():
        names = [name for name, group in groups.items() if name in covered or group in covered]
        held_out = any(groups[name] in HELD_OUT for name in names)
        things = frozenset(signs()[name] for name in names)
        found.append(Meaning(str(text), things, held_out, held_out or _kept_out(str(text), 6)))
    return tuple(found)


@cache
def everyday_things() -> Mapping[str, Thing]:
    """Other things by name; those that lessons leave out have it as `unsaid`."""
    known = {word for concept in concepts().values() for word in concept.words} | _NEVER
    nouns = [noun for kind in KINDS for noun in THINGS[kind][0] if noun not in known]
    return {noun: Thing(noun, *(((), (noun,)) if _kept_out(noun, 6) else ((noun,), ()))) for noun in nouns}


@cache
def everyday_meanings() -> tuple[Meaning, ...]:
    """The texts of `KINDS`."""
    things = everyday_things()
    return tuple(
        Meaning(text, frozenset(things[noun] for noun in THINGS[kind][0] if noun in things))
        for kind, texts in KINDS.items()
        for text in texts
    )


def unrelated(rng: Random) -> tuple[str, str]:
    """The name of an everyday thing that is unlike any sign, and a short description."""
    nouns, descriptions = THINGS[rng.choice(_UNLIKE_SIGNS)]
    noun = rng.choice([noun for noun in nouns if noun in everyday_things()])
    return noun, rng.choice(descriptions).format(a=with_article(noun), noun=noun)


def _kept_out(text: str, one_in: int) -> bool:
    """Whether a text is one of those, about one in `one_in`, that lessons leave out; the same everywhere."""
    return crc32(text.encode()) % one_in == 0
