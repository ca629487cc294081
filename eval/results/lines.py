"""Measurements side by side: several seeds of one training in one line, and who was asked the same."""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from string import ascii_lowercase

from judge.errors import ConfigError
from prompts.names import nearest

from .measured import Measurement

DEFAULT_METRICS = (
    *("f1", "auc", "pair_score", "category_accuracy", "heldout_f1", "lying_prompt_f1", "calibration_error"),
    *("clean_accuracy", "robust_accuracy", "miss_rate", "unseen_families_f1_drop", "unjudged_share"),
)
"""What a table shows unless told otherwise, as far as any of its runs has it."""
_SEED = re.compile(r"([\W_]*seed[\W_\d]*|[\W_]+s?[\W_\d]*)$", re.IGNORECASE)
"""What is left of a seed at the end of the name that several runs share."""


@dataclass(frozen=True)
class Cell:
    """A number of one line: of one run with its interval, or the mean over seeds with their standard deviation."""

    value: float
    low: float | None = None
    high: float | None = None
    deviation: float | None = None
    """Sample standard deviation over the seeds (n - 1); None for one run."""
    seeds: int = 1
    """How many of the line's runs have this number."""


@dataclass(frozen=True)
class Line:
    """One training, under one seed or several."""

    name: str
    kind: str
    runs: tuple[Path, ...]
    seeds: tuple[int | None, ...]
    rows: int | None
    cells: dict[str, Cell]
    commits: tuple[str, ...]
    asked: str
    """The letter of its questions; lines compare where it is equal."""


@dataclass(frozen=True)
class Results:
    """The lines of a table, in the order of their questions."""

    lines: tuple[Line, ...]
    metrics: tuple[str, ...]
    asked: dict[str, str]
    """Letter -> which questions these are."""

    @property
    def notes(self) -> list[str]:
        """What a reader has to know, a sentence each."""
        cells = [cell for line in self.lines for cell in line.cells.values()]
        found = []
        if any(cell.low is not None for cell in cells):
            found.append("In parentheses: 95 % confidence intervals.")
        if any(cell.deviation is not None for cell in cells):
            found.append(
                "Several seeds: mean ± sample standard deviation (n - 1) over seeds, each of which also draws its own "
                "questions."
            )
        if len(self.asked) > 1:
            found.append(
                "Lines with different letters were asked different questions; their numbers do not compare."
            )
        found += [f"({letter}) {about}." for letter, about in self.asked.items()]
        return found


def put_together(
    measured: Sequence[Measurement], metrics: Sequence[str] = (), *, strict: bool = False
) -> Results:
    """One line for each training, those that were asked the same questions under one letter.

    Runs are one training where their options, taxonomy and number of questions are equal, but for seeds and folders.

    Args:
        measured: at least one.
        metrics: the columns, by their names in metrics.json; by default those of `DEFAULT_METRICS` that any line has.
        strict: refuse lines that were asked different questions.

    Raises:
        ConfigError: nothing measured, a metric that no run has, one run twice, two runs of one training with one
            seed, or (with `strict`) different questions.
    """
    if not measured:
        raise ConfigError("There is no run to make a table of; give run folders, such as runs/demo.")
    groups: dict[str, list[Measurement]] = {}
    for one in measured:
        groups.setdefault(one.options, []).append(one)
    sets: list[_Asked] = []
    lines = []
    for group in groups.values():
        _check_seeds(group)
        place = next((place for place, one in enumerate(sets) if one.includes(group)), len(sets))
        if place == len(sets):
            sets.append(_Asked(_keys(group), {}, _about(group)))
        sets[place].worded.update(group[0].questions.categories)
        lines.append(_line(sorted(group, key=lambda one: (one.seed is None, one.seed)), _letter(place)))
    asked = {_letter(place): one.about for place, one in enumerate(sets)}
    if strict and len(asked) > 1:
        told = "; ".join(f"{line.name}: ({line.asked}) {asked[line.asked]}" for line in lines)
        raise ConfigError(
            f"These runs were not asked the same questions: {told}. Leave some out, or --strict to see them marked."
        )
    lines.sort(key=lambda line: list(asked).index(line.asked))
    return Results(tuple(lines), _columns(lines, metrics), asked)


@dataclass(frozen=True)
class _Asked:
    """The questions of lines that compare."""

    keys: tuple[str, ...]
    worded: dict[str, str]
    """Key of each category -> a hash of its wording, of all lines so far."""
    about: str

    def includes(self, group: Sequence[Measurement]) -> bool:
        """Whether these are the same questions, about categories that are not worded otherwise."""
        worded = group[0].questions.categories
        agree = all(self.worded.get(key, wording) == wording for key, wording in worded.items())
        return agree and self.keys == _keys(group)


def _keys(group: Sequence[Measurement]) -> tuple[str, ...]:
    return tuple(sorted({one.questions.key for one in group}))


def _check_seeds(group: Sequence[Measurement]) -> None:
    seen: dict[int | None, Measurement] = {}
    for one in group:
        if one.seed in seen:
            other = seen[one.seed].run
            same = "the same folder" if other.resolve() == one.run.resolve() else f"both of seed {one.seed}"
            raise ConfigError(
                f"{other} and {one.run} are one training, {same}: no sample of seeds. Give one of them, or train "
                "with another --seed."
            )
        seen[one.seed] = one


def _letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    rest, place = divmod(number, len(ascii_lowercase))
    return (_letter(rest - 1) if rest else "") + ascii_lowercase[place]


def _about(group: Sequence[Measurement]) -> str:
    first, *others = group
    more = f"; and {len(others)} more draws of the same, one a seed" if others else ""
    return f"{first.questions.about}{more}"


def _line(group: Sequence[Measurement], letter: str) -> Line:
    names = dict.fromkeys(name for one in group for name in one.values)
    return Line(
        name=_name(group),
        kind=group[0].kind,
        runs=tuple(one.run for one in group),
        seeds=tuple(one.seed for one in group),
        rows=group[0].rows,
        cells={name: _cell(group, name) for name in names},
        commits=tuple(dict.fromkeys(one.commit for one in group if one.commit is not None)),
        asked=letter,
    )


def _cell(group: Sequence[Measurement], name: str) -> Cell:
    found = [one.values[name] for one in group if name in one.values]
    if len(group) == 1:
        return Cell(found[0].value, found[0].low, found[0].high)
    numbers = [value.value for value in found]
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Cell(statistics.fmean(numbers), deviation=deviation, seeds=len(numbers))


def _name(group: Sequence[Measurement]) -> str:
    """The name that the runs share: `judge` of `judge-seed1` and `judge-seed2`; else the first one's."""
    names = [one.name for one in group]
    if len(names) == 1:
        return names[0]
    shared = "".join(
        signs[0] for signs in takewhile(lambda signs: len(set(signs)) == 1, zip(*names, strict=False))
    )
    return _SEED.sub("", shared) or names[0]


def _columns(lines: Sequence[Line], metrics: Sequence[str]) -> tuple[str, ...]:
    known = dict.fromkeys(name for line in lines for name in line.cells)
    for name in metrics:
        if name not in known:
            raise ConfigError(
                f"No run has a number {name!r}{nearest(name, list(known))}; there are {', '.join(sorted(known))}."
            )
    usual = [name for name in DEFAULT_METRICS if name in known]
    return tuple(metrics) or (*usual, *(name for name in known if name.startswith("attack_success@")))
