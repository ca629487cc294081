"""What is wrong with the rows of a table, in words that say what to change."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PureWindowsPath
from typing import Literal

from .gather import Gathered
from .sources import Skipped

Level = Literal["error", "warning", "note"]
_SHOWN = 3


@dataclass(frozen=True)
class Problem:
    """One thing that was found in a data set."""

    level: Level
    """`error` stops a training; `warning` makes its numbers mean less; `note` says what was understood."""
    what: str
    """What was found, on one line."""
    fix: str = ""
    """What to do about it; empty where `what` says it, or nothing can be done."""


def row_problems(found: Gathered, max_failures: float) -> list[Problem]:
    """Rows that cannot be used, by reason.

    Args:
        found: rows and why some cannot be used.
        max_failures: largest share of them, 0 to 1, with which a training starts.
    """
    if not found.rows:
        return [Problem("error", "the data set has no rows")]
    stops = not found.examples or len(found.skipped) > max_failures * found.rows
    level: Level = "error" if stops else "warning"
    by_status: dict[str, list[Skipped]] = defaultdict(list)
    for row in found.skipped:
        by_status[row.status].append(row)
    return [
        Problem(level, _what(status, rows), _fix(status, rows, found))
        for status, rows in sorted(by_status.items(), key=lambda item: -len(item[1]))
    ]


def _what(status: str, rows: list[Skipped]) -> str:
    count = f"{len(rows):,} {'row' if len(rows) == 1 else 'rows'}"
    if status in ("unknown_category", "bad_label", "no_label"):
        reasons = Counter(row.reason.partition("; ")[0] for row in rows)
        shown = ", ".join(f"{reason} ({number:,})" for reason, number in reasons.most_common(5))
        return f"{count} with {_NAMES[status]}: {shown}{' ...' if len(reasons) > 5 else ''}"
    first = "; ".join(f"{row.id}: {row.reason}" for row in rows[:_SHOWN])
    return f"{count} {_NAMES.get(status, f'cannot be used ({status})')}: {first}{' ...' if rows[_SHOWN:] else ''}"


_NAMES = {
    "unknown_category": "a category that the taxonomy does not have",
    "bad_label": "a label that is neither safe nor unsafe",
    "no_label": "no label",
    "missing": "name a file that is not there",
    "outside_folder": "lead out of the folder of the images",
    "duplicate_id": "have the id or path of an earlier row",
    "contradictory_label": "are called safe and name a category",
    "bad_row": "cannot be read",
    "not_an_image": "name a file that is no image",
    "truncated": "name an image that is cut off",
}
_FIXES = {
    "unknown_category": "Rename them in the table, or add the name to the taxonomy as a category or an alias.",
    "bad_label": "Write safe or unsafe, or the name of a category.",
    "no_label": "Label them or remove them.",
    "outside_folder": "Write paths relative to the folder of the images; folder:TABLE::IMAGES names that folder.",
    "duplicate_id": "Give each row an id of its own in the column id, or remove the copies. Several categories of one "
    "image stand in one row: `Violence;Hate`.",
    "contradictory_label": "Decide on one.",
    "not_an_image": "Save them as PNG, JPEG or WebP, or remove the rows.",
    "truncated": "Copy them again, or remove the rows.",
}


_RELATIVE = "Paths are relative to the folder of the images; folder:TABLE::IMAGES names another one."


def _fix(status: str, rows: list[Skipped], found: Gathered) -> str:
    if status != "missing":
        return _FIXES.get(status, "")
    # Paths are relative to a folder; the usual mistakes are another folder, another suffix, another case.
    for row in rows[:_SHOWN]:
        path = found.images.get(row.id)
        if path is not None and (hint := _file_like(path)):
            return f"For {row.id} there is {hint}. {_RELATIVE}"
    return _RELATIVE


def _file_like(path: Path) -> str | None:
    """A file that was probably meant: the same name in another case, with another suffix, or without a folder."""
    # On this system a backslash is a letter like any other.
    name = PureWindowsPath(path.name).name
    for folder in (path.parent, path.parent.parent):
        names = [file.name for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
        same = [one for one in names if one.casefold() == name.casefold()]
        same += [
            one for one in names if Path(one).stem.casefold() in (Path(name).stem.casefold(), name.casefold())
        ]
        same += get_close_matches(name, names[:10_000], n=1, cutoff=0.8)
        if same:
            return f"{same[0]!r} in {folder}"
    return None
