"""Seconds per image of each stage of a cascade: medians of repeats, after a warm-up, all on the same batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from judge.cascade.cascade import Cascade
from judge.cascade.similarity import Similarities
from judge.cascade.stage_models import TokenClassifier
from judge.cascade.stages import STAGES
from judge.data.images import open_image
from judge.protocol import Classifier
from prompts.taxonomy import Taxonomy

from .questions import Question
from .timing import medians, time_in_turns

REPEATS = 5
POLICIES, ROWS = 2, 32
"""Policies that are timed, and images of each: one batch of the default size."""


@dataclass(frozen=True)
class Batch:
    """Images that are scored together, under one policy."""

    images: list[Image]
    prompts: list[str | None]
    policy: Taxonomy


def timing_batches(
    questions: Sequence[Question], *, policies: int = POLICIES, rows: int = ROWS
) -> list[Batch]:
    """Batches of `rows` images and prompts for each of the first `policies` policies of the questions.

    Costs do not depend on which image is scored under which policy, so images of other policies fill the batches.
    """
    # Distinct policies, in order of first appearance.
    chosen = list({question.row.taxonomy.hash: question.row.taxonomy for question in questions}.values())
    batches = []
    for number, policy in enumerate(chosen[:policies]):
        # Starts over at the first question where there are too few of them.
        some = [
            questions[(number * rows + place) % len(questions)] for place in range(min(rows, len(questions)))
        ]
        images = [open_image(question.row.example.image) for question in some]
        batches.append(Batch(images, [question.row.prompt for question in some], policy))
    return batches


@dataclass(frozen=True)
class Costs:
    """Seconds per image of `encoder`, `text`, `image` (filters), `student`, and `judge` where there is one.

    Each is what this part adds for an image that reaches it. The policy is encoded already.
    """

    seconds: dict[str, float]
    rows: int
    """Number of timed images."""
    policies: int
    repeats: int
    cascade: float | None = None
    """Seconds per image of the whole cascade, measured on the same batches."""
    reached: dict[str, float] | None = None
    """Share of these images that reaches each stage of the cascade."""

    def filters(self, with_text: bool) -> float:
        """Seconds per image of the image encoder and filter, and of the text filter if `with_text`."""
        return self.seconds["encoder"] + self.seconds["image"] + self.seconds["text"] * with_text

    def expected(self, reached: Mapping[str, float], with_text: bool) -> float:
        """Seconds per image as the sum of the stages: cost times the share of images that `reached` each."""
        # Every image reaches the filters, the first of the `STAGES`.
        late = sum(self.seconds.get(stage, 0.0) * reached[stage] for stage in STAGES[1:])
        return self.filters(with_text) + late


def measure_costs(
    student: TokenClassifier,
    judge: Classifier | None,
    batches: Sequence[Batch],
    cascade: Cascade | None = None,
    *,
    repeats: int = REPEATS,
) -> Costs:
    """Time each stage, and the whole cascade if given, on all images of the same batches."""
    similarities = Similarities(student.encoder)
    # Computed once: the stages behind the encoder share its tokens.
    encoded = [student.encoder.encode_images(batch.images) for batch in batches]

    def score_with_student() -> None:
        for batch, tokens in zip(batches, encoded, strict=True):
            student.score_tokens(tokens, batch.prompts, batch.policy)

    def compare_images() -> None:
        for batch, tokens in zip(batches, encoded, strict=True):
            similarities.image_similarities(tokens, batch.policy)

    # Each computes one part for all batches; what it needs is computed already.
    functions: dict[str, Callable[[], Any]] = {
        "encoder": lambda: [student.encoder.encode_images(batch.images) for batch in batches],
        "text": lambda: [similarities.prompt_similarities(batch.prompts, batch.policy) for batch in batches],
        "image": compare_images,
        "student": score_with_student,
    }
    if judge is not None:
        functions["judge"] = lambda: [judge.score(b.images, b.prompts, b.policy) for b in batches]
    if cascade is not None:
        functions["cascade"] = lambda: [cascade.score(b.images, b.prompts, b.policy) for b in batches]
    rows = sum(len(batch.images) for batch in batches)
    taken = medians(time_in_turns(functions, repeats=repeats))
    seconds = {name: value / rows for name, value in taken.items()}
    return Costs(
        {name: value for name, value in seconds.items() if name != "cascade"},
        rows,
        len(batches),
        repeats,
        seconds.get("cascade"),
        None if cascade is None else _reached(cascade, batches, rows),
    )


def _reached(cascade: Cascade, batches: Sequence[Batch], rows: int) -> dict[str, float]:
    """Share of the images that reaches each stage: those decided by it or by a later one."""
    decided = [
        STAGES.index(stage)
        for batch in batches
        for stage in cascade.score(batch.images, batch.prompts, batch.policy).decided_by or ()
    ]
    return {name: sum(stage >= number for stage in decided) / rows for number, name in enumerate(STAGES)}
