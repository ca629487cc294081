"""What the stages of a cascade cost: medians of repeats, after a warm-up, all on the same batches.

A first call compiles, allocates and encodes the policy; a single one is as long as whatever else the machine does. So
each function is called once unmeasured, then all of them in turn several times, and the median counts.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from PIL.Image import Image

from judge.cascade.cascade import Cascade
from judge.cascade.similarity import Similarities
from judge.cascade.stage_models import TokenClassifier
from judge.cascade.stages import STAGES
from judge.data.images import open_image
from judge.protocol import Classifier
from prompts.taxonomy import Taxonomy

from .questions import Question

REPEATS = 5
POLICIES, ROWS = 2, 32
"""How many policies are timed, and how many images under each: one batch of the default size."""


@dataclass(frozen=True)
class Batch:
    """Images asked about together, under one policy."""

    images: list[Image]
    prompts: list[str | None]
    policy: Taxonomy


def timing_batches(
    questions: Sequence[Question], *, policies: int = POLICIES, rows: int = ROWS
) -> list[Batch]:
    """The first policies, each with as many of the questions' images and prompts as a batch holds.

    What an image is asked under changes no cost, so those of other policies fill the batches.
    """
    chosen = list({question.row.taxonomy.hash: question.row.taxonomy for question in questions}.values())
    batches = []
    for number, policy in enumerate(chosen[:policies]):
        some = [
            questions[(number * rows + place) % len(questions)] for place in range(min(rows, len(questions)))
        ]
        images = [open_image(question.row.example.image) for question in some]
        batches.append(Batch(images, [question.row.prompt for question in some], policy))
    return batches


def median_seconds(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds of each function: all are called once unmeasured, then in turn `repeats` times; the median of those."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            _wait()
            started = clock()
            function()
            _wait()
            if turn:
                taken[name].append(clock() - started)
    return {name: median(values) for name, values in taken.items()}


@dataclass(frozen=True)
class Costs:
    """Seconds an image, by what is computed: `encoder`, `text`, `image`, `student`, and `judge` where there is one.

    Each is the cost of an image that gets so far, beside what was computed for it before; a policy is known already.
    """

    seconds: dict[str, float]
    rows: int
    """Images timed."""
    policies: int
    repeats: int
    cascade: float | None = None
    """Seconds an image of the cascade as a whole, measured on the same batches."""
    reached: dict[str, float] | None = None
    """Share of those images that gets to each stage of the cascade."""

    def filters(self, uses_text_filter: bool) -> float:
        """The filters, with the encoder's pass, and the prompt's reading where the text filter has a say."""
        return self.seconds["encoder"] + self.seconds["image"] + self.seconds["text"] * uses_text_filter

    def expected(self, reached: Mapping[str, float], uses_text_filter: bool) -> float:
        """Seconds an image of a cascade by its stages: cost times the share of images that `reached` each."""
        late = sum(self.seconds.get(stage, 0.0) * reached[stage] for stage in STAGES[1:])
        return self.filters(uses_text_filter) + late


def measure_costs(
    student: TokenClassifier,
    judge: Classifier | None,
    batches: Sequence[Batch],
    cascade: Cascade | None = None,
    *,
    repeats: int = REPEATS,
) -> Costs:
    """Time every stage on all images of the same batches, and the cascade as a whole beside them, if given."""
    similarities = Similarities(student.encoder)
    seen = [student.encoder.encode_images(batch.images) for batch in batches]

    def student_reads() -> None:
        for batch, tokens in zip(batches, seen, strict=True):
            student.score_tokens(tokens, batch.prompts, batch.policy)

    def image_filter() -> None:
        for batch, tokens in zip(batches, seen, strict=True):
            similarities.image_similarities(tokens, batch.policy)

    functions: dict[str, Callable[[], Any]] = {
        "encoder": lambda: [student.encoder.encode_images(batch.images) for batch in batches],
        "text": lambda: [similarities.prompt_similarities(batch.prompts, batch.policy) for batch in batches],
        "image": image_filter,
        "student": student_reads,
    }
    if judge is not None:
        functions["judge"] = lambda: [judge.score(b.images, b.prompts, b.policy) for b in batches]
    if cascade is not None:
        functions["cascade"] = lambda: [cascade.score(b.images, b.prompts, b.policy) for b in batches]
    rows = sum(len(batch.images) for batch in batches)
    seconds = {name: value / rows for name, value in median_seconds(functions, repeats=repeats).items()}
    return Costs(
        {name: value for name, value in seconds.items() if name != "cascade"},
        rows,
        len(batches),
        repeats,
        seconds.get("cascade"),
        None if cascade is None else _reached(cascade, batches, rows),
    )


def _reached(cascade: Cascade, batches: Sequence[Batch], rows: int) -> dict[str, float]:
    decided = [
        STAGES.index(stage)
        for batch in batches
        for stage in cascade.score(batch.images, batch.prompts, batch.policy).decided_by or ()
    ]
    return {name: sum(stage >= number for stage in decided) / rows for number, name in enumerate(STAGES)}


def _wait() -> None:
    """A GPU answers before it is done; wait until it is."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
