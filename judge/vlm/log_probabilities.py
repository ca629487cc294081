"""Probabilities over a closed set of answers, from the log-probabilities a chat server lists with one answer."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prompts.template import Answer

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 0.01
"""A probability that the listed tokens leave open by more than this is not reported."""
_END = re.compile(r"\s*[<\[.]|[^\S\n]*\n")
"""How tokens begin that end an answer: end tokens such as </s> and [EOS], a full stop, a new line."""
_WORD_MARKS = str.maketrans("", "", "▁Ġ")


@dataclass(frozen=True)
class Step:
    """One generated token and its alternatives."""

    token: str
    log_probability: float
    others: tuple[tuple[str, float], ...]
    """Other tokens the server listed, with their log-probabilities."""


@dataclass(frozen=True)
class ClosedProbabilities:
    """What log-probabilities say about the closed set of answers."""

    answer: Answer
    """The one that was generated."""
    unsafe: float
    categories: "NDArray[np.float64]"
    """(K,); NaN where open by more than `TOLERANCE`."""
    most: "NDArray[np.float64]"
    """(K,) the most that each can be."""


def read_log_probabilities(
    steps: Sequence[Step], answers: Sequence[Answer], count: int
) -> ClosedProbabilities | None:
    """Probabilities over the closed set of answers, from the alternatives listed along one generated answer.

    At each token only alternatives that can still become an allowed answer count, and their probabilities are
    renormalised, as in a local judge's constrained decoding. An alternative that leads to one answer gives it its
    share at once; one that leads to several unsafe answers counts as unsafe, but which category is open, since the
    server did not go there. One that leads to safe and unsafe answers alike is left out: it is taken to split as
    the listed ones do. Case and spaces do not matter, nor how an answer is cut into tokens (a local judge counts one
    way of cutting only). P(unsafe) is therefore that of the first token or tokens at which safe and unsafe part.

    Limits: a token that is not listed has at most the probability of the least listed one, and of what is left to
    1; an answer reachable only by it counts as zero while that is within `TOLERANCE`, otherwise as open. After a
    confident safe every category is near zero; after a doubtful one (P(unsafe) over `TOLERANCE`) categories that
    share their first token, "unsafe", are open. Where one name begins another and the server lists no end token,
    the longer name is open and the shorter one an upper bound.

    Args:
        steps: the generated tokens, in order.
        answers: safe first, then the unsafe ones.
        count: K, categories of the taxonomy.

    Returns:
        None where the tokens do not spell an answer, or P(unsafe) itself is open by more than `TOLERANCE`.
    """
    tally = _Tally([_squeezed(answer.text) for answer in answers], answers, count)
    for step in steps:
        if len(tally.open) == 1:
            break
        if not tally.advance(step):
            return None
    return tally.conclude()


class _Tally:
    """Shares of the answers while a generated answer is followed token by token; answer 0 is the safe one."""

    def __init__(self, spelled: Sequence[str], answers: Sequence[Answer], count: int) -> None:
        self.spelled, self.answers = spelled, answers
        self.open = frozenset(range(len(answers)))
        """Answers that the path can still become."""
        self.path = ""
        self.reach = 1.0
        """Probability of the path so far."""
        self.unsafe = 0.0
        self.unsure = 0.0
        """How far P(unsafe) may be off."""
        self.categories = np.zeros(count)
        self.slack = np.zeros(count)
        """How far each category may be too low."""

    def advance(self, step: Step) -> bool:
        """Share out what the alternatives of a token hold, and follow it; False if it leads to no answer."""
        followed = self._leads_to(step.token)
        if not followed:
            return False
        weights = {followed: math.exp(step.log_probability)}
        for token, log_probability in step.others:
            target = self._leads_to(token)
            mixed = 0 in target and len(target) > 1
            if target and (target == followed or not mixed):
                weights[target] = weights.get(target, 0.0) + math.exp(log_probability)
        total = sum(weights.values())
        if not total:
            return False
        self._allow_for_unlisted(step, self.open.difference(*weights), total)
        for target, weight in weights.items():
            if target != followed:
                self._share(target, self.reach * weight / total)
        self.reach *= weights[followed] / total
        self.path, self.open = self.path + _squeezed(step.token), followed
        return True

    def _leads_to(self, token: str) -> frozenset[int]:
        """Answers still possible after the path and this token; the path's own if the token ends it."""
        if _END.match(token):
            ended = frozenset(index for index in self.open if self.spelled[index] == self.path)
            if ended:
                return ended
        spelled = self.path + _squeezed(token)
        return frozenset(index for index in self.open if self.spelled[index].startswith(spelled))

    def _allow_for_unlisted(self, step: Step, unlisted: frozenset[int], total: float) -> None:
        if not unlisted:
            return
        chances = [math.exp(log_probability) for _, log_probability in step.others]
        left = max(0.0, 1.0 - math.exp(step.log_probability) - sum(chances))
        most = min([left, *chances])
        share = self.reach * most / (total + most)
        self._doubt(unlisted, share)
        if 0 in self.open:
            self.unsure += share

    def _share(self, target: frozenset[int], share: float) -> None:
        if 0 in target:
            return
        self.unsafe += share
        category = self.answers[next(iter(target))].category
        if len(target) == 1 and category is not None:
            self.categories[category] += share
        else:
            self._doubt(target, share)

    def _doubt(self, target: frozenset[int], share: float) -> None:
        for index in target:
            category = self.answers[index].category
            if category is not None:
                self.slack[category] += share
            elif self.answers[index].unsafe:
                self.slack += share

    def conclude(self) -> ClosedProbabilities | None:
        named = [index for index in self.open if len(self.open) == 1 or self.spelled[index] == self.path]
        if len(named) != 1 or self.unsure > TOLERANCE:
            return None
        self._share(frozenset(named), self.reach)
        self._doubt(self.open.difference(named), self.reach)
        known = np.where(self.slack > TOLERANCE, np.nan, np.clip(self.categories, 0.0, 1.0))
        unsafe = min(self.unsafe, 1.0)
        most = np.clip(self.categories + self.slack, 0.0, unsafe)
        return ClosedProbabilities(self.answers[named[0]], unsafe, known, most)


def _squeezed(text: str) -> str:
    """What of a token counts: servers differ in how they show the spaces of single tokens."""
    return "".join(text.translate(_WORD_MARKS).split()).casefold()
