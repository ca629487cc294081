"""The files of a corpus: pictures of a chunk between two stages, and shards; equal content gives equal bytes."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from judge.errors import CorpusError
from judge.runs.files import open_atomically

from .rows import CorpusRow

_PICTURE = ".png"


def write_tar(file: BinaryIO, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar of (name, content) in this order, with nothing in it that depends on when, where or by whom."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, names of users empty
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


class Parts:
    """Pictures of chunks, a tar each, until they are in shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last: tuple[int, dict[str, bytes]] | None = None

    def path(self, chunk: int) -> Path:
        """The file of a chunk."""
        return self.folder / f"{chunk:06d}.tar"

    def write(self, chunk: int, pictures: Mapping[str, bytes]) -> None:
        """Write the pictures of a chunk, by row id; whatever the file held before is gone."""
        self._last = None
        with open_atomically(self.path(chunk)) as file:
            write_tar(file, ((row_id + _PICTURE, content) for row_id, content in pictures.items()))

    def read(self, chunk: int) -> dict[str, bytes]:
        """Row id -> picture; empty where nothing was written.

        Raises:
            CorpusError: the file is damaged.
        """
        if self._last is None or self._last[0] != chunk:
            self._last = (chunk, self._read(chunk))
        return self._last[1]

    def _read(self, chunk: int) -> dict[str, bytes]:
        path = self.path(chunk)
        if not path.is_file():
            return {}
        try:
            with tarfile.open(path, "r:") as tar:
                return {
                    member.name.removesuffix(_PICTURE): tar.extractfile(member).read()  # type: ignore[union-attr]
                    for member in tar
                }
        except (tarfile.TarError, OSError) as error:
            raise CorpusError(f"{path} cannot be read: {error}.") from error


def write_webdataset(file: BinaryIO, rows: Iterable[tuple[CorpusRow, Mapping[str, Any], bytes]]) -> None:
    """Write a shard as a tar of `ID.png` and `ID.json`, which `webdataset` and `datasets` read.

    Args:
        file: to write to.
        rows: each with its record and its picture.
    """

    def members() -> Iterator[tuple[str, bytes]]:
        for row, record, picture in rows:
            yield f"{row.id}.json", json.dumps(record, ensure_ascii=True, allow_nan=False).encode()
            yield f"{row.id}{_PICTURE}", picture

    write_tar(file, members())
