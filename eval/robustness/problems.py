"""Labelled questions -> the attack problems of a threat model on a classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from adversarial.errors import AttackError
from adversarial.problem import Problem
from adversarial.storing import to_images, to_pixels
from adversarial.threat import ThreatModel
from adversarial.victim import Context
from eval.questions import Question
from judge.data.images import open_image

from .victims import ClassifierVictim, image_processor_of, stages_of


@dataclass(frozen=True)
class PreparedProblem:
    """An attack problem on questions whose pictures have one size."""

    problem: Problem
    """The rows that the victim judges right on the real path; may be empty."""
    places: list[int]
    """Index of each row's question."""
    misjudged: list[int]
    """Questions that the victim gets wrong when clean; left out of the problem."""
    unjudged: list[int]
    """Questions that the victim could not judge; left out too."""
    scores: dict[int, float]
    """Question -> p(unsafe) of the clean picture on the real path; NaN where unjudged."""


def build_problems(
    victim: ClassifierVictim,
    questions: Sequence[Question],
    threat: ThreatModel,
    *,
    batch_size: int = 32,
    seed: int = 0,
) -> list[PreparedProblem]:
    """The attack problems of this threat model on these questions, one for each size of picture.

    The goal selects questions: opposite: all; safe: unsafe ones; force: images that do not violate the category, under
    policies that have it; hide: images that do. Others are in none of the lists. In the space `input` the pictures are
    first resized by the victim's image processor to the size of its model's input.

    Raises:
        AttackError: a victim of another category than the goal's, no question that matches the goal, or an input
            size that is unknown or differs between stages.
        ImageError: a picture that cannot be opened.
    """
    if threat.category != victim.category:
        raise AttackError(
            f"The goal {threat.goal!r} has the category {threat.category!r}, but {victim.name} scores "
            f"{victim.category!r}; give both the same: ClassifierVictim(classifier, category=...)."
        )
    signs = {place: sign for place, q in enumerate(questions) if (sign := attack_sign(q, threat))}
    if not signs:
        raise AttackError(
            f"None of {len(questions)} questions matches the goal {threat.goal!r}"
            + (f": no policy has {threat.category!r} with such images." if threat.category else ".")
        )
    contexts = {place: context_of(questions[place]) for place in signs}
    pictures = {place: picture_of(questions[place]) for place in signs}
    if threat.space == "input":
        pictures = {place: resize_to_input(victim, picture) for place, picture in pictures.items()}
    scores = dict(zip(signs, victim.score(list(pictures.values()), list(contexts.values())), strict=True))
    sizes: dict[tuple[int, int], list[int]] = {}
    for place, picture in pictures.items():
        sizes.setdefault(picture.size, []).append(place)
    prepared = []
    for size, members in sizes.items():
        unjudged = [place for place in members if np.isnan(scores[place])]
        right = [place for place in members if (scores[place] >= 0.5) == (signs[place] > 0)]
        # NaN >= 0.5 is False, which would count as a safe verdict.
        right = [place for place in right if place not in unjudged]
        misjudged = [place for place in members if place not in {*right, *unjudged}]
        problem = Problem(
            victim,
            to_pixels([pictures[place] for place in right]) if right else torch.zeros(0, 3, size[1], size[0]),
            [contexts[place] for place in right],
            torch.tensor([float(signs[place]) for place in right]),
            threat,
            batch_size=batch_size,
            seed=seed,
            ids=[questions[place].id for place in right],
        )
        clean = {place: float(scores[place]) for place in members}
        prepared.append(PreparedProblem(problem, right, misjudged, unjudged, clean))
    return prepared


def context_of(question: Question) -> Context:
    """The prompt and taxonomy of a question."""
    return Context(question.row.prompt, question.row.taxonomy)


def picture_of(question: Question) -> Image.Image:
    """The RGB picture of a question."""
    return open_image(question.row.example.image)


def resize_to_input(victim: ClassifierVictim, picture: Image.Image) -> Image.Image:
    """The picture as the victim's image processor resizes and crops it, in bytes.

    Raises:
        AttackError: no processor is known, or one would change its result again: then stages see different sizes.
    """
    processors = [image_processor_of(stage) for stage in stages_of(victim.classifier)]
    if not all(processors):
        raise AttackError(
            f"The size at which {victim.name} sees pictures is not known here; attack the posted file (space='file')."
        )
    small = _resized(processors[0], picture)
    # Resizing must be idempotent for every stage, or the attacked pixels would be resampled again.
    if not all(_resized(one, small) == small for one in processors):
        raise AttackError(
            f"{victim.name} would resize its own input of {small.width} x {small.height} again, as its stages see "
            "pictures of different sizes; attack the posted file (space='file')."
        )
    return small


def attack_sign(question: Question, threat: ThreatModel) -> int:
    """1 where the attacker wants a safe verdict, -1 an unsafe one, 0 where the question does not match the goal."""
    row = question.row
    if threat.category is None:
        return 1 if row.unsafe else -1 if threat.goal == "opposite" else 0
    names = [name.casefold() for name in row.taxonomy.names]
    if threat.category.casefold() not in names:
        return 0
    violated = row.taxonomy.categories[row.taxonomy.index(threat.category)].label(row.example)
    if violated is None:  # no label, so no verdict is wrong
        return 0
    return (1 if violated else 0) if threat.goal == "hide" else (0 if violated else -1)


def _resized(processor: Any, picture: Image.Image) -> Image.Image:
    values = processor(images=[picture], do_rescale=False, do_normalize=False, return_tensors="pt")[
        "pixel_values"
    ]
    if values.ndim != 4 or values.shape[:2] != (1, 3):
        raise AttackError(
            f"{type(processor).__name__} makes tensors of shape {tuple(values.shape)} of one picture, not one picture "
            "of another size; attack the posted file (space='file')."
        )
    return to_images(values.float() / 255)[0]
