"""Atomic writes, permissions and hashes of files, and which path was probably meant."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id
from typing import BinaryIO

from prompts.names import nearest_name


def write_atomically(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write a file so that readers, also after a crash, find either the old content or the new one.

    Args:
        path: the file; its folder must exist.
        content: bytes, or text that is written as UTF-8.
        mode: its permissions, from the start; the umask takes its part away.
    """
    with open_atomically(path, mode=mode) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def open_atomically(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """As `write_atomically`, for what is written bit by bit; an error inside leaves the file as it was."""
    # Process and thread keep two writers of one file apart; the last one to rename wins.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_native_id()}")
    temporary.unlink(missing_ok=True)  # of a process that was killed; it could have other permissions
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name is part of the folder, and lost with it in a power cut
        finally:
            os.close(folder)


def share_files(folder: Path) -> None:
    """Give all files below a folder the permissions of new files: 666, less what the umask takes away.

    safetensors writes into a temporary file that only its owner may read, and renames it; but a model is meant to be
    read by others.
    """
    probe = folder / f".permissions.{os.getpid()}-{get_native_id()}"
    # What a new file gets is looked up on one: the umask can only be read by changing it, for all threads.
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def nearest_path(path: str) -> str:
    """` (did you mean 'runs/demo'?)` for a path that does not exist; empty where nothing here is similar."""
    found = Path()
    for part in Path(path).parts:
        if (found / part).exists():
            found /= part
            continue
        try:
            near = _nearest_entry(part, os.listdir(found))
        except OSError:  # no folder, or one that may not be read
            near = None
        if near is None:
            return ""
        found /= near
    return f" (did you mean {str(found)!r}?)"


def _nearest_entry(name: str, entries: list[str]) -> str | None:
    """The entry of a folder that is most like a name; a shared suffix alone makes nothing alike."""
    stem, suffix = os.path.splitext(name)
    same = {os.path.splitext(entry)[0].casefold(): entry for entry in entries if entry.endswith(suffix)}
    return nearest_name(stem, same) or nearest_name(name, [e for e in entries if not e.endswith(suffix)])
