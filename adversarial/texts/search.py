"""Attacks through the prompt that only ask: families of made prompts, and a search for words a filter does not know.

The pictures stay as they are (clean, or as an attack on pixels left them); `Context.prompt` changes.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from adversarial.errors import AttackError
from adversarial.problem import Problem
from adversarial.victim import Context

from .families import FAMILIES, Maker, target_of


@dataclass
class FamilyResult:
    """What one family of prompts achieved on N rows."""

    margins: list[list[float]]
    """N lists: the margin of each prompt that was tried, in the maker's order."""
    misjudged: Tensor
    """(N,) rows that were misjudged already; they count nowhere."""

    @property
    def largest(self) -> int:
        """The N of ASR-N: the longest list of prompts that a row had."""
        return max(map(len, self.margins), default=0)

    def asr_1(self) -> float:
        """Chance of success with one prompt drawn from the family, mean over rows; NaN without rows.

        A row for which the family had no prompt counts as withstood.
        """
        return self._mean(lambda margins: sum(margin < 0 for margin in margins) / max(len(margins), 1))

    def asr_n(self) -> float:
        """Share of rows that any of the family's prompts gets through; NaN without rows."""
        return self._mean(lambda margins: float(any(margin < 0 for margin in margins)))

    def _mean(self, rate: Callable[[list[float]], float]) -> float:
        rates = [
            rate(margins)
            for margins, out in zip(self.margins, self.misjudged.tolist(), strict=True)
            if not out
        ]
        return sum(rates) / len(rates) if rates else math.nan


@dataclass
class TextResult:
    """What an attack through the prompt made of N rows."""

    prompts: list[str | None]
    """What the victim misjudges with, else what came nearest to it; the row's own prompt where nothing helped."""
    margin: Tensor
    """(N,) the victim's margin on the attacker's terms; below 0 the attack succeeded."""
    family: list[str]
    """The family of each prompt; empty for the row's own."""
    tries: Tensor
    """(N,) how often the victim was asked, without the first time."""
    misjudged: Tensor
    """(N,) whether the row's own prompt was enough; not the attack's merit."""
    families: dict[str, FamilyResult] = field(default_factory=dict)

    @property
    def success(self) -> Tensor:
        """(N,) misjudged with the found prompt, but not with its own."""
        return (self.margin < 0) & ~self.misjudged

    def contexts(self, problem: Problem) -> list[Context]:
        """The problem's contexts with the found prompts."""
        return with_prompts(problem, self.prompts)

    def update(self, row: int, prompt: str | None, margin: float, family: str) -> None:
        """Count a try, and keep it if it is the best."""
        self.tries[row] += 1
        if margin < float(self.margin[row]):
            self.prompts[row], self.family[row] = prompt, family
            self.margin[row] = margin


def initial_result(problem: Problem, pixels: Tensor | None = None) -> TextResult:
    """Nothing found yet: each row with its own prompt, asked at `pixels` or at the clean images."""
    margin = problem.clean_margins() if pixels is None else _ask_all(problem, pixels)
    prompts = [context.prompt for context in problem.contexts]
    count = len(problem)
    return TextResult(
        prompts,
        margin.clone(),
        [""] * count,
        torch.zeros(count, dtype=torch.long),
        problem.clean_margins() < 0,
    )


def prompt_margins(problem: Problem, pixels: Tensor, prompts: Mapping[int, str | None]) -> dict[int, float]:
    """Signed margins of some rows under other prompts, at (N, 3, H, W) pixels: row -> prompt becomes row -> margin."""
    margins: dict[int, float] = {}
    for rows in problem.batches(torch.tensor(sorted(prompts), dtype=torch.long)):
        part = problem.subset(rows)
        asked = part.with_contexts(with_prompts(part, [prompts[row] for row in rows.tolist()]))
        margins.update(
            zip(
                rows.tolist(),
                asked.signed_margins(pixels[rows], torch.arange(len(rows))).tolist(),
                strict=True,
            )
        )
    return margins


def verify_prompts(found: TextResult, problem: Problem, pixels: Tensor | None = None) -> TextResult:
    """Believe nothing an attack says: ask the victim again with the found prompts.

    Raises:
        AttackError: another number of prompts than rows.
    """
    if len(found.prompts) != len(problem):
        raise AttackError(
            f"Got {len(found.prompts)} prompts for {len(problem)} rows; an attack gives one each."
        )
    asked = problem.with_contexts(found.contexts(problem))
    margin = _ask_all(asked, problem.images if pixels is None else pixels)
    return replace(found, margin=margin, misjudged=problem.clean_margins() < 0)


@dataclass(frozen=True)
class TextAttack:
    """Try every prompt of every family (`adversarial.texts.families`), and keep the best.

    Nothing is learned from an answer, so this is a lower bound of what an attacker can do who asks.
    """

    families: Mapping[str, Maker] = field(default_factory=lambda: FAMILIES)
    """Names and makers; add `lies` and `paraphrases` of your own."""
    early_stop: bool = False
    """Leave a row alone once a prompt got through: cheaper, but then the rates of later families mean nothing."""
    name: str = "made prompts"
    needs_gradients: bool = False

    def __post_init__(self) -> None:
        if not self.families:
            raise AttackError(f"No families of prompts; choose from {', '.join(FAMILIES)}.")

    def run(self, problem: Problem, pixels: Tensor | None = None) -> TextResult:
        """Ask with each prompt, at the clean images or at (N, 3, H, W) `pixels`."""
        found, shown = initial_result(problem, pixels), problem.images if pixels is None else pixels
        for name, maker in self.families.items():
            made = [
                maker(context.prompt, target_of(float(sign)), problem.seed)
                for context, sign in zip(problem.contexts, problem.signs, strict=True)
            ]
            margins: list[list[float]] = [[] for _ in made]
            for turn in range(max(map(len, made), default=0)):
                open_rows = (~found.misjudged & ~(found.success & self.early_stop)).nonzero().flatten()
                tried = {row: made[row][turn] for row in open_rows.tolist() if turn < len(made[row])}
                for row, margin in prompt_margins(problem, shown, tried).items():
                    found.update(row, tried[row], margin, name)
                    margins[row].append(margin)
            found.families[name] = FamilyResult(margins, found.misjudged)
        return found


@dataclass(frozen=True)
class SubwordSearch:
    """Replace the words that give a prompt away by sub-words of no known meaning, until the victim lets it through.

    After SneakyPrompt (Yang et al. 2024, section 4): sensitive words are replaced by up to three sub-words of up to
    ten letters, within sixty queries, stopping at success. Two things differ. Its policy network is trained by
    reinforcement for each prompt; here a beam search (the paper's strongest heuristic kind) proposes and mutates. Its
    similarity is of the generated image; here the picture is given, so it is of the texts, by a callable that the
    attacker owns: asking it costs no query. Where the sensitive words are not told, they are found by leaving words
    out, which costs queries and is no attack yet.
    """

    similarity: Callable[[str, str], float]
    """How much a candidate (second) still means the original (first): the cosine of an attacker's text encoder."""
    min_similarity: float = 0.6
    """Candidates less similar are not asked."""
    queries: int = 60
    """Questions to the victim for each row."""
    sensitive: tuple[str, ...] = ()
    """Words known to give a prompt away; without any, they are searched for."""
    fragments: tuple[str, ...] = ()
    """Sub-words to build from beside random letters, such as tokens of a vocabulary; none that is sensitive."""
    beam: int = 3
    """Prompts that are worked on at a time."""
    proposals: int = 40
    """Candidates that are made to find one above the floor, before the row gives up its turn."""
    subwords: int = 3
    letters: int = 10
    name: str = "sub-word search"
    needs_gradients: bool = False

    def __post_init__(self) -> None:
        least = min(self.queries, self.beam, self.proposals, self.subwords, self.letters)
        if least < 1:
            raise AttackError("queries, beam, proposals, subwords and letters must be at least 1.")

    def run(self, problem: Problem, pixels: Tensor | None = None) -> TextResult:
        """Search for each row with a prompt, rows side by side, at the clean images or at `pixels`."""
        found, shown = initial_result(problem, pixels), problem.images if pixels is None else pixels
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
            searches = {row: search for row, search in searches.items() if row in tried}
            for row, margin in prompt_margins(problem, shown, tried).items():
                is_attack = searches[row].update(margin)
                found.update(row, tried[row], margin if is_attack else math.inf, self.name)
                if float(found.margin[row]) < 0 or int(found.tries[row]) >= self.queries:
                    del searches[row]
        # One attempt a row, however often it asked: what a single search achieves.
        ends = [[float(found.margin[row])] if found.tries[row] else [] for row in range(len(problem))]
        found.families[self.name] = FamilyResult(ends, found.misjudged)
        return found


class _RowSearch:
    """The search for one prompt: first which words matter, then what to put in their place."""

    def __init__(self, settings: SubwordSearch, prompt: str, margin: float, seed: int) -> None:
        self.settings, self.prompt = settings, prompt
        self.words = prompt.split()
        self.draw = random.Random(seed)
        told = {word.casefold() for word in settings.sensitive}
        self.order = [at for at, word in enumerate(self.words) if word.strip(".,;:!?\"'").casefold() in told]
        # Left out one by one, at most a third of the queries, the longest words first: they say most.
        longest = sorted(range(len(self.words)), key=lambda at: -len(self.words[at]))
        self.to_leave_out = [] if self.order else longest[: max(settings.queries // 3, 1)]
        self.weights: dict[int, float] = {}
        self.asking_about: int | None = None
        self.beam: list[tuple[float, dict[int, str]]] = [(margin, {})]
        self.proposed: dict[int, str] = {}
        self.seen = {prompt}

    def propose(self) -> str | None:
        """The next prompt to ask about, None where there is none."""
        while self.to_leave_out:
            self.asking_about = at = self.to_leave_out.pop(0)
            text = " ".join(word for place, word in enumerate(self.words) if place != at)
            if text not in self.seen:
                self.seen.add(text)
                return text
        self.asking_about = None
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
        """Take in an answer; whether it was about a replacement, and not about a word left out."""
        if self.asking_about is not None:
            self.weights[self.asking_about] = margin
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
            # Mostly the word that matters most; now and then another, in case the order misleads.
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


def with_prompts(problem: Problem, prompts: Sequence[str | None]) -> list[Context]:
    """The problem's contexts with other prompts."""
    return [
        replace(context, prompt=prompt) for prompt, context in zip(prompts, problem.contexts, strict=True)
    ]


def _ask_all(problem: Problem, pixels: Tensor) -> Tensor:
    margin = torch.empty(len(problem))
    for rows in problem.batches(torch.arange(len(problem))):
        margin[rows] = problem.signed_margins(pixels[rows], rows).cpu()
    return margin
