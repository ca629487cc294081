"""Images in a folder, and a table that says what is known of each: `folder:PATH`.

    folder:PATH                  a folder that holds the images and one table
    folder:PATH/labels.csv       a table; its images are in its folder
    folder:labels.csv::IMAGES    a table, and the folder of its images somewhere else

A table has the columns of `judge.data.sources.COLUMNS`. Titles that obviously mean one of them (`Image`, `file_name`,
`class`) are read as it, and `FolderReader.notes` says so. What could mean two of them is an error that says what to
rename.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from judge.runs.files import nearest_path
from prompts.errors import ExampleError
from prompts.names import nearest

from .sources import COLUMNS, UNDECLARED, Row, Skipped, canonical_split
from .tables import CELLS, LINES, plain_title, read_records

OTHER_TITLES: Mapping[str, tuple[str, ...]] = {
    "path": (
        "image", "img", "picture", "photo", "file", "filename", "filepath", "file_name", "file_path", "image_path",
        "image_file", "image_name", "img_path", "image_filename", "paths",
    ),
    "prompt": ("prompts", "text", "caption", "prompt_text"),
    "label": ("class", "target", "safety", "safety_label", "is_unsafe", "unsafe", "verdict"),
    "categories": ("category", "category_name", "unsafe_category", "unsafe_categories"),
    "split": ("splits", "subset", "partition"),
    "source": ("sources",),
}  # fmt: skip
"""Column -> titles (`plain_title`) that are read as it where the column itself is missing."""
_ANSWERS = {
    **dict.fromkeys(("yes", "y", "ja", "oui", "si", "sí"), "unsafe"),
    **dict.fromkeys(("no", "n", "nein", "non"), "safe"),
}
TABLES = (".csv", ".tsv", *LINES)
"""Suffixes of what counts as the table of a folder; a `.txt` may be anything, so it has to be named."""
_SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")


class FolderReader:
    """Images in a folder, described by one table.

    Paths in the table are relative to the folder of the images and must stay inside it after symbolic links are
    resolved: an untrusted table must not be able to name other files of this machine. Absolute paths are refused.

    Args:
        where: what stands behind `folder:`.

    Raises:
        ExampleError: no table, or one that cannot be read; the message says what to change.
    """

    def __init__(self, where: str | Path) -> None:
        table, _, images = str(where).partition("::")
        self.table = find_table(Path(table))
        self._root = _images_folder(images).resolve() if images else self.table.parent.resolve()
        expected = (*COLUMNS, *(title for titles in OTHER_TITLES.values() for title in titles))
        records = list(read_records(self.table, expected))
        found = dict.fromkeys(column for _, record in records for column in record if column)
        titles = _titles(self.table, list(found)) if found else {}
        self._records = [
            (line, {titles.get(title, title): _meant(title, value) for title, value in record.items()})
            for line, record in records
        ]
        self.notes: tuple[str, ...] = tuple(
            f"{self.table.name}: column {title!r} is read as {column!r}"
            for title, column in titles.items()
            if plain_title(title) != column
        )
        """What was understood though it was written otherwise, for the reader of a log."""
        declared = {self._split(record) for _, record in self._records if "" not in record}
        self.splits = tuple(sorted(declared)) or (UNDECLARED,)

    def rows(self, split: str) -> Iterator[Row | Skipped]:
        """Iterate over the rows of a split; damaged rows, whose split is unknown, are reported in every split."""
        for line, record in self._records:
            place = f"{self.table.name}:{line}"
            if "" in record:
                yield Skipped(place, "bad_row", str(record[""]))
                continue
            if self._split(record) != split:
                continue
            path = record.get("path")
            if not isinstance(path, str) or not path.strip():
                yield Skipped(place, "bad_row", "no path")
                continue
            name = path if record.get("id") in (None, "") else str(record["id"])
            file = find_image(self._root, path)
            if file is None:
                yield Skipped(name, "outside_folder", self._outside(path))
            else:
                values = {c: record.get(c) for c in COLUMNS[1:] if c not in ("split", "id")}
                yield Row(name, file, split, **values)

    @staticmethod
    def _split(record: Mapping[str, Any]) -> str:
        value = record.get("split")
        return canonical_split(str(value)) if value and str(value).strip() else UNDECLARED

    def _outside(self, path: str) -> str:
        if Path(path).is_absolute() or PureWindowsPath(path).drive:
            below = Path(path).is_relative_to(self._root)
            how = repr(str(Path(path).relative_to(self._root))) if below else f"relative to {self._root}"
            return f"it is absolute; write {how}"
        return f"{path!r} leads out of the table's folder"


def file_inside(folder: Path, path: str) -> Path | None:
    """Where a path of an untrusted table leads, links resolved; None where that is outside of the folder.

    Args:
        folder: resolved already.
        path: relative to it.
    """
    if Path(path).is_absolute() or "\0" in path:
        return None
    try:
        # Links are resolved before the comparison, as one inside the folder may lead out of it.
        resolved = (folder / path).resolve()
    except (OSError, RuntimeError):  # a loop of links
        return None
    return resolved if resolved.is_relative_to(folder) else None


def find_image(folder: Path, path: str) -> Path | None:
    """As `file_inside`; stray spaces and backslashes of Windows are read as meant, where only that file exists."""
    file = file_inside(folder, path)
    if file is not None and file.exists():
        return file
    if PureWindowsPath(path).drive:  # on this system a name like any other, yet nobody has such a file
        return None
    meant = path.strip().replace("\\", "/")
    if meant == path:
        return file
    other = file_inside(folder, meant)
    return other if other is None or other.exists() else file


def holds_table(folder: Path) -> bool:
    """Whether a folder holds a file that may be a table of its images."""
    return folder.is_dir() and any(path.suffix.lower() in TABLES for path in folder.iterdir())


def find_table(where: Path) -> Path:
    """The table of a folder, or the table itself.

    Raises:
        ExampleError: nothing is there, none, or several.
    """
    if where.is_file() and where.suffix.lower() in (*CELLS, *LINES):
        return where
    if where.is_file():
        raise ExampleError(f"{where} is no table{_advice(where.suffix)}")
    if not where.is_dir():
        raise ExampleError(
            f"{where} is no folder and no table ({', '.join(TABLES)}){nearest_path(str(where))}."
        )
    files = sorted(path for path in where.iterdir() if path.is_file())
    # One table exactly: with two, rows of one could silently be left out.
    tables = [path for path in files if path.suffix.lower() in TABLES]
    if len(tables) != 1:
        found = ", ".join(path.name for path in tables) or "none"
        sheets = [path for path in files if path.suffix.lower() in _SPREADSHEETS]
        advice = (
            f" {sheets[0].name} is a spreadsheet: save it as 'CSV UTF-8'." if sheets and not tables else ""
        )
        raise ExampleError(
            f"{where} must hold one table ({' or '.join(TABLES)}, columns {', '.join(COLUMNS)}); found: {found}. "
            f"Name the table itself if there are several, or if it is elsewhere: folder:TABLE::{where}.{advice}"
        )
    return tables[0]


def _meant(title: str, value: Any) -> Any:
    """The value; under a title such as `is_unsafe`, which asks, "yes" is an answer."""
    asked = plain_title(title) in ("unsafe", "is_unsafe") and isinstance(value, str)
    return _ANSWERS.get(value.strip().casefold(), value) if asked else value


def _advice(suffix: str) -> str:
    if suffix.lower() in _SPREADSHEETS:
        return ": it is a spreadsheet; save it as 'CSV UTF-8'."
    return f"; use one of {', '.join((*CELLS, *LINES))}."


def _images_folder(images: str) -> Path:
    if not Path(images).is_dir():
        raise ExampleError(f"{images} is no folder of images{nearest_path(images)}.")
    return Path(images)


def _titles(table: Path, found: Collection[str]) -> dict[str, str]:
    """Title -> column, of those that are read; the others are columns of somebody else."""
    plain = {title: plain_title(title) for title in found}
    titles = {title: title for title in found if title in COLUMNS}
    for column in COLUMNS:
        if column in titles:
            continue
        same = [title for title, name in plain.items() if name == column]
        meant = same or [title for title, name in plain.items() if name in OTHER_TITLES.get(column, ())]
        if len(meant) > 1:
            raise ExampleError(
                f"{table} has no column {column!r}, and {' and '.join(map(repr, meant))} could each be it; "
                f"rename one of them to {column!r}."
            )
        titles |= dict.fromkeys(meant, column)
    columns = set(titles.values())
    for column in ("path", "label"):
        if column not in columns:
            raise ExampleError(
                f"{table} has no column {column!r}; it has: {', '.join(sorted(found))}. Rename the one that holds "
                f"{'the file of the image' if column == 'path' else 'safe or unsafe'} to {column!r}. "
                f"Allowed: {', '.join(COLUMNS)}."
            )
    for title in sorted(set(found) - set(titles)):
        hint = nearest(plain[title], [column for column in COLUMNS if column not in columns])
        if hint:
            raise ExampleError(f"{table}: unknown column {title!r}{hint}; rename it, or name it otherwise.")
    return titles
