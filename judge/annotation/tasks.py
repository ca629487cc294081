"""Who annotates what: two annotators for every image, a third where they disagree; as CSV or Label Studio tasks."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from judge.errors import ConfigError, first_line
from judge.runs.files import write_atomically
from prompts.taxonomy import Taxonomy

from .answers import COLUMNS
from .cells import csv_text, name_cell, text_cell
from .images import Picture
from .label_studio import LOCAL_FILES, import_tasks, labelling_config
from .votes import Ballot

_ANNOTATOR = re.compile(r"[A-Za-z0-9][\w.@-]{0,63}")
"""A name that can be part of a file's name."""


@dataclass(frozen=True)
class Task:
    """An image, and who is asked about it."""

    picture: Picture
    annotators: tuple[str, ...]


def read_annotators(text: str, least: int) -> tuple[str, ...]:
    """`Anna,ben` -> anna and ben, in lower case as in answers.

    Raises:
        ConfigError: fewer than `least`, a name twice, or one that no file could be named after.
    """
    names = tuple(name.strip().casefold() for name in text.split(",") if name.strip())
    bad = [name for name in names if not _ANNOTATOR.fullmatch(name)]
    if bad:
        raise ConfigError(f"Annotator {bad[0]!r}: use letters, digits, and . _ - @ behind the first.")
    if len(set(names)) < max(len(names), least):
        raise ConfigError(f"--annotators {text!r}: give at least {least}, each once, such as anna,ben.")
    return names


def assign_pairs(pictures: Sequence[Picture], annotators: Sequence[str]) -> list[Task]:
    """Two annotators for each image; of more than two, each pair in turn."""
    pairs = list(combinations(annotators, 2))
    return [Task(picture, pairs[number % len(pairs)]) for number, picture in enumerate(pictures)]


def assign_all(pictures: Sequence[Picture], annotators: Sequence[str]) -> list[Task]:
    """Every annotator for every image, as in the second round."""
    return [Task(picture, tuple(annotators)) for picture in pictures]


def assign_third(ballots: Sequence[Ballot], annotators: Sequence[str]) -> tuple[list[Task], list[Ballot]]:
    """For each image one annotator who has not labelled it, the one with fewest tasks; and the images without any."""
    tasks: list[Task] = []
    left: list[Ballot] = []
    load: Counter[str] = Counter()
    for ballot in ballots:
        asked = {vote.annotator for vote in ballot.votes if vote.label}
        free = [name for name in annotators if name not in asked]
        if not free:
            left.append(ballot)
            continue
        chosen = min(free, key=lambda name: load[name])
        load[chosen] += 1
        tasks.append(Task(ballot.picture, (chosen,)))
    return tasks, left


def write_tasks(
    tasks: Sequence[Task],
    out: Path,
    taxonomy: Taxonomy,
    *,
    only_categories: bool = False,
    prefix: str = LOCAL_FILES,
) -> dict[Path, int]:
    """Write tasks, and return the files with the number of tasks in each.

    A CSV is for one annotator, so that nobody sees what another one answers: `round1.csv` becomes `round1-anna.csv`
    and `round1-ben.csv`, with empty cells to fill in. Label Studio keeps its annotators apart by itself: `round1.json`
    holds every image once, and `round1.xml` beside it the labelling configuration.

    Args:
        tasks: what to write.
        out: a path that ends in `.csv` or `.json`.
        taxonomy: whose categories can be chosen.
        only_categories: for the second round, without the question safe, unsafe or N/A.
        prefix: of the images' addresses in Label Studio.

    Raises:
        ConfigError: another ending, no such folder, or one of the files exists already.
    """
    if out.suffix == ".csv":
        names = list(dict.fromkeys(name for task in tasks for name in task.annotators))
        texts = {out.with_name(f"{out.stem}-{name}.csv"): _table(tasks, name) for name in names}
        counts = [sum(name in task.annotators for task in tasks) for name in names]
    elif out.suffix == ".json":
        found = import_tasks([task.picture for task in tasks], [task.annotators for task in tasks], prefix)
        config = labelling_config(taxonomy, only_categories=only_categories)
        texts = {out: json.dumps(found, indent=1, ensure_ascii=False), out.with_suffix(".xml"): config}
        counts = [len(tasks), len(tasks)]
    else:
        raise ConfigError(f"--out {out}: give a name that ends in .csv, or in .json for Label Studio.")
    write_new(texts)
    return dict(zip(texts, counts, strict=True))


def write_new(texts: dict[Path, str]) -> None:
    """Write files that do not exist yet: annotators may have filled in those that do.

    Raises:
        ConfigError: one exists, its folder does not, or it cannot be written.
    """
    for path in texts:
        if path.exists():
            raise ConfigError(f"{path} exists, and answers may be in it; name another file.")
        if not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}.")
    try:
        for path, text in texts.items():
            write_atomically(path, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {first_line(error)}.") from error


def _table(tasks: Sequence[Task], annotator: str) -> str:
    rows = [
        (
            name_cell(one.picture.name),
            annotator,
            "",
            "",
            one.picture.source,
            text_cell(one.picture.collected_for),
        )
        for one in tasks
        if annotator in one.annotators
    ]
    return csv_text(COLUMNS, rows)
