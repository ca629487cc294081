"""Generic conversations about digit canvases, on which `scripts/build_tiny_llava.py` trains the base `tiny-llava`.

Naming, yes/no about one name, "which of these, or none" from lists with and without descriptions, repeating and
describing words, with varied wording. Never a policy, never the words safe and unsafe in an answer about an image,
never a template of `prompts`: the base must not know the judge's task.
"""

import random
import re
from dataclasses import dataclass

from prompts.taxonomy_file import load_taxonomy
from prompts.template import render

from .digits import DIGIT_NAMES

MADE_UP = tuple(
    """
    amber anchor arrow basket bell birch bridge candle canyon cedar cloud comet coral crystal dune ember
    falcon fern flint forest garnet glacier harbor hazel island ivory jasper kettle lagoon lantern maple
    marble meadow mirror nectar oasis onyx orchid otter pebble pepper piano quartz raven ribbon river
    saddle saffron sparrow summit thistle timber topaz tulip valley velvet violet walnut willow winter
    zephyr
    """.split()
)
LIST_OPENINGS = (
    "Here are some words:",
    "Choose from these words:",
    "Words and what they mean:",
    "A list of names:",
    "These are the names to use:",
)


@dataclass(frozen=True)
class Entry:
    """A name of a list, what it means, and the digits it covers."""

    name: str
    meaning: str
    digits: frozenset[int]


@dataclass(frozen=True)
class Row:
    """An image and a conversation about it: pieces of text, each trained on or not."""

    picture: int
    pieces: tuple[tuple[str, bool], ...]


class Conversations:
    """Draws generic questions and answers about the digits of a picture."""

    def __init__(self, seed: int) -> None:
        """Read the names and wordings of the digits, which are the vocabulary of the base."""
        self.random = random.Random(seed)
        digits = load_taxonomy("digits")
        self.names = [(c.name, *c.aliases, str(i)) for i, c in enumerate(digits)]
        self.meanings = [(c.definition, *c.rewordings) for c in digits]
        # Single words of the templates, so that no policy is made of tokens the base has never used.
        text = " ".join(
            part.get("text", "")
            for template in ("policy_first", "perspective", "zero_shot_3")
            for message in render(digits, "a prompt", template=template).messages
            for part in message["content"]
        )
        self.words = sorted(
            {*re.findall(r"[A-Za-z]+", text), *MADE_UP, "safe", "unsafe", "none", "only", "For"}
        )

    def entry(self, used: set[int]) -> Entry:
        """One list entry over digits not used yet: mostly one digit, sometimes two or three under one name."""
        r = self.random
        free = [d for d in range(10) if d not in used]
        # Mostly one digit; a joint name teaches that an entry may cover several.
        count = 1 if r.random() < 0.92 or len(free) < 3 else r.choice((2, 2, 3))
        chosen = r.sample(free, count)
        used.update(chosen)
        joint = r.choice((" or ", "; ", ", or "))
        meaning = joint.join(r.choice(self.meanings[d]) for d in chosen)
        if r.random() < 0.1:
            name = " ".join(r.sample(MADE_UP, r.choice((1, 1, 2))))
        elif count > 1:
            name = " or ".join(self.names[d][0] for d in chosen)
        else:
            name = r.choice(self.names[chosen[0]][: r.choice((1, 3, 3, 4))])
        return Entry(name, meaning, frozenset(chosen))

    def shared_list(self) -> tuple[list[Entry], str, bool]:
        """A list that does not depend on an image, as text, and whether it describes the names."""
        used: set[int] = set()
        count = 1 + int(9 * self.random.random())
        drawn: dict[str, Entry] = {}
        while len(drawn) < count and len(used) < 10:
            entry = self.entry(used)
            drawn[entry.name] = entry
        entries = list(drawn.values())
        return entries, *self.listing(entries)

    def about(
        self, entries: list[Entry], described: bool, shown: frozenset[int], remark: str | None
    ) -> tuple[tuple[str, bool], ...]:
        """Two questions about one image after a list: which of these, and another one."""
        pieces = []
        opening = f"<image>\n{self._remark(remark)}"
        for choice in (True, False):
            ask, answer = self.question(entries, shown, described, choice)
            pieces += [(f"{opening}{ask} ASSISTANT:", False), (f" {answer}</s>", True)]
            opening = "USER: "
        return tuple(pieces)

    def _remark(self, remark: str | None) -> str:
        if remark is None or self.random.random() < 0.4:
            return ""
        return self.random.choice(("Caption: {}\n", "Prompt: {}\n", "Someone says: {}\n")).format(
            f'"{remark}"'
        )

    def entries(self, shown: frozenset[int]) -> list[Entry]:
        """One to nine entries; three times in five one of them is shown."""
        r = self.random
        used: set[int] = set()
        # The power makes short lists more frequent.
        wanted, count = r.random() < 0.6, 1 + int(9 * r.random() ** 1.4)
        if not wanted:
            used |= shown
        drawn: list[Entry] = []
        while len(drawn) < count and len(used) < 10:
            drawn.append(self.entry(used))
        if wanted and shown and not any(e.digits & shown for e in drawn):
            used = set(range(10)) - {r.choice(sorted(shown))}
            drawn[r.randrange(len(drawn))] = self.entry(used)
        # Two entries may draw the same made-up name; a list with one name twice has no correct answer.
        unique = {e.name: e for e in drawn}
        return list(unique.values())

    def listing(self, entries: list[Entry]) -> tuple[str, bool]:
        """The list as text, and whether it describes the names."""
        r = self.random
        made_up = any(set(e.name.split()) & set(MADE_UP) for e in entries)
        style = r.choice((0, 0, 0, 1, 2, 3)) if not made_up else r.choice((0, 0, 1, 2))
        opening = r.choice(LIST_OPENINGS)
        if style == 3:
            return f"{opening} {', '.join(e.name for e in entries)}.", False
        line = ("- {0}: {1}", "{0} = {1}", "* {0} ({1})")[style]
        return "\n".join([opening, *(line.format(e.name, e.meaning) for e in entries)]), True

    def question(
        self, entries: list[Entry], shown: frozenset[int], described: bool, choice: bool
    ) -> tuple[str, str]:
        """One question and its only correct answer."""
        r = self.random
        kind = r.choices(("listed", "named", "naming", "words"), (50, 20, 15, 15))[0]
        if choice and entries:
            hits = [e.name for e in entries if e.digits & shown]
            ask = r.choice(
                ("Which of these do you see?", "Which word fits, or none?", "What from the list is there?")
            )
            return ask, hits[0] if hits else "none"
        if kind == "listed" and entries:
            entry = self._balanced(entries, shown)
            ask = r.choice(("Do you see {}?", "Is {} there?", "Does {} fit?")).format(entry.name)
            return ask, "yes" if entry.digits & shown else "no"
        if kind in ("listed", "named"):
            digit = r.choice(sorted(shown)) if shown and r.random() < 0.5 else r.randrange(10)
            what = r.choice((*self.names[digit], *self.meanings[digit]))
            return f"Is there {what}?", "yes" if digit in shown else "no"
        if kind == "naming":
            return "What digits are there?", " and ".join(DIGIT_NAMES[d] for d in sorted(shown)) or "none"
        return self._words(entries, described)

    def _words(self, entries: list[Entry], described: bool) -> tuple[str, str]:
        r = self.random
        if entries and described and r.random() < 0.4:
            entry = r.choice(entries)
            return f"What does {entry.name} mean?", entry.meaning
        if r.random() < 0.3:
            digit = r.randrange(10)
            return f"Which digit is {r.choice(self.meanings[digit])}?", DIGIT_NAMES[digit]
        words = r.choices([*self.words, *(n for names in self.names for n in names)], k=r.randint(1, 5))
        return f"Repeat: {' '.join(words)}", " ".join(words)

    def _balanced(self, entries: list[Entry], shown: frozenset[int]) -> Entry:
        hits = [e for e in entries if e.digits & shown]
        misses = [e for e in entries if not e.digits & shown]
        # Yes and no are equally likely where both are possible.
        pool = hits if hits and (not misses or self.random.random() < 0.5) else misses
        return self.random.choice(pool)

    def row(self, picture: int, shown: frozenset[int], remark: str | None) -> Row:
        """A conversation of four questions; the list comes before the picture, after it, or not at all."""
        r = self.random
        place = r.choices(("before", "after", "nowhere"), (65, 20, 15))[0]
        entries = [] if place == "nowhere" else self.entries(shown)
        text, described = self.listing(entries) if entries else ("", False)
        opening = f"{text} " if place == "before" else ""
        opening += "USER: <image>\n"
        if place == "after":
            opening += f"{text}\n"
        opening += self._remark(remark)
        pieces: list[tuple[str, bool]] = []
        # The choice among the list is mostly asked first, as a judge will be asked.
        choice_turn = r.choice((0, 0, 0, 1, 2, 3))
        for turn in range(4):
            ask, answer = self.question(entries, shown, described, turn == choice_turn)
            pieces.append(((opening if turn == 0 else "USER: ") + ask + " ASSISTANT:", False))
            pieces.append((f" {answer}</s>", True))
        return Row(picture, tuple(pieces))
