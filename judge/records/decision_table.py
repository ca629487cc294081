"""The decision log as a table for people: CSV that no spreadsheet takes for formulas."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from prompts.printable import printable

from .entries import Decision

COLUMNS = (
    *("id", "time", "moderator", "action", "status", "categories", "note"),
    *("item_id", "name", "sha256", "verdict_id", "verdict", "verdict_categories", "unsafe", "scores"),
    *("thresholds", "decided_by", "reason", "taxonomy", "taxonomy_version", "taxonomy_hash"),
    *("model", "model_sha256", "arbiter"),
)
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""What a cell must not begin with: spreadsheets, some also with full-width signs, would compute it."""


def csv_lines(decisions: Iterable[Decision]) -> Iterator[str]:
    """The decisions as lines of CSV; the first has the names of the columns."""
    line = io.StringIO()
    table = csv.DictWriter(line, COLUMNS, lineterminator="\n")
    table.writeheader()
    yield line.getvalue()
    for decision in decisions:
        line.seek(0)
        line.truncate()
        table.writerow({name: _cell(value) for name, value in decision_record(decision).items()})
        yield line.getvalue()


def decision_record(decision: Decision) -> dict[str, Any]:
    """Column -> value, of one decision."""
    row, ruling = decision.verdict, decision.ruling
    return {
        "id": decision.id,
        "time": decision.time,
        "moderator": decision.moderator,
        "action": ruling.action,
        "status": ruling.status,
        "categories": "; ".join(ruling.categories),
        "note": decision.note,
        "item_id": decision.item.id,
        "name": decision.item.name,
        "sha256": decision.item.sha256,
        "verdict_id": decision.verdict_id,
        "verdict": row["status"],
        "verdict_categories": "; ".join(name for name, flagged in row["flags"].items() if flagged),
        "unsafe": row["unsafe"],
        "scores": json.dumps(row["scores"], ensure_ascii=False),
        "thresholds": json.dumps(row["thresholds"], ensure_ascii=False),
        "decided_by": row["decided_by"],
        "reason": row["reason"],
        "taxonomy": row["taxonomy"]["name"],
        "taxonomy_version": row["taxonomy"]["version"],
        "taxonomy_hash": row["taxonomy"]["hash"],
        "model": row["model"]["name"],
        "model_sha256": row["model"]["sha256"],
        "arbiter": row["arbiter"],
    }


def _cell(value: object) -> str:
    """A value on one printable line; an apostrophe in front of what would be a formula, as spreadsheets write texts."""
    text = "" if value is None else printable(value)
    return f"'{text}" if begins_formula(text) else text


def begins_formula(text: str) -> bool:
    """Whether a spreadsheet would compute a cell with this text."""
    return text.startswith(_FORMULA)
