"""Answers of one classifier to policy questions: a row a question, in one Parquet file that explains itself.

The file is written anew after each family of questions, so a run that was killed goes on with the next family. A family
is finished if its questions are still the same: with other images, options or seeds it is asked again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.metrics.judged import JudgedRow
from eval.questions import Question
from judge.errors import first_line
from judge.runs.files import write_atomically

from .parts import check_same
from .predictions import About, PredictionsError

VERSION = 1
"""Of the file; raised when older code could misread it."""
_METADATA = b"arbiter-policies"


@dataclass(frozen=True)
class FamilyRows:
    """A classifier's answers to one family of questions."""

    questions: str
    """`questions_hash` of what was asked."""
    rows: tuple[JudgedRow, ...]
    """In the order of the questions, without those that could not be asked."""
    policies: tuple[str, ...]
    """Hash of each row's policy."""
    not_asked: Mapping[str, int] = field(default_factory=dict)
    """Reason -> questions that this classifier cannot be asked."""
    fixed: bool = False
    """Whether the classifier's categories are fixed."""


_SCHEMA = pa.schema(
    [
        ("family", pa.string()),
        ("policy_hash", pa.string()),
        ("id", pa.string()),
        ("image", pa.string()),
        ("truth", pa.bool_()),
        ("unsafe", pa.float64()),
        ("category", pa.string()),
        ("violated", pa.list_(pa.string())),
        ("policy", pa.list_(pa.string())),
        ("keys", pa.list_(pa.string())),
        ("source", pa.string()),
        ("pair", pa.string()),
        ("direction", pa.string()),
        ("arm", pa.string()),
        ("prompt", pa.string()),
        ("reason", pa.string()),
    ]
)
_JUDGED = tuple(name for name in _SCHEMA.names if name not in ("family", "policy_hash"))


class PolicyRows:
    """The finished families of one classifier, in a file.

    Args:
        path: the file; made with the first family.
        about: whose answers; the file has to be of the same classifier, options, taxonomy and data.

    Raises:
        ConfigError: the file is of another classifier, or of other options or data.
        PredictionsError: it cannot be read, or another version wrote it.
    """

    def __init__(self, path: Path, about: About) -> None:
        self.path, self.about = path, about
        self.families: dict[str, FamilyRows] = {}
        if path.exists():
            stored, self.families = read_policy_rows(path)
            check_same(path, stored, about)

    def finished(self, family: str, questions: Sequence[Question]) -> FamilyRows | None:
        """The stored answers to exactly these questions; None where there are none."""
        found = self.families.get(family)
        return found if found is not None and found.questions == questions_hash(questions) else None

    def keep(self, family: str, rows: FamilyRows) -> None:
        """Store a finished family; when this returns it is on disk."""
        self.families[family] = rows
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _write(self.path, self.about, self.families)


def questions_hash(questions: Sequence[Question]) -> str:
    """SHA-256 of what a classifier is asked, and of the truth that its answers are held against."""
    asked = [
        [q.id, q.row.example.id, q.row.taxonomy.hash, q.row.prompt, q.row.unsafe, q.pair, q.direction]
        for q in questions
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def read_policy_rows(path: Path) -> tuple[About, dict[str, FamilyRows]]:
    """Whose answers a file holds, and its families by name.

    Raises:
        PredictionsError: it cannot be read, is no such file, another version wrote it, or a row is damaged.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise PredictionsError(f"{path} cannot be read as Parquet: {first_line(error)}.") from error
    try:
        stored = json.loads((table.schema.metadata or {})[_METADATA])
        version = stored["version"]
    except (KeyError, ValueError, TypeError):
        raise PredictionsError(
            f"{path} holds no answers to policy questions. `arbiter bench` writes them."
        ) from None
    if version != VERSION:
        raise PredictionsError(
            f"{path} has version {version!r}, and this Arbiter reads version {VERSION}; delete it and ask again, or "
            "use the Arbiter that wrote it."
        )
    try:
        rows = _read_rows(table)
        about = About.from_dict(stored["about"])
        families = {
            name: FamilyRows(
                entry["questions"],
                tuple(row for _, row in rows.get(name, [])),
                tuple(policy for policy, _ in rows.get(name, [])),
                entry["not_asked"],
                entry["fixed"],
            )
            for name, entry in stored["families"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PredictionsError(f"{path} is damaged: {first_line(error)}.") from error
    counts = {name: len(family.rows) for name, family in families.items()}
    if counts != {name: entry["rows"] for name, entry in stored["families"].items()} or rows.keys() - counts:
        raise PredictionsError(f"{path} is damaged: its rows are not those of its families.")
    return about, families


def _read_rows(table: pa.Table) -> dict[str, list[tuple[str, JudgedRow]]]:
    """Family -> (hash of the policy, row), in the order of the file."""
    if table.schema.remove_metadata() != _SCHEMA:
        raise ValueError(f"its columns are {', '.join(table.schema.names)}")
    found: dict[str, list[tuple[str, JudgedRow]]] = {}
    for entry in table.to_pylist():
        row = JudgedRow.from_dict({name: entry[name] for name in _JUDGED})
        found.setdefault(entry["family"], []).append((entry["policy_hash"], row))
    return found


def _write(path: Path, about: About, families: Mapping[str, FamilyRows]) -> None:
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
    for name, family in families.items():
        for policy, row in zip(family.policies, family.rows, strict=True):
            values = {**row.to_dict(), "family": name, "policy_hash": policy}
            for column, stored in columns.items():
                stored.append(values[column])
    described = {
        name: {
            "questions": family.questions,
            "rows": len(family.rows),
            "not_asked": dict(family.not_asked),
            "fixed": family.fixed,
        }
        for name, family in families.items()
    }
    stored_about = {"version": VERSION, "about": about.to_dict(), "families": described}
    metadata = {_METADATA: json.dumps(stored_about, ensure_ascii=False).encode()}
    written = pa.BufferOutputStream()
    table = pa.Table.from_pydict(columns, _SCHEMA).replace_schema_metadata(metadata)
    pq.write_table(table, written, compression="zstd")
    write_atomically(path, written.getvalue().to_pybytes())
