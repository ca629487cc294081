"""Answers -> votes of each annotator about each image -> what the majority says.

Two annotators label every image, a third those on which they disagree; the label of more than half of them stands. In a
second round the categories of unsafe images are decided likewise, of the annotators who named any. What has no majority
is unresolved: it is listed, and it is never safe.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from judge.errors import ConfigError

from .answers import LABELS, Answer, Label
from .images import Picture

State = Literal["safe", "unsafe", "not_applicable", "uncategorised", "unresolved"]
"""Of an image: `uncategorised` is unsafe, without a majority for a category; `unresolved` has none for a label."""
STATES: tuple[State, ...] = get_args(State)
Use = Literal["counted", "repeated", "unanswered"]
"""Of a row: it counts; it says again what its annotator had said; it says nothing."""
FEWEST_VOTES = 2
"""Labels that an image needs, and annotators who name categories: one alone is no majority."""


@dataclass(frozen=True)
class Vote:
    """All that one annotator said of one image."""

    annotator: str
    label: Label | None
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Ballot:
    """The votes about one image."""

    picture: Picture
    votes: tuple[Vote, ...]
    """One of each annotator, in the order of their first rows that say something."""

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels of those who gave one, in order."""
        return tuple(vote.label for vote in self.votes if vote.label)


@dataclass(frozen=True)
class Outcome:
    """What the votes about one image decide."""

    ballot: Ballot
    state: State
    categories: tuple[str, ...] = ()
    """Of an unsafe image, those that the majority names."""
    reason: str = ""
    """Why it is unresolved or uncategorised."""


def collect_votes(answers: Sequence[Answer]) -> tuple[list[Ballot], list[Use]]:
    """The ballots, in the order in which images first appear, and the use of each answer.

    Raises:
        ConfigError: an annotator says two different things of an image, or two rows name different sources or
            categories for it; the message names both rows.
    """
    pictures: dict[str, Answer] = {}
    votes: dict[str, dict[str, Vote]] = {}
    rows: dict[tuple[str, str], Answer] = {}
    uses: list[Use] = []
    for answer in answers:
        name = answer.picture.name
        first = pictures.setdefault(name, answer)
        pictures[name] = replace(first, picture=_same_picture(first, answer))
        before = votes.setdefault(name, {})
        if not answer.label and not answer.categories:
            uses.append("unanswered")
            continue
        vote = before.get(answer.annotator, Vote(answer.annotator, None, ()))
        told = _add(vote, answer, rows.setdefault((name, answer.annotator), answer))
        uses.append("repeated" if told == vote else "counted")
        before[answer.annotator] = told
    return [Ballot(pictures[name].picture, tuple(votes[name].values())) for name in votes], uses


def decide(ballot: Ballot, *, with_categories: bool = True) -> Outcome:
    """What more than half of the annotators say.

    Args:
        ballot: votes about one image.
        with_categories: an unsafe image without a majority for any category is uncategorised; else it is unsafe, and
            the categories are left open.
    """
    labels = Counter(ballot.labels)
    if labels.total() < FEWEST_VOTES:
        few = "no label" if not labels else "one label only"
        return Outcome(ballot, "unresolved", reason=f"{few}, and at least {FEWEST_VOTES} are needed")
    label, count = labels.most_common(1)[0]
    if 2 * count <= labels.total():
        said = ", ".join(f"{labels[name]} {name}" for name in LABELS if labels[name])
        return Outcome(ballot, "unresolved", reason=f"no majority: {said}")
    if label != "unsafe":
        return Outcome(ballot, "safe" if label == "safe" else "not_applicable")
    naming = [vote.categories for vote in ballot.votes if vote.categories]
    named = Counter(category for categories in naming for category in categories)
    chosen = tuple(sorted(category for category, number in named.items() if 2 * number > len(naming)))
    if len(naming) < FEWEST_VOTES:
        chosen = ()
    if with_categories and not chosen:
        said = ", ".join(f"{number} {category}" for category, number in named.items()) or "nobody named one"
        return Outcome(ballot, "uncategorised", reason=f"no majority for a category: {said}")
    return Outcome(ballot, "unsafe", chosen)


def disagreements(ballots: Iterable[Ballot]) -> list[Ballot]:
    """Those with labels enough and no majority: a further annotator has to decide."""
    return [
        ballot
        for ballot in ballots
        if len(ballot.labels) >= FEWEST_VOTES and decide(ballot, with_categories=False).state == "unresolved"
    ]


def _same_picture(first: Answer, answer: Answer) -> Picture:
    """What two rows say of their image, where an empty cell says nothing."""
    old, new = first.picture, answer.picture
    for what in ("source", "collected_for"):
        before, after = getattr(old, what), getattr(new, what)
        if before and after and before != after:
            raise ConfigError(
                f"{answer.where}: {new.name!r} has {what} {after!r}, and {before!r} in {first.where}; keep one."
            )
    return Picture(old.name, old.source or new.source, old.collected_for or new.collected_for)


def _add(vote: Vote, answer: Answer, first: Answer) -> Vote:
    """The vote with what a further row of its annotator says."""
    differs = (vote.label and answer.label and vote.label != answer.label) or (
        vote.categories and answer.categories and vote.categories != answer.categories
    )
    if differs:
        raise ConfigError(
            f"{answer.where}: {answer.annotator} says {_words(answer.label, answer.categories)} of "
            f"{answer.picture.name!r}, and {_words(vote.label, vote.categories)} in {first.where}; keep one."
        )
    return Vote(vote.annotator, vote.label or answer.label, vote.categories or answer.categories)


def _words(label: Label | None, categories: tuple[str, ...]) -> str:
    return " ".join(filter(None, (label, ", ".join(categories))))
