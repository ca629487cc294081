"""Whether variations still show what the originals showed: pictures for a person to look at, and what they said.

The authors of UnsafeBench looked at all variations of 20 originals and kept the 17 of which none had lost its content
(section 4.1). No program can do that here: what would judge the pictures is what is measured with them.
"""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from judge.data.images import pixels_hash
from judge.data.tables import read_table
from judge.errors import ConfigError
from judge.runs.files import file_hash, write_atomically

from .variations import Variation

TABLE = "review.csv"
COLUMNS = ("file", "variation", "pixels", "keep")
ANSWERS = {"yes": True, "no": False}


def write_review(folder: Path, variations: Sequence[Variation]) -> Path:
    """Write every variation as PNG, named by the number of its original, and a table with an empty column `keep`.

    Neither holds ids or prompts. A table that is there already is left as it is, with the pictures beside it.
    """
    table = folder / TABLE
    if table.exists():
        return table
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(v.id for v in variations), start=1)}
    text = StringIO()
    rows = csv.writer(text)
    rows.writerow(COLUMNS)
    for variation in variations:
        file = f"{numbers[variation.id]:03}-{variation.name}.png"
        variation.image.save(folder / file)
        if variation.kind != "original":  # shown to compare with
            rows.writerow((file, variation.name, pixels_hash(variation.image), ""))
    write_atomically(table, text.getvalue())
    return table


def review_hash(folder: Path | None) -> str | None:
    """SHA-256 of the table with the answers, which changes when they do; None without one."""
    table = None if folder is None else folder / TABLE
    return file_hash(table) if table is not None and table.is_file() else None


def read_review(folder: Path, variations: Sequence[Variation]) -> frozenset[str] | None:
    """Ids of the originals of which every variation was kept; None where nobody has filled in the table yet.

    Raises:
        ConfigError: no table, a part of the answers is missing or neither yes nor no, or it is about other pictures.
    """
    table = folder / TABLE
    answers: dict[tuple[str, str], str] = {}
    for row in read_table(table, COLUMNS, "reviewed pictures"):
        answers[str(row["variation"]), str(row["pixels"])] = (row["keep"] or "").strip().casefold()
    if not any(answers.values()):
        return None
    changed = [v for v in variations if v.kind != "original"]
    kept: dict[str, bool] = {}
    for variation in changed:
        answer = answers.get((variation.name, pixels_hash(variation.image)))
        if answer is None:
            raise ConfigError(
                f"{table} is about other pictures than those of this run; review these in another folder, or give the "
                "style, seed and images it was made with."
            )
        if answer not in ANSWERS:
            missing = sum(one not in ANSWERS for one in answers.values())
            raise ConfigError(
                f"{table}: {missing} of {len(answers)} pictures have no yes or no under keep, such as "
                f"{answer!r}; write one for each, or leave the column empty for no review."
            )
        kept[variation.id] = kept.get(variation.id, True) and ANSWERS[answer]
    return frozenset(name for name, keep in kept.items() if keep)
