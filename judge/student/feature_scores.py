"""Scores of encoded images under several taxonomies: what a student in PyTorch and an exported one do alike."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from judge.inputs import check_prompts, check_taxonomy, concatenate_scores, no_rows
from judge.lessons.outside import unjudged_scores
from judge.protocol import Scores
from prompts.taxonomy import Taxonomy

ScoreBatch = Callable[[Any, list[str | None], Sequence[Taxonomy]], list[Scores]]
"""Scores of the images of one batch, from their features and prompts, under each taxonomy."""
ScoreInside = Callable[[Sequence[Taxonomy]], list[Scores]]
"""Scores of one batch under each of the taxonomies that may be judged."""


def score_in_batches(
    score: ScoreBatch,
    features: Any,
    prompts: Sequence[str | None] | None,
    taxonomies: Sequence[Taxonomy],
    batch_size: int,
) -> list[Scores]:
    """Scores of B images under each taxonomy, all decided by the student.

    Args:
        score: scores one batch.
        features: of B images, a tensor or an array.
        prompts: B prompts, or None.
        taxonomies: the policies.
        batch_size: most images of a batch.

    Raises:
        QuestionError: another number of prompts, or something that is no taxonomy.
    """
    prompts = check_prompts(len(features), prompts)
    for taxonomy in taxonomies:
        check_taxonomy(taxonomy)
    # The empty first part gives the shapes of B = 0.
    parts = [[no_rows(taxonomy)] for taxonomy in taxonomies]
    for start in range(0, len(features), batch_size):
        some = slice(start, start + batch_size)
        for of_one, scores in zip(parts, score(features[some], prompts[some], taxonomies), strict=True):
            of_one.append(scores)
    decided_by = ("student",) * len(features)
    return [replace(concatenate_scores(of_one), decided_by=decided_by) for of_one in parts]


def score_inside(
    score: ScoreInside,
    rows: int,
    taxonomies: Sequence[Taxonomy],
    why_outside: Callable[[Taxonomy], str | None],
) -> list[Scores]:
    """Scores of one batch of `rows` images under each taxonomy, unjudged where `why_outside` gives a reason."""
    outside = [why_outside(taxonomy) for taxonomy in taxonomies]
    inside = [taxonomy for taxonomy, why in zip(taxonomies, outside, strict=True) if why is None]
    judged = iter(score(inside) if inside else [])
    return [
        next(judged) if why is None else unjudged_scores(rows, taxonomy, why)
        for taxonomy, why in zip(taxonomies, outside, strict=True)
    ]
