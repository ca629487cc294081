"""A cascade around a generator: prompt filter, detector inside the loop, student on the finished picture, judge.

    cascade = GenerationCascade(pipeline, settings, detector=detector, student=load_classifier("runs/cascade"))
    for drawn in cascade.draw(["a quiet harbour"], taxonomy, seeds=[7]):
        drawn.verdict.status, drawn.verdict.decided_by, drawn.picture     # the picture is None unless it is safe

`judge.cascade.generation_stages` says which stage decides what, and how the total miss rate is promised. Every stage
may be left out, but something has to look at the pictures: a prompt clears none. A picture that was stopped, or that
nobody could judge, does not leave.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from judge.calibration.cutoffs import clamp_to_side, shift_categories_to_half, shift_to_half
from judge.cascade.generation_stages import GenerationCutoffs
from judge.cascade.prompt_filter import PromptFilter
from judge.cascade.row_verdicts import RowVerdicts
from judge.cascade.stages import Array
from judge.errors import ConfigError, QuestionError
from judge.protocol import Classifier, Scores, on_one_scale
from judge.verdicts.from_scores import verdicts_from_scores
from prompts.taxonomy import Taxonomy
from prompts.verdict import Verdict

from .detector import Detector
from .generation_settings import GenerationSettings
from .guard import DiffusionGuard
from .guarded import guarded
from .look import Look
from .looks_promise import Sampling
from .picture_verdicts import LookVerdict, PictureVerdict

if TYPE_CHECKING:
    from PIL.Image import Image

    from judge.cascade.cascade import Cascade

BLACKENED = "the pipeline's own filter blackened the picture"
INTERRUPTED = "the call was interrupted, and the picture is half-made"


@dataclass(frozen=True)
class Drawn:
    """What became of one picture that was asked for."""

    prompt: str
    seed: int
    verdict: Verdict
    """`decided_by` is `filter` (the prompt's, before any step), `detector`, `student` or `judge`; of a `Cascade` as the
    student, the stage of it that decided, and `because` says which. Scores are moved so that 0.5 is its cutoff."""
    picture: "Image | None" = field(repr=False)
    """None unless the verdict is safe."""
    steps: int
    """Steps of the denoiser that were made."""
    looks: tuple[LookVerdict, ...] = ()
    """The detector's, in order."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds on the clock by stage: `filter`, `drawing`, `detector`, `student`, `judge`; those of a batch are shared
    among its pictures, drawing by their steps."""


class GenerationCascade:
    """A pipeline that hands out only pictures which a cascade of stages calls safe under a taxonomy of this call."""

    def __init__(
        self,
        pipeline: Any,
        settings: GenerationSettings,
        *,
        prompt_filter: PromptFilter | None = None,
        detector: Detector | None = None,
        student: Classifier | None = None,
        judge: Classifier | None = None,
        batch_size: int = 8,
    ) -> None:
        """Put the stages together.

        Args:
            pipeline: of diffusers, one that can be watched and stopped.
            settings: cutoffs of exactly the stages that are given.
            prompt_filter: reads prompts; needed only where its cutoff can refuse one.
            detector: looks at half-made pictures of this pipeline.
            student: reads finished pictures; any classifier, a whole `Cascade` too.
            judge: reads what the student is unsure of.
            batch_size: pictures made at a time.

        Raises:
            ConfigError: cutoffs of other stages than are given, or no stage that sees pictures.
        """
        cutoffs = settings.cutoffs
        for name, stage, wanted in (
            ("prompt filter", prompt_filter, cutoffs.uses_prompt_filter),
            ("detector", detector, bool(cutoffs.looks_on.any())),
            ("student", student, cutoffs.student is not None),
            ("judge", judge, cutoffs.judge is not None),
        ):
            if wanted and stage is None:
                raise ConfigError(f"The settings have a cutoff for a {name}, and none is given.")
            if name in ("student", "judge") and stage is not None and not wanted:
                raise ConfigError(
                    f"The settings have no cutoff for a {name}; calibrate with it, or leave it out."
                )
        if not cutoffs.looks_on.any() and student is None:
            raise ConfigError(
                "Neither a detector nor a student sees the pictures, so none could be called safe."
            )
        self.pipeline, self.settings, self.batch_size = pipeline, settings, batch_size
        self.prompt_filter, self.detector = prompt_filter, detector
        self.student, self.judge = student, judge

    @classmethod
    def around(
        cls,
        pipeline: Any,
        cascade: "Cascade",
        settings: GenerationSettings | None = None,
        *,
        detector: Detector | None = None,
        batch_size: int = 8,
    ) -> Self:
        """An existing cascade behind a pipeline: its text filter reads prompts first, all of it the finished pictures.

        Without settings the cascade alone decides, at its own cutoffs and promise.
        """
        settings = settings or GenerationSettings(GenerationCutoffs(student=(0.5, 0.5)))
        curve = settings.prompt or cascade.settings.text
        return cls(
            pipeline,
            settings,
            prompt_filter=PromptFilter(cascade.similarities, curve),
            detector=detector,
            student=cascade,
            batch_size=batch_size,
        )

    def draw(
        self, prompts: Sequence[str], taxonomy: Taxonomy, *, seeds: Sequence[int], **call: Any
    ) -> list[Drawn]:
        """Draw B pictures of B prompts, each from noise of its own seed, and judge them on the way.

        What the pipeline raises is raised, and then no picture leaves.

        Args:
            prompts: B texts.
            taxonomy: which categories are forbidden.
            seeds: B of them.
            call: further arguments of the pipeline, such as `num_inference_steps` and `guidance_scale`.

        Raises:
            QuestionError: prompts are no texts, or not one seed each.
            PipelineError: the pipeline cannot be watched, or the call does not reach the step of a look.
        """
        _check_questions(prompts, seeds, call)
        rows = RowVerdicts(len(prompts), len(taxonomy))
        found = [_Picture(prompt, int(seed)) for prompt, seed in zip(prompts, seeds, strict=True)]
        self._read_prompts(rows, found, taxonomy)
        wanted = rows.open_rows
        for start in range(0, len(wanted), self.batch_size):
            self._make(rows, found, wanted[start : start + self.batch_size], taxonomy, call)
        cutoffs = self.settings.cutoffs
        if self.student is not None and cutoffs.student is not None:
            self._read_pictures("student", self.student, cutoffs.student, rows, found, taxonomy)
        if self.judge is not None and cutoffs.judge is not None:
            self._read_pictures("judge", self.judge, (cutoffs.judge, cutoffs.judge), rows, found, taxonomy)
        names = [stage.name for stage in (self.detector, self.student, self.judge) if stage is not None]
        # After the calls, when the pipeline knows how it made them; where none was made, only the policy counts.
        sampling = Sampling.of(self.pipeline) if wanted else None
        promise = self.settings.text(taxonomy, sampling, names)
        verdicts = verdicts_from_scores(
            rows.scores(), taxonomy, threshold=0.5, model=" + ".join(names), promise=promise
        )
        return [picture.drawn(verdict) for picture, verdict in zip(found, verdicts, strict=True)]

    def _read_prompts(self, rows: RowVerdicts, found: list["_Picture"], taxonomy: Taxonomy) -> None:
        """Refuse what the prompt filter is sure of."""
        cutoff = self.settings.cutoffs.prompt
        if self.prompt_filter is None or not self.settings.cutoffs.uses_prompt_filter:
            return
        began = time.perf_counter()
        scores, readings = self.prompt_filter.score([picture.prompt for picture in found], taxonomy)
        each = (time.perf_counter() - began) / max(len(found), 1)
        whole = scores.max(axis=1)
        verdict = _moved(whole, cutoff)
        categories = shift_categories_to_half(scores, whole, verdict, cutoff, cutoff)
        for row, picture in enumerate(found):
            picture.seconds["filter"] = each
            rows.notes[row] = readings.notes[row]
            if verdict[row] >= 0.5:
                rows.unsafe[row], rows.categories[row], rows.separate[row] = (
                    verdict[row],
                    categories[row],
                    scores[row],
                )
                rows.because[row] = f"prompt filter says unsafe at {whole[row]:.2f}, before any step"

    def _make(
        self,
        rows: RowVerdicts,
        found: list["_Picture"],
        chosen: Sequence[int],
        taxonomy: Taxonomy,
        call: Mapping[str, Any],
    ) -> None:
        """Draw some pictures, under the guard where there is a detector."""
        on = self.settings.cutoffs.looks_on
        guard, draw = None, self.pipeline
        if self.detector is not None and on.any():
            at = tuple(step for step, made in zip(self.settings.at, on, strict=True) if made)
            cuts = dict(zip(self.settings.at, self.settings.cutoffs.looks, strict=True))
            # Where nothing reads the finished picture, what a look could not read need not be finished.
            guard = DiffusionGuard(
                _AtCutoffs(self.detector, cuts),
                taxonomy,
                at=at,
                on_stop="none",
                on_failure="stop" if self.student is None else "go on",
                pipeline=self.pipeline,
            )
            draw = guarded(self.pipeline, guard)
        some = [found[row] for row in chosen]
        generators = [torch.Generator().manual_seed(picture.seed) for picture in some]
        began = time.perf_counter()
        output = draw(prompt=[picture.prompt for picture in some], generator=generators, **call)
        spent = time.perf_counter() - began
        steps = int(self.pipeline.num_timesteps)
        pictures = [None] * len(some) if output is None else list(output.images)
        black = getattr(output, "nsfw_content_detected", None) or [False] * len(some)
        looked = guard.verdicts if guard is not None else (PictureVerdict(),) * len(some)
        made = [steps if verdict.stopped_at is None else verdict.stopped_at for verdict in looked]
        looking = sum(verdict.milliseconds for verdict in looked) / 1000
        for row, picture, image, verdict, own, blackened in zip(
            chosen, some, pictures, looked, made, black, strict=True
        ):
            picture.steps, picture.looks = own, verdict.looks
            picture.image = None if verdict.stopped_at is not None else image
            picture.seconds["drawing"] = max(spent - looking, 0.0) * own / sum(made)
            if guard is not None:
                picture.seconds["detector"] = verdict.milliseconds / 1000
                _settle_by_looks(rows, row, verdict, steps, taxonomy, last=self.student is None)
            if guard is None and getattr(self.pipeline, "interrupt", False):
                picture.image = None
                rows.unread[row] = rows.reasons[row] = INTERRUPTED
            elif blackened and verdict.stopped_at is None:
                rows.unread[row] = rows.reasons[row] = BLACKENED
                rows.unsafe[row] = np.nan

    def _read_pictures(
        self,
        stage: str,
        classifier: Classifier,
        cutoffs: tuple[float, float],
        rows: RowVerdicts,
        found: list["_Picture"],
        taxonomy: Taxonomy,
    ) -> None:
        """A stage that reads the finished pictures which are left."""
        left = [row for row in rows.open_rows if found[row].image is not None]
        if not left:
            return
        began = time.perf_counter()
        images: Any = [found[row].image for row in left]
        scores = classifier.score(images, [found[row].prompt for row in left], taxonomy)
        each = (time.perf_counter() - began) / len(left)
        rows.settle(stage, left, scores, *cutoffs)
        for place, row in enumerate(left):
            found[row].seconds[stage] = each
            if scores.decided_by is not None and not np.isnan(rows.unsafe[row]):
                rows.stage[row] = scores.decided_by[place]
                if scores.because is not None:
                    rows.because[row] = f"{rows.because[row]} ({scores.because[place]})"


@dataclass
class _Picture:
    """One picture on its way through the stages."""

    prompt: str
    seed: int
    image: "Image | None" = None
    steps: int = 0
    looks: tuple[LookVerdict, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def drawn(self, verdict: Verdict) -> Drawn:
        """What is handed out."""
        picture = self.image if verdict.status == "safe" else None
        if verdict.status == "safe" and picture is None:
            verdict = replace(verdict, status="unjudged", unsafe=None, reason="the pipeline made no picture")
        return Drawn(self.prompt, self.seed, verdict, picture, self.steps, self.looks, dict(self.seconds))


class _AtCutoffs:
    """A detector whose scores are moved so that 0.5 is the cutoff of the look they were made at."""

    def __init__(self, detector: Detector, cutoffs: Mapping[int, float]) -> None:
        """`cutoffs`: step of a look -> its cutoff."""
        self.detector, self.cutoffs = detector, cutoffs
        self.name, self.layers, self.log_snrs = detector.name, detector.layers, detector.log_snrs

    def score(self, look: Look, taxonomy: Taxonomy) -> Scores:
        """As the detector's, moved."""
        cutoff = self.cutoffs[look.step]
        scores = on_one_scale(self.detector.score(look, taxonomy))
        verdict = _moved(scores.unsafe, cutoff)
        categories = shift_categories_to_half(scores.categories, scores.unsafe, verdict, cutoff, cutoff)
        return replace(scores, unsafe=verdict, categories=categories, separate=scores.category_probabilities)


def _moved(probability: Array, cutoff: float) -> Array:
    """(B,) probabilities moved so that a cutoff becomes 0.5; NaN stays NaN."""
    sides = np.where(np.isnan(probability), 0, np.where(probability >= cutoff, 1, -1))
    return clamp_to_side(shift_to_half(probability, sides, cutoff, cutoff), sides)


def _settle_by_looks(
    rows: RowVerdicts, row: int, picture: PictureVerdict, steps: int, taxonomy: Taxonomy, *, last: bool
) -> None:
    """What the looks at one picture say; `last` where nothing behind them reads it."""
    worst = picture.deciding
    rows.stage[row] = "detector"
    if worst is None or worst.verdict.status == "unjudged":
        reason = picture.reason or "nobody looked at it"
        rows.unread[row] = rows.reasons[row] = reason
        rows.because[row] = "detector could not judge"
        return
    verdict, score = worst.verdict, worst.verdict.unsafe
    where = f"after step {worst.step} of {steps}"
    rows.because[row] = f"detector says {verdict.status} {where}"
    if score is not None and (verdict.status == "unsafe" or last):
        rows.unsafe[row] = score
        rows.categories[row] = [verdict.scores.get(name, np.nan) for name in taxonomy.names]
    elif score is not None:
        rows.because[row] = f"detector passes it, {score:.2f} at most ({where})"


def _check_questions(prompts: Sequence[str], seeds: Sequence[int], call: Mapping[str, Any]) -> None:
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise QuestionError("Prompts come as a list of texts, one for each picture.")
    if len(seeds) != len(prompts):
        raise QuestionError(f"{len(prompts)} prompts and {len(seeds)} seeds; give one seed for each picture.")
    own = {
        "prompt",
        "generator",
        "output_type",
        "return_dict",
        "num_images_per_prompt",
        "latents",
    } & call.keys()
    if own:
        raise QuestionError(
            f"{', '.join(sorted(own))} of the pipeline cannot be passed here: each picture has its prompt and its "
            "seed, and comes as a picture."
        )
