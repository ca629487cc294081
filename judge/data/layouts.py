"""Records of other people's data sets: any columns beside an image, from Parquet, saved data sets, CSV and JSON.

`judge.data.sources` reads tables in our own columns; here, a mapping says which of a table's columns is what. Paths in
a table are untrusted: they are relative to its folder and must not lead out of it. Nothing pickled is loaded.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from judge.errors import ImageError
from prompts.errors import ExampleError
from prompts.names import nearest

from .folders import file_inside
from .sources import (
    UNDECLARED,
    Skipped,
    StoredImage,
    canonical_split,
    class_names,
    decode_base64,
    load_datasets,
    split_in_path,
)
from .tables import read_csv, read_json_lines

TABLES = (".csv", ".json", ".jsonl")
"""Files of records; a `.json` is one list of objects."""


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps what, as far as it is the same in every copy.

    Raises:
        ExampleError: from `open_records`, where a copy is laid out in another way.
    """

    columns: Mapping[str, str]
    """Our names -> the table's; `image` is one of ours. `a|b` is the first of them that a copy has; an empty one is not
    known and has to be given."""
    required: tuple[str, ...] = ("image",)
    """Those of ours without which nothing can be read."""
    splits: tuple[str, ...] = ("train", "test", "validation", "val", "dev")
    """Words in the names of files and folders that say which split they hold."""
    use: Callable[[str], bool] = lambda name: True
    """Whether a file, named relative to the folder, belongs to the set."""
    images: str = ""
    """Where the paths in tables begin, relative to the folder."""
    base_names: bool = False
    """Whether an image's file is named as the last part of its path or address alone, as nobody else has the rest."""
    posts: bool = False
    """Whether a row may have no image or several, as posts do; `Record.image` is then None."""


@dataclass(frozen=True)
class Record:
    """One row of a table, as it is stored."""

    place: str
    """Where it stands; unique within its table."""
    split: str
    values: Mapping[str, Any]
    """By our names; None where the table has no such column or the row no value."""
    image: Any
    """A path, bytes, or a `StoredImage`; nothing is decoded yet. None where `Layout.posts` allows it."""


def parse_spec(spec: str) -> tuple[str, str | None, dict[str, str]]:
    """`NAME:PATH?ours=COLUMN&ours=COLUMN` as name, path (None where there is none) and names of columns."""
    kind, _, rest = spec.partition(":")
    where, mark, query = rest.rpartition("?")
    # A question mark that no mapping follows belongs to the path.
    if not mark or "=" not in query:
        return kind, rest or None, {}
    return kind, where or None, dict(parse_qsl(query, keep_blank_values=True))


class Records(Protocol):
    """A table that is read split by split."""

    splits: tuple[str, ...]

    def records(self, split: str) -> Iterator[Record | Skipped]:
        """Iterate over one split."""
        ...


def open_records(
    where: str, layout: Layout, *, name: str, renamed: Mapping[str, str] | None = None
) -> Records:
    """Open a local copy, or a data set of the hub where no such path exists.

    Args:
        where: a file, a folder, or a name on the hub.
        layout: what is where.
        name: of the data set, for messages.
        renamed: our names -> the table's, where they differ from the layout's.

    Raises:
        ExampleError: nothing readable is there, or a required column is missing; the message lists the columns found.
    """
    for ours in renamed or {}:
        if ours not in layout.columns:
            hint = nearest(ours, list(layout.columns))
            raise ExampleError(
                f"{name} has no field {ours!r}{hint}; columns can be given for: {', '.join(layout.columns)}."
            )
    path = Path(where)
    files = _table_files(path, layout) if path.exists() else []
    table: StoredRecords | FileRecords
    if files:
        root = path if path.is_dir() else path.parent
        table = FileRecords(root, files, layout)
    else:
        table = StoredRecords(load_datasets(where, layout.splits, layout.use))
    columns = {
        ours: next((one for one in names.split("|") if table.has(one)), names)
        for ours, names in {**layout.columns, **(renamed or {})}.items()
    }
    table.name_columns(columns)
    missing = [ours for ours in (*layout.required, *(renamed or {})) if not table.has(columns[ours])]
    if missing:
        known = (
            f"has no column {columns[missing[0]]!r}"
            if columns[missing[0]]
            else "has columns of unknown names"
        )
        mapping = "&".join(f"{ours}=COLUMN" for ours in dict.fromkeys(missing))
        raise ExampleError(
            f"{name} in {where} {known}; it has: {', '.join(table.columns)}. If others hold what is needed "
            f"({', '.join(dict.fromkeys(missing))}), say so: {name}:{where}?{mapping}."
        )
    return table


def _field(row: Mapping[str, Any], column: str) -> Any:
    """A row's value; `images.path` is that field of an object, or of each in a list."""
    if column in row or "." not in column:
        return row.get(column)
    head, _, field = column.partition(".")
    value = row.get(head)
    if isinstance(value, list):
        return [one.get(field) if isinstance(one, dict) else None for one in value]
    return value.get(field) if isinstance(value, dict) else None


class StoredRecords:
    """Records of the `datasets` library: Parquet files, a saved folder, or the hub."""

    def __init__(self, sets: Mapping[str, Any]) -> None:
        self._sets = sets
        self.splits = tuple(sets)
        self.columns = tuple(dict.fromkeys(name for rows in sets.values() for name in rows.column_names))

    def has(self, column: str) -> bool:
        """Whether there is such a column."""
        return column in self.columns

    def name_columns(self, columns: Mapping[str, str]) -> None:
        """Say which column is what: our names -> the table's."""
        self._names = dict(columns)

    def records(self, split: str) -> Iterator[Record | Skipped]:
        """Iterate over one split without decoding, or even reading, its images."""
        from datasets import Image

        stored, image = self._sets[split], self._names["image"]
        if isinstance(stored.features[image], Image):
            stored = stored.cast_column(image, Image(decode=False))
        present = (set(self._names.values()) & set(stored.column_names)) - {image}
        # Two views of one table: iterating over the descriptions must not load the images.
        images = stored.select_columns([image])
        for index, row in enumerate(stored.select_columns(sorted(present))):
            values = {
                ours: class_names(stored.features[name], row[name]) if name in present else None
                for ours, name in self._names.items()
                if ours != "image"
            }
            yield Record(f"{split}/{index}", split, values, StoredImage(images, index, image))


class FileRecords:
    """Records in CSV or JSON files, with their images in files beside them or in base64."""

    def __init__(self, root: Path, files: Sequence[tuple[Path, str]], layout: Layout) -> None:
        self._root, self._layout = root.resolve(), layout
        self._tables = [(path, split, list(_read(path))) for path, split in files]
        self.splits = tuple(dict.fromkeys(split for _, split, _ in self._tables))
        found = dict.fromkeys(name for _, _, rows in self._tables for _, row in rows for name in row)
        self.columns = tuple(name for name in found if name)

    def has(self, column: str) -> bool:
        """Whether there is such a column; `images.path` is a field of the objects in one."""
        return column != "" and (column in self.columns or column.partition(".")[0] in self.columns)

    def name_columns(self, columns: Mapping[str, str]) -> None:
        """Say which column is what: our names -> the table's."""
        self._names = dict(columns)
        # Where only the last part of an address names the file, two addresses must not share one.
        addresses: defaultdict[str, set[str]] = defaultdict(set)
        for _, _, rows in self._tables if self._layout.base_names else ():
            for value in (_alone(_field(row, columns["image"])) for _, row in rows):
                if isinstance(value, str):
                    addresses[_base_name(value)].add(value)
        self._ambiguous = {name for name, several in addresses.items() if len(several) > 1}

    def records(self, split: str) -> Iterator[Record | Skipped]:
        """Iterate over one split; a damaged row, or one whose image leads out of the folder, is `Skipped`."""
        for path, declared, rows in self._tables:
            if declared != split:
                continue
            for line, row in rows:
                place = f"{path.relative_to(self._root)}:{line}"
                if "" in row:
                    yield Skipped(place, "bad_row", str(row[""]))
                    continue
                values = {ours: _field(row, name) for ours, name in self._names.items()}
                image = self._image(values["image"])
                if isinstance(image, Skipped):
                    yield Skipped(place, image.status, image.reason)
                else:
                    yield Record(place, split, values, image)

    def _image(self, value: Any) -> Any:
        """A path inside the folder or the bytes of an image; `Skipped` with the reason where it is neither."""
        if self._layout.posts and (value in (None, "") or (isinstance(value, list) and len(value) != 1)):
            return None
        value = _alone(value)
        if not isinstance(value, str) or not value.strip():
            return Skipped("", "bad_row", f"expected the path of one image, got {value!r:.60}")
        # The alphabet of base64 has no dot, and the path of an image ends in a suffix.
        if value.startswith("data:") or re.fullmatch(r"[A-Za-z0-9+/=\s]{64,}", value):
            try:
                return decode_base64(value)
            except ImageError as error:
                return Skipped("", error.status, error.reason)
        if self._layout.base_names:
            value = _base_name(value)
            if value in self._ambiguous:
                return Skipped("", "bad_row", f"images of several addresses are named {value!r:.100}")
        # Joined as text: joined as paths, an absolute one would replace the folder of images.
        joined = f"{self._layout.images}/{value}" if self._layout.images else value
        file = None if Path(value).is_absolute() else file_inside(self._root, joined)
        return file or Skipped("", "outside_folder", f"{value!r:.200} leads out of the data set's folder")


def _alone(value: Any) -> Any:
    """The one member of a list of one; any other value as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _base_name(address: str) -> str:
    """The last part of a path or an address, without what follows a question mark in it."""
    try:
        return PurePosixPath(urlsplit(address).path).name
    except ValueError:  # no address, such as one with half a bracket
        return PurePosixPath(address).name


def _table_files(path: Path, layout: Layout) -> list[tuple[Path, str]]:
    """(file, split) for the CSV and JSON files of a set; none where Parquet files or a saved data set are there.

    Raises:
        ExampleError: a table that leads out of the folder, or some that name a split and some that name none.
    """
    if path.is_file():
        # Where it stands, not where a link leads: its images are beside it.
        return (
            [(path.parent.resolve() / path.name, _split(path.name, layout))] if path.suffix in TABLES else []
        )
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if saved or any(path.rglob("*.parquet")):
        return []
    root = path.resolve()
    files = {str(file.relative_to(root)): file for file in sorted(root.rglob("*")) if file.suffix in TABLES}
    found = [
        (file, _split(name, layout)) for name, file in files.items() if file.is_file() and layout.use(name)
    ]
    for file, split in found:
        if file_inside(root, str(file.relative_to(root))) is None:
            raise ExampleError(f"{file} leads out of {path}; copy it into the folder.")
        if split == UNDECLARED and any(other != split for _, other in found):
            raise ExampleError(
                f"{file} names no split, while other files do; rename it, or name one file itself."
            )
    return found


def _split(name: str, layout: Layout) -> str:
    return split_in_path(name, layout.splits) or UNDECLARED


def _read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or number, record) pairs; a row that cannot be read is a record whose only key is empty."""
    if path.suffix == ".csv":
        yield from read_csv(path)
    elif path.suffix == ".jsonl":
        yield from read_json_lines(path)
    else:
        yield from _read_json(path)


def _read_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExampleError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(rows, list):
        raise ExampleError(
            f"{path} must hold a list of objects, got {type(rows).__name__}; if it is no table, name the table itself."
        )
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict) and "" not in row:
            yield number, row
        else:
            yield number, {"": f"expected an object with named fields, got {type(row).__name__}"}


def requested_splits(table: Records, split: str, parts: Mapping[str, Sequence[str]], name: str) -> list[str]:
    """The declared splits that a requested one stands for.

    Args:
        table: what was opened.
        split: `all`, a declared one, or one of `parts`.
        parts: names that stand for several, such as `test` for `id_test` and `ood_test`.
        name: of the data set, for messages.

    Raises:
        ExampleError: there is none; the message lists those there are.
    """
    if split == "all":
        return list(table.splits)
    wanted = parts.get(split, [split])
    found = [one for one in table.splits if one in wanted or canonical_split(one) == split]
    # A single file without the name of a split is whatever it is asked for as.
    if not found and table.splits == (UNDECLARED,):
        return [UNDECLARED]
    if not found:
        raise ExampleError(
            f"{name} has no split {split!r}; there are: {', '.join(sorted(table.splits))}, all."
        )
    return found
