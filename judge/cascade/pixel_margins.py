"""The margin of a whole cascade, differentiable in the pixels: through encoder, filters, student and judge.

The arithmetic on the stages' logits is that of `judge.cascade.margins`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from judge.errors import ConfigError
from judge.inputs import check_prompts
from judge.protocol import Classifier, DifferentiableClassifier
from prompts.taxonomy import Taxonomy

from .margins import Path, StageLogits, check_path, margins_from_logits
from .stage_models import CascadeStages, DifferentiableTokenClassifier
from .stages import StageScores, decide


def cascade_margins(
    cascade: CascadeStages,
    pixels: Tensor,
    prompts: Sequence[str | None] | None,
    taxonomy: Taxonomy,
    *,
    path: Path = "any",
    fixed_text: bool = True,
) -> Tensor:
    """Adaptive margin through all stages, differentiable in the pixels.

    One pass of the encoder serves filters and student, as in `Cascade.score`. The judge runs on the rows that reach it
    only; elsewhere the path through it is first a path to it.

    Args:
        cascade: the stages. Its student needs `logits`, its judge `pixel_margins`.
        pixels: (B, 3, H, W) floats in [0, 1]; resizing, cropping and normalising happen in here.
        prompts: B prompts, or None.
        taxonomy: what is asked.
        path: the stage that shall give the other verdict; `any` is whichever is nearest.
        fixed_text: as in `margins_from_logits`; set it False where the prompts are searched too.

    Returns:
        (B,) float32, positive where the cascade says unsafe.

    Raises:
        ConfigError: another path, a stage that gives no gradients, or rows that the cascade cannot judge.
    """
    check_path(path, cascade.judge is not None)
    prompts = check_prompts(len(pixels), prompts)
    logits = _filter_and_student_logits(cascade, pixels, prompts, taxonomy)
    if cascade.judge is not None:
        reached = decide(_before_judge(logits.probabilities()), cascade.cutoffs).stage == 2
        rows = torch.from_numpy(np.flatnonzero(reached)).to(pixels.device)
        # NaN for rows that do not reach the judge; `margins_from_logits` does not use them.
        column = torch.full_like(logits.image, torch.nan)
        if len(rows):
            some = [prompts[row] for row in rows.tolist()]
            found = _differentiable(cascade.judge).pixel_margins(pixels[rows], some, taxonomy)
            column = column.index_copy(0, rows.to(column.device), found.to(column))
        logits = replace(logits, judge=column)
    return margins_from_logits(logits, cascade.cutoffs, path=path, fixed_text=fixed_text).float()


def _filter_and_student_logits(
    cascade: CascadeStages, pixels: Tensor, prompts: Sequence[str | None], taxonomy: Taxonomy
) -> StageLogits:
    """Logits (B,) of the filters and the student, from one pass of the encoder."""
    student, platt = cascade.student, cascade.settings
    if not isinstance(student, DifferentiableTokenClassifier):
        raise ConfigError(
            f"The cascade's student is a {type(student).__name__}, whose verdict has no gradients."
        )
    readings = cascade.similarities.read_prompts(prompts)
    tokens = student.encoder.encode_pixels(pixels)  # (B, 1 + P, D)
    # In double precision from the cosines on, as in `Cascade.score`: a cutoff often is some row's own score.
    by_category = platt.image.logits(cascade.similarities.cosines(tokens[:, 0], taxonomy).double())
    image, nearest = by_category.max(dim=1)
    conditional = torch.from_numpy(cascade.similarities.conditional(taxonomy))[nearest.cpu()].to(image.device)
    text = torch.full_like(image, torch.nan)
    if cascade.cutoffs.uses_text_filter:
        cosines = cascade.similarities.prompt_similarities(readings, taxonomy).max(axis=1)
        text = platt.text.logits(torch.from_numpy(cosines)).to(image)
    whole = student.logits(tokens, prompts, taxonomy)[0].double()
    hidden = torch.tensor([count > 0 for count in readings.hidden], device=image.device)
    return StageLogits(text, image, whole, hidden=hidden, conditional=conditional)


def _before_judge(scores: StageScores) -> StageScores:
    """The same scores with a judge that has judged no row yet, so that `decide` tells which rows reach it."""
    return replace(scores, judge=np.full(len(scores), np.nan))


def _differentiable(judge: Classifier) -> DifferentiableClassifier:
    if not isinstance(judge, DifferentiableClassifier):
        raise ConfigError(
            f"The cascade's judge is a {type(judge).__name__}, which gives no gradients; attack the cascade "
            "without it (Cascade(student, settings)) and try what is found on the whole, or use queries."
        )
    return judge
