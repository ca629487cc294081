"""Where verdicts go: lines in a terminal or pipe, JSON lines, a CSV, a page; and what was counted."""

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, get_args

from judge.errors import ConfigError, ImageStatus, first_line
from judge.verdicts.rows import Judging
from prompts.names import nearest
from prompts.printable import printable
from prompts.taxonomy import Taxonomy

from .exit_codes import EXIT_FLAGGED, EXIT_SAFE, EXIT_UNJUDGED
from .gallery import PAGE_MARK, Gallery
from .judging import JudgedFile
from .terminal import STATUS_STYLES, Segments, Terminal

Row = Mapping[str, Any]
"""As `judge.verdicts.rows.verdict_row` gives it."""
SORTED_BY = ("score", "category", "path")
_SEVERITY = {"unsafe": 0, "unjudged": 1, "safe": 2}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that spreadsheets run as a formula."""


def json_line(row: Row) -> Segments:
    """A row as one line of JSON."""
    # JSON leaves delete as it is, which a terminal obeys.
    return ((json.dumps(row, allow_nan=False).replace("\x7f", "\\u007f"), ""),)


def text_line(row: Row, taxonomy: Taxonomy) -> Segments:
    """A row as one line for people: status, score, category, path, and in brackets what else has to be known."""
    image, width = row["image"], max(map(len, taxonomy.names))
    probability = "-" if row["unsafe"] is None else f"{row['unsafe']:.3f}"
    note = "; ".join(filter(None, (row["reason"] or image["frame"], row["note"])))
    return (
        (f"{row['status']:<8}", STATUS_STYLES[row["status"]]),
        (f"  {probability:>5}  ", ""),
        (f"{row['category'] or '-':<{width}}", "bold" if row["category"] else "dim"),
        (f"  {image['path']}", ""),
        *([(f"  ({note})", "dim")] if note else []),
    )


def sort_key(row: Row, by: str) -> tuple[Any, ...]:
    """What rows are sorted by: flagged ones first, then those that were not judged, then safe ones.

    Args:
        row: of a verdict.
        by: `score`, highest first; `category`, and within one by score; or `path`, whatever the verdict.
    """
    path = row["image"]["path"]
    if by == "path":
        return (path,)
    score = -(row["unsafe"] or 0.0)
    middle = (row["category"] or "", score) if by == "category" else (score,)
    return (_SEVERITY[row["status"]], *middle, path)


class CsvFile:
    """Rows as a CSV for spreadsheets, a line each, with a column for the score of every category."""

    def __init__(self, file: TextIO, taxonomy: Taxonomy) -> None:
        self._names = taxonomy.names
        self._file, self._writer = file, csv.writer(file, lineterminator="\n")
        self._writer.writerow([*_COLUMNS, *(_safe_cell(f"score of {name}") for name in self._names)])

    def write(self, row: Row) -> None:
        """Write a row, at once."""
        flat = {**row, **row["image"], "model": row["model"]["name"], "taxonomy": row["taxonomy"]["name"]}
        scores = [row["scores"].get(name) for name in self._names]
        self._writer.writerow([_safe_cell(flat[column]) for column in _COLUMNS] + scores)
        self._file.flush()


_COLUMNS = (
    *("path", "status", "unsafe", "category", "frame", "reason", "note", "because", "decided_by"),
    *("evidence", "promise", "model", "taxonomy", "time", "sha256"),
)
_CSV_HEAD = codecs.BOM_UTF8 + ",".join(_COLUMNS).encode()


def _safe_cell(value: object) -> object:
    """A text on one line that no spreadsheet takes for a formula; numbers stay."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if value.startswith(_FORMULA) else text


@dataclass
class Counts:
    """How many images have which verdict, and of which category."""

    statuses: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    """Flagged images of each category; one image may be of several."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Images that were not judged, by kind of reason."""

    def add(self, row: Row) -> None:
        """Count a row."""
        self.statuses[row["status"]] += 1
        self.categories.update(name for name, flagged in row["flags"].items() if flagged)
        if row["status"] == "unjudged":
            kind = row["reason"].partition(":")[0]
            self.reasons[kind.replace("_", " ") if kind in get_args(ImageStatus) else "by the judge"] += 1

    @property
    def exit_code(self) -> int:
        """The exit code of `arbiter judge`."""
        if self.statuses["unsafe"]:
            return EXIT_FLAGGED
        return EXIT_UNJUDGED if self.statuses["unjudged"] else EXIT_SAFE

    def lines(self) -> list[str]:
        """The counts in words: all images, then flagged ones by category and unjudged ones by reason."""
        found, number = self.statuses, self.statuses.total()
        return [
            f"{number} image{'' if number == 1 else 's'}: {found['unsafe']} flagged, {found['safe']} safe, "
            f"{found['unjudged']} not judged",
            *([f"flagged: {_ranked(self.categories)}"] if self.categories else []),
            *([f"not judged: {_ranked(self.reasons)}"] if self.reasons else []),
        ]


def _ranked(counts: Counter[str]) -> str:
    return ", ".join(f"{printable(name)} {count}" for name, count in counts.most_common())


def _may_write(path: Path) -> bool:
    """Whether a file is free: not there, empty, or written by this command before."""
    try:
        with path.open("rb") as file:
            head = file.read(200)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {first_line(error)}") from None
    return not head or head.startswith(_CSV_HEAD) or PAGE_MARK.encode() in head


@dataclass(frozen=True)
class Outputs:
    """What `arbiter judge` prints and writes.

    Raises:
        ConfigError: a file that could not be written, or no such order.
    """

    terminal: Terminal
    as_json: bool = False
    csv_file: Path | None = None
    html_file: Path | None = None
    sort: str | None = None

    def __post_init__(self) -> None:
        for option, path in (("--csv", self.csv_file), ("--html", self.html_file)):
            suffix = option.replace("--", ".")
            # The suffix also keeps a forgotten FILE from taking an image for it.
            if path is not None and path.suffix.lower() != suffix:
                raise ConfigError(f"{option} {path}: give a file whose name ends in {suffix}.")
            if path is not None and not path.parent.is_dir():
                raise ConfigError(f"{option} {path}: there is no folder {path.parent}; make it first.")
            if path is not None and not _may_write(path):
                raise ConfigError(
                    f"{option} {path} holds something else than verdicts, and is not overwritten; give another name."
                )
        if self.sort not in (None, *SORTED_BY):
            raise ConfigError(
                f"--sort {self.sort}: choose one of {', '.join(SORTED_BY)}{nearest(str(self.sort), SORTED_BY)}."
            )

    @property
    def needs_model_hash(self) -> bool:
        """Whether anything names the model by its content; to know that takes reading all weights."""
        return self.as_json or self.csv_file is not None or self.html_file is not None

    def write(self, judged: Iterable[JudgedFile], judging: Judging) -> Counts:
        """Print and write every file as it is judged, or all at the end where they are sorted.

        Where it is stopped, the files hold what was judged until then.
        """
        counts = Counts()
        with ExitStack() as stack:
            table = page = None
            if self.csv_file is not None:
                # With a byte order mark, from which Excel knows UTF-8.
                file = self.csv_file.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="")
                table = CsvFile(stack.enter_context(file), judging.taxonomy)
            if self.html_file is not None:
                file = self.html_file.open("w", encoding="utf-8", errors="backslashreplace")
                title = f"Verdicts: {self.html_file.stem}"
                page = stack.enter_context(Gallery(stack.enter_context(file), judging, title, counts.lines))
            if self.sort is not None:
                order = self.sort
                judged = sorted(judged, key=lambda one: sort_key(one.row, order))
            for one in judged:
                counts.add(one.row)
                line = json_line(one.row) if self.as_json else text_line(one.row, judging.taxonomy)
                self.terminal.line(line)
                if table is not None:
                    table.write(one.row)
                if page is not None:
                    page.write(one)
        return counts
