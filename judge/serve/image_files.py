"""Files, folders and lists of paths -> every file that is, or claims to be, an image.

A skipped file is a file that nobody judged, so nothing is skipped for being broken. Listed are files with the suffix of
an image, also empty ones and formats that are never judged; files that start like an image, whatever their name; and
whatever cannot be read.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import cast

from judge.errors import ConfigError
from judge.runs.files import nearest_path
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
"""Suffixes of images, in lower case. Most of these formats are never decoded: such files are listed, and unjudged."""
_HEAD_BYTES = 4096
"""Bytes read from the start of a file without the suffix of an image."""
_MAGIC_BYTES = 16
"""Bytes from which an image on standard input is known."""
_MORE_MAGIC = (
    *(b"II+\0", b"MM\0+"),  # BigTIFF
    *(b"II\xbc", b"\xff\x4f\xff\x51"),  # JPEG XR, JPEG 2000 without a container
    *(b"v/1\x01", b"#?RADIANCE", b"#?RGBE"),  # OpenEXR, Radiance HDR
    *(b"DDS ", b"icns", b"\x8aMNG", b"\x8bJNG", b"FLIF", b"BPG\xfb", b"gimp xcf", b"/* XPM"),
    b"\0\0\2\0",  # a Windows cursor
)
"""First bytes of formats that are not decoded here and that `format_of` does not know."""
_BRANDS = (b"avi", b"hei", b"hev", b"mif", b"msf", b"mia", b"MiH", b"crx")
"""Brands (bytes 8 to 12) of still images in ISO base media files, which hold videos too."""
_NETPBM = re.compile(rb"P[1-7fF]\s+(?:#[^\r\n]*[\r\n]\s*)*(?:\d|WIDTH|-)")
"""A comment ends with its line: then a text matches in one way only, and no file takes exponential time."""
_SVG = re.compile(rb"\s*(<\?xml|<!--|<!DOCTYPE\s+svg|<svg|<[\w-]+:svg)", re.IGNORECASE)


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


def looks_like_image(path: str) -> bool:
    """Whether a file claims to be an image, by its name or by its first bytes; True for what cannot be read."""
    # `a.png~` is an editor's backup, and Windows ignores dots and spaces at the end.
    name = os.path.basename(path).rstrip(" .~")
    return os.path.splitext(name)[1].lower() in SUFFIXES or _starts_like_image(_read_head(path))


def _find_below(path: str, tell: Callable[[str], None]) -> Iterator[FoundFile]:
    """A file, or the image files below a folder."""
    if not os.path.isdir(path):
        yield FoundFile(path)
        return
    others = 0
    for found in _walk(path):
        if found.reason is None and not looks_like_image(found.path):
            others += 1
        else:
            yield found
    if others:
        said = "1 file is no image" if others == 1 else f"{others} files are no images"
        tell(f"arbiter: {printable(path)}: {said}, not judged")


def _walk(folder: str) -> Iterator[FoundFile]:
    """Every file below a folder, by name.

    Linked folders come last: a file that is also reachable without a link is listed under its own path.
    """
    folders, links = [folder], list[str]()  # a stack, and a queue for when the stack is empty
    seen = set[tuple[int, int]]()  # (device, inode) of each folder: links may form a circle
    while folders or links:
        parent = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(parent) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:  # it may hold images, so it is listed as unjudged
            yield FoundFile(parent, f"unreadable: a folder that cannot be read, {error.strerror or error}")
            continue
        below = []
        for entry in inside:
            if not _is_folder(entry):
                yield FoundFile(entry.path)
            elif entry.is_symlink():
                links.append(entry.path)
            else:
                below.append(entry.path)
        folders += reversed(below)  # the last one is popped first


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: listed as a file, and the reason follows when it is opened
        return False


def _read_standard_input(null: bool, tell: Callable[[str], None]) -> Iterator[FoundFile]:
    """The image on standard input, or the files of the list there; read as bytes, as names may be in any encoding."""
    end, stream = b"\0" if null else b"\n", cast(BufferedReader, sys.stdin.buffer)
    from judge.data.images import DEFAULT_LIMITS

    head = _read_first(stream, end)
    if not null and _is_binary(head) and _starts_like_image(head):
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


def _read_head(path: str) -> bytes | None:
    """The first bytes of a file; b"" for a pipe or device, which reading could block; None if it cannot be read."""
    try:
        if not os.path.isfile(path):
            return b"" if os.path.exists(path) else None
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except (OSError, ValueError):
        return None


def _starts_like_image(head: bytes | None) -> bool:
    """Whether the first bytes are those of an image; True where they are unknown."""
    from judge.data.images import format_of  # imports PIL, which `arbiter --help` must not wait for

    if head is None:
        return True
    if format_of(head) is not None or head.startswith(_MORE_MAGIC):
        return True
    if head[4:8] == b"ftyp" and head[8:12].startswith(_BRANDS):
        return True
    text = head.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = head.decode("utf-16", "ignore").encode()
    return bool(_NETPBM.match(head)) or bool(_SVG.match(text) and b"svg" in text.lower())
