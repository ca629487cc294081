"""The folder that paths of an input are relative to: on this machine, or behind an fsspec URL.

Errors of opening a file are OSErrors, whatever library raised them.
"""

import gzip
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from judge.data.images import DEFAULT_LIMITS, ImageLimits, read_bytes
from judge.data.recognise import HEAD_BYTES, read_head
from judge.data.walk import walk
from judge.errors import ImageError, first_line

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_BUFFER = 2**20
"""Bytes read at once from a local file: a tar is read from one end to the other."""
_PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
"""First bytes of packed files."""
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""Where file systems of fsspec say when a file was changed."""


class Entry(NamedTuple):
    """A file below a root, or a folder that cannot be read."""

    path: str
    """Relative to the root, with `/`."""
    size: int = 0
    modified: int = 0
    """Nanoseconds since 1970; 0 where it is not known."""
    error: Exception | None = None


class Root(Protocol):
    """A folder of files."""

    where: str

    def walk(self, leave_out: Path | None = None) -> Iterator[Entry]:
        """Every file, in an order that does not change; not those that `is_left_out`, or of a folder to leave out."""
        ...

    def entry(self, path: str) -> Entry:
        """Size and time of a file; why not, where they cannot be known."""
        ...

    def open(self, path: str) -> BinaryIO:
        """A file, to be read; it can seek. Raises OSError."""
        ...

    def head(self, path: str) -> bytes | None:
        """The first bytes of a file; None if it cannot be read."""
        ...

    def read_image(self, path: str, limits: ImageLimits) -> bytes:
        """An encoded image; raises ImageError, `too_large` without having read it."""
        ...


@dataclass(frozen=True)
class FileImage:
    """An image file; `bytes()` reads it when it is needed."""

    root: str
    path: str
    limits: ImageLimits = DEFAULT_LIMITS

    def __bytes__(self) -> bytes:
        return open_root(self.root).read_image(self.path, self.limits)


def is_url(where: str) -> bool:
    """Whether an input is read through fsspec."""
    return _URL.match(where) is not None


def is_left_out(name: str) -> bool:
    """Whether a file or folder is hidden, or starts with `_` as the marks and folders of other programs do."""
    return name.startswith((".", "_"))


@lru_cache(maxsize=16)
def open_root(where: str) -> Root:
    """The files below a folder or an fsspec URL."""
    return UrlRoot(where) if is_url(where) else LocalRoot(where)


@dataclass(frozen=True)
class Opened:
    """A file that is read."""

    file: BinaryIO
    """What it holds, unpacked."""
    streamed: bool
    """Whether it should be read from its start to its end only: going back is costly."""
    stored: BinaryIO
    size: int

    @property
    def place(self) -> float:
        """Share of the file that was read, from 0 to 1."""
        return min(1.0, self.stored.tell() / self.size) if self.size else 1.0


@contextmanager
def opened(root: str, path: str) -> Iterator["Opened"]:
    """Open a file; one that gzip packed is unpacked.

    Raises:
        OSError: it cannot be opened.
        ImageError: `unsupported_format`, packed by another program.
    """
    with open_root(root).open(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(8)
        file.seek(0)
        packer = next((name for magic, name in _PACKERS.items() if head.startswith(magic)), None)
        if packer is None:
            yield Opened(file, is_url(root), file, size)
        elif packer == "gzip":
            unpacked = cast(io.RawIOBase, gzip.GzipFile(fileobj=file))
            yield Opened(cast(BinaryIO, io.BufferedReader(unpacked, _BUFFER)), True, file, size)
        else:
            raise ImageError("unsupported_format", f"packed by {packer}; unpack it, or pack it by gzip")


class LocalRoot:
    """A folder of this machine."""

    def __init__(self, where: str) -> None:
        self.where = where

    def walk(self, leave_out: Path | None = None) -> Iterator[Entry]:
        """As `Root.walk`; linked folders are followed, each real folder once."""
        start = len(os.path.join(self.where, ""))
        for found in walk(self.where, lambda name: not is_left_out(name), leave_out):
            path = found.path[start:].replace(os.sep, "/")
            if found.error is not None:
                yield Entry(path or ".", error=found.error)
            else:
                yield self.entry(path)

    def entry(self, path: str) -> Entry:
        """As `Root.entry`."""
        try:
            status = os.stat(os.path.join(self.where, path))
        except OSError as error:
            return Entry(path, error=error)
        return Entry(path, status.st_size, status.st_mtime_ns)

    def open(self, path: str) -> BinaryIO:
        """As `Root.open`."""
        return open(os.path.join(self.where, path), "rb", buffering=_BUFFER)

    def head(self, path: str) -> bytes | None:
        """As `Root.head`; b"" of a pipe."""
        return read_head(os.path.join(self.where, path))

    def read_image(self, path: str, limits: ImageLimits) -> bytes:
        """As `Root.read_image`."""
        return read_bytes(os.path.join(self.where, path), limits)


class UrlRoot:
    """What an fsspec file system holds below a URL. A folder is listed as a whole: fsspec cannot do it in pieces."""

    def __init__(self, where: str) -> None:
        import fsspec

        self.where = where
        # Listings are not kept: a bucket may hold more files than fit in memory, and may change.
        self.system, path = fsspec.core.url_to_fs(where, use_listings_cache=False)
        self._below = str(path).rstrip("/")

    def walk(self, leave_out: Path | None = None) -> Iterator[Entry]:
        """As `Root.walk`: files of a folder by name, then the folders inside it."""
        folders = [self._below]
        while folders:
            folder = folders.pop()
            try:
                with _os_errors():
                    listed = self.system.ls(folder, detail=True)
            except OSError as error:
                yield Entry(self._relative(folder) or ".", error=error)
                continue
            below = []
            for info in sorted(listed, key=lambda info: str(info["name"])):
                name = str(info["name"]).rstrip("/")
                # Some stores list the folder itself, as an object of no bytes.
                if name == folder or is_left_out(name.rpartition("/")[2]):
                    continue
                if info["type"] == "directory":
                    below.append(name)
                else:
                    yield self._entry(name, info)
            folders += reversed(below)  # the last one is popped first

    def entry(self, path: str) -> Entry:
        """As `Root.entry`."""
        try:
            with _os_errors():
                return self._entry(self._full(path), self.system.info(self._full(path)))
        except OSError as error:
            return Entry(path, error=error)

    def is_folder(self) -> bool:
        """Whether the URL names a folder, not a file; raises OSError, FileNotFoundError where it names nothing."""
        with _os_errors():
            return bool(self.system.info(self._below)["type"] == "directory")

    def open(self, path: str) -> BinaryIO:
        """As `Root.open`."""
        with _os_errors():
            file: BinaryIO = self.system.open(self._full(path), "rb")
            return file

    def head(self, path: str) -> bytes | None:
        """As `Root.head`."""
        try:
            with _os_errors(), self.open(path) as file:
                return file.read(HEAD_BYTES)
        except OSError:
            return None

    def read_image(self, path: str, limits: ImageLimits) -> bytes:
        """As `Root.read_image`."""
        with image_errors(), _os_errors(), self.open(path) as file:
            data = file.read(limits.max_bytes + 1)
        return read_bytes(data, limits)

    def _full(self, path: str) -> str:
        return f"{self._below}/{path}"

    def _relative(self, name: str) -> str:
        return name[len(self._below) :].lstrip("/")

    def _entry(self, name: str, info: Any) -> Entry:
        return Entry(self._relative(name), int(info.get("size") or 0), _modified(info))


def _modified(info: Any) -> int:
    """Nanoseconds since 1970, of what a file system says about a file."""
    value = next((info[name] for name in _TIMES if info.get(name)), 0)
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        return int((value.timestamp() if isinstance(value, datetime) else float(value)) * 1e9)
    except (TypeError, ValueError, OverflowError):
        return 0


@contextmanager
def _os_errors() -> Iterator[None]:
    """Errors of a store's own library (of a request, a login) -> OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(first_line(error)) from error


@contextmanager
def image_errors() -> Iterator[None]:
    """OSError -> ImageError."""
    try:
        yield
    except OSError as error:
        raise image_error(error) from error


def image_error(error: Exception, what: str = "") -> ImageError:
    """Why a file cannot be read; `what` stands before the reason."""
    status = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
    reason = "no such file" if status == "missing" else first_line(error)
    return ImageError(status, f"{what}: {reason}" if what else reason)  # type: ignore[arg-type]


Skip = Callable[[int], bool]
"""Whether the input with a number, counted within the shard, was labelled already."""
