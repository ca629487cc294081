"""The splits of a folder's rows that declare none."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from prompts.example import Example

from .folders import FolderReader
from .images import DEFAULT_LIMITS, ImageLimits
from .labels import UnusableRowError, raw_categories
from .sources import UNDECLARED, Row, Skipped
from .splits import SHARES, draw_splits


@dataclass(frozen=True)
class FolderSplits:
    """The splits that were drawn for rows of a folder."""

    source: str
    """The split that was divided: `UNDECLARED` or `train`."""
    splits: Mapping[str, str]
    """Id -> split."""
    pixels: Mapping[str, str]
    """Id -> `pixels_hash`."""
    skipped: Mapping[str, Skipped]
    """Id -> why the image cannot be opened; in no split."""
    groups: tuple[tuple[str, ...], ...]
    """Ids of copies of each other, exact or near."""

    @property
    def note(self) -> str:
        """What was done, on one line."""
        counts = Counter(self.splits.values())
        sizes = ", ".join(
            f"{counts[split]:,} {split}" for split in ("train", "validation", "test") if counts[split]
        )
        copies = sum(len(group) - 1 for group in self.groups)
        kept = f"; {copies:,} copies stay with what they copy" if copies else ""
        what = "name no split" if self.source == UNDECLARED else "are for training, and none for validation"
        return f"{len(self.splits):,} rows {what}, so splits were drawn by category: {sizes}{kept}"


def draw_folder_splits(
    reader: FolderReader, split: str = "all", limits: ImageLimits = DEFAULT_LIMITS
) -> FolderSplits | None:
    """Splits of the rows that declare none, or of `train` where there is no `validation`; None where nothing is drawn.

    They depend on the table and its images alone and on no taxonomy: a judge that was trained under one is tested under
    another on images that it has not seen.

    Args:
        reader: of the folder.
        split: that is asked for; of a declared one nothing is drawn.
        limits: passed to `open_image`.
    """
    drawn = splits_to_draw(reader)
    if not drawn or split not in ("all", UNDECLARED, *drawn):
        return None
    source = UNDECLARED if UNDECLARED in reader.splits else "train"
    shares = SHARES if source == UNDECLARED else {"train": 0.85, "validation": 0.15}
    examples: dict[str, Example] = {}
    for row in reader.rows(source):
        if isinstance(row, Row) and row.id not in examples:
            examples[row.id] = Example(row.id, row.image, violates=_written(row))
    found = draw_splits(list(examples.values()), shares=shares, limits=limits)
    hashes = found.hashes
    return FolderSplits(
        source,
        found.splits,
        dict(zip(hashes.ids, hashes.pixels, strict=True)),
        {row.id: row for row in hashes.skipped},
        found.groups,
    )


def _written(row: Row) -> frozenset[str]:
    """The row's categories as they are written, whatever taxonomy knows them; also what has yet to be understood."""
    try:
        names = raw_categories(row)
    except UnusableRowError:
        return frozenset({""})
    if names is None:
        return frozenset()
    return frozenset(part.strip().casefold() for name in names or ["unsafe"] for part in name.split(","))


def splits_to_draw(reader: FolderReader) -> frozenset[str]:
    """The splits that a folder's table leaves to us."""
    if UNDECLARED in reader.splits:
        return frozenset(SHARES)
    alone = "train" in reader.splits and "validation" not in reader.splits
    return frozenset(("train", "validation")) if alone else frozenset()
