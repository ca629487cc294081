"""How far a cascade's verdict is from the other one, as a function of the pixels: what an adaptive attack climbs.

An attack on one stage is no attack on a cascade: whoever fools the student may still be caught by the filter or the
judge. The verdict is therefore written out in conditions on the stages' logits. A row is called safe by any of

- the filter:  image or text filter is sure of safe, and the other is not sure of unsafe;
- the student: the filter does not settle unsafe, and the student is below its `safe` cutoff;
- the judge:   the filter does not settle unsafe, the student is not sure of unsafe, and the judge is below its cutoff;

and unsafe by the same three with the sides exchanged. Of a row called unsafe, the margin is the smallest, over the ways
to safe, of the largest condition that is still to be met; of a row called safe, minus the same for the ways to unsafe.
Conditions are logits of probabilities less logits of cutoffs, so that stages compare.

The smallest over ways has the gradient of one way only. So an attack may be led along one (`path`), and the worst of
all ways, sample by sample, is the adaptive attack. The sign is the verdict's on every path: it is taken from
`judge.cascade.stages.decide`, the arithmetic the cascade was calibrated with, and not from the conditions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor

from judge.errors import ConfigError
from judge.questions import one_prompt_each
from prompts.taxonomy import Taxonomy

from .stages import Cutoffs, StageScores, decide

if TYPE_CHECKING:
    from .cascade import Cascade

Path = Literal["any", "filter", "student", "judge"]
PATHS: tuple[Path, ...] = get_args(Path)
FAR = 1e4
"""A condition that no pixel can meet, or that is always met (minus it)."""
_SMALLEST = 1e-6
"""Margin of a verdict that lies on its cutoff."""


@dataclass(frozen=True)
class StageLogits:
    """Logits of p(unsafe) of B rows by every stage, each (B,); NaN where a stage cannot say."""

    text: Tensor
    image: Tensor
    student: Tensor
    judge: Tensor | None = None
    """None without a judge; of rows that do not reach it, NaN will do."""

    def probabilities(self) -> StageScores:
        """What the stages say, without gradients, as they say it in `Cascade.score`."""
        columns = [
            None if column is None else column.detach().double().sigmoid().cpu().numpy()
            for column in (self.text, self.image, self.student, self.judge)
        ]
        return StageScores(*columns)  # type: ignore[arg-type]  # only the last may be None


def cascade_margins(
    cascade: "Cascade",
    pixels: Tensor,
    prompts: Sequence[str | None] | None,
    taxonomy: Taxonomy,
    *,
    path: Path = "any",
    fixed_text: bool = True,
) -> Tensor:
    """Adaptive margin through all stages, differentiable in the pixels.

    One pass of the encoder serves filters and student, as in `Cascade.score`. The judge is asked about the rows that
    reach it; elsewhere the way through it is first a way to it.

    Args:
        cascade: what is asked. Its student needs `logits`, its judge `pixel_margins`.
        pixels: (B, 3, H, W) floats in [0, 1]; resizing, cropping and normalising happen in here.
        prompts: B prompts, or None.
        taxonomy: what is asked.
        path: the stage that shall give the other verdict; `any` is whichever is nearest.
        fixed_text: as in `margins_of`; set it False where the prompts are searched too.

    Returns:
        (B,) float32, positive where the cascade says unsafe.

    Raises:
        ConfigError: another path, a stage that gives no gradients, or rows that the cascade cannot judge.
    """
    _check_path(path, cascade.judge is not None)
    prompts = one_prompt_each(len(pixels), prompts)
    logits = _without_judge(cascade, pixels, prompts, taxonomy)
    if cascade.judge is not None:
        reached = decide(_unsettled(logits.probabilities()), cascade.cutoffs).stage == 2
        rows = torch.from_numpy(np.flatnonzero(reached)).to(pixels.device)
        column = torch.full_like(logits.image, torch.nan)
        if len(rows):
            some = [prompts[row] for row in rows.tolist()]
            found = _pixel_margins(cascade)(pixels[rows], some, taxonomy)
            column = column.index_copy(0, rows.to(column.device), found.to(column))
        logits = StageLogits(logits.text, logits.image, logits.student, column)
    return margins_of(logits, cascade.cutoffs, path=path, fixed_text=fixed_text).float()


def margins_of(
    logits: StageLogits, cutoffs: Cutoffs, *, path: Path = "any", fixed_text: bool = True
) -> Tensor:
    """(B,) margins of B rows' logits, differentiable in them; the sign is that of `judge.cascade.stages.decide`.

    Pixels do not move what the text filter says. With `fixed_text` it is therefore a bar or none, so that no margin
    leads along a way that only another prompt could open; without, it is a distance like the others.

    A way that the cutoffs bar, such as a filter that can never say safe, is no way: then the nearest of the others is
    taken.

    Raises:
        ConfigError: another path, a row that no stage can judge, or one that a stage could not read: that is flagged or
            unjudged and never safe (`judge.cascade.stages`), so no distance leads to the other verdict.
    """
    _check_path(path, logits.judge is not None)
    said = logits.probabilities()
    verdict = decide(said, cutoffs)
    unread = np.isnan(said.image) | (np.isnan(said.student) & (verdict.stage > 0))
    lost = int((np.isnan(verdict.unsafe) | unread).sum())
    if lost:
        raise ConfigError(
            f"The cascade cannot judge {lost} of {len(verdict.unsafe)} rows (a prompt longer than its student reads, "
            "or scores that are not finite) or can at most flag them, so they have no margin; leave them out."
        )
    unsafe = torch.from_numpy(~verdict.safe).to(logits.image.device)
    judged = torch.from_numpy(verdict.stage == 2).to(logits.image.device)
    to_safe, to_unsafe = _ways(logits, cutoffs, judged, fixed_text)
    # Ways to unsafe are ways to safe with all signs turned.
    margins = torch.where(unsafe, _nearest(to_safe, path), -_nearest(to_unsafe, path))
    right = torch.where(unsafe, margins.clamp(min=_SMALLEST), margins.clamp(max=-_SMALLEST))
    return margins + (right - margins).detach()


def _ways(
    logits: StageLogits, cutoffs: Cutoffs, judged: Tensor, fixed_text: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """What is left to do on each way to safe, and on each to unsafe: (B,) for filter, student and perhaps judge.

    Two conditions of each stage do for all ways: `not_safe` is below 0 where it is sure of safe, `unsafe` is 0 or more
    where it is sure of unsafe.
    """
    c = cutoffs
    text_not_safe, text_unsafe = _conditions(logits.text, c.text_safe, c.text_unsafe)
    if fixed_text:
        text_not_safe, text_unsafe = (
            torch.where(condition >= 0, FAR, -FAR).to(condition) for condition in (text_not_safe, text_unsafe)
        )
    image_not_safe, image_unsafe = _conditions(logits.image, c.image_safe, c.image_unsafe)
    not_safe, unsafe = _conditions(logits.student, c.student_safe, c.student_unsafe)
    filter_not_safe = torch.minimum(
        torch.maximum(image_not_safe, text_unsafe), torch.maximum(text_not_safe, image_unsafe)
    )
    filter_unsafe = torch.maximum(
        torch.minimum(image_unsafe, text_not_safe), torch.minimum(text_unsafe, image_not_safe)
    )
    to_safe = [filter_not_safe, torch.maximum(filter_unsafe, not_safe)]
    to_unsafe = [-filter_unsafe, torch.maximum(-filter_not_safe, -unsafe)]
    if logits.judge is not None:
        judge_not_safe, judge_unsafe = _conditions(logits.judge, c.judge, c.judge)
        # What the judge would say of a row that it does not see is not known; first the row has to get there.
        unknown = torch.full_like(not_safe, -FAR)
        judge_not_safe = torch.where(judged, judge_not_safe, unknown)
        judge_safe = torch.where(judged, -judge_unsafe, unknown)
        to_safe.append(torch.maximum(torch.maximum(filter_unsafe, unsafe), judge_not_safe))
        to_unsafe.append(torch.maximum(torch.maximum(-filter_not_safe, -not_safe), judge_safe))
    return to_safe, to_unsafe


def _conditions(column: Tensor, safe: float, unsafe: float) -> tuple[Tensor, Tensor]:
    """(B,) `not_safe` and `unsafe` of one stage; where it cannot say, it is sure of neither."""
    known = ~torch.isnan(column)
    column = torch.where(known, column, 0.0).double()
    lowest = min(safe, unsafe)  # where the cutoffs cross, unsafe goes first
    # 0 * keeps a barred condition in the graph, so that its gradient is zero and not missing.
    not_safe = column - _logit(lowest) if lowest > 0 else 0 * column + FAR
    is_unsafe = column - _logit(unsafe) if 0 < unsafe <= 1 else 0 * column + (FAR if unsafe <= 0 else -FAR)
    return torch.where(known, not_safe, FAR), torch.where(known, is_unsafe, -FAR)


def _nearest(ways: list[Tensor], path: Path) -> Tensor:
    nearest = torch.stack(ways).amin(dim=0)
    if path == "any":
        return nearest
    wanted = ways[PATHS.index(path) - 1]
    return torch.where(wanted < FAR / 2, wanted, nearest)


def _logit(cutoff: float) -> float:
    return float(logit(np.clip(cutoff, 1e-15, 1 - 1e-15)))


def _without_judge(
    cascade: "Cascade", pixels: Tensor, prompts: Sequence[str | None], taxonomy: Taxonomy
) -> StageLogits:
    """What filters and student say, from one pass of the encoder."""
    student, platt = cascade.student, cascade.settings
    if not hasattr(student, "logits"):
        raise ConfigError(
            f"The cascade's student is a {type(student).__name__}, whose verdict has no gradients."
        )
    # As in `Cascade.score`: what nobody can read through is settled neither by the filters nor by the student.
    long = torch.tensor([prompt is not None and student.encoder.too_long(prompt) for prompt in prompts])
    read = [None if unread else prompt for prompt, unread in zip(prompts, long.tolist(), strict=True)]
    tokens = student.encoder.see_pixels(pixels)
    long = long.to(tokens.device)
    # In double precision from the cosines on, as in `Cascade.score`: a cutoff often is some row's own score.
    image = platt.image.logits(cascade.similarities.cosines(tokens[:, 0], taxonomy).double()).amax(dim=1)
    text = torch.full_like(image, torch.nan)
    if cascade.cutoffs.text_has_a_say:
        cosines = cascade.similarities.of_prompts(read, taxonomy).max(axis=1)
        text = platt.text.logits(torch.from_numpy(cosines)).to(image)
    whole = student.logits(tokens, read, taxonomy)[0].double()
    nothing = torch.full_like(image, torch.nan)
    return StageLogits(text, torch.where(long, nothing, image), torch.where(long, nothing, whole))


def _unsettled(scores: StageScores) -> StageScores:
    """With a judge that has yet to speak."""
    return StageScores(scores.text, scores.image, scores.student, np.full(len(scores), np.nan))


def _pixel_margins(cascade: "Cascade") -> Callable[..., Tensor]:
    found: Callable[..., Tensor] | None = getattr(cascade.judge, "pixel_margins", None)
    if found is None:
        raise ConfigError(
            f"The cascade's judge is a {type(cascade.judge).__name__}, which gives no gradients; attack the cascade "
            "without it (Cascade(student, settings)) and try what is found on the whole, or use queries."
        )
    return found


def _check_path(path: str, with_judge: bool) -> None:
    allowed = [name for name in PATHS if with_judge or name != "judge"]
    if path not in allowed:
        raise ConfigError(f"No path {path!r} through this cascade; it has: {', '.join(allowed)}.")
