"""Webdataset shards as a source of examples: tars of `ID.png` (or another image) and `ID.json` beside it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge.errors import ImageError
from prompts.errors import ExampleError

from .sources import COLUMNS, UNDECLARED, Row, Skipped, split_in_path
from .tar_members import Damage, Member, TarMembers

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
                with path.open("rb") as file:
                    yield from _samples(TarMembers(file), path, split)
            except OSError as error:
                yield Skipped(path.name, "unreadable", f"{path} cannot be read: {error}")


def _samples(tar: TarMembers, path: Path, split: str) -> Iterator[Row | Skipped]:
    """Members of one sample stand together, and share what comes before the first dot of their name."""
    key, parts = "", dict[str, Member]()
    for member in tar:
        if isinstance(member, Damage):
            # More of the last sample may have been there.
            yield Skipped(path.name, "unreadable", f"{path} is no whole tar: it {member.reason}")
            parts = {}
            continue
        if not member.is_file:
            continue
        name, _, suffix = member.name.rpartition("/")[2].partition(".")
        if name != key and parts:
            yield _row(tar, path, split, key, parts)
            parts = {}
        key, parts[suffix.lower()] = name, member
    if parts:
        yield _row(tar, path, split, key, parts)


def _row(tar: TarMembers, path: Path, split: str, key: str, parts: Mapping[str, Member]) -> Row | Skipped:
    place = f"{path.name}/{key}"
    image = next((parts[suffix] for suffix in _IMAGES if suffix in parts), None)
    if image is None or "json" not in parts:
        return Skipped(
            place, "bad_row", f"the sample has no {'image' if image is None else 'record (.json)'}"
        )
    try:
        record: Any = json.loads(tar.read(parts["json"]))
    except (ValueError, RecursionError) as error:
        return Skipped(place, "bad_row", f"no JSON: {error}")
    if not isinstance(record, dict):
        return Skipped(place, "bad_row", f"expected an object, got {type(record).__name__}")
    values = {name: record.get(name) for name in COLUMNS[1:] if name not in ("split", "id")}
    return Row(str(record.get("id") or key), TarImage(path, image.offset, image.size), split, **values)
