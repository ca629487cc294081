"""CSV files that people write: columns by their titles, whatever program they come from."""

import csv
from collections.abc import Sequence
from pathlib import Path

from judge.errors import ConfigError
from judge.runs.files import nearest_path
from prompts.names import nearest


def read_table(path: Path, columns: Sequence[str], what: str) -> list[dict[str, str | None]]:
    """The rows of a CSV in UTF-8, with or without a byte order mark; a cell that a row lacks is None.

    Args:
        path: of the file.
        columns: those that it must have; others may be there too.
        what: it holds, for messages, such as `prompts`.

    Raises:
        ConfigError: it is missing, cannot be read, lacks a column or has one twice, or a row has more cells than there
            are columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True, restkey="")
            titles, rows = reader.fieldnames or [], list(reader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{nearest_path(str(path))}.") from None
    except (OSError, ValueError, csv.Error) as error:
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
            raise ConfigError(
                f"{path}, row {number}: more cells than columns; put texts with commas in quotes."
            )
    return rows


def repeated_title(titles: Sequence[str]) -> str | None:
    """The first title that two columns have, of which a reader would keep the last one alone; None without any."""
    return next((title for place, title in enumerate(titles) if title and title in titles[:place]), None)
