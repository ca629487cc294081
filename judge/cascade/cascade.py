"""The cascade as a classifier: cheap filters first, the student next, the judge for what is left.

One pass of the image encoder serves the filters and the student. `judge.cascade.stages` defines what each stage settles
and how a promised total miss rate is kept; `recipes/cascade.py` calibrates a cascade and measures it.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from judge.calibration.thresholds import Thresholds
from judge.errors import ConfigError
from judge.inputs import check_prompts, validate_inputs
from judge.lessons.evidence import Evidence, evidence_of
from judge.lessons.outside import KnowsItsLessons, unjudged_scores
from judge.protocol import Classifier, ReadsPrompts, Scores, modules_of
from prompts.taxonomy import Taxonomy

from .margins import Path
from .pixel_margins import cascade_margins
from .row_verdicts import RowVerdicts
from .settings import CascadeSettings
from .similarity import Similarities
from .stage_models import TokenClassifier
from .stages import STAGES

if TYPE_CHECKING:
    from PIL.Image import Image


class Cascade:
    """A student behind two filters and, if given, before a judge; itself a `Classifier`.

    `Scores.unsafe` and `Scores.categories` are moved together so that 0.5 is the cutoff of the stage that decided; only
    there the promise holds, for the whole and for every category without a threshold of its own. `Scores.separate` are
    that stage's own probabilities. `decided_by` and `because` name the stage and the reason.
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
            ConfigError: a judge, but settings that were calibrated without one; or a stage of another prompt mode than
                `max`.
        """
        if judge is not None and not settings.with_judge:
            raise ConfigError(
                "These settings were calibrated without a judge, so they have no cutoff for its scores; calibrate with "
                "the judge, or leave it out."
            )
        stages: dict[str, object] = {"student": student, "judge": judge}
        for name_of_stage, stage in stages.items():
            if isinstance(stage, ReadsPrompts) and stage.prompt_mode != "max":
                raise ConfigError(
                    f"The {name_of_stage} reads prompts by {stage.prompt_mode!r}; the stages of a cascade read them by "
                    "'max', so that none can make an image safe."
                )
        self.student, self.settings, self.judge = student, settings, judge
        self.cutoffs = settings.cutoffs if judge is not None else settings.cutoffs.without_judge()
        self.name, self.default_taxonomy, self.batch_size = name, default_taxonomy, batch_size
        self.similarities = Similarities(student.encoder)
        self.thresholds: Thresholds | None = None
        """Its own, one a category, used where the caller gives none; they end the promise for their categories."""

    @validate_inputs
    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Judge B RGB images with B prompts (or none at all) under a taxonomy of K categories.

        What no stage could judge is NaN with the last stage's reason, never safe. An image that an earlier stage could
        not read, a later one may flag but not call safe; then it is NaN as well. A prompt that is not read leaves the
        image to be judged alone, and `notes` says so. None can make an image safe that is not safe without it.
        Under a taxonomy outside the calibration's (`outside_promise`) every `because` repeats that. Outside the lessons
        of student or judge, nothing is judged.
        """
        prompts = check_prompts(len(images), prompts)
        beyond = self.outside_lessons(taxonomy)
        if beyond is not None:
            return unjudged_scores(len(images), taxonomy, beyond, STAGES[-1 if self.judge else 1])
        verdicts = RowVerdicts(len(images), len(taxonomy))
        cutoffs = self.cutoffs
        for start in range(0, len(images), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(images)))
            tokens = self.student.encoder.encode_images([images[row] for row in rows])  # (R, 1 + P, D)
            self._filter(verdicts, rows, tokens, [prompts[row] for row in rows], taxonomy)
            left = [row for row in rows if np.isnan(verdicts.unsafe[row])]
            if left:
                kept = tokens[[row - start for row in left]]
                scores = self.student.score_tokens(kept, [prompts[row] for row in left], taxonomy)
                verdicts.settle("student", left, scores, cutoffs.student_safe, cutoffs.student_unsafe)
        # Over all batches at once, so that the judge gets full batches of the few rows that are left.
        left = verdicts.open_rows
        if self.judge is not None and left:
            scores = self.judge.score([images[row] for row in left], [prompts[row] for row in left], taxonomy)
            verdicts.settle("judge", left, scores, cutoffs.judge, cutoffs.judge)
        outside = self.outside_promise(taxonomy)
        if outside is not None:
            verdicts.because = [f"{why}; {outside}" for why in verdicts.because]
        return verdicts.scores()

    def modules(self) -> Iterator[nn.Module]:
        """Those of the student, whose encoder the filters share, and of the judge."""
        yield from modules_of(self.student)
        if self.judge is not None:
            yield from modules_of(self.judge)

    def stages(self) -> Iterator[object]:
        """The student and, if there is one, the judge."""
        yield self.student
        if self.judge is not None:
            yield self.judge

    def outside_lessons(self, taxonomy: Taxonomy) -> str | None:
        """What of a policy lies outside the lessons of the student or of the judge; None where nothing does."""
        for stage in self.stages():
            outside = stage.outside_lessons(taxonomy) if isinstance(stage, KnowsItsLessons) else None
            if outside is not None:
                return outside
        return None

    @property
    def evidence(self) -> Evidence:
        """Which categories both stages were trained or measured on."""
        first, *rest = map(evidence_of, self.stages())
        return reduce(Evidence.weaker, rest, first)

    def outside_promise(self, taxonomy: Taxonomy) -> str | None:
        """Why the promised miss rate does not hold under a taxonomy, on one line; None where it does."""
        calibrated_for = self.settings.calibrated_for
        if calibrated_for is None:
            why: str | None = "the calibrated taxonomy is not known"
        else:
            why = calibrated_for.why_outside(taxonomy)
        if why is None:
            return None
        return f"the promised miss rate of {self.settings.promise:.1%} does not hold: {why}"

    def promise(self, taxonomy: Taxonomy) -> str:
        """The promised miss rate and what it was calibrated on, on one line; or `withdrawn` and why."""
        outside = self.outside_promise(taxonomy)
        if outside is not None:
            return f"withdrawn: {outside}"
        rows = self.settings.unsafe_rows
        return f"at most {self.settings.promise:.1%} missed, calibrated on {rows} unsafe images under such policies"

    def pixel_margins(
        self,
        pixels: Tensor,
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        category: str | None = None,
        path: Path = "any",
    ) -> Tensor:
        """Distance to the other verdict of (B, 3, H, W) pixels in [0, 1], (B,) float32; see `cascade_margins`.

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
        verdicts: RowVerdicts,
        rows: range,
        tokens: Tensor,
        prompts: Sequence[str | None],
        taxonomy: Taxonomy,
    ) -> None:
        """Stage one on R rows with (R, 1 + P, D) image tokens."""
        readings = self.similarities.read_prompts(prompts)
        image = self.settings.image(self.similarities.image_similarities(tokens, taxonomy))
        text = np.full_like(image, np.nan)
        if self.cutoffs.uses_text_filter:
            text = self.settings.text(self.similarities.prompt_similarities(readings, taxonomy))
        conditional = self.similarities.conditional(taxonomy)
        verdicts.settle_by_filters(rows, text, image, readings, self.cutoffs, conditional)
