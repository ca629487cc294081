"""From rows of an image, a policy and a label to questions, with the pairs that one image forms under two policies."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.metrics.judged import Direction
from eval.questions import Question
from judge.data.sources import Skipped
from prompts.example import Example
from prompts.flip import Row
from prompts.taxonomy import Taxonomy


@dataclass(frozen=True)
class PolicyRow:
    """One row of a policy set, as its reader understood it."""

    id: str
    """Unique within its set."""
    image_id: str
    """Shared by the rows of one picture."""
    image: Any
    split: str
    taxonomy: Taxonomy
    """The row's policy. Equal categories of a set have equal keys, whatever row they stand in."""
    violates: frozenset[str]
    """Keys of the categories that the image violates; none where the row is safe."""
    unknown: frozenset[str] = frozenset()
    """Keys of the row's categories that were not labelled."""
    area: str = ""
    """What the policy is about; rows of one image and area with opposite labels form pairs."""
    changed: bool | None = None
    """Whether the policy was changed from the data set's default; None where it has none."""
    severity: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the row says, by name, for tables."""


@dataclass(frozen=True)
class PolicySet:
    """Questions that bring their own policies, and the rows that make none, with their reasons."""

    questions: tuple[Question, ...]
    skipped: tuple[Skipped, ...] = ()
    name: str = ""
    groups: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Question id -> its image and area: what the policy shift score averages over."""
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    """By question id: `policy`, and what the data set has more, such as `tier`, `level`, `twin` or `rationale`."""


def policy_set(rows: Sequence[PolicyRow], skipped: Sequence[Skipped], name: str) -> PolicySet:
    """The rows as questions.

    Rows that label one image under one category both ways are all skipped (`contradictory_label`): nobody can know
    which of them is right. A second row of one id is a `duplicate_id`.
    """
    kept, refused = _consistent(rows)
    examples = _examples(kept)
    pairs = _pairs(kept)
    questions = []
    for row in kept:
        pair, direction = pairs.get(row.id, (None, None))
        questions.append(Question(row.id, _question_row(row, examples[row.image_id]), pair, direction))
    return PolicySet(
        tuple(questions),
        (*skipped, *refused),
        name,
        {row.id: f"{row.image_id}/{row.area}" for row in kept},
        {row.id: {"policy": row.taxonomy.name, **row.facts} for row in kept},
    )


def _consistent(rows: Sequence[PolicyRow]) -> tuple[list[PolicyRow], list[Skipped]]:
    """The rows that no other one contradicts, each id once, and the others."""
    labels: defaultdict[tuple[str, str], set[bool]] = defaultdict(set)
    for row in rows:
        for key, violated in _known(row):
            labels[row.image_id, key].add(violated)
    kept: dict[str, PolicyRow] = {}
    refused = []
    for row in rows:
        if any(len(labels[row.image_id, key]) > 1 for key, _ in _known(row)):
            reason = "the image is both safe and unsafe under one policy, in two rows"
            refused.append(Skipped(row.id, "contradictory_label", reason))
        elif row.id in kept:
            refused.append(Skipped(row.id, "duplicate_id", "an earlier row asks the same"))
        else:
            kept[row.id] = row
    return list(kept.values()), refused


def _known(row: PolicyRow) -> Iterable[tuple[str, bool]]:
    """(key, violated) of the row's categories that were labelled."""
    return [(key, key in row.violates) for key in row.taxonomy.keys if key not in row.unknown]


def _examples(rows: Sequence[PolicyRow]) -> dict[str, Example]:
    """One example an image, with what all of its rows say."""
    every = {key for row in rows for key in row.taxonomy.keys}
    first: dict[str, PolicyRow] = {}
    known: defaultdict[str, dict[str, bool]] = defaultdict(dict)
    for row in rows:
        first.setdefault(row.image_id, row)
        known[row.image_id].update(_known(row))
    return {
        image_id: Example(
            id=image_id,
            image=row.image,
            violates=frozenset(key for key, violated in known[image_id].items() if violated),
            unknown=frozenset(every - known[image_id].keys()),
            split=row.split,
            severity=row.severity,
        )
        for image_id, row in first.items()
    }


def _question_row(row: PolicyRow, example: Example) -> Row:
    unsafe = bool(row.violates)
    elsewhere = example.violates - row.violates
    arms = ("partial", "keep") if unsafe else ("flip", "benign")
    named = next((category.name for category in row.taxonomy if category.key in row.violates), None)
    return Row(example, row.taxonomy, None, None, unsafe, named, None, arms[not elsewhere])


def _pairs(rows: Sequence[PolicyRow]) -> dict[str, tuple[str, Direction]]:
    """Row id -> its pair and direction, for as many rows as have an opposite; none is in two pairs."""
    groups: defaultdict[tuple[str, str], list[PolicyRow]] = defaultdict(list)
    for row in rows:
        groups[row.image_id, row.area].append(row)
    found: dict[str, tuple[str, Direction]] = {}
    place = {row.id: number for number, row in enumerate(rows)}
    for (image_id, area), members in groups.items():
        unsafe, safe = ([row for row in members if bool(row.violates) is side] for side in (True, False))
        for number, pair in enumerate(zip(unsafe, safe, strict=False)):
            name = f"{image_id}/{area}/{number}"
            direction = _direction(*pair, unsafe_first=place[pair[0].id] < place[pair[1].id])
            found |= {row.id: (name, direction) for row in pair}
    return found


def _direction(unsafe: PolicyRow, safe: PolicyRow, *, unsafe_first: bool) -> Direction:
    """How the label changes from the default policy to the changed one, else from the earlier row to the later."""
    if unsafe.changed is not safe.changed and None not in (unsafe.changed, safe.changed):
        return "unsafe_to_safe" if safe.changed else "safe_to_unsafe"
    return "unsafe_to_safe" if unsafe_first else "safe_to_unsafe"
