"""What is wrong with a data set, said before anything is loaded: `arbiter data check`.

Errors stop a training; warnings make its numbers mean less than they seem to; notes say what was understood. Each says
what was found and what to do about it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, sqrt
from typing import Any

from prompts.errors import ArbiterError
from prompts.example import UNSPECIFIED, Example
from prompts.flip import FlipOptions, draw_groups, draw_pairs, fit_group_size, no_pairs
from prompts.taxonomy import Taxonomy

from .gather import Gathered, gather
from .giveaways import giveaways
from .images import DEFAULT_LIMITS, ImageLimits
from .labels import label_notes
from .perceptual_hash import ImageHashes
from .problems import Problem, row_problems
from .splits import SHARES, copy_groups

_FEW_POLICIES = 64
"""Policies of an epoch below which it is over before much was learned."""
_FEW_TESTED = 100
"""Test images below which the check says how little a score of them is worth."""
_SHOWN = 3


@dataclass(frozen=True)
class SplitCount:
    """The images of one split."""

    images: int
    safe: int
    """Known to violate nothing."""
    unnamed: int
    """Unsafe, and the row names no category."""
    categories: Mapping[str, int]
    """Key -> images that violate it."""


@dataclass(frozen=True)
class DataCheck:
    """What a data set holds, and what is wrong with it."""

    dataset: str
    taxonomy: str
    names: Mapping[str, str]
    """Key -> name of the taxonomy's categories."""
    rows: int
    """Rows of the table, usable or not."""
    splits: Mapping[str, SplitCount]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What would stop a training."""
        return tuple(problem for problem in self.problems if problem.level == "error")

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "problems": [asdict(problem) for problem in self.problems]}

    def to_text(self) -> str:
        """A table of the images by split and category, then the problems, the worst first."""
        usable = sum(count.images for count in self.splits.values())
        head = f"{self.dataset}: {self.rows:,} rows, {usable:,} usable; taxonomy {self.taxonomy}"
        labels = ["images", "safe", *self.names.values()]
        columns = [
            [c.images, c.safe, *(c.categories[key] for key in self.names)] for c in self.splits.values()
        ]
        if any(count.unnamed for count in self.splits.values()):
            labels.insert(2, "unsafe, no category named")
            for column, count in zip(columns, self.splits.values(), strict=True):
                column.insert(2, count.unnamed)
        width = max(map(len, labels))
        wide = [max(len(split), 6) for split in self.splits]
        lines = [head]
        if self.splits:
            titles = "  ".join(f"{split:>{size}}" for split, size in zip(self.splits, wide, strict=True))
            lines += ["", f"{'':<{width}}  {titles}"]
            for place, label in enumerate(labels):
                cells = (f"{column[place]:>{size},}" for column, size in zip(columns, wide, strict=True))
                lines.append(f"{label:<{width}}  {'  '.join(cells)}")
            lines.append("")
        for problem in self.problems:
            lines.append(f"{problem.level}: {problem.what}")
            if problem.fix:
                lines.append(f"    {problem.fix}")
        if not self.errors:
            lines.append("No errors: a training can start.")
        return "\n".join(lines)


def check_data(
    dataset: str,
    taxonomy: Taxonomy,
    *,
    held_out: Collection[str] = (),
    flip: FlipOptions | None = None,
    groups_per_epoch: int | None = None,
    least_groups: int = 1,
    max_failures: float = 0.01,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> DataCheck:
    """Read every row and open every image of a data set, and say what is wrong with it.

    Args:
        dataset: as `load_examples` takes it.
        taxonomy: that it is to be used with.
        held_out: keys of categories that training leaves out.
        flip: how policies are drawn; its own `held_out` counts as well.
        groups_per_epoch: policies an epoch; None for as many as use each image twice.
        least_groups: policies an epoch, however few images, where `groups_per_epoch` is None.
        max_failures: largest share, 0 to 1, of unusable rows that a training allows.
        limits: passed to `open_image`.
    """
    options = _options(flip, held_out)
    return _checked(
        dataset, taxonomy, options, (groups_per_epoch, least_groups), max_failures, limits, opened=True
    )


def stopping_problems(
    dataset: str,
    taxonomy: Taxonomy,
    *,
    held_out: Collection[str] = (),
    flip: FlipOptions | None = None,
    max_failures: float = 0.01,
) -> tuple[Problem, ...]:
    """The errors of a data set that show without opening an image: in seconds, before a run folder is made.

    Args: as of `check_data`. Splits that have yet to be drawn are not looked into.
    """
    options = _options(flip, held_out)
    return _checked(dataset, taxonomy, options, (None, 1), max_failures, DEFAULT_LIMITS, opened=False).errors


def _options(flip: FlipOptions | None, held_out: Collection[str]) -> FlipOptions:
    flip = flip or FlipOptions()
    return replace(flip, held_out=flip.held_out | frozenset(held_out))


def _checked(
    dataset: str,
    taxonomy: Taxonomy,
    options: FlipOptions,
    groups: tuple[int | None, int],
    max_failures: float,
    limits: ImageLimits,
    *,
    opened: bool,
) -> DataCheck:
    names = dict(zip(taxonomy.keys, taxonomy.names, strict=True))
    try:
        options.training_keys(taxonomy)
        found = gather(dataset, taxonomy, limits, opened=opened)
    except ArbiterError as error:
        return DataCheck(dataset, taxonomy.name, names, 0, {}, (Problem("error", str(error)),))
    problems = row_problems(found, max_failures)
    problems += [Problem("note", note) for note in (*found.notes, *label_notes(found.examples, taxonomy))]
    problems += _split_problems(found) if found.examples else []
    if found.examples and not any(problem.level == "error" for problem in problems):
        problems += _flip_problems(found, taxonomy, options, groups)
    if found.hashes is not None and found.examples:
        problems += _copy_problems(found.examples, found.hashes)
        problems += giveaways(found.examples, limits)
    order = ("error", "warning", "note")
    problems.sort(key=lambda problem: order.index(problem.level))
    return DataCheck(
        dataset, taxonomy.name, names, found.rows, _counts(found.examples, taxonomy), tuple(problems)
    )


def _counts(examples: Sequence[Example], taxonomy: Taxonomy) -> dict[str, SplitCount]:
    splits = {example.split for example in examples}
    order = [
        *(split for split in ("train", "validation", "test") if split in splits),
        *sorted(splits - set(SHARES)),
    ]
    counts = {}
    for split in order:
        of_split = [example for example in examples if example.split == split]
        counts[split] = SplitCount(
            len(of_split),
            sum(all(label is False for label in taxonomy.label(example)) for example in of_split),
            sum(UNSPECIFIED in example.violates for example in of_split),
            {c.key: sum(c.label(example) is True for example in of_split) for c in taxonomy},
        )
    return counts


def _split_problems(found: Gathered) -> list[Problem]:
    """Splits without images."""
    problems = []
    splits = {example.split for example in found.examples}
    for split in ("train", "validation", "test"):
        if split not in splits | found.undrawn:
            problems.append(
                Problem(
                    "error",
                    f"no row is in the split {split!r}; there are: {', '.join(sorted(splits)) or 'none'}",
                    f"Write {split!r} in the column split of some rows, or leave the column out, and splits are drawn.",
                )
            )
    return problems


def _flip_problems(
    found: Gathered, taxonomy: Taxonomy, options: FlipOptions, groups: tuple[int | None, int]
) -> list[Problem]:
    """What label flipping cannot draw from these images, tried out with a few draws."""
    parts = {
        split: [e for e in found.examples if e.split == split] for split in ("train", "validation", "test")
    }
    problems = []
    for split, examples in parts.items():
        if split in found.undrawn:
            continue
        try:
            _try_draws(examples, taxonomy, options, tested=split != "train")
        except ArbiterError as error:
            problems.append(Problem("error", f"{split}: {error}"))
    if found.undrawn:
        return problems
    wanted, least = groups
    policies = wanted or max(least, ceil(2 * len(parts["train"]) / options.group_size))
    if policies < _FEW_POLICIES:
        problems.append(
            Problem(
                "warning",
                f"an epoch is {policies} policies of {options.group_size} rows, since there are {len(parts['train'])} "
                "training images",
                f"Set --groups_per_epoch {_FEW_POLICIES} or more: images are used again, under other policies; or "
                "train for more epochs.",
            )
        )
    tested = len(parts["test"])
    if tested < _FEW_TESTED:
        problems.append(
            Problem(
                "warning",
                f"{tested} test images: a score of 0.9 on them is known to about ± {_half_width(0.9, tested):.2f}",
                f"{_FEW_TESTED} or more give ± {_half_width(0.9, _FEW_TESTED):.2f} or less; with --test_rows the same "
                "images are asked about more often, which does not narrow it.",
            )
        )
    return problems


def _try_draws(
    examples: Sequence[Example], taxonomy: Taxonomy, options: FlipOptions, *, tested: bool
) -> None:
    """Draw a few rows as a training or its tests do, whose groups are as small as few images need."""
    if tested:
        options = fit_group_size(examples, taxonomy, options.plain)
    draw_groups(examples, taxonomy, options, seed=0, epoch=0, groups=8)
    if tested and not no_pairs(examples, options.training_keys(taxonomy)):
        draw_pairs(examples, taxonomy, options, seed=0, pairs=8)


def _half_width(share: float, number: int) -> float:
    """Of Wilson's 95 % interval of a share of `number` images."""
    if not number:
        return 1.0
    z = 1.96
    return z / (1 + z * z / number) * sqrt(share * (1 - share) / number + z * z / (4 * number * number))


def _copy_problems(examples: Sequence[Example], hashes: ImageHashes) -> list[Problem]:
    """Pictures in two splits, and equal ones with different labels."""
    by_id = {example.id: example for example in examples}
    exact: dict[str, list[Example]] = {}
    for name, pixels in zip(hashes.ids, hashes.pixels, strict=True):
        exact.setdefault(pixels, []).append(by_id[name])
    near: dict[int, list[Example]] = {}
    for name, number in zip(hashes.ids, copy_groups(hashes).tolist(), strict=True):
        near.setdefault(number, []).append(by_id[name])
    problems = []
    shared = [group for group in exact.values() if len({example.split for example in group}) > 1]
    if shared:
        problems.append(
            Problem(
                "error",
                f"{_several(len(shared), 'picture is', 'pictures are')} in two splits, so a score would measure "
                f"memorisation: {_named(shared)}",
                "Remove one row of each, or leave the column split out: drawn splits keep copies together.",
            )
        )
    alike = [g for g in near.values() if len({example.split for example in g}) > 1 and g not in shared]
    if alike:
        problems.append(
            Problem(
                "warning",
                f"{_several(len(alike), 'group', 'groups')} of nearly equal pictures in two splits: {_named(alike)}",
                "Look at them; move copies into one split, or leave the column split out.",
            )
        )
    torn = [group for group in exact.values() if len({(e.violates, e.unknown) for e in group}) > 1]
    if torn:
        problems.append(
            Problem(
                "warning",
                f"{_several(len(torn), 'picture has', 'pictures have')} two different labels: {_named(torn)}",
                "Decide on one, and remove the other row.",
            )
        )
    copies = len(hashes) - len(exact)
    if copies:
        problems.append(
            Problem("note", f"{_several(copies, 'row is', 'rows are')} of a picture that another row has")
        )
    return problems


def _several(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _named(groups: Sequence[Sequence[Example]]) -> str:
    """The first groups by the ids of their images."""
    shown = ["; ".join(" = ".join(f"{e.id} ({e.split})" for e in group[:3]) for group in groups[:_SHOWN])]
    return shown[0] + (" ..." if len(groups) > _SHOWN else "")
