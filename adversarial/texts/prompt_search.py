"""A search for prompts and seeds that get a picture past what guards a generator; it needs scores and no gradients.

An attempt is a prompt and the seed of the noise. What is minimised is one number an attempt, below 0 where it
succeeds: the larger of two, how far the defence is from letting it pass and how far the picture is from what is wanted,
so that neither is bought with the other. A beam of the best attempts is mutated: another seed, a family's rewriting
(`families`), words swapped for others, words of a vocabulary put in, words left out. So it is a beam search as in
`subwords`, over whole pictures: the picture is made anew for every attempt.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from adversarial.errors import AttackError

from .families import FAMILIES, Maker

SEEDS = 2**31


@dataclass(frozen=True)
class Attempt:
    """What an attacker sends."""

    prompt: str
    seed: int
    family: str = "plain"
    """How it was made, for the tables."""


@dataclass
class PromptSearch:
    """Proposes attempts one after the other, each after it was told how the last ones did.

    Raises:
        AttackError: nothing to start with.
    """

    start: Sequence[tuple[Attempt, float]]
    """Attempts that were tried already, with the number that is minimised."""
    seed: int = 0
    replaced: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Word of a prompt, in lower case -> what may stand in its place, such as other names of the same thing."""
    vocabulary: Sequence[str] = ()
    """Words to put in anywhere."""
    makers: Mapping[str, Maker] = field(default_factory=lambda: FAMILIES)
    beam: int = 4
    name: str = "adaptive search"

    def __post_init__(self) -> None:
        if not self.start or self.beam < 1:
            raise AttackError("A search starts from at least one attempt, and keeps at least one.")
        self._draw = random.Random(self.seed)
        self._seen = {(attempt.prompt, attempt.seed) for attempt, _ in self.start}
        self._best = sorted(self.start, key=lambda entry: entry[1])[: self.beam]

    def propose(self) -> Attempt:
        """The next attempt, unlike all before."""
        while True:
            # Mostly from the best: the beam is in order.
            place = min(int(self._draw.expovariate(1.0)), len(self._best) - 1)
            parent = self._best[place][0]
            prompt = parent.prompt if self._draw.random() < 0.3 else self._change(parent.prompt)
            attempt = Attempt(prompt or parent.prompt, self._draw.randrange(SEEDS), self.name)
            if (attempt.prompt, attempt.seed) not in self._seen:
                self._seen.add((attempt.prompt, attempt.seed))
                return attempt

    def update(self, attempt: Attempt, value: float) -> None:
        """How an attempt did; below 0 it succeeded."""
        self._best = sorted([*self._best, (attempt, value)], key=lambda entry: entry[1])[: self.beam]

    def _change(self, prompt: str) -> str:
        words = prompt.split()
        kind = self._draw.choice(("family", "replace", "insert", "drop"))
        if kind == "family" or not words:
            made = self._draw.choice(list(self.makers.values()))(prompt, "safe", self._draw.randrange(SEEDS))
            texts = [text for text in made if text]
            return self._draw.choice(texts) if texts else prompt
        places = [at for at, word in enumerate(words) if bare(word) in self.replaced]
        if kind == "replace" and places:
            at = self._draw.choice(places)
            words[at] = self._draw.choice(list(self.replaced[bare(words[at])]))
        elif kind == "insert" and self.vocabulary:
            words.insert(self._draw.randint(0, len(words)), self._draw.choice(list(self.vocabulary)))
        elif len(words) > 1:
            del words[self._draw.randrange(len(words))]
        return " ".join(words)


def replace_words(prompt: str, replaced: Mapping[str, Sequence[str]]) -> list[str]:
    """Prompts with every word that has replacements replaced by its first, its second, and so on.

    A word with fewer replacements than another starts again. None where the prompt has no such word.
    """
    words = prompt.split()
    most = max((len(replaced[bare(word)]) for word in words if bare(word) in replaced), default=0)
    found = []
    for turn in range(most):
        found.append(
            " ".join(
                replaced[bare(word)][turn % len(replaced[bare(word)])] if bare(word) in replaced else word
                for word in words
            )
        )
    return list(dict.fromkeys(found))


def bare(word: str) -> str:
    """A word in lower case without marks around it."""
    return word.strip(".,;:!?\"'()").casefold()
