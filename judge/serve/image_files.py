"""Files, folders and lists of paths -> every file that is, or claims to be, an image.

A skipped file is a file that nobody judged, so nothing is skipped for being broken. Listed are files with the suffix of
an image, also empty ones and formats that are never judged; files that start like an image, whatever their name; and
whatever cannot be read.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import cast

from judge.data.recognise import looks_like_image, starts_like_image
from judge.data.walk import walk
from judge.errors import ConfigError
from judge.runs.files import nearest_path
from prompts.printable import printable

from .exit_codes import print_stderr

_MAGIC_BYTES = 16
"""Bytes from which an image on standard input is known."""


@dataclass(frozen=True)
class FoundFile:
    """A path, and the reason why it cannot be judged, where that is known before it is opened."""

    path: str
    reason: str | None = None
    data: bytes | None = None
    """The image itself, where it came on standard input."""
    prompt: str | None = None
    """Its own prompt, where it has one."""


def find_images(
    paths: Iterable[str], *, null: bool = False, tell: Callable[[str], None] = print_stderr
) -> Iterator[FoundFile]:
    """The image files that the command line names: files, those in folders, and `-` for standard input.

    On standard input is one image, known by its first bytes and named `-`, or a list of paths.

    A file that is named is always listed. Other files of a folder are counted on standard error. Linked folders are
    followed, each real folder once.

    Args:
        paths: as they were given.
        null: paths on standard input end with NUL instead of a line break.
        tell: prints a remark.

    Raises:
        ConfigError: `null` without a `-`.
    """
    paths = list(paths)
    if null and "-" not in paths:
        raise ConfigError("--null is about paths from standard input; give - as PATH.")
    for path in paths:
        if path == "-":
            yield from _read_standard_input(null, tell)
        else:
            yield from _find_below(path, tell)


def say_missing(paths: Sequence[str], tell: Callable[[str], None]) -> None:
    """Tell which of the named files are not there, with those that were probably meant, before a judge is loaded.

    Raises:
        ConfigError: none of them is.
    """
    named = [path for path in paths if path != "-"]
    missing = [f"{path}: no such file{nearest_path(path)}" for path in named if not os.path.lexists(path)]
    if missing and len(missing) == len(paths):
        raise ConfigError("; ".join(missing))
    for line in missing:
        tell(f"arbiter: {printable(line)}")


def _find_below(path: str, tell: Callable[[str], None]) -> Iterator[FoundFile]:
    """A file, or the image files below a folder."""
    if not os.path.isdir(path):
        yield FoundFile(path)
        return
    others = 0
    for found in walk(path):
        if found.error is not None:  # it may hold images, so it is listed as unjudged
            reason = f"a folder that cannot be read, {found.error.strerror or found.error}"
            yield FoundFile(found.path, f"unreadable: {reason}")
        elif looks_like_image(found.path):
            yield FoundFile(found.path)
        else:
            others += 1
    if others:
        said = "1 file is no image" if others == 1 else f"{others} files are no images"
        tell(f"arbiter: {printable(path)}: {said}, not judged")


def _read_standard_input(null: bool, tell: Callable[[str], None]) -> Iterator[FoundFile]:
    """The image on standard input, or the files of the list there; read as bytes, as names may be in any encoding."""
    end, stream = b"\0" if null else b"\n", cast(BufferedReader, sys.stdin.buffer)
    from judge.data.images import DEFAULT_LIMITS

    head = _read_first(stream, end)
    if not null and _is_binary(head) and starts_like_image(head):
        # One byte more than allowed is enough to know that the image is too large.
        yield FoundFile("-", data=head + stream.read(DEFAULT_LIMITS.max_bytes + 1))
        return
    for path in _read_list(head, stream, end):
        yield from _find_below(path, tell)


def _read_first(stream: BufferedReader, end: bytes) -> bytes:
    """The first bytes of a stream: enough to know an image, and of a list no more than has arrived."""
    head = b""
    while len(head) < _MAGIC_BYTES and (end not in head or _is_binary(head)):
        chunk = stream.read1(65536)
        if not chunk:
            break
        head += chunk
    return head


def _is_binary(head: bytes) -> bool:
    """Whether the first bytes are no text: a list may start with `BMW.jpg`, as a BMP does."""
    return any(byte < 32 and byte not in b"\t\r\n" for byte in head[:_MAGIC_BYTES]) or head[:1] > b"\x7e"


def _read_list(rest: bytes, stream: BufferedReader, end: bytes) -> Iterator[str]:
    """The paths of a list that starts with `rest`."""
    chunk = b""
    while True:
        *complete, rest = (rest + chunk).split(end)
        yield from _decode_paths(complete, end)
        chunk = stream.read1(65536)  # returns what is there: a slow list is judged as it arrives
        if not chunk:
            break
    yield from _decode_paths([rest], end)


def _decode_paths(entries: Iterable[bytes], end: bytes) -> Iterator[str]:
    """Paths of a list, without empty lines; the line ends of Windows are removed."""
    for entry in entries:
        if path := os.fsdecode(entry if end == b"\0" else entry.rstrip(b"\r")):
            yield path
