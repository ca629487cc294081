"""An input -> the files in it that are labelled: images, webdataset tars, Parquet, JSON lines.

Files are known by their suffix, else by their first bytes. Whatever claims to be an image is listed, and so are files
and folders that cannot be read: they become rows that say so. Left out are names that start with `.` or `_`; other
files are counted.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from judge.data.recognise import has_image_suffix, starts_like_image
from judge.errors import ConfigError
from judge.runs.files import nearest_path
from prompts.printable import printable

from .files import Entry, Root, UrlRoot, is_url, open_root
from .read import check_source
from .shards import Kind

SUFFIXES: Mapping[str, Kind] = {
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst"), "tar"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"), "jsonl"),
}
"""Ends of names, in lower case, of files with many inputs."""
_SUFFIXES = tuple(SUFFIXES)
_NAMED = 5
"""Suffixes of other files that are named, at most."""


@dataclass(frozen=True)
class Found:
    """A file to label, or a folder that cannot be read."""

    kind: Kind
    path: str
    """Relative to the root, with `/`."""
    size: int
    """In bytes."""
    modified: int
    """When it was changed: nanoseconds since 1970, 0 where it is not known."""


def root_of(where: str) -> str:
    """The folder, or the URL of one, that paths of an input are relative to: itself, or that of a single file.

    Raises:
        ConfigError: there is no such input.
    """
    return _locate(where)[0]


def find_sources(
    where: str,
    columns: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda remark: None,
    leave_out: Path | None = None,
) -> Iterator[Found]:
    """Every file to label, those of a folder by name and then those of the folders inside it.

    The memory it takes does not grow with the number of files (behind a URL: with the largest folder's). Linked
    folders come last, each real folder once.

    Args:
        where: a file, a folder, or an fsspec URL of one.
        columns: names of columns, as in `Shard`; every table is checked for them, and a remark says which lack them.
        tell: prints a remark about files that are not labelled.
        leave_out: a folder of this machine that is not looked into, such as that of the labels.

    Raises:
        ConfigError: there is no such input, or it is a file of another kind. At the end, where no table has the
            `columns`, or nothing at all can be labelled.
    """
    start, name = _locate(where)
    root = open_root(start)
    if name is not None:
        kind = _kind(root, entry := root.entry(name))
        if kind is None:
            raise ConfigError(
                f"{where} is no image and none of {', '.join(_SUFFIXES)}; give one, or a folder."
            )
        check_source(start, name, kind, columns or {})
        yield Found(kind, name, entry.size, entry.modified)
        return
    others, kinds, refused = Counter[str](), Counter[Kind](), list[ConfigError]()
    for entry in root.walk(leave_out):
        kind = _kind(root, entry)
        if kind is None:
            others[os.path.splitext(entry.path)[1].lower() or "no suffix"] += 1
            continue
        try:
            check_source(start, entry.path, kind, columns or {})
            kinds[kind] += 1
        except ConfigError as error:
            refused.append(error)
        yield Found(kind, entry.path, entry.size, entry.modified)
    if refused:
        # One that a stranger uploaded among others does not stop the run; its rows have no verdict.
        if not (kinds["parquet"] + kinds["jsonl"] if columns else kinds.total()):
            raise refused[0]
        tell(
            f"{len(refused):,} tables hold no images, and their rows will have no verdict; the first: {refused[0]}"
        )
    if others:
        tell(_remark(where, others))


def _locate(where: str) -> tuple[str, str | None]:
    """The root of an input, and the name of its file, where it is a single one."""
    if is_url(where):
        folder, _, name = where.rstrip("/").rpartition("/")
        try:
            return (where, None) if UrlRoot(where).is_folder() else (folder, name)
        except OSError as error:
            raise ConfigError(f"{where} cannot be read: {error}") from error
    if os.path.isdir(where):
        return where, None
    if not os.path.exists(where):
        raise ConfigError(f"{where}: no such file or folder{nearest_path(where)}.")
    folder, name = os.path.split(where)
    return folder or ".", name


def _kind(root: Root, entry: Entry) -> Kind | None:
    """What a file is; None for what is not labelled."""
    name = entry.path.rpartition("/")[2]
    if (suffix := next(filter(name.lower().endswith, _SUFFIXES), None)) is not None:
        return SUFFIXES[suffix]
    if entry.error is not None or has_image_suffix(name):
        return "images"
    head = root.head(entry.path)
    if head is not None and head[257:262] == b"ustar":
        return "tar"
    if head is not None and head.startswith(b"PAR1"):
        return "parquet"
    return "images" if starts_like_image(head) else None


def _remark(where: str, others: Counter[str]) -> str:
    count = others.total()
    named = ", ".join(f"{number} {suffix}" for suffix, number in others.most_common(_NAMED))
    more = ", ..." if len(others) > _NAMED else ""
    said = "1 file is" if count == 1 else f"{count:,} files are"
    return f"{printable(where)}: {said} neither images nor tables of them, and not labelled ({named}{more})"
