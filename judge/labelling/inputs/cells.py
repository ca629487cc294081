"""What the rows of a table hold -> images, prompts and names; the table is a stranger's.

An image is bytes, base64, a data URL, the pair of `bytes` and `path` that the `datasets` library stores, or a path.
A path is relative to the table's folder and stays inside the input after links are resolved. URLs are never fetched.
"""

import posixpath
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, SupportsBytes

from judge.data.folders import file_inside, find_image
from judge.data.images import ImageLimits
from judge.data.sources import decode_base64
from judge.errors import ConfigError, ImageError, first_line

from .files import FileImage, is_url
from .ids import place_id, storable
from .shards import InputRow, Shard, check_prompt

_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:")
"""A URL; one letter before the colon is a drive of Windows."""
_LONGEST_PATH = 4096


class Columns(NamedTuple):
    """Names of the columns that are read; None for those that a table does not have."""

    image: str | None
    path: str | None
    prompt: str | None
    id: str | None


@dataclass(frozen=True)
class Base64Image:
    """An image as text; `bytes()` decodes it."""

    text: str

    def __bytes__(self) -> bytes:
        return decode_base64(self.text)

    def __len__(self) -> int:
        return len(self.text)


def choose_columns(table: str, found: Collection[str], named: Mapping[str, str]) -> Columns:
    """The columns of a table that are read.

    Args:
        table: its name, for messages.
        found: columns that it has.
        named: `image`, `prompt` and `id` -> column, where they have other names.

    Raises:
        ConfigError: it lacks a column that is named, or has neither `image` nor `path`.
    """
    has = f"it has: {', '.join(map(repr, found)) or 'none'}"
    for ours, name in named.items():
        if name not in found:
            raise ConfigError(f"{table} has no column {name!r}, which is said to be its {ours}; {has}.")
    image, path, prompt, row_id = (
        named.get(column, column if column in found else None) for column in Columns._fields
    )
    if image is None and path is None:
        raise ConfigError(f"{table} has neither a column 'image' nor 'path'; say which one it is. {has}.")
    return Columns(image, None if "image" in named else path, prompt, row_id)


class Rows:
    """Makes inputs of the rows of one table."""

    def __init__(self, shard: Shard, limits: ImageLimits) -> None:
        self._root, self._table, self._limits = shard.root, shard.paths[0], limits
        self._source = storable(self._table)
        self._folder = posixpath.dirname(self._table)
        self._local = None if is_url(shard.root) else Path(shard.root).resolve()

    def row(self, number: int, record: Mapping[str, Any], columns: Columns) -> InputRow:
        """An input of a row; with a problem where it holds no image."""
        name, prompt = record.get(columns.id or ""), record.get(columns.prompt or "")
        row_id = place_id(self._table, number, name if isinstance(name, (str, int)) else None)
        text = None
        try:
            if isinstance(prompt, str):
                text = check_prompt(storable(prompt))
            elif prompt is not None:
                raise ImageError("unreadable", f"its prompt is no text, but {type(prompt).__name__}")
            image = self._image(record, columns)
        except (ImageError, OSError, ValueError) as error:  # of a path that no system takes
            problem = error if isinstance(error, ImageError) else ImageError("unreadable", first_line(error))
            return InputRow(row_id, self._source, prompt=text, problem=problem)
        return InputRow(row_id, self._source, image, text)

    def broken(self, number: int, problem: ImageError) -> InputRow:
        """An input of a row that cannot be read."""
        return InputRow(place_id(self._table, number), self._source, problem=problem)

    def _image(self, record: Mapping[str, Any], columns: Columns) -> SupportsBytes:
        value: Any = record.get(columns.image or "")
        path = record.get(columns.path or "")
        if isinstance(value, dict):  # as the `datasets` library stores an image
            value, path = value.get("bytes"), value.get("path")
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._checked(len(value), bytes(value))
        if isinstance(value, str):
            return self._from_text(value)
        if value is not None:
            raise ImageError("not_an_image", f"a value of type {type(value).__name__}")
        if path is None:
            raise ImageError("missing", "the row holds no image")
        if not isinstance(path, str):
            raise ImageError("missing", f"its path is no text, but {type(path).__name__}")
        return self._from_path(path)

    def _from_text(self, text: str) -> SupportsBytes:
        """Base64 or a path: base64 has no dot, and no file has its name."""
        if text[:5].lower() == "data:":
            return self._checked(len(text) * 3 // 4, Base64Image(text))
        if len(text) <= _LONGEST_PATH:
            if _SCHEME.match(text) or "." in text or "\\" in text:
                return self._from_path(text)
            try:
                return self._from_path(text)
            except (ImageError, OSError, ValueError):
                pass
        return self._checked(len(text) * 3 // 4, Base64Image(text))

    def _from_path(self, path: str) -> SupportsBytes:
        if _SCHEME.match(path):
            raise ImageError("url_refused", "the table names a URL; URLs in tables are never fetched")
        if not path.strip():
            raise ImageError("missing", "an empty path")
        outside = ImageError("unreadable", f"{path!r} leads out of the input")
        if self._local is None:
            inside = posixpath.normpath(posixpath.join("/", self._folder, path))
            if path.startswith("/") or posixpath.normpath(posixpath.join(self._folder, path)).startswith(
                ".."
            ):
                raise outside
            return FileImage(self._root, inside.lstrip("/"), self._limits)
        file = self._find(self._local, path)
        if file is None:
            raise outside
        if not file.exists():
            raise ImageError("missing", f"no such file: {path!r}")
        return FileImage(self._root, file.relative_to(self._local).as_posix(), self._limits)

    def _find(self, root: Path, path: str) -> Path | None:
        """The file, links resolved; None where it is outside of the input."""
        if not Path(path).is_absolute():
            return find_image(root, posixpath.join(self._folder, path))
        try:
            return file_inside(root, str(Path(path).resolve().relative_to(root)))
        except (OSError, ValueError, RuntimeError):
            return None

    def _checked(self, size: int, image: SupportsBytes) -> SupportsBytes:
        if size > self._limits.max_bytes + 3:  # base64 may be padded; its bytes are checked again
            raise ImageError("too_large", f"{size:,} bytes; at most {self._limits.max_bytes:,} are read")
        return image
