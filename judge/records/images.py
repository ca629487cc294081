"""The images of the queue: encoded, as they came, in a folder, each under the SHA-256 of its bytes."""

import hashlib
import re
import shutil
from pathlib import Path

from judge.errors import first_line
from judge.runs.files import write_atomically

from .errors import NotFoundError, RecordsError

_HASH = re.compile(r"[0-9a-f]{64}")


class ImageFolder:
    """A folder that only its owner can read; equal images are one file.

    Raises:
        RecordsError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_private_folder(folder)

    def add(self, data: bytes) -> str:
        """Store an image, whole or not at all, and return its SHA-256 (64 hexadecimal digits).

        Raises:
            RecordsError: it cannot be written.
        """
        name = hashlib.sha256(data).hexdigest()
        try:
            file = self._folder / name
            if not file.is_file() or file.stat().st_size != len(data):
                write_atomically(file, data, mode=0o600)
        except OSError as error:
            raise RecordsError(f"An image cannot be stored: {first_line(error)}.") from error
        return name

    def read(self, sha256: str) -> bytes:
        """The bytes of an image.

        Raises:
            NotFoundError: there is none.
            RecordsError: it cannot be read, or its bytes are no longer those that were stored.
        """
        try:
            data = self._path(sha256).read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"There is no image {sha256[:16]} any more.") from error
        except OSError as error:
            raise RecordsError(f"Image {sha256[:16]} cannot be read: {first_line(error)}.") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise RecordsError(f"Image {sha256[:16]} is damaged: its bytes are not those that were stored.")
        return data

    def remove(self, sha256: str) -> None:
        """Remove an image, if it is there."""
        try:
            self._path(sha256).unlink(missing_ok=True)
        except OSError as error:
            raise RecordsError(f"Image {sha256[:16]} cannot be removed: {first_line(error)}.") from error

    def free_bytes(self) -> int:
        """Free space of the disk that the folder is on.

        Raises:
            OSError: it cannot be asked.
        """
        return shutil.disk_usage(self._folder).free

    def _path(self, sha256: str) -> Path:
        # What is no hash could be a path out of the folder.
        if not _HASH.fullmatch(sha256):
            raise NotFoundError(f"{sha256!r} is no SHA-256 of an image.")
        return self._folder / sha256


def make_private_folder(folder: Path) -> None:
    """Make a folder that only its owner can enter, if there is none.

    Raises:
        RecordsError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RecordsError(f"The folder {str(folder)!r} cannot be made: {first_line(error)}.") from error
