"""Webdataset shards as a source of examples: tars of `ID.png` (or another image) and `ID.json` beside it."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge.errors import ImageError
from prompts.errors import ExampleError

from .sources import COLUMNS, UNDECLARED, Row, Skipped, split_in_path

_IMAGES = ("png", "jpg", "jpeg", "webp", "gif", "bmp")


@dataclass(frozen=True)
class TarImage:
    """An encoded image inside a tar; `bytes()` reads it when it is needed."""

    path: Path
    offset: int
    size: int

    def __bytes__(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise ImageError("unreadable", f"{self.path.name}: {error.strerror or error}") from error
        if len(data) != self.size:
            raise ImageError("truncated", f"{self.path.name} ends inside the image")
        return data


class TarReader:
    """The shards of a folder, or one of them; a file's name says its split, as in `train-00000-of-00002.tar`.

    Args:
        where: the folder or the file.

    Raises:
        ExampleError: there is no tar, or one names no split while others do.
    """

    def __init__(self, where: str | Path) -> None:
        path = Path(where)
        files = [path] if path.is_file() else sorted(path.rglob("*.tar"))
        if not files:
            raise ExampleError(f"{where} holds no .tar; give a folder of webdataset shards, or one of them.")
        self._files: dict[str, list[Path]] = {}
        for file in files:
            self._files.setdefault(split_in_path(file.name) or UNDECLARED, []).append(file)
        if UNDECLARED in self._files and len(self._files) > 1:
            raise ExampleError(
                f"{self._files[UNDECLARED][0]} names no split, while other files do; rename it."
            )
        self.splits = tuple(sorted(self._files))

    def rows(self, split: str) -> Iterator[Row | Skipped]:
        """Iterate over one split; of a sample without an image or a record, why it cannot be used."""
        for path in self._files[split]:
            try:
                with tarfile.open(path, "r:") as tar:
                    yield from _samples(tar, path, split)
            except (tarfile.TarError, OSError) as error:
                yield Skipped(path.name, "unreadable", f"{path} is no whole tar: {error}")


def _samples(tar: tarfile.TarFile, path: Path, split: str) -> Iterator[Row | Skipped]:
    """Members of one sample stand together, and share what comes before the first dot of their name."""
    key, parts = "", dict[str, tarfile.TarInfo]()
    for member in tar:
        if not member.isfile():
            continue
        name, _, suffix = member.name.rpartition("/")[2].partition(".")
        if name != key and parts:
            yield _row(tar, path, split, key, parts)
            parts = {}
        key, parts[suffix.lower()] = name, member
    if parts:
        yield _row(tar, path, split, key, parts)


def _row(
    tar: tarfile.TarFile, path: Path, split: str, key: str, parts: Mapping[str, tarfile.TarInfo]
) -> Row | Skipped:
    place = f"{path.name}/{key}"
    image = next((parts[suffix] for suffix in _IMAGES if suffix in parts), None)
    if image is None or "json" not in parts:
        return Skipped(
            place, "bad_row", f"the sample has no {'image' if image is None else 'record (.json)'}"
        )
    content = tar.extractfile(parts["json"])
    try:
        record: Any = json.loads(content.read()) if content is not None else None
    except (ValueError, RecursionError) as error:
        return Skipped(place, "bad_row", f"no JSON: {error}")
    if not isinstance(record, dict):
        return Skipped(place, "bad_row", f"expected an object, got {type(record).__name__}")
    values = {name: record.get(name) for name in COLUMNS[1:] if name not in ("split", "id")}
    return Row(str(record.get("id") or key), TarImage(path, image.offset_data, image.size), split, **values)
