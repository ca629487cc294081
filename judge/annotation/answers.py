"""What annotators answered, from CSV tables and Label Studio's exports.

An answer is about one image: `safe`, `unsafe` or `na` (not applicable: too blurred to say, say), and for an unsafe one
perhaps the categories. An answer with categories and no label belongs to the second round, which asks of images that
are known to be unsafe only what they violate. A row without either is a task that nobody did yet.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from judge.data.tables import read_table
from judge.errors import ConfigError
from prompts.names import nearest
from prompts.taxonomy import Taxonomy

from .cells import check_word
from .images import Categories, Folder, Picture, picture_of
from .label_studio import read_export

Label = Literal["safe", "unsafe", "na"]
LABELS: tuple[Label, ...] = get_args(Label)
COLUMNS = ("image", "annotator", "label", "categories", "source", "collected_for")
"""Of a table of answers; the first three are required."""
_NOT_APPLICABLE = ("n/a", "not applicable", "not_applicable")
_WORDS: Mapping[str, Label] = {**{word: word for word in LABELS}, **dict.fromkeys(_NOT_APPLICABLE, "na")}


@dataclass(frozen=True)
class Answer:
    """What one annotator said of one image in one row."""

    picture: Picture
    annotator: str
    """In lower case, so that nobody votes twice; empty only where nothing is answered either."""
    label: Label | None
    """None where the row has no label."""
    categories: tuple[str, ...]
    """Names, in the order of the taxonomy."""
    where: str
    """File and row, for messages."""


def read_answers(files: Sequence[Path], taxonomy: Taxonomy, folder: Folder) -> list[Answer]:
    """All answers, in the order of the files and their rows.

    Args:
        files: `.csv` with the columns `COLUMNS`; `.json` as Label Studio exports it, JSON or JSON-MIN.
        taxonomy: of the categories.
        folder: that the images are in.

    Raises:
        ConfigError: a file cannot be read; or an answer contradicts itself, or names an image, a label or a category
            that does not exist. The message names the row.
    """
    categories = Categories(taxonomy)
    answers = [_answer(cells, where, categories, folder) for where, cells in _rows(files)]
    if not answers:
        raise ConfigError(f"{', '.join(map(str, files)) or 'Nothing'}: there are no answers.")
    return answers


def _rows(files: Iterable[Path]) -> Iterator[tuple[str, Mapping[str, str | None]]]:
    """(file and row, column -> cell)."""
    for path in files:
        if path.suffix == ".csv":
            for number, row in enumerate(read_table(path, COLUMNS[1:3], "answers"), start=2):
                yield f"{path.name}, row {number}", row
        elif path.suffix == ".json":
            yield from read_export(path)
        else:
            raise ConfigError(
                f"{path}: answers are read from .csv, or from .json as Label Studio exports it."
            )


def _answer(cells: Mapping[str, str | None], where: str, categories: Categories, folder: Folder) -> Answer:
    picture = picture_of(cells, folder, categories, where)
    annotator = check_word((cells.get("annotator") or "").strip().casefold(), "an annotator", where)
    label = _label(cells.get("label") or "", where)
    named = categories.several(cells.get("categories") or "", where)
    if not annotator and (label or named):
        raise ConfigError(f"{where}: nobody is named as annotator of {picture.name!r}.")
    if named and label in ("safe", "na"):
        raise ConfigError(
            f"{where}: {annotator} calls {picture.name!r} {label}, yet in category {named[0]!r}; correct one."
        )
    return Answer(picture, annotator, label, named, where)


def _label(cell: str, where: str) -> Label | None:
    word = cell.strip().casefold()
    if word and word not in _WORDS:
        raise ConfigError(f"{where}: no label {cell!r}{nearest(word, _WORDS)}; write safe, unsafe or na.")
    return _WORDS[word] if word else None
