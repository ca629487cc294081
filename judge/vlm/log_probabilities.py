"""Probabilities over a closed set of answers, from the log-probabilities that a chat server lists with one answer."""

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
"""A probability that is uncertain by more than this is not reported."""
_END = re.compile(r"\s*[<\[.]|[^\S\n]*\n")
"""Beginnings of tokens that end an answer: end tokens such as </s> and [EOS], a full stop, a newline."""
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
    """Probabilities over the closed set of answers."""

    answer: Answer
    """The one that was generated."""
    unsafe: float
    categories: "NDArray[np.float64]"
    """(K,); NaN where uncertain by more than `TOLERANCE`."""
    upper_bounds: "NDArray[np.float64]"
    """(K,) upper bounds of the categories' probabilities."""


def read_log_probabilities(
    steps: Sequence[Step], answers: Sequence[Answer], count: int
) -> ClosedProbabilities | None:
    """Probabilities over the closed set of answers, from the alternatives listed along one generated answer.

    At each token only alternatives that are prefixes of an allowed answer count, and their probabilities are
    renormalised, as in a local judge's constrained decoding. An alternative that determines one answer gives it its
    probability; one shared by several unsafe answers counts as unsafe with an unknown category, since the server did
    not continue it. One shared by safe and unsafe answers is left out, assuming that it splits as the listed ones do.
    Case, spaces and the segmentation into tokens do not matter (a local judge counts one segmentation only). So
    P(unsafe) is that of the first token or tokens at which safe and unsafe differ.

    Limits: an unlisted token has at most the probability of the least likely listed one, and at most the remainder to
    1; an answer reachable only through it counts as zero while that is within `TOLERANCE`, otherwise as open. After a
    confident safe every category is near zero; after an uncertain one (P(unsafe) over `TOLERANCE`) categories that
    share their first token, "unsafe", are open. Where one name is a prefix of another and the server lists no end
    token, the longer name is open and the shorter one's probability an upper bound.

    Args:
        steps: the generated tokens, in order.
        answers: safe first, then the unsafe ones.
        count: K, categories of the taxonomy.

    Returns:
        None if the tokens do not spell an answer, or P(unsafe) is uncertain by more than `TOLERANCE`.
    """
    path = _AnswerPath([_normalise(answer.text) for answer in answers], answers, count)
    for step in steps:
        if len(path.open) == 1:  # decided: later tokens have probability one
            break
        if not path.advance(step):
            return None
    return path.result()


class _AnswerPath:
    """Probabilities of the answers while following a generated one token by token; answer 0 is the safe one."""

    def __init__(self, spelled: Sequence[str], answers: Sequence[Answer], count: int) -> None:
        self.spelled, self.answers = spelled, answers
        self.open = frozenset(range(len(answers)))
        """Answers of which the text so far is a prefix."""
        self.text = ""
        self.probability = 1.0
        """Of the text so far, among the allowed ones."""
        self.unsafe = 0.0
        self.uncertainty = 0.0
        """Of P(unsafe)."""
        self.categories = np.zeros(count)
        self.slack = np.zeros(count)
        """(K,) how far each category may be too low."""

    def advance(self, step: Step) -> bool:
        """Add up the alternatives of a token, and follow it; False if it leads to no answer."""
        followed = self._leads_to(step.token)
        if not followed:
            return False
        weights = {followed: math.exp(step.log_probability)}
        for token, log_probability in step.others:
            target = self._leads_to(token)
            mixed = 0 in target and len(target) > 1  # shared by safe and unsafe answers
            # A mixed target is skipped: it would split as the listed ones do.
            if target and (target == followed or not mixed):
                weights[target] = weights.get(target, 0.0) + math.exp(log_probability)
        total = sum(weights.values())
        if not total:
            return False
        self._add_unlisted(step, self.open.difference(*weights), total)
        for target, weight in weights.items():
            if target != followed:
                self._add(target, self.probability * weight / total)
        self.probability *= weights[followed] / total
        self.text, self.open = self.text + _normalise(step.token), followed
        return True

    def _leads_to(self, token: str) -> frozenset[int]:
        """Answers still possible after this token; the answer spelled so far if the token ends it."""
        if _END.match(token):
            ended = frozenset(index for index in self.open if self.spelled[index] == self.text)
            if ended:
                return ended
        spelled = self.text + _normalise(token)
        return frozenset(index for index in self.open if self.spelled[index].startswith(spelled))

    def _add_unlisted(self, step: Step, unlisted: frozenset[int], total: float) -> None:
        """Widen the bounds of answers that only unlisted tokens lead to."""
        if not unlisted:
            return
        listed = [math.exp(log_probability) for _, log_probability in step.others]
        # What no listed token has: at most this, and no more than the least likely listed one.
        left = max(0.0, 1.0 - math.exp(step.log_probability) - sum(listed))
        most = min([left, *listed])
        share = self.probability * most / (total + most)
        self._widen(unlisted, share)
        if 0 in self.open:
            self.uncertainty += share

    def _add(self, target: frozenset[int], share: float) -> None:
        """Give a probability to the answers that share a prefix."""
        if 0 in target:
            return
        self.unsafe += share
        category = self.answers[next(iter(target))].category
        if len(target) == 1 and category is not None:
            self.categories[category] += share
        else:
            self._widen(target, share)

    def _widen(self, target: frozenset[int], share: float) -> None:
        """Allow each of these answers up to `share` more."""
        for index in target:
            category = self.answers[index].category
            if category is not None:
                self.slack[category] += share
            elif self.answers[index].unsafe:
                self.slack += share

    def result(self) -> ClosedProbabilities | None:
        named = [index for index in self.open if len(self.open) == 1 or self.spelled[index] == self.text]
        if len(named) != 1 or self.uncertainty > TOLERANCE:
            return None
        # What is left of the path belongs to the named answer, or to a longer one that was not ruled out.
        self._add(frozenset(named), self.probability)
        self._widen(self.open.difference(named), self.probability)
        known = np.where(self.slack > TOLERANCE, np.nan, np.clip(self.categories, 0.0, 1.0))
        unsafe = min(self.unsafe, 1.0)
        most = np.clip(self.categories + self.slack, 0.0, unsafe)
        return ClosedProbabilities(self.answers[named[0]], unsafe, known, most)


def _normalise(text: str) -> str:
    """Without case and spaces: servers differ in how they show the spaces of single tokens."""
    return "".join(text.translate(_WORD_MARKS).split()).casefold()
