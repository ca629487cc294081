"""Evaluation questions, drawn once and answered by any classifier, before and after training.

A question is an image and a prompt under a policy. There are two sets, because one number hides what matters: `flips`
(images under two policies of opposite label, and images under single policies) and `held_out` (categories that no
training policy contained). Among the flips are prompts that belong to another image of opposite label.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, cast

from prompts.errors import ExampleError
from prompts.example import Example
from prompts.flip import FlipOptions, Group, Row, draw_groups, draw_pairs, fit_group_size, no_pairs
from prompts.taxonomy import Taxonomy


@dataclass(frozen=True)
class Question:
    """One row of an evaluation."""

    id: str
    row: Row
    pair: str | None = None
    direction: Literal["safe_to_unsafe", "unsafe_to_safe"] | None = None


@dataclass(frozen=True)
class Evaluation:
    """All questions of an evaluation, by set."""

    flips: tuple[Question, ...]
    held_out: tuple[Question, ...] = ()

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions of both sets."""
        return self.flips + self.held_out


def draw_evaluation(
    examples: Sequence[Example], taxonomy: Taxonomy, options: FlipOptions, *, seed: int, rows: int
) -> Evaluation:
    """Draw about `rows` questions for the flips, half in pairs, and half as many for held-out categories.

    Policies are drawn as for training (`options`), in the words of the taxonomy (`FlipOptions.plain`) and without
    questions about single categories; of a few images in smaller groups. Where there can be no pairs
    (`prompts.flip.no_pairs`), all are about images under single policies. For held-out keys,
    policies contain at least one of them, an unsafe image violates nothing else of its policy, and there are as many
    safe images.

    Raises:
        ExampleError: too few suitable examples.
    """
    plain = fit_group_size(examples, taxonomy, replace(options.plain, focus=0.0))
    alone = no_pairs(examples, plain.training_keys(taxonomy))
    # A pair is two questions, so these are half of all.
    pairs = [] if alone else draw_pairs(examples, taxonomy, plain, seed=seed, pairs=rows // 4)
    flips = []
    for number, pair in enumerate(pairs):
        direction = cast(Literal["safe_to_unsafe", "unsafe_to_safe"], pair.direction)
        for side, row in (("unsafe", pair.unsafe), ("safe", pair.safe)):
            flips.append(Question(f"pair-{number}-{side}", row, f"pair-{number}", direction))
    single = rows if alone else rows // 2
    groups = draw_groups(
        examples, taxonomy, plain, seed=seed, epoch=0, groups=max(1, single // plain.group_size)
    )
    # Images under one policy each, in groups as in training.
    flips += [
        Question(f"row-{i}-{j}", row) for i, group in enumerate(groups) for j, row in enumerate(group.rows)
    ]
    held_out = _held_out(examples, taxonomy, plain, seed, rows // 2) if options.held_out else ()
    return Evaluation(tuple(flips), tuple(held_out))


def draw_grouped_questions(
    examples: Sequence[Example], taxonomy: Taxonomy, options: FlipOptions, *, seed: int, rows: int
) -> list[Question]:
    """Draw exactly `rows` questions in groups of one policy each; half of them, rounded up, are unsafe.

    There are no pairs, as each has policies of its own, which would leave batches half empty.

    Raises:
        ExampleError: too few suitable examples.
    """
    plain = fit_group_size(examples, taxonomy, replace(options.plain, focus=0.0))
    size = plain.group_size
    groups = draw_groups(examples, taxonomy, plain, seed=seed, epoch=0, groups=ceil(rows / size))
    drawn = [
        Question(f"row-{i}-{j}", row) for i, group in enumerate(groups) for j, row in enumerate(group.rows)
    ]
    # Full groups are balanced; of the last one, as many rows of either label are kept.
    whole = rows - rows % size
    unsafe, safe = ([q for q in drawn[whole:] if q.row.unsafe is side] for side in (True, False))
    return drawn[:whole] + unsafe[: ceil((rows - whole) / 2)] + safe[: (rows - whole) // 2]


def group_by_policy(questions: Sequence[Question]) -> list[list[int]]:
    """Indices of the questions under each policy, in the order in which the policies first appear.

    Classifiers score a batch under one policy at a time.
    """
    groups: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        groups.setdefault(question.row.taxonomy.hash, []).append(index)
    return list(groups.values())


def _held_out(
    examples: Sequence[Example], taxonomy: Taxonomy, options: FlipOptions, seed: int, rows: int
) -> Iterable[Question]:
    everything = replace(options, held_out=frozenset())
    found: list[Row] = []
    for epoch in range(1, 200):  # epoch 0 drew the flips
        for group in draw_groups(examples, taxonomy, everything, seed=seed, epoch=epoch, groups=20):
            found += _about_held_out(group, options.held_out)
        if len(found) >= rows:
            return (Question(f"held-out-{i}", row) for i, row in enumerate(found[:rows]))
    raise ExampleError(
        f"Too few images violate the held-out categories {', '.join(sorted(options.held_out))}; "
        "add some to the held-out split, or hold out others."
    )


def _about_held_out(group: Group, held_out: frozenset[str]) -> list[Row]:
    """The group's rows that violate only held-out categories of the policy, and as many safe ones."""
    # Custom categories combine several members.
    covered = frozenset(member for category in group.taxonomy for member in category.members)
    if not covered & held_out:
        return []
    # Known categories would make these rows easy, whatever the model knows of the held-out ones.
    unsafe = [row for row in group.rows if row.unsafe and row.example.violates & covered <= held_out]
    safe = [row for row in group.rows if not row.unsafe][: len(unsafe)]
    return unsafe + safe
