"""Shipped models whose larger part lies in a wheel, put together once as plain checkpoint folders.

Every loader (ours, peft, accelerate, `transformers serve`) takes a folder. So our weights and the wheel's are written
as one into the user's cache: `$ARBITER_CACHE`, or `arbiter` in `$XDG_CACHE_HOME` or `~/.cache`. A folder there is named
after all that went into it, and its files are compared with their recorded hashes before each use.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from judge.errors import CheckpointError

from .wheels import Wheel

RECORD = "assembled.json"
"""File in an assembled folder: the SHA-256 of the others by name."""


@dataclass(frozen=True)
class Assembly:
    """How a shipped model becomes a checkpoint folder."""

    name: str
    wheels: tuple[Wheel, ...]
    """What it is made of beside the shipped folder."""
    write: Callable[[Path, Path], None]
    """`write(shipped, folder)` writes the files of the checkpoint into an empty folder, without subfolders."""
    version: int = 1
    """Raised when `write` writes something else from the same files."""


def assemble(assembly: Assembly, shipped: Path) -> Path:
    """The folder of an assembled model: the one in the cache if its files are whole, else written anew.

    Processes that ask at the same time wait for the one that writes, and a folder appears under its name only when it
    is complete.

    Args:
        assembly: the model.
        shipped: the folder with our part.

    Raises:
        CheckpointError: our part or a wheel is missing or another one, or the cache cannot be written.
    """
    if not shipped.is_dir():
        raise CheckpointError(
            f"{assembly.name}'s own weights are not in {shipped}; this version ships without them."
        )
    folder = cache_folder() / f"{assembly.name}-{_inputs_hash(assembly, shipped)[:12]}"
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not _is_whole(folder):  # another process may have written it meanwhile
                _write(assembly, shipped, folder)
    except (OSError, SafetensorError) as error:  # the second where a disk is full
        raise CheckpointError(
            f"{assembly.name} could not be put together in {folder.parent} ({error}); set ARBITER_CACHE to a folder "
            "that can be written."
        ) from error
    return folder


def _write(assembly: Assembly, shipped: Path, folder: Path) -> None:
    """Write the folder anew; called with the lock held."""
    part = folder.with_name(f".{folder.name}.part")
    for old in (part, folder):  # half written, damaged
        if old.exists():
            shutil.rmtree(old)
    part.mkdir()
    try:
        assembly.write(shipped, part)
        (part / RECORD).write_text(json.dumps(_hashes(part), indent=2) + "\n", encoding="utf-8")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def cache_folder() -> Path:
    """Where assembled models are kept; it need not exist.

    Raises:
        CheckpointError: neither a variable nor a home folder says where.
    """
    own, shared = os.environ.get("ARBITER_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser().absolute()
        # A relative XDG folder is invalid and ignored, says its specification.
        return (Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".cache") / "arbiter"
    except RuntimeError as error:  # no home folder
        raise CheckpointError("There is no home folder to cache models in; set ARBITER_CACHE.") from error


def _inputs_hash(assembly: Assembly, shipped: Path) -> str:
    """SHA-256 over everything that the folder is made of, as hexadecimal digits."""
    inputs = {
        "version": assembly.version,
        "wheels": {wheel.distribution: dict(wheel.files) for wheel in assembly.wheels},
        "shipped": _hashes(shipped),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds exactly the files that were recorded when it was written."""
    try:
        return bool(_hashes(folder) == json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a folder, but for its record, by name."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != RECORD and path.is_file():
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
