"""Predictions that were made elsewhere, judged against our labels: a CSV with a row an image.

    id,unsafe,hate,self-harm,reason
    test/0,0.91,0.91,0.02,
    test/1,,,,the service refused

`id` and `unsafe` are needed; a column for each category that was scored (its name, key, alias or code) and `reason` are
not. Without any category the one score counts for all of them. Scores are probabilities; an empty `unsafe` says that
the image could not be judged.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from judge.data.tables import repeated_title
from judge.runs.files import nearest_path
from prompts.example import Example
from prompts.names import nearest
from prompts.taxonomy import Taxonomy

from .predict import asked_keys, make_row
from .predictions import About, Prediction, Predictions, PredictionsError

COLUMNS = ("id", "unsafe", "reason")


@dataclass(frozen=True)
class Elsewhere:
    """The rows of a file."""

    path: Path
    covers: tuple[str, ...]
    """Keys of the categories that it scores, in the taxonomy's order."""
    rows: Mapping[str, "Row"]
    """By id."""


@dataclass(frozen=True)
class Row:
    """One row of a file."""

    unsafe: float
    """In [0, 1]; NaN where the image was not judged."""
    categories: Mapping[str, float]
    """Key -> score in [0, 1]; NaN where it has none."""
    reason: str | None


def read_elsewhere(path: Path, taxonomy: Taxonomy) -> Elsewhere:
    """Read a file.

    Raises:
        PredictionsError: it cannot be read, a column is missing or is no category, an id stands in it twice, or a value
            is no probability; the message names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            columns = _columns(path, reader.fieldnames or (), taxonomy)
            rows: dict[str, Row] = {}
            for record in reader:
                where = f"{path}, line {reader.line_num}"
                if "" in record or None in record.values():
                    raise PredictionsError(f"{where} has not as many values as there are columns.")
                if record["id"] in rows:
                    raise PredictionsError(f"{where}: the image {record['id']!r} has a row already.")
                rows[record["id"]] = _row(where, record, columns)
    except FileNotFoundError:
        raise PredictionsError(f"There is no file {path}{nearest_path(str(path))}.") from None
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise PredictionsError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    scored = set(columns.values())
    covers = tuple(key for key in taxonomy.keys if key in scored) or taxonomy.keys
    return Elsewhere(path, covers, rows)


def judge_elsewhere(found: Elsewhere, examples: Sequence[Example], about: About) -> Predictions:
    """A row for each image, as `predict` makes them; an image that the file does not name is unjudged.

    Raises:
        PredictionsError: the file names images that are not among `examples`.
    """
    _check_ids(found, [example.id for example in examples])
    rows: list[Prediction] = []
    for example in examples:
        asked = asked_keys(example, about)
        if not asked:
            continue
        row = found.rows.get(example.id)
        if row is None or math.isnan(row.unsafe):
            reason = "has no row of this image" if row is None else "gives no score and no reason"
            told = None if row is None else row.reason
            rows.append(make_row(example, about, asked, reason=told or f"{found.path.name} {reason}"))
        else:
            rows.append(make_row(example, about, asked, unsafe=row.unsafe, categories=row.categories))
    return Predictions(about, tuple(rows))


def _columns(path: Path, names: Sequence[str], taxonomy: Taxonomy) -> dict[str, str]:
    """Column -> key, of the columns that are categories."""
    for column in COLUMNS[:2]:
        if column not in names:
            raise PredictionsError(
                f"{path} has no column {column!r}; it has: {', '.join(names) or 'none'}. Give {', '.join(COLUMNS)} and "
                "a column for each category that was scored."
            )
    if twice := repeated_title(names):
        raise PredictionsError(f"{path} has two columns {twice!r}; keep one.")
    words = {
        word.casefold(): category.key
        for category in taxonomy
        for word in (category.key, category.name, *category.aliases, category.code or category.key)
    }
    columns: dict[str, str] = {}
    for name in names:
        if name in COLUMNS:
            continue
        key = words.get(name.strip().casefold())
        if key is None or key in columns.values():
            what = "is no category" if key is None else "stands for a category that has a column already"
            known = [*COLUMNS, *taxonomy.names]
            raise PredictionsError(
                f"{path}: the column {name!r} {what}{nearest(name, known)}; known: {', '.join(known)}."
            )
        columns[name] = key
    return columns


def _row(where: str, record: Mapping[str, str], columns: Mapping[str, str]) -> Row:
    unsafe = _probability(where, "unsafe", record["unsafe"])
    scores = {key: _probability(where, name, record[name]) for name, key in columns.items()}
    return Row(unsafe, scores, " ".join(record.get("reason", "").split()) or None)


def _probability(where: str, column: str, text: str) -> float:
    if not text.strip():
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not 0 <= value <= 1:
        raise PredictionsError(
            f"{where}: {column} is {text!r}; give a probability from 0 to 1, or nothing where there is none."
        )
    return value


def _check_ids(found: Elsewhere, ids: Sequence[str]) -> None:
    known = set(ids)
    unknown = [one for one in found.rows if one not in known]
    if unknown:
        first = ", ".join(repr(one) for one in unknown[:3])
        raise PredictionsError(
            f"{found.path} names {len(unknown)} images that are not among the {len(ids)} of this benchmark: {first}"
            f"{' ...' if unknown[3:] else ''}{nearest(unknown[0], ids)}. Ids are those of the data set, as in the "
            "column `id` of a run's predictions; a file about more images than --limit leaves has to be cut too."
        )
