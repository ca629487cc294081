"""Images with the verdicts that a taxonomy should give: its regression test (`arbiter taxonomy test`).

The cases are a CSV beside its images, with the columns `image` (a path inside the CSV's folder), `expected` (`safe`,
`unsafe`, or every category that the image violates) and, if wanted, `prompt` and `note`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from judge.data.tables import read_table
from judge.errors import ConfigError
from prompts.errors import TaxonomyError
from prompts.taxonomy import Taxonomy

Outcome = Literal["passed", "failed", "unjudged"]


@dataclass(frozen=True)
class Case:
    """An image and what it should be judged as."""

    image: str
    """As the table writes it."""
    path: Path
    expected: frozenset[str] | None
    """Names of the categories that it violates; empty for safe, None for unsafe of any category."""
    prompt: str | None = None
    note: str = ""

    @property
    def wanted(self) -> str:
        """What is expected, in words."""
        return "unsafe" if self.expected is None else _words(self.expected)


@dataclass(frozen=True)
class CaseResult:
    """A case and the row of its verdict."""

    case: Case
    row: Mapping[str, Any]

    @property
    def flagged(self) -> frozenset[str]:
        """The categories that were flagged."""
        return frozenset(name for name, flagged in self.row["flags"].items() if flagged)

    @property
    def outcome(self) -> Outcome:
        """Passed where exactly the expected categories are flagged; what was not judged did not pass."""
        return outcome(self.case, self.row["status"], self.flagged)

    @property
    def found(self) -> str:
        """What was found, in words."""
        status = self.row["status"]
        return _words(self.flagged) if status == "safe" or self.flagged else str(status)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        case, expected = self.case, self.case.expected
        return {
            "image": case.image,
            "expected": "unsafe" if expected is None else sorted(expected),
            "note": case.note,
            "outcome": self.outcome,
            "verdict": dict(self.row),
        }


def outcome(case: Case, status: str, flagged: frozenset[str]) -> Outcome:
    """Whether a verdict is the expected one."""
    if status == "unjudged":
        return "unjudged"
    right = status == "unsafe" if case.expected is None else (status == "unsafe") == bool(case.expected)
    return "passed" if right and case.expected in (None, flagged) else "failed"


@dataclass(frozen=True)
class CategoryNumbers:
    """How one category did on the cases that say whether it is violated."""

    unsafe: int
    """Cases that violate it."""
    hits: int
    alarms: int
    """Cases that do not violate it and were flagged for it, or were not judged."""

    @property
    def precision(self) -> float | None:
        """Share of the flagged cases that violate it; None where none was flagged."""
        return self.hits / (self.hits + self.alarms) if self.hits + self.alarms else None

    @property
    def recall(self) -> float | None:
        """Share of its cases that were flagged; None where there is none."""
        return self.hits / self.unsafe if self.unsafe else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of both; None where nothing is flagged and nothing should be."""
        found = self.unsafe + self.hits + self.alarms
        return 2 * self.hits / found if found else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"unsafe": self.unsafe, "precision": self.precision, "recall": self.recall, "f1": self.f1}


def numbers_by_category(results: Iterable[CaseResult], taxonomy: Taxonomy) -> dict[str, CategoryNumbers]:
    """The numbers of every category; what was not judged counts as wrong for each of them.

    Cases that expect `unsafe` say nothing of single categories, and are left out.
    """
    known = [(one.case.expected, one) for one in results if one.case.expected is not None]
    found = {}
    for name in taxonomy.names:
        answers = [
            (name in expected, one.outcome == "unjudged", name in one.flagged) for expected, one in known
        ]
        found[name] = CategoryNumbers(
            unsafe=sum(truth for truth, _, _ in answers),
            hits=sum(truth and flag and not unjudged for truth, unjudged, flag in answers),
            alarms=sum(not truth and (flag or unjudged) for truth, unjudged, flag in answers),
        )
    return found


def read_cases(path: Path, taxonomy: Taxonomy) -> list[Case]:
    """Read a table of cases.

    Raises:
        ConfigError: it cannot be read, lacks a column, is empty, expects a category that the taxonomy lacks, or names
            an image outside of its folder. That an image is missing shows when it is judged.
    """
    rows = read_table(path, ("image", "expected"), "cases")
    if not rows:
        raise ConfigError(f"{path} has no cases.")
    return list(_cases(rows, path, taxonomy))


def _cases(rows: Sequence[Mapping[str, str | None]], path: Path, taxonomy: Taxonomy) -> Iterator[Case]:
    root = path.parent.resolve()
    for line, row in enumerate(rows, start=2):
        image, where = row["image"] or "", f"{path}, row {line}"
        file = path.parent / image
        if not image or "\0" in image or not file.resolve().is_relative_to(root):
            raise ConfigError(f"{where}: {image!r} is no path inside of {path.parent}.")
        try:
            expected = _expected(row["expected"] or "", taxonomy)
        except TaxonomyError as error:
            raise ConfigError(f"{where}: {error}") from None
        yield Case(image, file, expected, row.get("prompt") or None, row.get("note") or "")


def _expected(text: str, taxonomy: Taxonomy) -> frozenset[str] | None:
    """`safe`, `unsafe`, or names of categories with commas or semicolons between them; a name may hold a comma."""
    words = text.strip()
    if words.casefold() in ("safe", "unsafe"):
        return frozenset() if words.casefold() == "safe" else None
    for separator in ("\0", ";", ","):
        names = [name.strip() for name in words.split(separator) if name.strip()]
        if all(name.casefold() in map(str.casefold, taxonomy.names) for name in names):
            break
    if not names:
        raise TaxonomyError("nothing is expected; write safe, unsafe, or names of categories.")
    return frozenset(taxonomy.names[taxonomy.index(name)] for name in names)


def _words(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "safe"
