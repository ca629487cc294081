"""Which task is about which image: by path, or by the part of it that both know; never by a guess.

A row knows a path as it was given (`pictures/a/1.png`), a task what it was imported with (`a/1.png`,
`/data/local-files/?d=a/1.png`, `s3://bucket/uploads/a/1.png`). They are of one image where one path is the end of the
other, part by part, and no other pair fits as well.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from .label_studio import LOCAL_FILES

_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts in front of the name of a file that is uploaded to it."""
Parts = tuple[str, ...]
"""A path, part by part."""
Name = TypeVar("Name", str, Parts)


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
    rows = {path: parts_of(path) for path in paths}
    images: dict[Parts, list[int]] = defaultdict(list)
    for task, name in tasks.items():
        images[parts_of(name)].append(task)
    rows_of_file: dict[str, list[str]] = defaultdict(list)
    for path, parts in rows.items():
        rows_of_file[parts[-1]].append(path)
    images_of_file: dict[str, list[Parts]] = defaultdict(list)
    for parts in images:
        images_of_file[parts[-1]].append(parts)
    matched: dict[int, str] = {}
    without, ambiguous = [], []
    for path, parts in rows.items():
        fitting = {image: _fit(parts, image) for image in images_of_file[parts[-1]]}
        image = _only_best(fitting)
        if not any(fitting.values()):
            without.append(path)
        elif image is not None and path == _only_best(
            {other: _fit(rows[other], image) for other in rows_of_file[image[-1]]}
        ):
            matched |= dict.fromkeys(images[image], path)
        else:
            ambiguous.append(path)
    return Matches(matched, tuple(without), tuple(ambiguous))


def _fit(one: Parts, other: Parts) -> float:
    """How many parts two paths share, where one is the end of the other, else 0; the same path fits a little better."""
    length = min(len(one), len(other))
    return 0 if one[-length:] != other[-length:] else length + 0.5 * (one == other)


def _only_best(fits: Mapping[Name, float]) -> Name | None:
    """What fits best, if it alone does."""
    highest = max(fits.values(), default=0)
    best = [name for name, fit in fits.items() if fit == highest > 0]
    return best[0] if len(best) == 1 else None


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
