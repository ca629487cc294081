"""Which task is about which image: by path, or by the part of it that both know; never by a guess.

A row knows a path as it was given (`pictures/a/1.png`), a task what it was imported with (`a/1.png`,
`/data/local-files/?d=a/1.png`, `s3://bucket/uploads/a/1.png`). They are of one image where one path is the end of the
other, part by part, and no other pair fits as well.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from .label_studio import LOCAL_FILES

_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts in front of the name of a file that is uploaded to it."""
Parts = tuple[str, ...]
"""A path, part by part."""


class Matches(NamedTuple):
    """Tasks and rows that belong together, and the rows that do not."""

    tasks: Mapping[int, str]
    """Task -> path of its row."""
    without_task: tuple[str, ...]
    """Paths that no task is about."""
    ambiguous: tuple[str, ...]
    """Paths that fit tasks of several images, or that share a task with another path."""


def match_tasks(paths: Iterable[str], tasks: Mapping[int, str]) -> Matches:
    """Find the tasks of every row: a path and an image belong together if neither fits another as well.

    Args:
        paths: of rows.
        tasks: task -> name of its image (`image_name`); several may be about one image.
    """
    rows: dict[Parts, list[str]] = defaultdict(list)
    for path in paths:
        rows[parts_of(path)].append(path)
    images: dict[Parts, list[int]] = defaultdict(list)
    for task, name in tasks.items():
        images[parts_of(name)].append(task)
    image_of, row_of = _best_fits(rows, images), _best_fits(images, rows)
    matched: dict[int, str] = {}
    without: list[str] = []
    ambiguous: list[str] = []
    for parts, written in rows.items():
        image = image_of.get(parts)
        if parts not in image_of:
            without += written
        elif image is not None and row_of[image] == parts and len(written) == 1:
            matched |= dict.fromkeys(images[image], written[0])
        else:
            ambiguous += written
    return Matches(matched, tuple(without), tuple(ambiguous))


def _best_fits(some: Collection[Parts], others: Collection[Parts]) -> dict[Parts, Parts | None]:
    """What fits each best: the same path, else a longer one that ends with it, else the longest that it ends with.

    None where several longer ones do; what nothing fits is left out. Takes time by the number of paths, not of pairs:
    thousands of folders may hold a file of the same name.
    """
    longer: dict[Parts, Parts | None] = {}
    for other in others:
        for end in (other[start:] for start in range(1, len(other))):
            if end in some:
                longer[end] = None if end in longer else other
    found: dict[Parts, Parts | None] = {}
    for one in some:
        ends = (one[start:] for start in range(1, len(one)))
        if one in others:
            found[one] = one
        elif one in longer:
            found[one] = longer[one]
        elif (shorter := next((end for end in ends if end in others), None)) is not None:
            found[one] = shorter
    return found


def parts_of(path: str) -> Parts:
    """`./a//b.png` -> a and b.png; a backslash is a slash, as Windows prints paths."""
    normal = posixpath.normpath(path.replace("\\", "/"))
    return tuple(part for part in normal.split("/") if part not in ("", ".", "..")) or ("",)


def image_name(data: Mapping[str, Any], key: str) -> str | None:
    """The name of a task's image: what `arbiter annotate tasks` wrote as `path`, else what its address says.

    Args:
        data: of the task.
        key: of the image's address.
    """
    if isinstance(data.get("path"), str):
        return str(data["path"])
    address = data.get(key)
    if not isinstance(address, str) or not address or address[:5].lower() == "data:":
        return None
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    if parts.path == urlsplit(LOCAL_FILES).path:
        return "".join(parse_qs(parts.query).get("d", [])) or None
    name = unquote(parts.path)
    if "/data/upload/" in name:
        return _UPLOADED.sub("", name.rpartition("/")[2], count=1)
    return name or None
