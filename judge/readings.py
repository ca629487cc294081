"""Readings of an image: alone, and with each window of its prompt. A prompt can only add suspicion.

Every score is the largest over the readings, and the image alone is one of them. So no prompt, whatever its length or
content, can lower a score below the image's own, and length cannot dilute what one window says. This holds by
construction, for any weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prompts.reading import PromptMode, ReadPrompt, read_prompt

from .lessons.envelope import LessonsEnvelope
from .protocol import Scores, on_one_scale

if TYPE_CHECKING:
    from torch import Tensor

TOO_MANY_TOKENS = "it takes more tokens than are read"


@dataclass(frozen=True)
class Readings:
    """R readings of B images, those of an image in a row; under `max` its first one is the image alone."""

    rows: tuple[int, ...]
    """(R,) the image of each reading."""
    texts: tuple[str | None, ...]
    """(R,) the text read with it; None for the image alone."""
    notes: tuple[str | None, ...]
    """(B,) why a prompt was not read."""
    hidden: tuple[int, ...]
    """(B,) invisible characters in the prompt."""
    mode: PromptMode = "max"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def starts(self) -> NDArray[np.int64]:
        """(B,) the first reading of each image."""
        return np.searchsorted(np.array(self.rows, dtype=np.int64), np.arange(len(self.notes)))

    def of_row(self, row: int) -> range:
        """The readings of one image."""
        starts = [*self.starts.tolist(), len(self)]
        return range(starts[row], starts[row + 1])

    def batches(self, size: int) -> list[list[int]]:
        """The readings in batches: the images alone first, all in one, then `size` readings with a text at a time.

        So the images alone are computed as in a call without prompts, and score the same to the last bit.
        """
        alone = [reading for reading, text in enumerate(self.texts) if text is None]
        others = [reading for reading, text in enumerate(self.texts) if text is not None]
        batches = [others[start : start + size] for start in range(0, len(others), size)]
        return [alone, *batches] if alone or not batches else batches


def read_prompts(
    prompts: Sequence[str | None],
    mode: PromptMode = "max",
    envelope: LessonsEnvelope | None = None,
    *,
    too_long: Callable[[str], bool] | None = None,
) -> Readings:
    """Plan the readings of B images.

    Under `use`, an image whose prompt is not read whole has no reading that counts: `combine_readings` leaves it
    unjudged.

    Args:
        prompts: B prompts, None where there is none.
        mode: which readings there are.
        envelope: of the classifier's lessons; windows outside it are not read.
        too_long: whether a window takes more tokens than the classifier reads; then it is not read.
    """
    rows: list[int] = []
    texts: list[str | None] = []
    found = [read_prompt(None if mode == "ignore" else prompt) for prompt in prompts]
    if envelope is not None:
        found = [_readable(prompt, envelope.why_prompt_outside) for prompt in found]
    if too_long is not None:
        found = [
            _readable(prompt, lambda text: TOO_MANY_TOKENS if too_long(text) else None) for prompt in found
        ]
    for row, prompt in enumerate(found):
        alone: tuple[str | None, ...] = (None,) if mode == "max" or not prompt.windows else ()
        for text in (*alone, *prompt.windows):
            rows.append(row)
            texts.append(text)
    return Readings(
        tuple(rows), tuple(texts), tuple(p.note for p in found), tuple(p.hidden for p in found), mode
    )


def _readable(prompt: ReadPrompt, why_not: Callable[[str], str | None]) -> ReadPrompt:
    """The prompt without the windows that `why_not` gives a reason against, and with the first of these reasons."""
    if not prompt.windows:
        return prompt
    why = {window: why_not(window) for window in prompt.windows}
    inside = tuple(window for window, reason in why.items() if reason is None)
    if len(inside) == len(prompt.windows):
        return prompt
    part = "a part of the prompt" if inside else "the prompt"
    reason = next(filter(None, why.values()))
    return replace(prompt, windows=inside, note=f"{part} was not read: {reason}")


def combine_readings(scores: Scores, readings: Readings) -> Scores:
    """The scores of B images from those of their R readings: the largest of each.

    Taken on one scale (`on_one_scale`), reading by reading, so that it holds for P(unsafe) and for every category. An
    image that could not be judged alone stays unjudged. Where only a reading with the prompt failed, the others judge,
    and `notes` says that the prompt was not read.

    Args:
        scores: of R readings.
        readings: their plan.

    Returns:
        Scores of B images, with `notes`.
    """
    if len(readings) == len(readings.notes) and not any(readings.notes):
        return scores  # one reading an image
    scores = on_one_scale(scores)
    starts = readings.starts
    counts = np.diff([*starts, len(readings)])
    # (R,) of each reading: the first one of its image
    first = np.repeat(starts, counts)
    failed = np.isnan(scores.unsafe)
    # Without the image alone nothing is known; under `use` every window has to be read.
    lost = failed[first] if readings.mode == "max" else np.logical_or.reduceat(failed, starts).repeat(counts)
    notes, reasons = list(readings.notes), [scores.reasons[start] for start in starts]
    for reading in np.flatnonzero(failed):
        row, reason = readings.rows[reading], scores.reasons[reading]
        if lost[reading]:
            reasons[row] = reasons[row] or reason
        else:
            notes[row] = notes[row] or f"the prompt was not read: {reason}"
    unread = np.array([note is not None for note in readings.notes]) & (readings.mode == "use")

    def highest(found: NDArray[np.float64]) -> NDArray[np.float64]:
        # (R,) or (R, K) -> (B,) or (B, K); a category that the image alone leaves open stays open
        most = np.fmax.reduceat(found, starts, axis=0)
        most[np.isnan(found[starts]) | _as_rows(lost[starts] | unread, found)] = np.nan
        return most

    silent = scores.unanswered and np.logical_or.reduceat(scores.unanswered, starts)
    return Scores(
        highest(scores.unsafe),
        highest(scores.categories),
        tuple(note if skip else reason for reason, note, skip in zip(reasons, notes, unread, strict=True)),
        separate=None if scores.separate is None else highest(scores.separate),
        notes=tuple(notes),
        unanswered=None if silent is None else tuple(map(bool, silent)),
    )


def highest_margins(margins: "Tensor", readings: Readings) -> "Tensor":
    """The margins of B images from those of their R readings, differentiable: the logits of `combine_readings`.

    Args:
        margins: (R,) or (R, K).
        readings: their plan.

    Returns:
        (B,) or (B, K); NaN where the image alone is, and where `combine_readings` leaves an image unjudged.
    """
    import torch

    if len(readings) == len(readings.notes) and not any(readings.notes):
        return margins  # one reading an image

    def along(values: Sequence[object]) -> "Tensor":
        # (R,) or (B,) -> with as many dimensions as the margins
        return torch.tensor(values, device=margins.device).view(-1, *[1] * (margins.ndim - 1))

    if readings.mode == "max":  # beside the image alone, a reading that failed says nothing
        with_text = along([text is not None for text in readings.texts])
        margins = margins.masked_fill(with_text & margins.isnan(), -torch.inf)
    lowest = margins.new_full((len(readings.notes), *margins.shape[1:]), -torch.inf)
    rows = along(readings.rows).expand_as(margins)
    highest = lowest.scatter_reduce(0, rows, margins, "amax", include_self=False)
    unread = along([note is not None and readings.mode == "use" for note in readings.notes])
    return highest.masked_fill(unread, torch.nan)


def _as_rows(mask: NDArray[np.bool_], like: NDArray[np.float64]) -> NDArray[np.bool_]:
    return mask if like.ndim == 1 else np.repeat(mask[:, None], like.shape[1], axis=1)


def with_notes(scores: Scores, notes: Sequence[str | None]) -> Scores:
    """The scores with further notes; None where all of them are None and there were none."""
    before = scores.notes or (None,) * len(notes)
    joined = tuple("; ".join(filter(None, pair)) or None for pair in zip(before, notes, strict=True))
    return replace(scores, notes=joined if any(joined) else None)
