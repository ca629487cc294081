"""Atomic writes, and hashes of files."""

import hashlib
import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that readers, also after a crash, find either the old content or the new one.

    Args:
        path: the file; its folder must exist.
        content: bytes, or text that is written as UTF-8.
    """
    # The process id keeps two writers of one file apart; the last one to rename wins.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name is part of the folder, and lost with it in a power cut
        finally:
            os.close(folder)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
