"""Generic questions about pictures of signs, on which `scripts/build_small_llava.py` tunes the base `small-llava`.

Which of many words hold, yes or no for each; what is there; which entry of a list fits, or none. Never a policy, never
the words safe and unsafe, never a template of `prompts`: the base must not know the judge's task.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from judge.standins.everyday import made_up_word

from .words import (
    Meaning,
    Thing,
    everyday_meanings,
    everyday_things,
    sign_meanings,
    signs,
    unrelated,
)

PICTURE = "<image>"
Pieces = tuple[tuple[str, bool], ...]
"""Text, each piece trained on or not."""
_EACH = (
    "Does it show these? Say yes or no to each.",
    "Which of these does it show? Yes or no.",
    "Go through the words: is it there, yes or no?",
    "Yes or no for every line:",
)
_NAMING = ("What does it show?", "What is there?", "Name what you see.")
_OPENINGS = (
    "Here are some words:",
    "A list of names:",
    "Words and what they mean:",
    "These are the names to use:",
)
_CHOICES = (
    "Which of these do you see?",
    "Which word fits, or none?",
    "What from the list is there?",
    "Say the name that fits, or none.",
)
_REMARKS = ('Caption: "{}"\n', 'Somebody says: "{}"\n', 'Title: "{}"\n')
_OPEN, _CLOSE = "<|im_start|>", "<|im_end|>\n"


def _name(one: Thing) -> str:
    return one.name


def line(said: str, holds: bool) -> Pieces:
    """A line of yes-or-no answers, behind its dash."""
    return ((f" {said}:", False), (" yes" if holds else " no", True))


@dataclass(frozen=True)
class Entry:
    """A line of a list: a name, what it means, and what it covers."""

    name: str
    meaning: str
    things: frozenset[Thing]

    def holds(self, shown: Sequence[Thing]) -> bool:
        """Whether something shown is covered."""
        return not self.things.isdisjoint(shown)


class Talk:
    """Draws pictures' contents, and questions about them."""

    def __init__(self, seed: int, *, unsaid: bool = False) -> None:
        """Equal seeds give equal questions; with `unsaid` they use the names and texts kept out of lessons."""
        self.random = Random(seed)
        self.unsaid = unsaid
        everyday = [one for one in everyday_things().values() if bool(one.unsaid) == unsaid]
        self.worlds = (
            (list(signs().values()), [m for m in sign_meanings() if m.unsaid == unsaid]),
            (everyday, [m for m in everyday_meanings() if m.unsaid == unsaid]),
        )

    def shown(self, everyday: float = 0.25) -> list[Thing]:
        """Up to four things that a picture shows, all signs, or, as often as `everyday`, all everyday things."""
        things, _ = self.worlds[self.random.random() < everyday]
        return self.random.sample(things, self.random.choices((0, 1, 2, 3, 4), (5, 35, 30, 20, 10))[0])

    def name(self, one: Thing) -> str:
        """One of the names for a thing that may be used."""
        return self.random.choice((one.unsaid if self.unsaid else one.words) or one.words or one.unsaid)

    def described(self, shown: Sequence[Thing]) -> str:
        """What stands in the place of a picture in a lesson of text alone."""
        listed = ", ".join(self.random.choice(one.words or one.unsaid) for one in shown)
        return self.random.choice(("The picture shows: {}.", "A picture of {}.", "To be seen: {}.")).format(
            listed or "nothing"
        )

    def asked(self, shown: Sequence[Thing], count: int) -> Iterator[tuple[Meaning, bool]]:
        """`count` names and texts, and whether each holds; about half do. A name covers one thing."""
        r = self.random
        things, meanings = self.worlds[bool(shown) and shown[0].name in everyday_things()]
        held = [meaning for meaning in meanings if not meaning.things.isdisjoint(shown)]
        for _ in range(count):
            wanted = r.random() < 0.5
            pool = held if wanted else meanings
            if pool and r.random() < 0.6:
                meaning = r.choice(pool)
            else:
                one = r.choice(shown if wanted and shown else things)
                meaning = Meaning(self.name(one), frozenset({one}))
            yield meaning, not meaning.things.isdisjoint(shown)

    def each(self, shown: Sequence[Thing], picture: str, count: int) -> tuple[str, list[Pieces]]:
        """A question about a picture as text, and yes or no to each of `count` words, each answer by itself."""
        opening = f"{_OPEN}user\n{picture}\n{self.random.choice(_EACH)}{_CLOSE}{_OPEN}assistant\n-"
        return opening, [line(said.text, holds) for said, holds in self.asked(shown, count)]

    def naming(self, shown: Sequence[Thing], picture: str) -> Pieces:
        """Name all that is shown."""
        named = ", ".join(sorted((one.words or one.unsaid)[0] for one in shown)) or "nothing"
        opening = f"{_OPEN}user\n{picture}\n{self.random.choice(_NAMING)}{_CLOSE}{_OPEN}assistant\n"
        return ((opening, False), (f"{named}<|im_end|>", True))

    def entries(self) -> list[Entry]:
        """A list: texts that cover several signs, single signs, and everyday things that never fit."""
        r = self.random
        found: dict[str, Entry] = {}
        for _ in range(r.randint(1, 9)):
            entry = self.entry()
            found.setdefault(entry.name, entry)
        for _ in range(r.choice((0, 0, 1, 3))):
            name, meaning = unrelated(r)
            found.setdefault(name, Entry(name, meaning, frozenset()))
        return r.sample(list(found.values()), len(found))

    def entry(self) -> Entry:
        """An entry about signs; its name says what it covers, or is made up."""
        r = self.random
        things, meanings = self.worlds[0]
        if r.random() < 0.6:
            meaning = r.choice(meanings)
            text, covered = meaning.text, meaning.things
            examples = [self.name(one) for one in r.sample(sorted(covered, key=_name), min(2, len(covered)))]
            listed = r.choice((" or ", " and ", ", ")).join(examples)
            explained = r.choice((text, f"{text}, for example {listed}", f"such as {listed}"))
            name = text if explained.startswith("such") or r.random() < 0.5 else made_up_word(r)
        else:
            covered = frozenset(r.sample(things, r.choice((1, 1, 2, 3))))
            words = [self.name(one) for one in sorted(covered, key=_name)]
            explained = r.choice((" or ", ", ")).join(words)
            name = words[0] if len(words) == 1 and r.random() < 0.5 else made_up_word(r)
        return Entry(r.choice((name, name.title())), explained, covered)

    def listing(self, entries: Sequence[Entry]) -> str:
        """The turn before the picture: the list as text."""
        r = self.random
        line = r.choice(("- {0}: {1}", "- {0}: {1}", "{0} = {1}", "* {0} ({1})"))
        lines = [r.choice(_OPENINGS), *(line.format(e.name, e.meaning) for e in entries)]
        return f"{_OPEN}system\n" + "\n".join(lines) + f"{_CLOSE}{_OPEN}user\n"

    def chosen(self, entries: Sequence[Entry], shown: Sequence[Thing], picture: str) -> Pieces:
        """Which entry fits, or none; then yes or no to each entry."""
        r = self.random
        hits = [entry.name for entry in entries if entry.holds(shown)]
        asked = f"{picture}\n{self.remark()}{r.choice(_CHOICES)}{_CLOSE}{_OPEN}assistant\n"
        pieces = [(asked, False), (f"{r.choice(hits) if hits else 'none'}<|im_end|>", True)]
        pieces.append((f"\n{_OPEN}user\n{r.choice(_EACH)}{_CLOSE}{_OPEN}assistant", False))
        for entry in r.sample(list(entries), min(4, len(entries))):
            pieces += [("\n-", False), *line(entry.name, entry.holds(shown))]
        return (*pieces, ("<|im_end|>", True))

    def remark(self) -> str:
        """A line beside the picture, mostly none; whatever it says, it changes no answer."""
        r = self.random
        if r.random() < 0.6:
            return ""
        said = ", ".join(r.choice(one.words) for one in r.sample(self.worlds[0][0], r.randint(1, 3)))
        return r.choice(_REMARKS).format(r.choice((said, f"a drawing of {said}", unrelated(r)[0])))
