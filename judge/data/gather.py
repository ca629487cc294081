"""All rows of a data set at once, usable or not, for looking at it as a whole."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from prompts.example import Example
from prompts.taxonomy import Taxonomy

from .examples import SPLITS, load_examples, open_reader, reachable_splits
from .folder_splits import draw_folder_splits, splits_to_draw
from .folders import FolderReader
from .images import ImageLimits
from .labels import Labels, UnusableRowError
from .perceptual_hash import ImageHashes
from .sources import Skipped, UnusableRowsError
from .splits import hash_examples


@dataclass(frozen=True)
class Gathered:
    """The rows of all splits."""

    examples: tuple[Example, ...]
    """Usable ones, each with its split as far as it is known."""
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()
    hashes: ImageHashes | None = None
    """Of the examples' images; None where they were not opened."""
    images: Mapping[str, Path] = field(default_factory=dict)
    """Id of a skipped row -> the file that it names, as far as it names one."""

    undrawn: frozenset[str] = frozenset()
    """Splits that have yet to be drawn."""

    @property
    def rows(self) -> int:
        """Rows in all."""
        return len(self.examples) + len(self.skipped)


def gather(dataset: str, taxonomy: Taxonomy, limits: ImageLimits, *, opened: bool) -> Gathered:
    """Read all rows of a data set.

    Args:
        dataset: as `load_examples` takes it.
        taxonomy: what category names are matched to.
        limits: passed to `open_image`.
        opened: whether images are opened; otherwise only files that are missing are found.

    Raises:
        ExampleError: the data set or its table cannot be read at all.
    """
    opening = open_reader(dataset, taxonomy)
    if opening is not None and isinstance(opening[0], FolderReader):
        found = _folder(opening[0], opening[1], limits, opened=opened)
    else:
        splits = SPLITS if opening is None else reachable_splits(opening[0])
        found = _other(dataset, taxonomy, splits, limits)
    if not opened:
        return found
    hashes = hash_examples(found.examples, limits)
    broken = {row.id for row in hashes.skipped}
    usable = tuple(example for example in found.examples if example.id not in broken)
    images = {e.id: e.image for e in found.examples if e.id in broken and isinstance(e.image, Path)}
    return replace(
        found, examples=usable, skipped=found.skipped + hashes.skipped, hashes=hashes, images=images
    )


def _folder(reader: FolderReader, labels: Labels, limits: ImageLimits, *, opened: bool) -> Gathered:
    examples: dict[str, Example] = {}
    skipped: dict[str, Skipped] = {}
    images: dict[str, Path] = {}
    copies: list[Skipped] = []
    for row in (row for split in reader.splits for row in reader.rows(split)):
        if isinstance(row, Skipped):
            skipped[row.id] = row  # a damaged row is in every split
        elif row.id in examples or row.id in skipped:
            copies.append(Skipped(row.id, "duplicate_id", "an earlier row has the same id"))
        else:
            try:
                example = labels.example(row)
            except UnusableRowError as error:
                skipped[row.id] = Skipped(row.id, error.status, error.reason)
                continue
            if opened or row.image.exists():
                examples[row.id] = example
            else:
                images[row.id] = row.image
                skipped[row.id] = Skipped(row.id, "missing", "no such file")
    notes, undrawn = list(reader.notes), frozenset[str]()
    if opened and (drawn := draw_folder_splits(reader, limits=limits)) is not None:
        notes += [drawn.note] if drawn.splits else []
        examples = {
            name: replace(one, split=drawn.splits.get(name, one.split)) for name, one in examples.items()
        }
    elif not opened:
        undrawn = splits_to_draw(reader)
    return Gathered(
        tuple(examples.values()), (*skipped.values(), *copies), tuple(notes), images=images, undrawn=undrawn
    )


def _other(dataset: str, taxonomy: Taxonomy, splits: Iterable[str], limits: ImageLimits) -> Gathered:
    examples: list[Example] = []
    skipped: dict[Skipped, None] = {}
    for split in splits:
        try:
            found = load_examples(
                dataset, split=split, taxonomy=taxonomy, max_failures=1, verify=False, limits=limits
            )
        except UnusableRowsError as error:
            skipped |= dict.fromkeys(error.skipped)
            continue
        examples += found.examples
        skipped |= dict.fromkeys(found.skipped)
    return Gathered(tuple(examples), tuple(skipped))
