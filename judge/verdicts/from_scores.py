"""A classifier's scores -> verdicts: thresholds per category, the worst frame of an animation, reasons for "unjudged".

Pure functions: no file is read and nothing is printed, so that the command line and a server decide alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from judge.protocol import on_one_scale
from prompts.taxonomy import Taxonomy
from prompts.verdict import DEFAULT_THRESHOLD, Verdict, verdict_from_scores

from .rows import Judging

if TYPE_CHECKING:
    from judge.data.frames import Frames
    from judge.protocol import Scores

_SEVERITY = {"safe": 0, "unjudged": 1, "unsafe": 2}


def verdicts_from_scores(
    scores: "Scores",
    taxonomy: Taxonomy,
    *,
    threshold: float | Mapping[str, float],
    model: str,
    evidence: str | None = None,
    promise: str | None = None,
) -> list[Verdict]:
    """One verdict for each of B images, by the rule of `prompts.verdict.verdict_from_scores`.

    Args:
        scores: of B images and the K categories of `taxonomy`; brought to one scale here.
        taxonomy: what the classifier was asked about.
        threshold: one number in [0, 1], or category name -> number; categories that are not named keep 0.5.
        model: name of the classifier.
        evidence: what is known of its answers under this taxonomy (`judge.lessons.evidence`).
        promise: what a cascade promises under it (`judge.protocol.PromisesMissRate`).

    Raises:
        ValueError: scores or thresholds outside [0, 1], or not one score per category.
        TaxonomyError: a threshold for a category that does not exist.
    """
    # Not every classifier ends with `on_one_scale`. Without it, an `unsafe` above all categories would be refused.
    scores = on_one_scale(scores)
    limits = Judging(taxonomy, threshold).thresholds
    verdicts = []
    for row, reason in enumerate(scores.reasons):
        verdict = verdict_from_scores(
            float(scores.unsafe[row]),
            [float(score) for score in scores.categories[row]],
            taxonomy,
            threshold=threshold,
            model=model,
            reason=reason,
        )
        verdicts.append(
            replace(
                verdict,
                # A flagged image keeps the reason why a part of it was not judged.
                reason=verdict.reason or reason,
                decided_by=verdict.decided_by if scores.decided_by is None else scores.decided_by[row],
                because=None if scores.because is None else scores.because[row],
                note=_join(
                    threshold_note(verdict, limits),
                    None if scores.notes is None else scores.notes[row],
                ),
                evidence=evidence,
                promise=promise,
            )
        )
    return verdicts


def threshold_note(verdict: Verdict, limits: Mapping[str, float]) -> str | None:
    """Why a verdict is not the one that 0.5 would give: `three 0.62 is below its threshold 0.9`; None where it is.

    Also where an image is flagged, but not for the category with the highest score.

    Args:
        verdict: what was decided.
        limits: threshold of every category.
    """
    default, notes = DEFAULT_THRESHOLD, []
    blamed = verdict.scores.get(verdict.category, -1.0) if verdict.category is not None else -1.0
    if 0 <= blamed < default:
        limit = limits[str(verdict.category)]
        notes.append(f"{verdict.category} {_beside(blamed, limit)} reaches its threshold {limit:g}")
    # A lower score than that of the blamed category explains nothing.
    for name, score in verdict.scores.items():
        if max(default, blamed) <= score < limits[name]:
            notes.append(f"{name} {_beside(score, limits[name])} is below its threshold {limits[name]:g}")
    if not verdict.scores and verdict.unsafe is not None:
        flagged, limit = verdict.status == "unsafe", next(iter(limits.values()))
        if flagged != (verdict.unsafe >= default):
            notes.append(
                f"{_beside(verdict.unsafe, limit)} {'reaches' if flagged else 'is below'} every threshold"
            )
    return "; ".join(notes) or None


def _beside(score: float, limit: float) -> str:
    """A score with as many digits as show on which side of a threshold it lies, at least two."""
    shown = float(f"{limit:g}")
    texts = (f"{score:.{digits}f}" for digits in range(2, 18))
    return next((text for text in texts if (float(text) >= shown) == (score >= limit)), repr(score))


def _join(*texts: str | None) -> str | None:
    return "; ".join(filter(None, texts)) or None


def unjudged(reason: str, taxonomy: Taxonomy, model: str) -> Verdict:
    """The verdict on an image that never reached the classifier."""
    return Verdict("unjudged", model=model, taxonomy=taxonomy.hash, reason=reason)


def worst_frame(verdicts: Sequence[Verdict]) -> int:
    """Which of the verdicts on a file's frames decides: a flagged one, else an unjudged one; the highest score wins."""
    return max(range(len(verdicts)), key=lambda n: (_SEVERITY[verdicts[n].status], verdicts[n].unsafe or 0.0))


def verdict_of_frames(frames: "Frames", verdicts: Sequence[Verdict]) -> tuple[Verdict, str]:
    """The verdict on an image file, from those on its views, and which view it is about.

    A flagged view decides, else one that could not be judged; of several the one with the highest score. Views that
    are all safe make the file safe only if every frame that was not judged resembles a judged one.

    Args:
        frames: the F views that were judged, of `frames.total` frames in the file.
        verdicts: F verdicts, in the order of the views.

    Returns:
        The verdict, and "frame 3 of 4 on black, the worst of 8 judged"; "" for a file of one view and for a file that
        is unjudged, where the reason says it.
    """
    if frames.total == 1 and len(verdicts) == 1:
        return verdicts[0], ""
    worst = worst_frame(verdicts)
    verdict, place = verdicts[worst], frames.place(worst)
    if verdict.reason:
        return replace(verdict, reason=f"{place}: {verdict.reason}"), ""
    if verdict.status == "safe" and frames.unrepresented:
        others = f"{frames.unrepresented} of {frames.total} frames"
        judged = len(set(frames.numbers))
        reason = f"{others} resemble none of the {judged} that were judged safe"
        return replace(verdict, status="unjudged", unsafe=None, reason=reason), ""
    place = f"{place}, the worst of {len(verdicts)} judged"
    return replace(verdict, because=f"{place}: {verdict.because}" if verdict.because else place), place
