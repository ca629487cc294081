"""Which images are annotated: those of a folder, or those that a table names.

An image is known by its path inside of one folder, with `/` between its parts. Names come from tables and answers of
strangers, so each is checked to lead to a file in that folder; nothing here opens one.
"""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from judge.data.folders import file_inside
from judge.data.tables import read_table
from judge.errors import ConfigError
from judge.runs.files import nearest_path
from prompts.names import nearest
from prompts.printable import printable
from prompts.taxonomy import Taxonomy

from .cells import check_word

COLUMNS = ("image", "source", "collected_for")
"""Of a table of images; only `image` is required, and `path` stands for it too. Others may be there."""


@dataclass(frozen=True)
class Picture:
    """An image that people annotate, unopened."""

    name: str
    """Its path in the folder of the images."""
    source: str = ""
    """Where it was collected, such as `Lexica`; empty where that is not known."""
    collected_for: str = ""
    """Name of the category whose search terms found it; empty where that is not known."""


class Folder:
    """The folder that the names of images are relative to.

    Raises:
        ConfigError: it is none.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise ConfigError(f"{path} is no folder of images{nearest_path(str(path))}.")
        self.path = path
        self._resolved = path.resolve()
        self._known: dict[str, str] = {}

    def name(self, written: str, where: str) -> str:
        """The name of an image as it is compared and written: `./a/../b.png` is `b.png`.

        Args:
            written: in a table or an answer.
            where: that is, for messages.

        Raises:
            ConfigError: it leads out of the folder, or to no file, or no table could hold it.
        """
        if written in self._known:
            return self._known[written]
        if written != printable(written):
            raise ConfigError(
                f"{where}: the name {written!r} has characters that tables cannot hold; rename it."
            )
        name = posixpath.normpath(written)  # first: `link/..` is not where it looks to be
        file = file_inside(self._resolved, name)
        if file is None:
            raise ConfigError(f"{where}: {written!r} leads out of {self.path}; images are inside of it.")
        if not file.is_file():
            near = nearest_path(str(self.path / written))
            raise ConfigError(f"{where}: there is no file {written!r} in {self.path}{near}.")
        return self._known.setdefault(written, name)


class Categories:
    """What a table may call the categories of a taxonomy: name, alias, code or key, case ignored.

    Raises:
        ConfigError: tables could not name one: it has a semicolon in its name, or merges others.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.names = taxonomy.names
        self._by_word: dict[str, str] = {}
        for category in taxonomy:
            if ";" in category.name or category.key not in category.members:
                raise ConfigError(
                    f"Category {category.name!r} cannot stand in tables, which separate categories with semicolons and "
                    "know no merged ones; rename it, or annotate by the taxonomy with its parts."
                )
            words = (category.key, category.code or category.name, *category.aliases)
            self._by_word |= {word.casefold(): category.name for word in words}
        # Last, so that no category's key hides another one's name.
        self._by_word |= {name.casefold(): name for name in taxonomy.names}

    def name(self, word: str, where: str) -> str:
        """The name of the category that a word stands for.

        Raises:
            ConfigError: none; the message proposes one.
        """
        found = self._by_word.get(word.strip().casefold())
        if found is None:
            raise ConfigError(
                f"{where}: no category {word!r}{nearest(word, self._by_word)}; there are {', '.join(self.names)}."
            )
        return found

    def several(self, cell: str, where: str) -> tuple[str, ...]:
        """The names in a cell, between semicolons, in the order of the taxonomy and each once."""
        found = {self.name(word, where) for word in cell.split(";") if word.strip()}
        return tuple(name for name in self.names if name in found)


def list_table(
    table: Path,
    folder: Folder,
    categories: Categories | None = None,
    *,
    source: str = "",
    collected_for: str = "",
) -> list[Picture]:
    """The images that a CSV names, each once, in its order.

    Args:
        table: with the columns `COLUMNS`.
        folder: that its names are relative to.
        categories: to check `collected_for` by; without, it stays as it is.
        source: of the rows that name none.
        collected_for: likewise.

    Raises:
        ConfigError: the table cannot be read, an image is not in the folder, or two rows contradict each other.
    """
    found: dict[str, Picture] = {}
    for number, row in enumerate(read_table(table, (), "images"), start=2):
        where = f"{table.name}, row {number}"
        picture = picture_of(row, folder, categories, where, source, collected_for)
        if found.setdefault(picture.name, picture) != picture:
            raise ConfigError(f"{where}: {picture.name!r} has another source or category in a row before.")
    if not found:
        raise ConfigError(f"{table} names no images; a table of images has the columns {', '.join(COLUMNS)}.")
    return list(found.values())


def list_files(
    names: Iterable[str], folder: Folder, *, source: str = "", collected_for: str = ""
) -> list[Picture]:
    """The files with these names in the folder, sorted by name.

    Raises:
        ConfigError: one leads out of the folder, as a link may; or there is none.
    """
    found = sorted({folder.name(name, str(folder.path)) for name in names})
    if not found:
        raise ConfigError(f"{folder.path} holds no images.")
    return [Picture(name, source, collected_for) for name in found]


def picture_of(
    row: Mapping[str, str | None],
    folder: Folder,
    categories: Categories | None,
    where: str,
    source: str = "",
    collected_for: str = "",
) -> Picture:
    """The image that a row of a table is about; `list_table` says more.

    Raises:
        ConfigError: it names none, or none in the folder, or an unknown category.
    """
    written = row.get("image") or row.get("path") or ""
    if not written.strip():
        raise ConfigError(f"{where}: no image; give its path in a column `image`.")
    wanted = (row.get("collected_for") or "").strip() or collected_for
    return Picture(
        folder.name(written, where),
        check_word((row.get("source") or "").strip() or source, "a source", where),
        categories.name(wanted, where) if categories and wanted else wanted,
    )
