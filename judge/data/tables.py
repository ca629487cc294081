"""Tables that people write: CSV, TSV and JSON lines, whatever program, country or machine they come from.

A separator is a comma, a semicolon, a tab or a bar: what a first line `sep=;` says, else what splits the titles into
known columns. The text is UTF-8 or UTF-16, with or without a byte order mark. Any other encoding is an error: read as
another one, names of files and categories would change unnoticed.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, TextIO

from judge.errors import ConfigError
from judge.runs.files import nearest_path
from prompts.errors import ExampleError
from prompts.names import nearest

CELLS = (".csv", ".tsv", ".txt")
"""Suffixes of tables of cells, in any case."""
LINES = (".jsonl", ".ndjson")
"""Suffixes of JSON lines, in any case."""
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
"""What may stand between two cells, and its name."""


def read_records(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) pairs of a table; a row that cannot be read is a record whose only key is empty.

    Args:
        path: of a file with a suffix of `CELLS` or `LINES`.
        columns: titles to expect; they help to find out what separates the cells.

    Raises:
        ExampleError: another suffix, encoding or damage; or a column that is there twice.
    """
    if path.suffix.lower() in LINES:
        return read_json_lines(path)
    if path.suffix.lower() not in CELLS:
        raise ExampleError(f"{path} is no table; use one of {', '.join((*CELLS, *LINES))}.")
    return read_csv(path, columns)


def read_csv(table: Path, columns: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read_records`, of a table of cells."""
    try:
        with _opened(table, columns) as (file, separator, before):
            reader = csv.DictReader(file, strict=True, delimiter=separator)
            if twice := repeated_title(reader.fieldnames or ()):
                raise ExampleError(f"{table} has two columns {twice!r}; keep one, or rename the other.")
            for record in reader:
                # What stands behind the last title: mere separators, as spreadsheets write them, are no values.
                surplus: Any = record.pop(None, ())
                # In a column without a title are the row numbers of pandas, or separators again.
                number = record.pop("", None) or "0"
                if any(surplus) or not number.strip().isdigit():
                    name = SEPARATORS.get(separator, repr(separator))
                    fault = f"more values than columns; put texts with a {name} in quotes"
                elif None in record.values():
                    fault = "fewer values than columns"
                else:
                    yield reader.line_num + before, dict(record)
                    continue
                yield reader.line_num + before, {"": fault}
    except (OSError, csv.Error) as error:
        raise ExampleError(f"{table} cannot be read as CSV: {error}") from error


def read_json_lines(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read_csv`; a damaged line does not affect the others."""
    try:
        encoding = _encoding(table)
        with table.open("rb") as file:
            # Line by line in bytes, so that a damaged line is one damaged row.
            lines = BytesIO(file.read().decode(encoding).encode()) if "16" in encoding else file
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    yield number, {"": f"no JSON: {error}"}
                    continue
                if not isinstance(record, dict) or "" in record:
                    yield number, {"": f"expected an object with named fields, got {type(record).__name__}"}
                else:
                    yield number, record
    except (OSError, UnicodeError) as error:
        raise ExampleError(f"{table} cannot be read as JSON lines: {error}") from error


def read_table(path: Path, columns: Sequence[str], what: str) -> list[dict[str, str | None]]:
    """The rows of a table of cells; a cell that a row lacks is None.

    Args:
        path: of the file.
        columns: those that it must have; others may be there too.
        what: it holds, for messages, such as `prompts`.

    Raises:
        ConfigError: it is missing, cannot be read, lacks a column or has one twice, or a row has more cells than there
            are columns.
    """
    try:
        with _opened(path, columns) as (file, separator, _):
            reader = csv.DictReader(file, strict=True, restkey="", delimiter=separator)
            titles, rows = reader.fieldnames or [], list(reader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{nearest_path(str(path))}.") from None
    except (OSError, ValueError, csv.Error, ExampleError) as error:
        raise ConfigError(f"{path} cannot be read as a table of {what}: {error}.") from None
    for column in columns:
        if column not in titles:
            raise ConfigError(
                f"{path} has no column {column!r}{nearest(column, titles)}; a table of {what} has the columns "
                f"{', '.join(columns)}."
            )
    if twice := repeated_title(titles):
        raise ConfigError(f"{path} has two columns {twice!r}; keep one, or rename the other.")
    for number, row in enumerate(rows, start=2):
        if "" not in titles and any(row.get("") or ()):  # there DictReader keeps what follows the last title
            name = SEPARATORS.get(separator, repr(separator))
            raise ConfigError(
                f"{path}, row {number}: more cells than columns; put texts with a {name} in quotes."
            )
    return rows


def repeated_title(titles: Sequence[str]) -> str | None:
    """The first title that two columns have, of which a reader would keep the last one alone; None without any."""
    return next((title for place, title in enumerate(titles) if title and title in titles[:place]), None)


@contextmanager
def _opened(table: Path, columns: Sequence[str]) -> Iterator[tuple[TextIO, str, int]]:
    """The file from its titles on, what separates its cells, and how many lines stand before the titles."""
    with table.open(encoding=_encoding(table), newline="") as file:
        try:
            start, before, first = 0, 0, file.readline()
            while first and not first.strip():  # empty lines before the titles
                start, before, first = file.tell(), before + 1, file.readline()
            said = first.strip().strip('"')
            if said.lower().startswith("sep=") and len(said) <= 5:  # how Excel is told; it is no row
                yield file, said[4:] or "\t", before + 1
                return
            file.seek(start)
            yield file, _separator(first, table, columns), before
        except UnicodeDecodeError:
            raise ExampleError(_not_utf8(table)) from None


def _encoding(table: Path) -> str:
    with table.open("rb") as file:
        return _wide_encoding(file.read(8)) or "utf-8-sig"


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16, where a file holds it: by its mark, or as every other byte of an English title is zero."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if head[1:8:2].count(0) >= 3 and 0 not in head[:8:2]:
        return "utf-16-le"
    if head[:8:2].count(0) >= 3 and 0 not in head[1:8:2]:
        return "utf-16-be"
    return None


def _not_utf8(table: Path) -> str:
    """Where a file stops being what its first bytes promise, and what to do about it."""
    data, encoding = table.read_bytes(), _encoding(table)
    try:
        data.decode(encoding)
        where = ""
    except UnicodeDecodeError as error:
        where = f" (line {data[: error.start].count(10) + 1}, byte 0x{data[error.start]:02x})"
    return (
        f"{table} is not in {'UTF-16' if 'utf-16' in encoding else 'UTF-8'}{where}. Save it as UTF-8: in Excel as "
        "'CSV UTF-8', in LibreOffice with the character set 'Unicode (UTF-8)'"
    )


def _separator(titles: str, table: Path, columns: Sequence[str]) -> str:
    """Of the separators, that which gives the most known titles; then that of the suffix, then the comma."""
    # Titles may stand in quotes and hold another one, so they are parsed with each.
    known = {plain_title(column) for column in columns}
    usual = "\t" if table.suffix.lower() == ".tsv" else ","

    def worth(separator: str) -> tuple[int, bool, int]:
        # Not strict: a quoted title may go on in the next line.
        parsed = next(csv.reader([titles], delimiter=separator), [])
        found = sum(plain_title(title) in known for title in parsed)
        return found, separator == usual and len(parsed) > 1, len(parsed)

    return max([usual, *(one for one in SEPARATORS if one != usual)], key=worth)


def plain_title(title: str) -> str:
    """A title without what two people would write differently: `Image Path` and `image-path` are `image_path`."""
    return "_".join(str(title).casefold().replace("-", " ").replace("_", " ").split())
