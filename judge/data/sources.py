"""Sources of examples: rows as they are stored, and data sets of the `datasets` library.

A reader handles columns and files, not taxonomies. It yields rows as they are stored, each image as a path or a
`StoredImage` (nothing is decoded here), or a `Skipped` row with the reason. Pickled data are never loaded: a folder's
table (`judge.data.folders`) is CSV or JSON lines, a local data set is Parquet or Arrow.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from judge.errors import ImageError
from prompts.errors import ExampleError

COLUMNS = (
    "path",
    "prompt",
    "label",
    "categories",
    "source",
    "split",
    "id",
    "severity",
    "collected_for",
    "unknown",
)
"""Columns of a folder's table; only `path` and `label` are required. Data sets have `image` instead of `path`."""
UNDECLARED = "undeclared"
"""The split of rows whose data set declares none."""

_SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
_WRITTEN_OUT = {**_SPLIT_NAMES, "training": "train", "testing": "test"}
"""Names in a column, where a word is a split; in a file's name, `training` may be anything."""
_SPLITS = ("train", "test", "validation", *_SPLIT_NAMES)


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be used."""

    id: str
    """The row's id, or its place in the data set."""
    status: str
    """A status of `ImageError`, or `bad_row`, `no_label`, `bad_label`, `unknown_category`, `bad_severity`,
    `contradictory_label`, `outside_folder`, `duplicate_id`."""
    reason: str
    """What is wrong, on one line."""


@dataclass(frozen=True)
class Row:
    """One row as it is stored; `judge.data.labels` makes an `Example` of it."""

    id: str
    image: Any
    split: str
    label: Any = None
    categories: Any = None
    prompt: Any = None
    source: Any = None
    severity: Any = None
    collected_for: Any = None
    step: str | None = None
    unknown: Any = None
    """Categories of which nobody knows whether the image violates them, beside those that `categories` names."""


@dataclass(frozen=True)
class LeftOut:
    """A row that is about something else than one image, such as a post without any; no failure."""

    reason: str
    """In a few words, the same for all such rows."""


class Reader(Protocol):
    """A data set that is read split by split."""

    splits: tuple[str, ...]
    """Declared splits; `(UNDECLARED,)` where there are none."""

    def rows(self, split: str) -> Iterator[Row | Skipped | LeftOut]:
        """Iterate over one declared split."""
        ...


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An encoded image inside a memory-mapped data set; `bytes()` reads it when it is needed.

    Accepts the `datasets` image feature, binary columns, and text columns in base64 (also as data URLs).
    """

    rows: Any
    """A `datasets.Dataset` with the image column undecoded."""
    index: int
    column: str

    def __bytes__(self) -> bytes:
        value = self.rows[self.index][self.column]
        if isinstance(value, dict):
            # A path in a data set is untrusted: following it could read any file of this machine.
            if value.get("bytes") is None and value.get("path"):
                raise ImageError(
                    "missing", "the data set names a file instead of holding the image; embed it"
                )
            value = value.get("bytes")
        if value is None:
            raise ImageError("missing", "the row holds no image")
        if isinstance(value, str):
            return decode_base64(value)
        if not isinstance(value, bytes):
            raise ImageError("not_an_image", f"a value of type {type(value).__name__}")
        return value


def decode_base64(text: str) -> bytes:
    """The image in a text, which may be a data URL.

    Raises:
        ImageError: `not_an_image`.
    """
    start = text.find(",", 0, 200) + 1 if text.startswith("data:") else 0
    try:
        # Most have no white space, which costs more to remove than the text to decode.
        return binascii.a2b_base64(text[start:], strict_mode=True)
    except ValueError:  # binascii.Error is one
        pass
    try:
        # Without the head of a data URL and white space; strict otherwise, so that damage is an error.
        return base64.b64decode(re.sub(r"^data:[^,]*,|\s", "", text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("not_an_image", "text that is no base64") from error


class DatasetReader:
    """A data set of the `datasets` library: a hub name, a folder it was saved to, or Parquet files.

    Args:
        where: a path that exists, or else a name on the hub.
        columns: our names (`COLUMNS`, with `image` for `path`) -> the data set's. A split column is used only where
            the data set itself declares no splits.
        rename: new names for declared splits.
    """

    def __init__(
        self, where: str | Path, columns: Mapping[str, str], rename: Mapping[str, str] | None = None
    ) -> None:
        self.where = str(where)
        self._columns = columns
        # `val`, `valid` and `dev` are all `validation` from here on.
        sets = {canonical_split(name): rows for name, rows in load_datasets(self.where).items()}
        # A split column counts only where the data set declares no splits itself.
        if set(sets) == {UNDECLARED} and columns.get("split") in sets[UNDECLARED].column_names:
            sets = _by_column(sets[UNDECLARED], columns["split"])
        self._sets = {(rename or {}).get(name, name): rows for name, rows in sets.items()}
        self.splits = tuple(self._sets)
        for rows in self._sets.values():
            missing = [columns[c] for c in ("image", "label") if columns[c] not in rows.column_names]
            if missing:
                raise ExampleError(
                    f"{self.where} has no column {missing[0]!r}; it has: {', '.join(rows.column_names)}."
                )

    def rows(self, split: str) -> Iterator[Row | Skipped]:
        """Iterate over one split without decoding, or even reading, its images."""
        from datasets import Image

        stored, image = self._sets[split], self._columns["image"]
        present = {ours: name for ours, name in self._columns.items() if name in stored.column_names}
        if isinstance(stored.features[image], Image):
            stored = stored.cast_column(image, Image(decode=False))
        # Two views of one table: iterating over the descriptions must not load the images.
        images = stored.select_columns([image])
        described = stored.select_columns([name for ours, name in present.items() if ours != "image"])
        for index, values in enumerate(described):
            record = {
                ours: class_names(stored.features[name], values[name])
                for ours, name in present.items()
                if ours not in ("image", "split")
            }
            name = record.pop("id", None)
            row_id = f"{split}/{index}" if name is None else f"{split}/{name}"
            yield Row(row_id, StoredImage(images, index, image), split, **record)


def canonical_split(name: str) -> str:
    """`train`, `validation` or `test` for the usual names; any other name as it is."""
    name = name.strip()
    return _WRITTEN_OUT.get(name.lower(), name.lower() if name.lower() in _SPLITS else name)


def load_datasets(
    where: str, splits: Sequence[str] = _SPLITS, use: Callable[[str], bool] = lambda name: True
) -> dict[str, Any]:
    """Split -> `datasets.Dataset`, of a folder that was saved, of Parquet files, or of a name on the hub.

    Raises:
        ExampleError: none of these, or it cannot be read.
    """
    import datasets

    path = Path(where)
    try:
        if not path.exists():
            loaded = datasets.load_dataset(where)
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(where)
        else:
            loaded = datasets.load_dataset("parquet", data_files=parquet_files(path, splits, use))
    except ExampleError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        # The library wraps the informative error in a general one.
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise ExampleError(
            f"The data set {where!r} cannot be loaded: {cause}. Give a local folder or Parquet file, or a "
            "name on the hub; a gated one needs its terms accepted there and `hf auth login` here."
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {UNDECLARED: loaded}


def parquet_files(
    path: Path, splits: Sequence[str] = _SPLITS, use: Callable[[str], bool] = lambda name: True
) -> dict[str, list[str]]:
    """Split -> files, by the word in their names, as on the hub: `data/train-00000-of-00002.parquet`."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    files = [file for file in files if file == path or use(str(file.relative_to(path)))]
    if not files or any(file.suffix != ".parquet" for file in files):
        raise ExampleError(f"{path} is no Parquet file, holds none, and is no folder saved by `datasets`.")
    found: dict[str, list[str]] = {}
    for file in files:
        name = file.name if path == file else str(file.relative_to(path))
        found.setdefault(split_in_path(name, splits) or UNDECLARED, []).append(str(file))
    if UNDECLARED in found and len(found) > 1:
        raise ExampleError(f"{path}: {found[UNDECLARED][0]} names no split, while other files do; rename it.")
    return found


def split_in_path(name: str, splits: Sequence[str] = _SPLITS) -> str | None:
    """The split that a file's name or folder says, as a word of its own; None where it says none."""
    # The longest first, so that `id_test_mini` is not read as `id_test`.
    words = "|".join(re.escape(split) for split in sorted(splits, key=len, reverse=True))
    found = re.search(rf"(?:^|[-_./ ])({words})(?=[-_./ ]|$)", name.lower())
    return canonical_split(found[1]) if found else None


def _by_column(rows: Any, column: str) -> dict[str, Any]:
    """Split -> rows, by the values of a column."""
    indices: dict[str, list[int]] = {}
    for index, value in enumerate(rows[column]):
        split = canonical_split(str(class_names(rows.features[column], value) or UNDECLARED))
        indices.setdefault(split, []).append(index)
    return {split: rows.select(chosen) for split, chosen in indices.items()}


def class_names(feature: Any, value: Any) -> Any:
    """The names of class numbers, where the data set declares them; other values as they are."""
    # A list of class labels holds their feature one level down.
    feature = getattr(feature, "feature", feature)
    names = getattr(feature, "names", None)
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [names[number] for number in value]
    return names[value] if value >= 0 else None  # -1 is how the library writes "not labelled"


class UnusableRowsError(ExampleError):
    """More rows of a data set cannot be used than the caller allows; `skipped` lists them all."""

    def __init__(self, message: str, skipped: "tuple[Skipped, ...]" = ()) -> None:
        super().__init__(message)
        self.skipped = skipped
