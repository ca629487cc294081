"""The margin of a cascade's verdict as a function of its stages' logits: the objective of an adaptive attack.

An attack that fools the student may still be caught by the filters or the judge, so the margin covers all stages. The
verdict is written out as conditions on the stages' logits. A row is called safe along one of three paths:

- filter:  the image filter is sure of safe, the text filter is not sure of unsafe, and the prompt hides no characters;
- student: the filters do not settle unsafe, and the student is below its `safe` cutoff;
- judge:   the filters do not settle unsafe, the student is not sure of unsafe, and the judge is below its cutoff;

and unsafe along the same three with the sides exchanged. (At the filter: the image filter is sure of unsafe, or the
text filter is and the image filter is not sure of safe; the text filter is never sure of safe.) For a row called
unsafe, the margin is the minimum over the paths to safe of the largest condition that is not met yet; for a row called
safe, minus the same for the paths to unsafe. Conditions are logits of probabilities less logits of cutoffs, so that
stages can be compared.

The minimum over paths has the gradient of one path only. An attack may therefore follow a given one (`path`); the worst
of all paths, sample by sample, is the adaptive attack. The sign is the verdict's on every path: it comes from
`judge.cascade.stages.decide`, with which the cascade was calibrated, and not from the conditions.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor

from judge.errors import ConfigError

from .stages import Cutoffs, StageScores, decide

Path = Literal["any", "filter", "student", "judge"]
PATHS: tuple[Path, ...] = get_args(Path)
FAR = 1e4
"""A condition that no pixel can meet, or that is always met (minus it)."""
_SMALLEST = 1e-6
"""Margin of a verdict that lies on its cutoff."""


@dataclass(frozen=True)
class StageLogits:
    """Logits of p(unsafe) of B rows by every stage, each (B,); NaN where a stage cannot judge."""

    text: Tensor
    image: Tensor
    student: Tensor
    judge: Tensor | None = None
    """None without a judge; may be NaN for rows that do not reach it."""
    hidden: Tensor | None = None
    """(B,) bool, hidden characters in the prompt; None for none."""
    conditional: Tensor | None = None
    """(B,) bool, nearest to a category with a condition on the prompt; None for none."""

    def probabilities(self) -> StageScores:
        """The stages' probabilities without gradients, in double precision as in `Cascade.score`."""
        text, image, student, judge = (
            None if column is None else column.detach().double().sigmoid().cpu().numpy()
            for column in (self.text, self.image, self.student, self.judge)
        )
        hidden, conditional = (
            None if rows is None else rows.cpu().numpy() for rows in (self.hidden, self.conditional)
        )
        return StageScores(text, image, student, judge, hidden, conditional)  # type: ignore[arg-type]  # only the judge's may be None


def margins_from_logits(
    logits: StageLogits, cutoffs: Cutoffs, *, path: Path = "any", fixed_text: bool = True
) -> Tensor:
    """Margins of B rows, differentiable in their logits; the sign is that of `judge.cascade.stages.decide`.

    Args:
        logits: of the stages.
        cutoffs: of the cascade.
        path: the path to follow. One that the cutoffs close, such as that of a filter that never calls safe, is
            replaced by the nearest of the others.
        fixed_text: whether prompts stay as they are. Pixels do not change the text filter's score, so it then opens or
            closes a path and is no distance; without, it is a distance like the others.

    Returns:
        (B,) float64, positive where the cascade says unsafe.

    Raises:
        ConfigError: another path, a row that no stage can judge, or one that a stage could not read: that is flagged or
            unjudged and never safe (`judge.cascade.stages`), so there is no distance to the other verdict.
    """
    check_path(path, logits.judge is not None)
    probabilities = logits.probabilities()
    verdict = decide(probabilities, cutoffs)
    unread = np.isnan(probabilities.image) | (np.isnan(probabilities.student) & (verdict.stage > 0))
    unjudged = int((np.isnan(verdict.unsafe) | unread).sum())
    if unjudged:
        raise ConfigError(
            f"The cascade cannot judge {unjudged} of {len(verdict.unsafe)} rows (scores that are not finite) or can at "
            "most flag them, so they have no margin; leave them out."
        )
    unsafe = torch.from_numpy(~verdict.safe).to(logits.image.device)
    judged = torch.from_numpy(verdict.stage == 2).to(logits.image.device)
    to_safe, to_unsafe = _unmet_conditions(logits, cutoffs, judged, fixed_text)
    # Paths to unsafe are paths to safe with all signs reversed.
    margins = torch.where(unsafe, _nearest(to_safe, path), -_nearest(to_unsafe, path))
    # Rounding can give a margin the sign of the other verdict; the value is corrected, the gradient stays as it is.
    right = torch.where(unsafe, margins.clamp(min=_SMALLEST), margins.clamp(max=-_SMALLEST))
    return margins + (right - margins).detach()


def _unmet_conditions(
    logits: StageLogits, cutoffs: Cutoffs, judged: Tensor, fixed_text: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Largest unmet condition (B,) of each path to safe, and of each to unsafe: filter, student and perhaps judge.

    Two conditions of each stage suffice for all paths: `not_safe` is below 0 where it is sure of safe, `unsafe` is 0 or
    more where it is sure of unsafe.
    """
    c = cutoffs
    _, text_unsafe = _conditions(logits.text, 0.0, c.text_unsafe)
    if fixed_text:
        text_unsafe = torch.where(text_unsafe >= 0, FAR, -FAR).to(text_unsafe)
    image_not_safe, image_unsafe = _conditions(logits.image, c.image_safe, c.image_unsafe)
    if logits.conditional is not None:
        image_unsafe = torch.where(logits.conditional, -FAR, image_unsafe)
    not_safe, unsafe = _conditions(logits.student, c.student_safe, c.student_unsafe)
    # Safe: image sure of it, text not of unsafe. Unsafe: image sure of it, or text sure of it and image not of safe.
    filter_not_safe = torch.maximum(image_not_safe, text_unsafe)
    if logits.hidden is not None:
        filter_not_safe = torch.where(logits.hidden, FAR, filter_not_safe)
    filter_unsafe = torch.maximum(image_unsafe, torch.minimum(text_unsafe, image_not_safe))
    to_safe = [filter_not_safe, torch.maximum(filter_unsafe, not_safe)]
    to_unsafe = [-filter_unsafe, torch.maximum(-filter_not_safe, -unsafe)]
    if logits.judge is not None:
        judge_not_safe, judge_unsafe = _conditions(logits.judge, c.judge, c.judge)
        # The judge's score of a row that does not reach it is not known; first the row has to get there.
        unknown = torch.full_like(not_safe, -FAR)
        judge_not_safe = torch.where(judged, judge_not_safe, unknown)
        judge_safe = torch.where(judged, -judge_unsafe, unknown)
        to_safe.append(torch.maximum(torch.maximum(filter_unsafe, unsafe), judge_not_safe))
        to_unsafe.append(torch.maximum(torch.maximum(-filter_not_safe, -not_safe), judge_safe))
    return to_safe, to_unsafe


def _conditions(column: Tensor, safe: float, unsafe: float) -> tuple[Tensor, Tensor]:
    """(B,) `not_safe` and `unsafe` of one stage; where it cannot judge, it is sure of neither."""
    known = ~torch.isnan(column)
    column = torch.where(known, column, 0.0).double()
    lowest = min(safe, unsafe)  # where the cutoffs cross, unsafe takes precedence
    # 0 * keeps a constant condition in the graph, so that its gradient is zero and not missing.
    not_safe = column - _logit(lowest) if lowest > 0 else 0 * column + FAR
    is_unsafe = column - _logit(unsafe) if 0 < unsafe <= 1 else 0 * column + (FAR if unsafe <= 0 else -FAR)
    return torch.where(known, not_safe, FAR), torch.where(known, is_unsafe, -FAR)


def _nearest(paths: list[Tensor], path: Path) -> Tensor:
    # (P, B) -> (B,)
    nearest = torch.stack(paths).amin(dim=0)
    if path == "any":
        return nearest
    # `any` is the first of PATHS and no path of its own.
    wanted = paths[PATHS.index(path) - 1]
    return torch.where(wanted < FAR / 2, wanted, nearest)


def _logit(cutoff: float) -> float:
    return float(logit(np.clip(cutoff, 1e-15, 1 - 1e-15)))


def check_path(path: str, with_judge: bool) -> None:
    """Check that `path` names a path through the stages that there are.

    Raises:
        ConfigError: no such path, or one through a judge that is missing.
    """
    allowed = [name for name in PATHS if with_judge or name != "judge"]
    if path not in allowed:
        raise ConfigError(f"No path {path!r} through this cascade; it has: {', '.join(allowed)}.")
