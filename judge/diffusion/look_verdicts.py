"""The verdicts of one look."""

from collections.abc import Mapping
from dataclasses import replace

from judge.errors import PipelineError
from judge.verdicts.from_scores import unjudged, verdicts_from_scores
from prompts.taxonomy import Taxonomy
from prompts.verdict import Verdict

from .detector import Detector
from .look import Look
from .stopping import rows_with_nan

STAGE = "detector"
"""Name of the stage in `Verdict.decided_by`."""
NOT_FINITE = "the latents hold numbers that are not finite"


def verdicts_of_look(
    detector: Detector,
    taxonomy: Taxonomy,
    look: Look,
    *,
    limits: float | Mapping[str, float],
    promise: str | None = None,
) -> list[Verdict]:
    """What a detector says of B pictures, as verdicts.

    Unjudged is a look outside the log-SNRs that the detector was trained for, a picture whose latents hold NaN or an
    infinity, whatever the detector makes of it, and one without a score.

    Raises:
        PipelineError: the detector gave scores of another shape.
        ValueError: they are no probabilities.
    """
    rows = len(look.clean)
    low, high = detector.log_snrs
    if not low <= look.log_snr <= high:
        outside = f"a look at log-SNR {look.log_snr:.1f}, and {detector.name} was trained for {low:.1f} to {high:.1f}"
        return [not_judged(outside, taxonomy, detector) for _ in range(rows)]
    scores = detector.score(look, taxonomy)
    if scores.categories.shape != (rows, len(taxonomy)) or len(scores.reasons) != rows:
        raise PipelineError(
            f"{detector.name} gave scores of shape {scores.categories.shape} for {rows} pictures and {len(taxonomy)} "
            "categories"
        )
    if scores.decided_by is None:
        scores = replace(scores, decided_by=(STAGE,) * rows)
    verdicts = verdicts_from_scores(scores, taxonomy, threshold=limits, model=detector.name, promise=promise)
    for row in rows_with_nan(look.clean):
        verdicts[row] = not_judged(NOT_FINITE, taxonomy, detector)
    return verdicts


def not_judged(reason: str, taxonomy: Taxonomy, detector: Detector) -> Verdict:
    """The verdict on a picture that the detector could not judge."""
    return replace(unjudged(reason, taxonomy, detector.name), decided_by=STAGE)
