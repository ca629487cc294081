"""Read a user's files of prompts (text lines, tables, JSON) into rows."""

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adversarial.errors import AttackError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".txt")
Row = dict[str, Any]


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file as dicts of its columns; values are unchanged, empty cells are left out.

    `.csv` and `.tsv` have a header; `.jsonl` has an object a line; `.json` is a list of objects or of texts;
    `.txt` has a prompt a line, which becomes the column `prompt`.

    Raises:
        AttackError: no such file, another format, no UTF-8, a damaged line, or nothing in it.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise AttackError(
            f"{path} is not in a known format for prompts; use {', '.join(SUFFIXES)}. "
            "Save a parquet file as CSV first."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise AttackError(f"There is no file {path}; give the path of the file of prompts.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AttackError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    match path.suffix.lower():
        case ".txt":
            rows: list[Row] = [{"prompt": line.strip()} for line in text.split("\n") if line.strip()]
        case ".jsonl":
            rows = _json_lines(path, text)
        case ".json":
            rows = _objects(path, _parse(path, text, 1))
        case suffix:
            rows = _table(path, text, "\t" if suffix == ".tsv" else ",")
    if not rows:
        raise AttackError(f"{path} contains no prompt.")
    return rows


def columns(rows: Iterable[Row]) -> list[str]:
    """Names of all columns, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def text_of(value: Any) -> str | None:
    """A cell as stripped text, or None if it is empty."""
    return None if value is None else str(value).strip() or None


def _json_lines(path: Path, text: str) -> list[Row]:
    # Not `splitlines`: a JSON string may contain U+2028 and other Unicode line ends.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return _objects(path, [_parse(path, line, number) for number, line in lines])


def _parse(path: Path, text: str, number: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise AttackError(f"{path}, line {number}, is not JSON: {error}.") from error


def _objects(path: Path, values: Any) -> list[Row]:
    if not isinstance(values, list) or not all(isinstance(value, dict | str) for value in values):
        raise AttackError(f"{path} is not a list of objects or texts.")
    return [{"prompt": value} if isinstance(value, str) else value for value in values]


def _table(path: Path, text: str, delimiter: str) -> list[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
        names = reader.fieldnames or []
        rows = [{key: value for key, value in row.items() if key is not None and value} for row in reader]
    except csv.Error as error:
        raise AttackError(f"{path} is not a table: {error}.") from error
    if any(not (name or "").strip() for name in names[1:]):  # pandas leaves the first name empty
        raise AttackError(f"{path} has columns without a name: {names}; give it a header.")
    return [row for row in rows if row]
