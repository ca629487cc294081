"""Images whose prompt was not read, under a policy in which the prompt decides too: not judged, and never safe."""

from dataclasses import replace

import numpy as np

from judge.encoders.phrases import has_condition
from judge.lessons.outside import unjudged_scores
from judge.protocol import Scores
from judge.readings import Readings
from prompts.taxonomy import Taxonomy

CONDITION_UNREAD = "a category has a condition on the prompt, which was not read"


def withhold_unread(scores: Scores, readings: Readings, taxonomy: Taxonomy) -> Scores:
    """The scores of B images, unjudged where a prompt was left unread that a category depends on."""
    unread = np.array([note is not None or readings.mode == "ignore" for note in readings.notes], dtype=bool)
    if not unread.any() or not any(map(has_condition, taxonomy)):
        return scores
    return replace(
        scores,
        unsafe=np.where(unread, np.nan, scores.unsafe),
        categories=np.where(unread[:, None], np.nan, scores.categories),
        reasons=tuple(
            reason or (CONDITION_UNREAD if left else None)
            for reason, left in zip(scores.reasons, unread, strict=True)
        ),
    )


def without_prompts(rows: int, taxonomy: Taxonomy) -> Scores | None:
    """All of B images unjudged, for a classifier that reads no prompts; None where no category depends on one."""
    if not any(map(has_condition, taxonomy)):
        return None
    return unjudged_scores(rows, taxonomy, CONDITION_UNREAD)
