"""Decided votes -> a data set that `folder:PATH` reads, with everything that it was made of beside it.

labels.csv, taxonomy.yaml       safe and unsafe images; what training, calibration and benchmarks read
images/...                      copies of them, unless the data set is made in the folder of the images
annotation/votes.csv            every row of every answer, with its use and what became of its image
annotation/not_applicable.csv   images that the majority calls N/A
annotation/uncategorised.csv    unsafe images without a majority for a category: for a second round
annotation/unresolved.csv       images without a majority for a label, and why
annotation/statistics.json      Tables 2 and 9 of UnsafeBench, and agreement; statistics.md for people
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from judge.errors import ConfigError, first_line
from judge.runs.files import write_atomically
from prompts.taxonomy import Taxonomy

from .answers import COLUMNS, Answer
from .cells import csv_text, name_cell, text_cell
from .images import Folder
from .statistics import markdown, statistics
from .votes import Outcome, State, Use, collect_votes, decide

LISTS: tuple[State, ...] = ("not_applicable", "uncategorised", "unresolved")
"""States of images that are left out of the data set, each with a table of its own."""
LABEL_COLUMNS = ("path", "label", "categories", "source", "id", "collected_for")


def merge_answers(
    answers: Sequence[Answer],
    taxonomy: Taxonomy,
    folder: Folder,
    out: Path,
    *,
    with_categories: bool = True,
    anonymous: bool = False,
) -> dict[str, Any]:
    """Decide by majority, write the data set, and return its `statistics`.

    Args:
        answers: those of all rounds; in the order of their rounds, as agreement is that of the first two labels.
        taxonomy: what was annotated by.
        folder: of the images.
        out: a new or empty folder; or the folder of the images, if it has no labels.csv.
        with_categories: whether unsafe images need a majority for a category, or enter without one.
        anonymous: write `annotator-1`, `annotator-2` ... instead of names.

    Raises:
        ConfigError: answers contradict each other, or `out` cannot be written.
    """
    ballots, uses = collect_votes(answers)
    if anonymous:
        answers = without_names(answers)
        ballots, uses = collect_votes(answers)
    outcomes = [decide(ballot, with_categories=with_categories) for ballot in ballots]
    found = statistics(outcomes, taxonomy)
    in_place = out.is_dir() and out.resolve() == folder.path.resolve()
    try:
        _make_room(out, in_place)
        for name, text in _tables(answers, uses, outcomes).items():
            write_atomically(out / "annotation" / name, text)
        write_atomically(out / "annotation" / "statistics.json", json.dumps(found, indent=2, allow_nan=False))
        write_atomically(out / "annotation" / "statistics.md", markdown(found))
        write_atomically(out / "taxonomy.yaml", taxonomy.to_yaml())
        if not in_place:
            _copy_images(outcomes, folder, out / "images")
        # Last, so that a folder with labels is complete.
        write_atomically(out / "labels.csv", _labels(outcomes, "" if in_place else "images/"))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {first_line(error)}.") from error
    return found


def without_names(answers: Sequence[Answer]) -> list[Answer]:
    """The answers with a number instead of each annotator, and without the files' names, which may name them too."""
    names = dict.fromkeys(answer.annotator for answer in answers if answer.annotator)
    numbers = {"": "", **{name: f"annotator-{number}" for number, name in enumerate(names, start=1)}}
    return [
        replace(answer, annotator=numbers[answer.annotator], where=f"answer {number}")
        for number, answer in enumerate(answers, start=1)
    ]


def _make_room(out: Path, in_place: bool) -> None:
    if in_place:
        taken = [name for name in ("labels.csv", "taxonomy.yaml", "annotation") if (out / name).exists()]
        if taken:
            raise ConfigError(f"{out / taken[0]} exists; move it away, or write into a new folder.")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is no empty folder; name a new one.")
    (out / "annotation").mkdir(parents=True)


def _copy_images(outcomes: Sequence[Outcome], folder: Folder, images: Path) -> None:
    for outcome in outcomes:
        if outcome.state in ("safe", "unsafe"):
            copy = images / outcome.ballot.picture.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder.path / outcome.ballot.picture.name, copy)


def _labels(outcomes: Sequence[Outcome], prefix: str) -> str:
    return csv_text(
        LABEL_COLUMNS,
        [
            (
                prefix + picture.name if prefix else name_cell(picture.name),
                outcome.state,
                text_cell(";".join(outcome.categories)),
                picture.source,
                name_cell(picture.name),
                text_cell(picture.collected_for),
            )
            for outcome in outcomes
            for picture in [outcome.ballot.picture]
            if outcome.state in ("safe", "unsafe")
        ],
    )


def _tables(answers: Sequence[Answer], uses: Sequence[Use], outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Name of a table in `annotation` -> its text."""
    states = {outcome.ballot.picture.name: outcome.state for outcome in outcomes}
    votes = [
        (
            name_cell(answer.picture.name),
            answer.annotator,
            answer.label or "",
            text_cell(";".join(answer.categories)),
            answer.picture.source,
            text_cell(answer.picture.collected_for),
            use,
            states[answer.picture.name],
            text_cell(answer.where),
        )
        for answer, use in zip(answers, uses, strict=True)
    ]
    tables = {"votes.csv": csv_text((*COLUMNS, "use", "outcome", "row"), votes)}
    for state in LISTS:
        rows = [_left_out(outcome) for outcome in outcomes if outcome.state == state]
        tables[f"{state}.csv"] = csv_text(("image", "source", "collected_for", "reason", "votes"), rows)
    return tables


def _left_out(outcome: Outcome) -> tuple[str, ...]:
    picture = outcome.ballot.picture
    votes = [
        " ".join(filter(None, (f"{vote.annotator}:", vote.label, ", ".join(vote.categories))))
        for vote in outcome.ballot.votes
    ]
    return (
        name_cell(picture.name),
        picture.source,
        text_cell(picture.collected_for),
        outcome.reason,
        text_cell("; ".join(votes)),
    )
