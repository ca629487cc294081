"""The verdicts of a cascade on one batch while its rows pass from stage to stage."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from judge.calibration.cutoffs import shift_categories_to_half, withhold_safe
from judge.protocol import Scores, on_one_scale
from judge.readings import Readings

from .stages import STAGES, Cutoffs, FilterVerdict, filter_verdict, stage_verdict

Array = NDArray[np.float64]


class RowVerdicts:
    """Scores, reasons and explanations of B images under K categories; a row is open while its `unsafe` is NaN."""

    def __init__(self, rows: int, categories: int) -> None:
        self.unsafe = np.full(rows, np.nan)
        self.categories = np.full((rows, categories), np.nan)
        self.separate = np.full((rows, categories), np.nan)
        self.reasons: list[str | None] = [None] * rows
        self.unread: list[str | None] = [None] * rows
        """Why an earlier stage could not read a row, so that no later one may call it safe; None where all could."""
        self.stage = [STAGES[0]] * rows
        self.because = [""] * rows
        self.notes: list[str | None] = [None] * rows
        """Why a row's prompt was not read, by the last stage that says so."""
        self.unanswered = [False] * rows

    @property
    def open_rows(self) -> list[int]:
        """Rows that no stage has settled yet."""
        return np.flatnonzero(np.isnan(self.unsafe)).tolist()

    def settle_by_filters(
        self,
        rows: range,
        text: Array,
        image: Array,
        readings: Readings,
        cutoffs: Cutoffs,
        conditional: NDArray[np.bool_],
    ) -> None:
        """Stage one: settle what the filters are sure of.

        Args:
            rows: R consecutive rows of the batch.
            text: (R, K) probabilities of the text filter, NaN where no prompt is read or it is switched off.
            image: (R, K) probabilities of the image filter.
            readings: how the rows' prompts were read; one with hidden characters is not settled as safe.
            cutoffs: of the cascade.
            conditional: (K,) which categories have a condition on the prompt.
        """
        highest_text, highest_image = text.max(axis=1), image.max(axis=1)
        hidden, nearest = np.array(readings.hidden) > 0, image.argmax(axis=1)
        verdict = filter_verdict(highest_text, highest_image, cutoffs, hidden, conditional[nearest])
        for place, row in enumerate(rows):
            self.notes[row] = readings.notes[place]
            self.because[row] = _explain_filters(
                verdict, place, float(highest_text[place]), float(highest_image[place])
            )
            if math.isnan(highest_image[place]):
                self.unread[row] = "the image filter gave no finite score"
        own = np.where(verdict.by_text[:, None], text, image)
        unsafe = withhold_safe(verdict.unsafe, np.isnan(highest_image))
        # A row is moved from the cutoffs of the filter whose number it is; the text filter settles as unsafe only.
        safe_below = np.full((len(unsafe), 1), cutoffs.image_safe)
        unsafe_from = np.where(verdict.by_text, cutoffs.text_unsafe, cutoffs.image_unsafe)[:, None]
        block = slice(rows.start, rows.stop)
        self.unsafe[block] = unsafe
        self.separate[block] = np.where(np.isnan(unsafe)[:, None], np.nan, own)
        self.categories[block] = shift_categories_to_half(
            own, own.max(axis=1), unsafe, safe_below, unsafe_from
        )

    def settle(self, stage: str, rows: Sequence[int], scores: Scores, safe: float, unsafe: float) -> None:
        """A later stage: settle what it is sure of, and note for the others why it was not.

        Args:
            stage: its name in `STAGES`.
            rows: R rows of the batch.
            scores: of these rows, by this stage.
            safe: it calls a row safe below this probability.
            unsafe: it calls a row unsafe from this probability.
        """
        # A classifier of the user's may not have done so, and one cutoff is held against whole and categories.
        scores = on_one_scale(scores)
        unread = np.array([self.unread[row] is not None for row in rows], dtype=bool)
        verdict = withhold_safe(stage_verdict(scores.unsafe, safe, unsafe), unread)
        categories = shift_categories_to_half(scores.categories, scores.unsafe, verdict, safe, unsafe)
        notes = scores.notes or (None,) * len(rows)
        for place, row in enumerate(rows):
            self.unanswered[row] = scores.unanswered is not None and scores.unanswered[place]
            self.stage[row], self.unsafe[row] = stage, verdict[place]
            self.notes[row] = notes[place] or self.notes[row]
            probability = float(scores.unsafe[place])
            self.reasons[row] = None
            if math.isnan(probability):
                self.reasons[row] = scores.reasons[place] or f"the {stage} gave no score"
                self.unread[row] = self.unread[row] or self.reasons[row]
                self.because[row] += f": {stage} could not judge"
            # It said safe, but an earlier stage could not read the row: a verdict that does not count.
            elif math.isnan(verdict[place]) and probability < min(safe, unsafe):
                self.reasons[row] = (
                    f"{self.unread[row]}; the {stage} alone may flag the image, not call it safe"
                )
                self.because[row] += f": {stage} says safe at {probability:.2f}, which does not count"
            elif math.isnan(verdict[place]):
                self.because[row] = f"{stage} unsure at {probability:.2f}"
            else:
                self.categories[row] = categories[place]
                self.separate[row] = scores.category_probabilities[place]
                self.because[row] += f": {stage} says {_word(verdict[place])} at {probability:.2f}"

    def scores(self) -> Scores:
        """The scores of all B rows, as far as they are settled."""
        return Scores(
            self.unsafe,
            self.categories,
            tuple(self.reasons),
            tuple(self.stage),
            tuple(self.because),
            separate=self.separate,
            notes=tuple(self.notes) if any(self.notes) else None,
            unanswered=tuple(self.unanswered) if any(self.unanswered) else None,
        )


def _explain_filters(verdict: FilterVerdict, place: int, text: float, image: float) -> str:
    """Why stage one settled a row, or did not, on one line."""
    by_text, by_image = verdict.text[place], verdict.image[place]
    both = f"({_number(text)}, {_number(image)})"
    if by_text * by_image < 0:
        return f"text and image filter disagree {both}"
    if by_image < 0 and math.isnan(verdict.unsafe[place]):
        return "hidden characters in the prompt"
    if not by_text and not by_image:
        return f"text and image filter unsure {both}"
    word = _word(verdict.unsafe[place])
    if by_text and by_image:
        return f"text and image filter agree: {word} {both}"
    return f"{'text' if by_text else 'image'} filter alone is sure: {word} {both}"


def _word(unsafe: float) -> str:
    return "unsafe" if unsafe >= 0.5 else "safe"


def _number(probability: float) -> str:
    return "-" if math.isnan(probability) else f"{probability:.2f}"
