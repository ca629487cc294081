"""Generic conversations about digit canvases, on which `scripts/build_tiny_llava.py` trains the base `tiny-llava`.

Naming, yes/no about one name, "which of these, or none" from lists with and without descriptions, looking a word up,
repeating and describing words, with varied wording; captions and orders beside the picture, which change no answer.
Never a policy, never the words safe and unsafe in an answer about an image, never a template of `prompts`: the base
must not know the judge's task.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy
from prompts.template import render

from .digits import DIGIT_NAMES
from .entries import MADE_UP, Entries, Entry
from .everyday import prose

LIST_OPENINGS = (
    "Here are some words:",
    "Choose from these words:",
    "Words and what they mean:",
    "A list of names:",
    "These are the names to use:",
)
CHOICES = (
    "Which of these do you see?",
    "Which word fits, or none?",
    "What from the list is there?",
    "Which of these, or none?",
)
"""Questions about a list and a picture."""
REMARKS = ("Caption: {}\n", "Prompt: {}\n", "Someone says: {}\n")


@dataclass(frozen=True)
class Row:
    """An image and a conversation about it: pieces of text, each trained on or not."""

    picture: int
    pieces: tuple[tuple[str, bool], ...]


class Conversations:
    """Draws generic questions and answers about the digits of a picture."""

    def __init__(self, seed: int, written: Sequence[str] = ()) -> None:
        """Read the names and wordings of the digits; `written` are English sentences to quote from."""
        self.random = random.Random(seed)
        self.written = written
        self.drawn = Entries(self.random, written)
        self.names, self.meanings = self.drawn.names, self.drawn.meanings
        self.words = _template_words(load_taxonomy("digits"))

    def shared_list(self) -> tuple[list[Entry], str, bool]:
        """A list that does not depend on an image, as text, and whether it describes the names."""
        r = self.random
        logic = r.choices((None, "not", "both", "unless"), (55, 17, 14, 14))[0]
        # Half of the lists hold digits alone; a few are long.
        things = r.choices((0, r.randint(1, 5), r.randint(6, 20), r.randint(21, 55)), (48, 28, 18, 6))[0]
        if logic and r.random() < 0.5:
            things = 0
        entries = self.drawn.draw(1 + int(9 * r.random()), things, logic)
        return entries, *self.listing(entries)

    def about(
        self,
        entries: list[Entry],
        described: bool,
        shown: frozenset[int],
        remark: str,
        count: int = 3,
    ) -> tuple[tuple[str, bool], ...]:
        """`count` questions about an image after a list: which of these, and others."""
        pieces = []
        opening = f"<image>\n{remark}"
        for turn in range(count):
            ask, answer = self.question(entries, shown, described, turn == 0)
            pieces += [(f"{opening}{ask} ASSISTANT:", False), (f" {answer}</s>", True)]
            opening = "USER: "
        return tuple(pieces)

    def recited(self) -> tuple[str, list[tuple[tuple[str, bool], ...]]]:
        """A list as text, and questions about its words alone, a few for each entry of up to eight: no image.

        To copy what was read, whatever it is, is what an answer with a name needs.
        """
        r = self.random
        entries = self.drawn.draw(
            r.randint(1, 6), r.randint(2, 8), form=replace(self.drawn.form(8), wrapped=0.0)
        )
        text = "\n".join([r.choice(LIST_OPENINGS), *(f"- {e.name}: {e.meaning}" for e in entries)])
        rows = []
        for _ in range(8):
            first, second = r.choice(entries), r.choice(entries)
            words = [self.drawn.any_name() for _ in range(r.randint(3, 9))]
            asked = (
                (f"Which word means {first.meaning}?", first.name),
                (f"What does {second.name} mean?", second.meaning),
                (f"Repeat: {' '.join(words)}", " ".join(words)),
            )
            pieces: list[tuple[str, bool]] = []
            for number, (ask, answer) in enumerate(r.sample(asked, 3)):
                pieces += [(f"{'USER: ' if number else ''}{ask} ASSISTANT:", False), (f" {answer}</s>", True)]
            rows.append(tuple(pieces))
        return text, rows

    def remark(self, caption: str | None, length: int = 0) -> str:
        """A line beside the picture: its caption, perhaps in prose of about `length` characters, or an order; or none.

        None of them changes an answer: a caption may lie, and so may all else.
        """
        r = self.random
        said = caption if caption and r.random() < 0.6 else ""
        if r.random() < 0.06:
            said = f"{said}. {self.drawn.order()}" if said else self.drawn.order()
        if length:
            around = prose(r, r.randint(length // 2, length), self.written)
            cut = r.randint(0, len(around))
            said = r.choice(
                (around, f"{said}, {around}", f"{around} {said}", f"{around[:cut]} {said} {around[cut:]}")
            )
            said = said.strip(" ,")
        if r.random() < 0.05:
            said = "".join(
                letter
                + (r.choice("\U0001f333\U0001f600\u2600\u00e9\u2013\u00fc ") if r.random() < 0.1 else "")
                for letter in said
            )
        if not said:
            return ""
        said = r.choice((said, said, said, said, said.upper(), said.title()))
        quoted = said.replace('"', "'").replace("\n", " ")
        return r.choice(REMARKS).format(f'"{quoted}"')

    def entries(self, shown: frozenset[int]) -> list[Entry]:
        """A short list; three times in five, where that is possible, an entry of it fits."""
        wanted = self.random.random() < 0.6
        for _ in range(8):
            count, things = 1 + int(9 * self.random.random() ** 1.4), self.random.choice((0, 0, 2, 6))
            entries = self.drawn.draw(count, things)
            if any(entry.holds(shown) for entry in entries) == wanted:
                break
        return entries

    def listing(self, entries: list[Entry]) -> tuple[str, bool]:
        """The list as text, and whether it describes the names."""
        r = self.random
        known = {name.casefold() for names in self.names for name in names}
        # Where a name is no name of a digit, only the description tells what it covers.
        plain = all(e.kind == "thing" or (e.kind == "digit" and e.name.casefold() in known) for e in entries)
        style = r.choice((0, 0, 0, 1, 2, 3, 4)) if plain else r.choice((0, 0, 1, 2))
        opening = r.choice(LIST_OPENINGS)
        if style == 3:
            return f"{opening} {', '.join(e.name for e in entries)}.", False
        line = ("- {0}: {1}", "{0} = {1}", "* {0} ({1})", "", "- {0}")[style]
        return "\n".join([opening, *(line.format(e.name, e.meaning) for e in entries)]), style != 4

    def question(
        self, entries: list[Entry], shown: frozenset[int], described: bool, choice: bool
    ) -> tuple[str, str]:
        """One question and its only correct answer."""
        r = self.random
        if choice and entries:
            hits = [entry.name for entry in entries if entry.holds(shown)]
            return r.choices(CHOICES, (4, 2, 2, 2))[0], hits[0] if hits else "none"
        kinds = ("listed", "lookup", "named", "stated", "naming", "words")
        kind = r.choices(kinds, (45, 10, 10, 25, 6, 4))[0]
        if kind == "listed" and entries:
            entry = self._balanced(entries, shown)
            ask = r.choice(("Do you see {}?", "Is {} there?", "Does {} fit?")).format(entry.name)
            return ask, "yes" if entry.holds(shown) else "no"
        if kind == "lookup" and entries:
            return self._lookup(entries)
        if kind == "stated":
            return self._stated(shown)
        if kind in ("listed", "named"):
            digit = r.choice(sorted(shown)) if shown and r.random() < 0.5 else r.randrange(10)
            what = r.choice((*self.names[digit], *self.meanings[digit], self.drawn.meaning(digit)))
            what = r.choice((what, what, what, what.upper(), what.title()))
            return f"Is there {what}?", "yes" if digit in shown else "no"
        if kind == "naming":
            return "What digits are there?", " and ".join(DIGIT_NAMES[d] for d in sorted(shown)) or "none"
        return self._words(entries, described)

    def _stated(self, shown: frozenset[int]) -> tuple[str, str]:
        """Whether something is absent, there together with something else, or there without it."""
        r, wanted = self.random, self.random.random() < 0.5
        known = [*shown, *r.sample(range(10), 2)]
        for _ in range(12):
            one, two = r.sample(known, 2)
            make = r.choice((self.drawn.conjunction, self.drawn.exception, None))
            entry = self.drawn.negation(one) if make is None or one == two else make(one, two)
            if entry.holds(shown) == wanted:
                break
        ask = r.choice(("Is it so, {}?", "Would you say {}?", "Does this hold, {}?")).format(entry.meaning)
        return ask, "yes" if entry.holds(shown) else "no"

    def _lookup(self, entries: list[Entry]) -> tuple[str, str]:
        """Which name stands for a digit, or none: a question about the list alone."""
        r = self.random
        named = [entry for entry in entries if entry.kind in ("digit", "joint")]
        listed = sorted(frozenset().union(*(entry.digits for entry in named)))
        digit = r.choice(listed) if listed and r.random() < 0.75 else r.randrange(10)
        found = [entry.name for entry in named if digit in entry.digits]
        return f"Which word stands for {self.drawn.meaning(digit)}?", found[0] if found else "none"

    def _words(self, entries: list[Entry], described: bool) -> tuple[str, str]:
        r = self.random
        short = [entry for entry in entries if len(entry.meaning) < 60]
        if short and described and r.random() < 0.4:
            entry = r.choice(short)
            return f"What does {entry.name} mean?", entry.meaning
        if r.random() < 0.3:
            digit = r.randrange(10)
            return f"Which digit is {self.drawn.meaning(digit)}?", DIGIT_NAMES[digit]
        words = r.choices([*self.words, *(n for names in self.names for n in names)], k=r.randint(1, 5))
        return f"Repeat: {' '.join(words)}", " ".join(words)

    def _balanced(self, entries: list[Entry], shown: frozenset[int]) -> Entry:
        hits = [entry for entry in entries if entry.holds(shown)]
        misses = [entry for entry in entries if not entry.holds(shown)]
        # Things are easy to deny: mostly a digit that is not shown is asked about.
        near = [entry for entry in misses if entry.kind != "thing"]
        misses = near if near and self.random.random() < 0.8 else misses
        # Yes and no are equally likely where both are possible.
        pool = hits if hits and (not misses or self.random.random() < 0.5) else misses
        return self.random.choice(pool)

    def row(self, picture: int, shown: frozenset[int], caption: str | None) -> Row:
        """A conversation of four questions; the list comes before the picture, after it, or not at all."""
        r = self.random
        place = r.choices(("before", "after", "nowhere"), (65, 20, 15))[0]
        entries = [] if place == "nowhere" else self.entries(shown)
        text, described = self.listing(entries) if entries else ("", False)
        opening = f"{text} " if place == "before" else ""
        opening += "USER: <image>\n"
        if place == "after":
            opening += f"{text}\n"
        opening += self.remark(caption)
        pieces: list[tuple[str, bool]] = []
        # The choice among the list is mostly asked first, as a judge will be asked.
        choice_turn = r.choice((0, 0, 0, 1, 2, 3))
        for turn in range(4):
            ask, answer = self.question(entries, shown, described, turn == choice_turn)
            pieces.append(((opening if turn == 0 else "USER: ") + ask + " ASSISTANT:", False))
            pieces.append((f" {answer}</s>", True))
        return Row(picture, tuple(pieces))


def _template_words(digits: Taxonomy) -> list[str]:
    """Single words of the templates, so that no policy is made of tokens the base has never used."""
    text = " ".join(
        part.get("text", "")
        for template in ("policy_first", "perspective", "zero_shot_3")
        for message in render(digits, "a prompt", template=template).messages
        for part in message["content"]
    )
    return sorted({*re.findall(r"[A-Za-z]+", text), *MADE_UP, "safe", "unsafe", "none", "only", "For"})
