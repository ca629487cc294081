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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor

from judge.errors import ConfigError

from .stages import Cutoffs, StageScores, decide

if TYPE_CHECKING:
    pass

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


def margins_from_logits(
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
    check_path(path, logits.judge is not None)
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


def check_path(path: str, with_judge: bool) -> None:
    """See that `path` names a way through the stages that there are.

    Raises:
        ConfigError: no such path, or one through a judge that is missing.
    """
    allowed = [name for name in PATHS if with_judge or name != "judge"]
    if path not in allowed:
        raise ConfigError(f"No path {path!r} through this cascade; it has: {', '.join(allowed)}.")
