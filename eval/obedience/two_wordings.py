"""One image under two wordings of a policy, as pictures: what it is to obey, or not to."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eval.metrics.judged import JudgedRow
from eval.questions import Question
from eval.reports.flip_pair import verdict_word
from eval.reports.page import picture_data_uri
from eval.reports.words import plain
from judge.data.images import open_image
from prompts.errors import ArbiterError
from prompts.taxonomy import Taxonomy

from .suite import PLAIN, Answers, Rewritten
from .tables import Metrics

SHORT = 4
"""Categories of a policy that can be taken in at a glance; such questions are shown where there are any."""
LINES = 8
"""Categories shown of a longer policy."""
CHARACTERS = 300
"""Of a line or a prompt on the page."""
SIDE = 448
"""Longest side of the image, in pixels."""


@dataclass(frozen=True)
class Worded:
    """The image under one wording."""

    title: str
    lines: tuple[str, ...]
    more: int
    """Categories that are not shown."""
    verdict: str
    row: JudgedRow
    right: bool


@dataclass(frozen=True)
class TwoWordings:
    """The image under the taxonomy's own wording and under a family's."""

    obeyed: bool
    picture: str | None
    """As a `data:` URI."""
    sides: tuple[Worded, Worded]

    @property
    def row(self) -> JudgedRow:
        """Under the taxonomy's own wording."""
        return self.sides[0].row


def two_wordings(
    metrics: Metrics,
    rewritten: Mapping[str, Rewritten],
    answers: Mapping[str, Answers],
    threshold: float = 0.5,
) -> list[TwoWordings]:
    """An image judged right in other words, and one that other words mislead; as far as there are any.

    The first is of the family with the highest F1, if possible one that no lesson used; the second of that with the
    lowest.
    """
    families = metrics["families"]
    asked = [name for name, one in families.items() if one["kind"] == "policy" and one["f1"] is not None]
    by_f1 = sorted(asked, key=lambda name: (families[name]["in_lessons"], -families[name]["f1"]))
    found = [_first(by_f1, rewritten, answers, threshold, obeyed=True)]
    found.append(
        _first(sorted(asked, key=lambda n: families[n]["f1"]), rewritten, answers, threshold, obeyed=False)
    )
    return [one for one in found if one is not None]


def _first(
    names: Sequence[str],
    rewritten: Mapping[str, Rewritten],
    answers: Mapping[str, Answers],
    threshold: float,
    *,
    obeyed: bool,
) -> TwoWordings | None:
    """Of the first family that has one, the question that is easiest to take in."""
    before = _by_id(rewritten[PLAIN], answers[PLAIN])
    for name in names:
        fitting = [
            (before[key], after)
            for key, after in _by_id(rewritten[name], answers[name]).items()
            if key in before and _fits(before[key], after, threshold, obeyed=obeyed)
        ]
        if fitting:
            return _shown(name, *min(fitting, key=_effort), threshold, obeyed=obeyed)
    return None


Asked = tuple[Question, JudgedRow]


def _by_id(asked: Rewritten, found: Answers) -> dict[str, Asked]:
    pairs = zip(asked.questions, found.rows, strict=True)
    return {row.id: (question, row) for question, row in pairs}


def _fits(before: Asked, after: Asked, threshold: float, *, obeyed: bool) -> bool:
    reworded = list(policy_lines(before[0].row.taxonomy)) != list(policy_lines(after[0].row.taxonomy))
    return reworded and before[1].correct(threshold) and after[1].correct(threshold) is obeyed


def _effort(pair: tuple[Asked, Asked]) -> tuple[bool, bool, bool, str]:
    (question, row), (reworded, _) = pair
    length = max(len(question.row.taxonomy), len(reworded.row.taxonomy))
    return length > SHORT, not row.truth, row.prompt is not None, row.id


def _shown(family: str, before: Asked, after: Asked, threshold: float, *, obeyed: bool) -> TwoWordings:
    titles = ("As the taxonomy words it", f"In other words: {plain(family)}")
    sides = [_worded(title, *asked, threshold) for title, asked in zip(titles, (before, after), strict=True)]
    try:
        picture = picture_data_uri(open_image(before[0].row.example.image), SIDE)
    except ArbiterError:
        picture = None
    return TwoWordings(obeyed, picture, (sides[0], sides[1]))


def _worded(title: str, question: Question, row: JudgedRow, threshold: float) -> Worded:
    lines = tuple(policy_lines(question.row.taxonomy))
    more = max(0, len(lines) - LINES)
    return Worded(title, lines[:LINES], more, verdict_word(row, threshold), row, row.correct(threshold))


def policy_lines(policy: Taxonomy) -> Iterator[str]:
    """The lines of a policy as a reader of the page sees them, long ones cut."""
    for category in policy:
        yield shortened(category.name if category.name_only else f"{category.name}: {category.definition}")


def shortened(text: str) -> str:
    """A text of at most `CHARACTERS`, with its length where it is cut."""
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} ... ({len(text):,} characters)"
