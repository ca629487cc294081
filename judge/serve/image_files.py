"""Files, folders and lists of paths -> one row for everything that is, or claims to be, an image.

A folder must not look cleaner than it is. So a row is whatever has an image's suffix (what is broken, empty or of a
format that is not judged included), whatever starts like an image under any name, and whatever cannot be looked into.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import cast

from judge.errors import ConfigError
from prompts.printable import printable

from .exit_codes import print_stderr

SUFFIXES = frozenset(
    """
    .jpg .jpeg .jpe .jif .jfif .jfi .png .apng .mng .jng .gif .webp .bmp .dib .tif .tiff .ico .cur .icns .svg .svgz
    .avif .avifs .heic .heif .heics .heifs .hif .jxl .jxr .wdp .hdp .jp2 .j2k .jpf .jpx .jpm .j2c .jpc .mpo .jps .pns
    .pnm .pbm .pgm .ppm .pam .pfm .tga .pcx .dcx .psd .psb .xcf .kra .ora .dds .exr .hdr .rgbe .qoi .flif .bpg .wbmp
    .xbm .xpm .sgi .rgb .rgba .wmf .emf .eps .ai
    .raw .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .erf .mef .mrw .3fr .iiq
    """.split()
)
"""Names that promise a picture, in small letters; all are rows, most of them unjudged."""
_HEAD = 4096
"""Bytes at the start of a file that are looked at."""
_MORE_MAGIC = (
    *(
        b"II+\0",
        b"MM\0+",
        b"II\xbc",
        b"\xff\x4f\xff\x51",
        b"v/1\x01",
        b"#?RADIANCE",
        b"#?RGBE",
        b"DDS ",
        b"icns",
    ),
    *(b"\x8aMNG", b"\x8bJNG", b"FLIF", b"BPG\xfb", b"gimp xcf", b"\0\0\2\0", b"/* XPM"),
)
"""Starts of formats that nobody judges here and `format_of` does not know."""
_BRANDS = (b"avi", b"hei", b"hev", b"mif", b"msf", b"mia", b"MiH", b"crx")
"""Brands of still images in the container that films are in too."""
_NETPBM = re.compile(rb"P[1-7fF]\s+(?:#[^\r\n]*[\r\n]\s*)*(?:\d|WIDTH|-)")
"""A comment ends with its line, so that there is one way only to read a file, and no file takes exponential time."""
_SVG = re.compile(rb"\s*(<\?xml|<!--|<!DOCTYPE\s+svg|<svg|<[\w-]+:svg)", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """One row to be: a path, and why it cannot be judged, where that is known before it is opened."""

    path: str
    reason: str | None = None


def find_images(paths: Iterable[str], *, null: bool = False) -> Iterator[Found]:
    """The rows of what the command line names: files, what folders hold, and `-` for a list on standard input.

    A file that is named is always a row. What a folder holds beside images is counted on standard error, so that
    nothing goes missing unsaid. Linked folders are followed, each real folder once.

    Args:
        paths: as they were given.
        null: the paths on standard input end with a NUL and not with a line.

    Raises:
        ConfigError: `null` without a `-`.
    """
    paths = list(paths)
    if null and "-" not in paths:
        raise ConfigError("--null is about paths from standard input; give - as PATH.")
    for path in paths:
        if path == "-":
            for listed in _listed(b"\0" if null else b"\n"):
                yield from _under(listed)
        else:
            yield from _under(path)


def looks_like_image(path: str) -> bool:
    """Whether a file claims to be an image, by its name or by its content; True for what cannot be read."""
    name = os.path.basename(path).rstrip(" .~")
    return os.path.splitext(name)[1].lower() in SUFFIXES or _starts_like_one(_head(path))


def _under(path: str) -> Iterator[Found]:
    """A file, or what a folder holds."""
    if not os.path.isdir(path):
        yield Found(path)
        return
    others = 0
    for found in _files(path):
        if found.reason is None and not looks_like_image(found.path):
            others += 1
        else:
            yield found
    if others:
        print_stderr(f"arbiter: {printable(path)}: {others} files are no images, not judged")


def _files(folder: str) -> Iterator[Found]:
    """Every file below a folder, by name; links to folders come last, so that files keep their own paths."""
    folders, links = [folder], list[str]()
    seen = set[tuple[int, int]]()
    while folders or links:
        parent = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(parent) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:  # it may hold anything, so it is a row, and the search goes on
            yield Found(parent, f"unreadable: a folder that cannot be looked into, {error.strerror or error}")
            continue
        below = []
        for entry in inside:
            if not _is_folder(entry):
                yield Found(entry.path)
            elif entry.is_symlink():
                links.append(entry.path)
            else:
                below.append(entry.path)
        folders += reversed(below)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle: a row, which says so when it is opened
        return False


def _listed(end: bytes) -> Iterator[str]:
    """The paths on standard input, as bytes: a file name need not be text in the terminal's encoding."""
    rest, stream = b"", cast(BufferedReader, sys.stdin.buffer)
    while chunk := stream.read1(65536):  # what is there, so that a slow list is judged as it comes
        *whole, rest = (rest + chunk).split(end)
        yield from _named(whole, end)
    yield from _named([rest], end)


def _named(entries: Iterable[bytes], end: bytes) -> Iterator[str]:
    for entry in entries:
        if path := os.fsdecode(entry if end == b"\0" else entry.rstrip(b"\r")):
            yield path


def _head(path: str) -> bytes | None:
    """The first bytes; nothing of what is no regular file, None where nobody can say."""
    try:
        if not os.path.isfile(path):
            return b"" if os.path.exists(path) else None
        with open(path, "rb") as file:
            return file.read(_HEAD)
    except (OSError, ValueError):
        return None


def _starts_like_one(head: bytes | None) -> bool:
    from judge.data.images import format_of  # imports PIL, which `arbiter --help` must not wait for

    if head is None:
        return True
    if format_of(head) is not None or head.startswith(_MORE_MAGIC):
        return True
    if head[4:8] == b"ftyp" and head[8:12].startswith(_BRANDS):
        return True
    text = head.removeprefix(b"\xef\xbb\xbf")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = head.decode("utf-16", "ignore").encode()
    return bool(_NETPBM.match(head)) or bool(_SVG.match(text) and b"svg" in text.lower())
