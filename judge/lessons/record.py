"""A run's record of its lessons, and of what was measured beyond them.

`run.json` holds what lessons were (`lessons`), written by the recipe that trained. `measured.json` holds what was
measured of the finished run, by its own evaluation and by `arbiter obedience`. It is a file of its own: it changes no
answer that was given before, and a cascade that was calibrated with this run stays valid.

A family of the obedience suite widens the envelope if it was asked on 60 rows or more, reaches an F1 of 0.7 (flagging
everything gives .667), and costs, at the upper end of the 95 % interval, at most 0.1 of the plain wording's F1 on the
same questions. The last measurement of a family, and of a category, is the one that counts.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from judge.errors import CheckpointError
from judge.runs.folder import RunDir
from prompts.taxonomy import Category

from .envelope import LessonsEnvelope
from .evidence import Evidence, read_text

MEASURED = "measured.json"
LEAST_ROWS = 60
LEAST_F1 = 0.7
MOST_LOST = 0.1
"""What a family needs to widen the envelope: rows, F1, and the F1 it costs at the upper end of the 95 % interval."""


@dataclass(frozen=True)
class Record:
    """What a run keeps; both None for a run of an older version."""

    envelope: LessonsEnvelope | None = None
    evidence: Evidence | None = None

    @property
    def known(self) -> bool:
        """Whether the run keeps anything."""
        return self.evidence is not None


def write_lessons(run: RunDir, envelope: LessonsEnvelope | None, trained: Iterable[str]) -> None:
    """Record what a run is trained on.

    Args:
        run: its folder.
        envelope: of the rows; None for a head with fixed categories, which reads no policy.
        trained: what `trained_texts` gave.
    """
    reach = None if envelope is None else envelope.to_dict()
    run.update_manifest(lessons={"envelope": reach, "trained": sorted(trained)})


def inherit_lessons(run: RunDir, first: RunDir) -> None:
    """Take over the lessons of the run that this one goes on from."""
    run.update_manifest(lessons=first.manifest.get("lessons"))


def write_measured(
    run: RunDir,
    categories: Iterable[tuple[Category, float, int]] = (),
    families: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Add measurements to those that the run has, in place of earlier ones of the same category or family.

    Args:
        run: of the classifier that was measured.
        categories: each with the F1 of the questions about it and their number.
        families: by name; what `obeyed` reads, and `envelope` of what was asked.
    """
    before = _read_measured(run)
    found = {
        read_text(category): {"name": category.name, "f1": f1, "rows": rows}
        for category, f1, rows in categories
    }
    merged = {
        "categories": before["categories"] | found,
        "families": before["families"] | dict(families or {}),
    }
    run.write_text(MEASURED, json.dumps(merged, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_record(run: RunDir) -> Record:
    """What a run keeps of its lessons, widened by what was measured.

    Raises:
        CheckpointError: the record is damaged.
    """
    lessons = run.manifest.get("lessons")
    if lessons is None:
        return Record()
    measured, source = _read_measured(run), str(run.path)
    try:
        scores = {text: about["f1"] for text, about in measured["categories"].items()}
        wider = [about["envelope"] for about in measured["families"].values() if obeyed(about)]
        found = record_from_dict({**lessons, "measured": scores}, source)
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{source} holds a damaged record of its lessons ({error}).") from None
    if found.envelope is None:
        return found
    reach = found.envelope
    for further in wider:
        reach = reach.widened(LessonsEnvelope.from_dict(further, source))
    return replace(found, envelope=reach)


def record_to_dict(record: Record) -> dict[str, Any] | None:
    """A record as one JSON object, for an export without its run; None where nothing is known."""
    if record.evidence is None:
        return None
    return {
        "envelope": None if record.envelope is None else record.envelope.to_dict(),
        "trained": sorted(record.evidence.trained),
        "measured": dict(record.evidence.measured),
    }


def record_from_dict(data: Any, source: str) -> Record:
    """What `record_to_dict` gave.

    Raises:
        CheckpointError: it is something else; `source` names the file.
    """
    if data is None:
        return Record()
    try:
        envelope, trained = data["envelope"], data["trained"]
        if not all(isinstance(text, str) for text in trained):
            raise TypeError("a trained category is no text")
        scores = {text: float(f1) for text, f1 in data["measured"].items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{source} holds a damaged record of its lessons ({error}).") from None
    reach = None if envelope is None else LessonsEnvelope.from_dict(envelope, source)
    return Record(reach, Evidence(frozenset(trained), scores))


def obeyed(about: Mapping[str, Any]) -> bool:
    """Whether a family of the obedience suite was answered well enough to widen the envelope.

    Args:
        about: its `rows`, `f1` and `f1_drop_interval`; the latter two None where undefined.
    """
    if about["rows"] < LEAST_ROWS:
        return False
    f1, highest = about["f1"], about["f1_drop_interval"][1]
    return f1 is not None and highest is not None and f1 >= LEAST_F1 and highest <= MOST_LOST


def _read_measured(run: RunDir) -> dict[str, dict[str, Any]]:
    path = run.path / MEASURED
    if not path.is_file():
        return {"categories": {}, "families": {}}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: dict(found[name]) for name in ("categories", "families")}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); delete it, and measure again with `arbiter obedience`."
        ) from None
