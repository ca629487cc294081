"""A search for sub-words that a text filter does not know, in place of the words it does; it needs no gradients."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from adversarial.errors import AttackError
from adversarial.problem import Problem

from .result import FamilyResult, TextResult, prompt_margins


@dataclass(frozen=True)
class SubwordSearch:
    """Replace the sensitive words of a prompt by meaningless sub-words, until the victim lets it pass.

    After SneakyPrompt (Yang et al. 2024, section 4): sensitive words are replaced by up to three sub-words of up to
    ten letters, within sixty queries, stopping at success. Two things differ. Its policy network is trained by
    reinforcement for each prompt; here a beam search (the paper's strongest heuristic kind) proposes and mutates. Its
    similarity is that of the generated image; here the picture is given, so it is that of the texts, by the attacker's
    own function, which costs no queries. Unknown sensitive words are found by leaving out one word at a time, which
    costs queries.
    """

    similarity: Callable[[str, str], float]
    """(original, candidate) -> how similar they are, such as the cosine of an attacker's text encoder."""
    min_similarity: float = 0.6
    """Less similar candidates are not queried."""
    queries: int = 60
    """Queries of the victim for each row."""
    sensitive: tuple[str, ...] = ()
    """Words known to be sensitive; without any, they are searched for."""
    fragments: tuple[str, ...] = ()
    """Sub-words to use beside random letters, such as tokens of a vocabulary; none that is sensitive."""
    beam: int = 3
    """Best prompts kept at a time."""
    proposals: int = 40
    """Candidates drawn to find one above `min_similarity`, before the row's search ends."""
    subwords: int = 3
    letters: int = 10
    name: str = "sub-word search"
    needs_gradients: bool = False

    def __post_init__(self) -> None:
        least = min(self.queries, self.beam, self.proposals, self.subwords, self.letters)
        if least < 1:
            raise AttackError("queries, beam, proposals, subwords and letters must be at least 1.")

    def run(self, problem: Problem, pixels: Tensor | None = None) -> TextResult:
        """Search for each row that has a prompt, at the clean images or at (N, 3, H, W) `pixels`."""
        found, shown = TextResult.initial(problem, pixels), problem.images if pixels is None else pixels
        rows = [
            row
            for row, (prompt, done) in enumerate(zip(found.prompts, found.margin < 0, strict=True))
            if prompt and prompt.strip() and not done and not found.misjudged[row]
        ]
        searches = {
            row: _RowSearch(
                self, str(found.prompts[row]), float(found.margin[row]), problem.seed_of(row, "sub-words")
            )
            for row in rows
        }
        while searches:
            tried = {row: text for row, search in searches.items() if (text := search.propose()) is not None}
            # Rows whose search proposes nothing more are finished.
            searches = {row: search for row, search in searches.items() if row in tried}
            for row, margin in prompt_margins(problem, shown, tried).items():
                # A query with a word left out counts, but its text is not a candidate.
                is_attack = searches[row].update(margin)
                found.update(row, tried[row], margin if is_attack else math.inf, self.name)
                if float(found.margin[row]) < 0 or int(found.queries[row]) >= self.queries:
                    del searches[row]
        # A search counts as one attempt, however many queries it took.
        ends = [[float(found.margin[row])] if found.queries[row] else [] for row in range(len(problem))]
        found.families[self.name] = FamilyResult(ends, found.misjudged)
        return found


class _RowSearch:
    """The search for one prompt: first which words matter, then what replaces them."""

    def __init__(self, settings: SubwordSearch, prompt: str, margin: float, seed: int) -> None:
        self.settings, self.prompt = settings, prompt
        self.words = prompt.split()
        self.draw = random.Random(seed)
        sensitive = {word.casefold() for word in settings.sensitive}
        # Places of the words to replace, the most important first.
        self.order = [
            at for at, word in enumerate(self.words) if word.strip(".,;:!?\"'").casefold() in sensitive
        ]
        # Words to leave out one at a time, the longest first, for at most a third of the queries.
        longest = sorted(range(len(self.words)), key=lambda at: -len(self.words[at]))
        self.left_out_next = [] if self.order else longest[: max(settings.queries // 3, 1)]
        self.weights: dict[int, float] = {}  # place -> margin without that word
        self.left_out: int | None = None
        # (margin, place -> replacement), lowest margin first
        self.beam: list[tuple[float, dict[int, str]]] = [(margin, {})]
        self.proposed: dict[int, str] = {}
        self.seen = {prompt}

    def propose(self) -> str | None:
        """The next prompt to query, or None where there is none."""
        while self.left_out_next:
            self.left_out = at = self.left_out_next.pop(0)
            text = " ".join(word for place, word in enumerate(self.words) if place != at)
            if text not in self.seen:
                self.seen.add(text)
                return text
        self.left_out = None
        if not self.order:
            self.order = sorted(self.weights, key=lambda at: self.weights[at]) or [0]
        for _ in range(self.settings.proposals):
            self.proposed = self._change(self.draw.choice(self.beam)[1])
            text = self._text(self.proposed)
            if (
                text not in self.seen
                and self.settings.similarity(self.prompt, text) >= self.settings.min_similarity
            ):
                self.seen.add(text)
                return text
        return None

    def update(self, margin: float) -> bool:
        """Take the margin of the last proposal; False if that only left a word out, which is no attack."""
        if self.left_out is not None:
            self.weights[self.left_out] = margin
            return False
        self.beam = sorted([*self.beam, (margin, self.proposed)], key=lambda entry: entry[0])[
            : self.settings.beam
        ]
        return True

    def _change(self, replaced: dict[int, str]) -> dict[int, str]:
        """Replace one more sensitive word, or change a replacement: anew, or in one letter."""
        changed = dict(replaced)
        missing = [at for at in self.order if at not in replaced]
        if missing and (not replaced or self.draw.random() < 0.5):
            # Mostly the word that matters most; sometimes another, in case that order is wrong.
            at = missing[0] if self.draw.random() < 0.75 else self.draw.choice(missing)
            changed[at] = self._subwords()
        else:
            at = self.draw.choice(sorted(replaced))
            anew = self.draw.random() < 0.5
            changed[at] = self._subwords() if anew else self._other_letter(replaced[at])
        return changed

    def _subwords(self) -> str:
        count = self.draw.randint(1, self.settings.subwords)
        return " ".join(self._subword() for _ in range(count))

    def _subword(self) -> str:
        if self.settings.fragments and self.draw.random() < 0.5:
            return self.draw.choice(self.settings.fragments)
        length = self.draw.randint(2, max(self.settings.letters, 2))
        return "".join(self.draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length))

    def _other_letter(self, text: str) -> str:
        at = self.draw.randrange(len(text))
        return text[:at] + self.draw.choice("abcdefghijklmnopqrstuvwxyz") + text[at + 1 :]

    def _text(self, replaced: dict[int, str]) -> str:
        return " ".join(replaced.get(at, word) for at, word in enumerate(self.words))
