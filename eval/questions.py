"""Held-out questions for a policy judge: drawn once, judged by any classifier, before and after training.

Three sets, because one number hides what matters: `flips` (images under two policies of opposite label, and under
policies of their own), `held_out` (categories that no training policy contained) and `lying` (prompts that belong
to another image, of opposite label).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, cast

from prompts.errors import ExampleError
from prompts.example import Example
from prompts.flip import FlipOptions, Group, Row, draw_groups, draw_pairs
from prompts.taxonomy import Taxonomy


@dataclass(frozen=True)
class Question:
    """A drawn row and its place in an evaluation."""

    id: str
    row: Row
    pair: str | None = None
    direction: Literal["safe_to_unsafe", "unsafe_to_safe"] | None = None


@dataclass(frozen=True)
class Evaluation:
    """Questions by set."""

    flips: tuple[Question, ...]
    held_out: tuple[Question, ...] = ()

    @property
    def questions(self) -> tuple[Question, ...]:
        """Every question of every set."""
        return self.flips + self.held_out


def draw_evaluation(
    examples: Sequence[Example], taxonomy: Taxonomy, options: FlipOptions, *, seed: int, rows: int
) -> Evaluation:
    """Draw about `rows` questions for the flips, half in pairs, and half as many for held-out categories.

    Policies are drawn as for training (`options`), without questions about single categories. For held-out keys,
    policies hold at least one of them, an unsafe image violates nothing else of its policy, and as many safe
    images stand beside them.

    Raises:
        ExampleError: the examples cannot give the questions.
    """
    plain = replace(options, focus=0.0)
    pairs = draw_pairs(examples, taxonomy, plain, seed=seed, pairs=rows // 4)
    flips = []
    for number, pair in enumerate(pairs):
        direction = cast(Literal["safe_to_unsafe", "unsafe_to_safe"], pair.direction)
        for side, row in (("unsafe", pair.unsafe), ("safe", pair.safe)):
            flips.append(Question(f"pair-{number}-{side}", row, f"pair-{number}", direction))
    groups = draw_groups(
        examples, taxonomy, plain, seed=seed, epoch=0, groups=max(1, rows // (2 * options.group_size))
    )
    flips += [
        Question(f"row-{i}-{j}", row) for i, group in enumerate(groups) for j, row in enumerate(group.rows)
    ]
    held_out = _held_out(examples, taxonomy, plain, seed, rows // 2) if options.held_out else ()
    return Evaluation(tuple(flips), tuple(held_out))


def draw_grouped_questions(
    examples: Sequence[Example], taxonomy: Taxonomy, options: FlipOptions, *, seed: int, rows: int
) -> list[Question]:
    """Draw exactly `rows` questions in groups under one policy each, half of them unsafe; an odd one is.

    No pairs, whose policies of their own would leave batches half empty.

    Raises:
        ExampleError: the examples cannot give the questions.
    """
    size = options.group_size
    plain = replace(options, focus=0.0)
    groups = draw_groups(examples, taxonomy, plain, seed=seed, epoch=0, groups=ceil(rows / size))
    drawn = [
        Question(f"row-{i}-{j}", row) for i, group in enumerate(groups) for j, row in enumerate(group.rows)
    ]
    whole = rows - rows % size
    unsafe, safe = ([q for q in drawn[whole:] if q.row.unsafe is side] for side in (True, False))
    return drawn[:whole] + unsafe[: ceil((rows - whole) / 2)] + safe[: (rows - whole) // 2]


def _held_out(
    examples: Sequence[Example], taxonomy: Taxonomy, options: FlipOptions, seed: int, rows: int
) -> Iterable[Question]:
    everything = replace(options, held_out=frozenset())
    found: list[Row] = []
    for epoch in range(1, 200):
        for group in draw_groups(examples, taxonomy, everything, seed=seed, epoch=epoch, groups=20):
            found += _about_held_out(group, options.held_out)
        if len(found) >= rows:
            return (Question(f"held-out-{i}", row) for i, row in enumerate(found[:rows]))
    raise ExampleError(
        f"Too few images violate the held-out categories {', '.join(sorted(options.held_out))}; "
        "add some to the held-out split, or hold out others."
    )


def _about_held_out(group: Group, held_out: frozenset[str]) -> list[Row]:
    """The group's rows that turn on a held-out category, and as many safe ones."""
    covered = frozenset(member for category in group.taxonomy for member in category.members)
    if not covered & held_out:
        return []
    unsafe = [row for row in group.rows if row.unsafe and row.example.violates & covered <= held_out]
    safe = [row for row in group.rows if not row.unsafe][: len(unsafe)]
    return unsafe + safe
