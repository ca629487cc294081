"""Pictures that are there already: a folder of them, with or without a table of their prompts.

They are kept as PNG of what is judged: upright, opaque, in sRGB and without metadata.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from judge.data.folders import file_inside
from judge.data.images import open_image
from judge.data.tables import read_table
from judge.errors import ConfigError, ImageError
from judge.runs.files import file_hash, nearest_path

from .pictures import finish_picture
from .rows import CorpusRow, with_id
from .stages import Result, Task

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


def plan_folder(where: Path) -> list[CorpusRow]:
    """Rows for the pictures of a folder, or of a CSV with the columns `path` and perhaps `prompt`.

    Paths in a table are relative to its folder; one that leads out of it, through a link too, is a failed row. What a
    table says of a picture beyond that stays beside the row's prompt, as `written_by`; no label is taken from it.

    Args:
        where: the folder, with all pictures below it in the order of their names, or the CSV.

    Raises:
        ConfigError: there is no such folder, or no picture in it.
    """
    if where.is_dir():
        files = sorted(
            path for path in where.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
        )
        rows = [CorpusRow("", file=path.relative_to(where).as_posix()) for path in files]
    elif where.suffix == ".csv":
        rows = [_of_record(record) for record in read_table(where, ["path"], "pictures")]
    else:
        raise ConfigError(f"{where} is no folder of pictures and no .csv{nearest_path(str(where))}.")
    if not rows:
        raise ConfigError(f"{where} holds no picture ({', '.join(SUFFIXES)}).")
    root = _root(where)
    return _without_repeats([_identified(row, root) for row in rows])


def _root(where: Path) -> Path:
    return (where if where.is_dir() else where.parent).resolve()


def _of_record(record: Mapping[str, Any]) -> CorpusRow:
    prompt = (record.get("prompt") or "").strip() or None
    others = {
        name: value for name, value in record.items() if name and name not in ("path", "prompt") and value
    }
    return CorpusRow("", prompt=prompt, file=(record.get("path") or "").strip(), written_by=others)


def _identified(row: CorpusRow, root: Path) -> CorpusRow:
    """With an id of the file's content, so that a build notices a picture that was exchanged."""
    path = file_inside(root, row.file or "")
    if not row.file or path is None:
        return with_id(row).failed(
            "pictures", "outside_folder", f"{row.file!r} leads to no file in the folder"
        )
    try:
        return with_id(row, content=file_hash(path))
    except OSError as error:
        return with_id(row).failed("pictures", "unreadable", f"{row.file}: {error.strerror or error}")


def _without_repeats(rows: list[CorpusRow]) -> list[CorpusRow]:
    """A file that a table names twice with one prompt is one row; the second fails, with an id of its own."""
    seen: set[str] = set()
    found: list[CorpusRow] = []
    for place, row in enumerate(rows):
        if row.id in seen:
            row = with_id(row, place=place).failed(
                "pictures", "repeated", "an earlier row has this file and prompt"
            )
        seen.add(row.id)
        found.append(row)
    return found


@dataclass
class ReadPictures:
    """The stage that reads pictures of a folder.

    Args:
        where: as of `plan_folder`.
    """

    where: Path
    name: str = field(default="pictures", init=False)

    @property
    def about(self) -> Mapping[str, Any]:
        """Nothing beyond the rows, whose ids follow from the files' content."""
        return {"from": "folder"}

    def __call__(self, task: Task) -> Result:
        """Read the pictures of a chunk; one that cannot be decoded is a failed row."""
        rows: list[CorpusRow] = []
        pictures: dict[str, bytes] = {}
        root = _root(self.where)
        for row in task.rows:
            path = file_inside(root, row.file or "")
            try:
                if path is None:
                    raise ImageError("missing", f"{row.file!r} leads out of the folder")
                image = open_image(path)
            except ImageError as error:
                rows.append(row.failed("pictures", error.status, error.reason))
                continue
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            filled, picture = finish_picture(replace(row, width=None), buffer.getvalue())
            rows.append(filled)
            if picture is not None:
                pictures[row.id] = picture
        return Result(task.chunk, tuple(rows), pictures)
