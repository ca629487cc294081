"""Policies outside the lessons: every image is unjudged; and measuring there all the same."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from judge.protocol import Scores
from prompts.taxonomy import Taxonomy

from .envelope import LessonsEnvelope


@runtime_checkable
class HasEnvelope(Protocol):
    """A classifier that answers within an envelope, or everything where that is None."""

    envelope: LessonsEnvelope | None


@runtime_checkable
class HasStages(Protocol):
    """A classifier made of others."""

    def stages(self) -> Iterable[object]:
        """These others."""
        ...


@runtime_checkable
class KnowsItsLessons(Protocol):
    """A classifier that can say whether a policy lies outside its lessons."""

    def outside_lessons(self, taxonomy: Taxonomy) -> str | None:
        """What lies outside, and what to do about it, on one line; None where nothing does."""
        ...


@runtime_checkable
class CountsTokens(Protocol):
    """A classifier that reads a policy as one text of tokens."""

    def policy_tokens(self, taxonomy: Taxonomy) -> int:
        """Tokens of a question under a policy, without image and prompt."""
        ...


def unjudged_scores(rows: int, taxonomy: Taxonomy, reason: str, decided_by: str | None = None) -> Scores:
    """Scores of `rows` images that are not judged, all for one reason."""
    import numpy as np

    return Scores(
        np.full(rows, np.nan),
        np.full((rows, len(taxonomy)), np.nan),
        (reason,) * rows,
        None if decided_by is None else (decided_by,) * rows,
    )


@contextmanager
def beyond_lessons(classifier: object) -> Iterator[None]:
    """Have a classifier, and its stages, answer outside of lessons too: for measuring, never for verdicts."""
    stages = classifier.stages() if isinstance(classifier, HasStages) else ()
    inside = [(part, part.envelope) for part in (classifier, *stages) if isinstance(part, HasEnvelope)]
    for part, _ in inside:
        part.envelope = None
    try:
        yield
    finally:
        for part, envelope in inside:
            part.envelope = envelope
