"""The cascade as a classifier: cheap filters first, the student next, the judge for what is left (design, section 6).

One pass of the image encoder serves the filters and the student. What each stage settles, and how a promised total
miss rate is kept, is said in `judge.cascade.stages`; `recipes/cascade.py` calibrates one and says what it is worth.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from judge.calibration.cutoffs import shift_categories_to_half, withhold_safe
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from judge.protocol import Classifier, DifferentiableClassifier, Scores, modules_of, on_one_scale
from judge.questions import check_prompts, validate_inputs
from prompts.taxonomy import Taxonomy

from .margins import Path, StageLogits, check_path, margins_from_logits
from .settings import CascadeSettings
from .similarity import Similarities
from .stages import STAGES, FilterVerdict, StageScores, decide, filter_verdict, stage_verdict

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[np.float64]


class TokenClassifier(Protocol):
    """What stage two has to be: a classifier of images that its encoder has seen already."""

    name: str
    encoder: DualEncoder

    def score_tokens(
        self, image_tokens: "Tensor", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score (B, 1 + P, D) tokens of `DualEncoder.encode_pixel_values` with B prompts under `taxonomy`."""
        ...


@runtime_checkable
class DifferentiableTokenClassifier(TokenClassifier, Protocol):
    """What stage two has to be for an attack by gradients."""

    def logits(
        self, image_tokens: "Tensor", prompts: Sequence[str | None], taxonomy: Taxonomy
    ) -> tuple["Tensor", "Tensor"]:
        """Logits (B,) of the whole and (B, K) of the categories, differentiable in (B, 1 + P, D) `image_tokens`."""
        ...


class Cascade:
    """A student behind two filters and, if given, before a judge; itself a `Classifier`.

    `Scores.unsafe` and `Scores.categories` are moved together so that 0.5 is the cutoff of the stage that decided; only
    there the promise holds, for the whole and for every category without a threshold of its own. `Scores.separate` are
    that stage's own probabilities. `decided_by` and `because` say which stage and why.
    """

    def __init__(
        self,
        student: TokenClassifier,
        settings: CascadeSettings,
        judge: Classifier | None = None,
        *,
        name: str = "cascade",
        default_taxonomy: Taxonomy | None = None,
        batch_size: int = 32,
    ) -> None:
        """Put the stages together.

        Without the judge that it was calibrated with, the cascade flags what the student is unsure of: more false
        alarms, no more misses.

        Raises:
            ConfigError: a judge that the settings do not know.
        """
        if judge is not None and not settings.with_judge:
            raise ConfigError(
                "These settings were calibrated without a judge, so they cannot say when to believe it; calibrate with "
                "the judge, or leave it out."
            )
        self.student, self.settings, self.judge = student, settings, judge
        self.cutoffs = settings.cutoffs if judge is not None else settings.cutoffs.without_judge()
        self.name, self.default_taxonomy, self.batch_size = name, default_taxonomy, batch_size
        self.similarities = Similarities(student.encoder)

    @validate_inputs
    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Judge B RGB images with B prompts (or none at all) under a taxonomy of K categories.

        What no stage could judge is NaN with the last stage's reason, never safe. What an earlier stage could not read,
        such as a prompt longer than the filters read, a later one may flag but not call safe; then it is NaN as well.
        Under a taxonomy outside the calibration's (`outside_promise`) every `because` says so.
        """
        prompts = check_prompts(len(images), prompts)
        table = _Table(len(images), len(taxonomy))
        for start in range(0, len(images), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(images)))
            tokens = self.student.encoder.encode_images([images[row] for row in rows])
            left = self._filter(table, rows, tokens, [prompts[row] for row in rows], taxonomy)
            if left:
                some = [prompts[start + place] for place in left]
                scores = self.student.score_tokens(tokens[left], some, taxonomy)
                c = self.cutoffs
                table.settle(
                    "student", [start + place for place in left], scores, c.student_safe, c.student_unsafe
                )
        left = np.flatnonzero(np.isnan(table.unsafe)).tolist()
        if self.judge is not None and left:
            scores = self.judge.score([images[row] for row in left], [prompts[row] for row in left], taxonomy)
            table.settle("judge", left, scores, self.cutoffs.judge, self.cutoffs.judge)
        outside = self.outside_promise(taxonomy)
        if outside is not None:
            table.why = [f"{why}; {outside}" for why in table.why]
        return table.scores()

    def modules(self) -> Iterator[nn.Module]:
        """Those of the student, whose encoder the filters share, and of the judge."""
        yield from modules_of(self.student)
        if self.judge is not None:
            yield from modules_of(self.judge)

    def outside_promise(self, taxonomy: Taxonomy) -> str | None:
        """Why the promised miss rate does not hold under a taxonomy, on one line; None where it does."""
        known = self.settings.calibrated_for
        why = "the calibrated taxonomy is not known" if known is None else known.why_outside(taxonomy)
        return (
            None
            if why is None
            else f"the promised miss rate of {self.settings.promise:.1%} does not hold: {why}"
        )

    def pixel_margins(
        self,
        pixels: "Tensor",
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        category: str | None = None,
        path: Path = "any",
    ) -> "Tensor":
        """How far (B, 3, H, W) pixels in [0, 1] are from the other verdict: `judge.cascade.margins`.

        Raises:
            ConfigError: a category, whose score is that of whichever stage decides and so has no margin.
        """
        if category is not None:
            raise ConfigError(
                f"A cascade has no margin for {category!r} alone: its cutoffs are held against p(unsafe). Ask its "
                "student, its judge or its filters (FilterClassifier.from_cascade), or give it a policy of that "
                "category only."
            )
        return cascade_margins(self, pixels, prompts, taxonomy, path=path)

    def _filter(
        self,
        table: "_Table",
        rows: range,
        tokens: "Tensor",
        prompts: Sequence[str | None],
        taxonomy: Taxonomy,
    ) -> list[int]:
        """Stage one; gives the places of the rows that go on."""
        c = self.cutoffs
        # What nobody can read through is not settled here, whatever the image shows.
        long = [prompt is not None and self.student.encoder.too_long(prompt) for prompt in prompts]
        prompts = [None if unread else prompt for prompt, unread in zip(prompts, long, strict=True)]
        image = self.settings.image(self.similarities.image_similarities(tokens, taxonomy))
        text = np.full_like(image, np.nan)
        if c.uses_text_filter:
            text = self.settings.text(self.similarities.prompt_similarities(prompts, taxonomy))
        of_text, of_image = text.max(axis=1), image.max(axis=1)
        verdict = filter_verdict(of_text, of_image, c)
        for place, row in enumerate(rows):
            table.why[row] = _filter_reason(verdict, place, float(of_text[place]), float(of_image[place]))
            if long[place]:
                table.why[row] = table.unread[row] = "the prompt is longer than the filters read"
            elif math.isnan(of_image[place]):
                table.unread[row] = "the image filter gave no finite score"
        own = np.where(verdict.by_text[:, None], text, image)
        unsafe = withhold_safe(verdict.unsafe, np.isnan(of_image))
        unsafe[np.array(long, dtype=bool)] = np.nan
        # A row is moved from the cutoffs of the filter whose number it is.
        safe_from = np.where(verdict.by_text, c.text_safe, c.image_safe)[:, None]
        unsafe_from = np.where(verdict.by_text, c.text_unsafe, c.image_unsafe)[:, None]
        table.unsafe[rows.start : rows.stop] = unsafe
        table.separate[rows.start : rows.stop] = np.where(np.isnan(unsafe)[:, None], np.nan, own)
        table.categories[rows.start : rows.stop] = shift_categories_to_half(
            own, own.max(axis=1), unsafe, safe_from, unsafe_from
        )
        return np.flatnonzero(np.isnan(unsafe)).tolist()


class _Table:
    """What is known of B images so far."""

    def __init__(self, rows: int, categories: int) -> None:
        self.unsafe = np.full(rows, np.nan)
        self.categories = np.full((rows, categories), np.nan)
        self.separate = np.full((rows, categories), np.nan)
        self.reasons: list[str | None] = [None] * rows
        self.unread: list[str | None] = [None] * rows
        """Why an earlier stage could not read a row, which then nobody may call safe; None where all could."""
        self.stage = [STAGES[0]] * rows
        self.why = [""] * rows

    def settle(self, stage: str, rows: Sequence[int], scores: Scores, safe: float, unsafe: float) -> None:
        """Take over what a later stage says about these rows, and why it was asked."""
        scores = on_one_scale(scores)
        unread = np.array([self.unread[row] is not None for row in rows], dtype=bool)
        verdict = withhold_safe(stage_verdict(scores.unsafe, safe, unsafe), unread)
        categories = shift_categories_to_half(scores.categories, scores.unsafe, verdict, safe, unsafe)
        for place, row in enumerate(rows):
            self.stage[row], self.unsafe[row] = stage, verdict[place]
            probability = float(scores.unsafe[place])
            self.reasons[row] = None
            if math.isnan(probability):
                self.reasons[row] = scores.reasons[place] or f"the {stage} gave no score"
                self.unread[row] = self.unread[row] or self.reasons[row]
                self.why[row] += f": {stage} could not judge"
            elif math.isnan(verdict[place]) and probability < min(safe, unsafe):
                self.reasons[row] = (
                    f"{self.unread[row]}; the {stage} alone may flag the image, not call it safe"
                )
                self.why[row] += f": {stage} says safe at {probability:.2f}, which does not count"
            elif math.isnan(verdict[place]):
                self.why[row] = f"{stage} unsure at {probability:.2f}"
            else:
                self.categories[row], self.separate[row] = (
                    categories[place],
                    scores.category_probabilities[place],
                )
                self.why[row] += f": {stage} says {_word(verdict[place])} at {probability:.2f}"

    def scores(self) -> Scores:
        return Scores(
            self.unsafe,
            self.categories,
            tuple(self.reasons),
            tuple(self.stage),
            tuple(self.why),
            separate=self.separate,
        )


def _filter_reason(verdict: FilterVerdict, place: int, text: float, image: float) -> str:
    """Why stage one settled a row, or did not, on one line."""
    says_text, says_image = verdict.text[place], verdict.image[place]
    both = f"({_number(text)}, {_number(image)})"
    if says_text * says_image < 0:
        return f"text and image filter disagree {both}"
    if not says_text and not says_image:
        return f"text and image filter unsure {both}"
    word = _word(verdict.unsafe[place])
    if says_text and says_image:
        return f"text and image filter agree: {word} {both}"
    return f"{'text' if says_text else 'image'} filter alone is sure: {word} {both}"


def _word(unsafe: float) -> str:
    return "unsafe" if unsafe >= 0.5 else "safe"


def _number(probability: float) -> str:
    return "-" if math.isnan(probability) else f"{probability:.2f}"


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
        fixed_text: as in `margins_from_logits`; set it False where the prompts are searched too.

    Returns:
        (B,) float32, positive where the cascade says unsafe.

    Raises:
        ConfigError: another path, a stage that gives no gradients, or rows that the cascade cannot judge.
    """
    check_path(path, cascade.judge is not None)
    prompts = check_prompts(len(pixels), prompts)
    logits = _without_judge(cascade, pixels, prompts, taxonomy)
    if cascade.judge is not None:
        reached = decide(_unsettled(logits.probabilities()), cascade.cutoffs).stage == 2
        rows = torch.from_numpy(np.flatnonzero(reached)).to(pixels.device)
        column = torch.full_like(logits.image, torch.nan)
        if len(rows):
            some = [prompts[row] for row in rows.tolist()]
            found = _differentiable(cascade.judge).pixel_margins(pixels[rows], some, taxonomy)
            column = column.index_copy(0, rows.to(column.device), found.to(column))
        logits = StageLogits(logits.text, logits.image, logits.student, column)
    return margins_from_logits(logits, cascade.cutoffs, path=path, fixed_text=fixed_text).float()


def _without_judge(
    cascade: "Cascade", pixels: Tensor, prompts: Sequence[str | None], taxonomy: Taxonomy
) -> StageLogits:
    """What filters and student say, from one pass of the encoder."""
    student, platt = cascade.student, cascade.settings
    if not isinstance(student, DifferentiableTokenClassifier):
        raise ConfigError(
            f"The cascade's student is a {type(student).__name__}, whose verdict has no gradients."
        )
    # As in `Cascade.score`: what nobody can read through is settled neither by the filters nor by the student.
    long = torch.tensor([prompt is not None and student.encoder.too_long(prompt) for prompt in prompts])
    read = [None if unread else prompt for prompt, unread in zip(prompts, long.tolist(), strict=True)]
    tokens = student.encoder.encode_pixels(pixels)
    long = long.to(tokens.device)
    # In double precision from the cosines on, as in `Cascade.score`: a cutoff often is some row's own score.
    image = platt.image.logits(cascade.similarities.cosines(tokens[:, 0], taxonomy).double()).amax(dim=1)
    text = torch.full_like(image, torch.nan)
    if cascade.cutoffs.uses_text_filter:
        cosines = cascade.similarities.prompt_similarities(read, taxonomy).max(axis=1)
        text = platt.text.logits(torch.from_numpy(cosines)).to(image)
    whole = student.logits(tokens, read, taxonomy)[0].double()
    nothing = torch.full_like(image, torch.nan)
    return StageLogits(text, torch.where(long, nothing, image), torch.where(long, nothing, whole))


def _unsettled(scores: StageScores) -> StageScores:
    """With a judge that has yet to speak."""
    return StageScores(scores.text, scores.image, scores.student, np.full(len(scores), np.nan))


def _differentiable(judge: Classifier) -> DifferentiableClassifier:
    if not isinstance(judge, DifferentiableClassifier):
        raise ConfigError(
            f"The cascade's judge is a {type(judge).__name__}, which gives no gradients; attack the cascade "
            "without it (Cascade(student, settings)) and try what is found on the whole, or use queries."
        )
    return judge
