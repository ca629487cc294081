"""What runs measured: a classifier, one set of questions, and every number about them, with seed and commit."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge.errors import CheckpointError, ConfigError
from judge.runs.folder import RunDir
from judge.runs.resume import MAY_DIFFER, MAY_DIFFER_FAMILIES

from .values import KINDS, Part, Value

SEEDS = ("seed", "data_seed", "draws")
_MEASURING = ("test_rows", "threshold", "obedience_rows", "attack_rows", "attack_steps", "attack_epsilons")
"""Options that leave the trained weights as they are, but not what was measured."""


@dataclass(frozen=True)
class Questions:
    """What a classifier was asked. Numbers compare only where this is equal."""

    key: str
    """A hash of the questions themselves where the run keeps them, else of every option that draws them."""
    categories: Mapping[str, str]
    """Key of each category of the run's taxonomy -> a hash of how it is worded; heads have no held-out ones."""
    about: str
    """The same for a reader."""


@dataclass(frozen=True)
class Measurement:
    """One classifier, measured once."""

    name: str
    kind: str
    """In words, such as `judge`."""
    run: Path
    part: str
    """Which of the run's classifiers; empty where there is one."""
    values: Mapping[str, Value]
    rows: int | None
    images: int | None
    seed: int | None
    commit: str | None
    """Seven digits; with `+changes` where files had been changed since."""
    questions: Questions
    options: str
    """A hash of the options but for seed and folders: runs that share it are one training under several seeds."""


def read_measurements(path: str | Path, *, before: bool = False) -> list[Measurement]:
    """Every classifier that a run measured.

    Args:
        path: the run folder; `NAME=FOLDER` gives it another name.
        before: also what was measured before the training.

    Raises:
        CheckpointError: no run folder, a damaged one, or one that has not measured anything yet.
        ConfigError: a kind of run that measures no classifier.
    """
    label, folder = _named(str(path))
    run = RunDir.open(folder)
    if run.kind not in KINDS:
        raise ConfigError(
            f"{folder} is a run of kind {run.kind!r}, which measures no classifier; a table takes runs of kind "
            f"{', '.join(KINDS)}."
        )
    kind, parts = KINDS[run.kind]
    metrics = run.metrics
    try:
        found = [part for part in parts(metrics) if before or not part.before]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{run.path / 'metrics.json'} is not what a run of kind {run.kind!r} writes ({type(error).__name__}: "
            f"{error}); it is of another version, or damaged."
        ) from None
    return [_measurement(run, label, kind, part, _commit(metrics.get("commit"))) for part in found]


def _named(text: str) -> tuple[str, Path]:
    """The name that a table gives a run, and its folder."""
    name, sign, folder = text.partition("=")
    if sign and name and not Path(text).exists():
        return name, Path(folder)
    path = Path(text)
    return path.resolve().name, path


def _measurement(run: RunDir, label: str, kind: str, part: Part, commit: str | None) -> Measurement:
    suffix = ", ".join(word for word in (part.name, "before" if part.before else "") if word)
    config = run.config
    return Measurement(
        name=f"{label}: {suffix}" if suffix else label,
        kind=kind,
        run=run.path,
        part=suffix,
        values=part.values,
        rows=part.rows,
        images=part.images,
        seed=_seed(config),
        commit=commit,
        questions=_questions(run, part, config),
        options=_hash([run.kind, suffix, part.rows, run.taxonomy.hash, _options(config)]),
    )


def _seed(config: Mapping[str, Any]) -> int | None:
    draws = config.get("draws")
    seed = draws[0] if isinstance(draws, list) and len(draws) == 1 else config.get("seed")
    return seed if isinstance(seed, int) else None


def _commit(found: Any) -> str | None:
    if not isinstance(found, Mapping) or not found.get("commit"):
        return None
    return f"{str(found['commit'])[:7]}{'+changes' if found.get('dirty') else ''}"


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide what was trained and measured, apart from seeds."""
    ignored = {*SEEDS, "resume", *MAY_DIFFER} - set(_MEASURING)
    return {
        name: value
        for name, value in config.items()
        if name not in ignored and not name.startswith(MAY_DIFFER_FAMILIES)
    }


def _questions(run: RunDir, part: Part, config: Mapping[str, Any]) -> Questions:
    rows = None if part.answers is None else _rows_asked(run, part.answers)
    drawn = ("dataset", "held_out", "flip", "limit", "rows", "test_rows", "clean_rows", *SEEDS)
    options = {name: config.get(name) for name in (*drawn, "split", "policy_rows", "unsafe_rows")}
    kept = "options" if rows is None else "questions"
    key = _hash([rows or {**options, "taxonomy": run.taxonomy.hash}, part.asked])
    held_out = ", ".join(map(str, config.get("held_out") or ()))
    about = [
        f"{part.rows:,} questions" if part.rows is not None else "questions",
        f"on {part.images:,} images" if part.images is not None else "",
        f"of {config.get('dataset', 'an unknown data set')}",
    ]
    details = [
        f"taxonomy {run.taxonomy.name} {run.taxonomy.hash[:8]}",
        f"held out: {held_out}" if held_out else "",
        f"covered categories only: {', '.join(part.asked['covers'])}" if "covers" in part.asked else "",
        f"attacked by the suite {part.asked['suite']['name']}" if "suite" in part.asked else "",
        "by queries only" if part.asked.get("knowledge") == "queries" else "",
        f"{kept} {key[:8]}",
    ]
    text = f"{' '.join(word for word in about if word)}; {'; '.join(d for d in details if d)}"
    worded = {category.key: _hash(category.to_dict()) for category in run.taxonomy}
    return Questions(key, worded, text)


def _rows_asked(run: RunDir, name: str) -> list[list[Any]] | None:
    """What each kept row was a question about, sorted; None where the run's rows are gone.

    Of an obedience run, the rows in the plain wording.
    """
    if not (run.path / "rows" / f"{name}.jsonl").is_file():
        return None
    fields = ("id", "set", "truth", "image", "policy", "prompt")
    rows = (row for row in run.read_rows(name) if row.get("family", "plain") == "plain")
    return sorted(([row.get(field) for field in fields] for row in rows), key=lambda row: str(row[:2]))


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
