"""Cells of the tables that annotators open: no formulas for a spreadsheet, and what was written is read back."""

import csv
import io
from collections.abc import Iterable, Sequence

from judge.errors import ConfigError
from judge.records.decision_table import begins_formula
from prompts.printable import printable

_LONGEST_WORD = 200


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with its titles, as CSV."""
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows)
    return written.getvalue()


def name_cell(name: str) -> str:
    """The name of an image as a cell; `./` in front changes no path."""
    return f"./{name}" if begins_formula(name) else name


def text_cell(text: str) -> str:
    """A text as a cell, behind a space where it would be a formula; readers strip it."""
    return f" {text}" if begins_formula(text) else text


def check_word(word: str, what: str, where: str) -> str:
    """The word, if tables and reports can show it.

    Raises:
        ConfigError: it is long, has invisible characters, or a spreadsheet would take it for a formula.
    """
    if len(word) > _LONGEST_WORD or word != printable(word) or begins_formula(word):
        raise ConfigError(
            f"{where}: {word[:60]!r} cannot be {what}; write at most {_LONGEST_WORD} plain characters, and none of "
            "= + - @ first."
        )
    return word
