"""A finished labelling -> suggestions for people who annotate: what is suggested, how sure it is, and who says so."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from judge.errors import ConfigError, first_line
from judge.runs.files import nearest_path
from judge.verdicts.rows import is_verdict_row
from prompts.verdict import DEFAULT_THRESHOLD

_DIGITS = 12
"""Of a hash in a version; enough to tell any two judges of a project apart."""


class Suggestion(NamedTuple):
    """What is suggested for one image."""

    flagged: tuple[str, ...]
    """The violated categories."""
    unsafe: bool
    sureness: float
    """From 0, at the threshold, to 1."""


@dataclass(frozen=True)
class Finished:
    """The judged images of a labelling."""

    suggestions: Mapping[str, Mapping[str, Suggestion]]
    """Path -> version -> suggestion. A later row of the same path and version replaces an earlier one; an unjudged one
    takes it back."""
    categories: tuple[str, ...]
    """All that were judged."""
    unjudged: int
    """Rows that are left out, because nobody can say anything of their images."""


def read_finished(paths: Sequence[Path], taxonomy: str | None = None) -> Finished:
    """Read the rows of `arbiter judge --json`, and the folders of `arbiter label`.

    Args:
        paths: files of JSON lines, and folders of Parquet.
        taxonomy: only rows of the taxonomy with this name.

    Raises:
        ConfigError: a file that cannot be read, or a line that is no verdict row; or none is left.
    """
    suggestions: dict[str, dict[str, Suggestion]] = {}
    categories: dict[str, None] = {}
    names: set[str] = set()
    unjudged = 0
    for path in paths:
        for where, row in _rows(path):
            if not is_verdict_row(row):
                raise ConfigError(f"{where} is no verdict row (docs/verdict_row.schema.json).")
            names.add(row["taxonomy"]["name"])
            if taxonomy is not None and row["taxonomy"]["name"] != taxonomy:
                continue
            name = row["image"]["path"]
            if row["status"] == "unjudged":
                unjudged += 1
                if suggestions.get(name, {}).pop(version_of(row), None) and not suggestions[name]:
                    del suggestions[name]
                continue
            if not isinstance(name, str) or name == "-":
                raise ConfigError(f"{where}: the image has no path, so no task can be found for it.")
            categories |= dict.fromkeys(row["thresholds"])
            suggestions.setdefault(name, {})[version_of(row)] = suggestion_of(row)
    if not suggestions and not unjudged:
        known = f"; there are rows of {', '.join(sorted(names))}" if names else ""
        raise ConfigError(f"No rows{f' of the taxonomy {taxonomy!r}' if taxonomy else ''} were given{known}.")
    return Finished(suggestions, tuple(categories), unjudged)


def suggestion_of(row: Mapping[str, Any]) -> Suggestion:
    """What a judged row suggests.

    How sure it is: the distance of a score from its threshold, as a part of what it could be on that side. An unsafe
    image is as sure as its surest category, a safe one as its most doubtful one; without categories, as its whole.
    """
    scores, limits = row["scores"], row["thresholds"]
    flagged = tuple(name for name, violated in row["flags"].items() if violated)
    unsafe = row["status"] == "unsafe"
    if not scores:
        return Suggestion(flagged, unsafe, abs(row["unsafe"] - DEFAULT_THRESHOLD) / DEFAULT_THRESHOLD)
    distances = {name: _distance(score, limits[name]) for name, score in scores.items()}
    sureness = max(map(distances.__getitem__, flagged)) if flagged else min(distances.values())
    return Suggestion(flagged, unsafe, sureness)


def version_of(row: Mapping[str, Any]) -> str:
    """`model_version` of a row's prediction: judge and taxonomy with their hashes, and thresholds other than 0.5.

    What could change a verdict changes it, so that a labelling is told from the next one. It has no comma, as Label
    Studio joins versions with them.
    """
    model, taxonomy = row["model"], row["taxonomy"]
    parts = [
        f"{model['name']}@{model['sha256'][:_DIGITS]}" if model.get("sha256") else str(model["name"]),
        f"{taxonomy['name']}@{taxonomy['hash'][:_DIGITS]}",
    ]
    limits = row["thresholds"]
    if any(limit != DEFAULT_THRESHOLD for limit in limits.values()):
        digest = hashlib.sha256(json.dumps(limits, sort_keys=True).encode()).hexdigest()
        parts.append(f"thresholds@{digest[:_DIGITS]}")
    return " ".join("_".join(part.replace(",", "_").split()) for part in parts)


def _distance(score: float, limit: float) -> float:
    if score >= limit:
        return (score - limit) / (1 - limit) if limit < 1 else 1.0
    return (limit - score) / limit


# --- rows ------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.is_dir():
        from judge.labelling.writer import verdict_rows

        yield from ((str(path), row) for _, row in verdict_rows(path))
        return
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, _parse(line, where)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{nearest_path(str(path))}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {first_line(error)}.") from error


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where} is no JSON; give what `arbiter judge --json` printed.") from None
