"""Images for the queue: from a form, or from a folder of the server, which is all that a path may reach."""

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.datastructures import FormData, UploadFile

from judge.data.images import DEFAULT_LIMITS, FORMATS, format_of, read_bytes
from judge.errors import ImageError
from judge.records.entries import Item, NewItem
from prompts.printable import printable

from .errors import ApiError, bad_request, image_problem

if TYPE_CHECKING:
    from fastapi import Request

    from judge.records.records import Records

MAX_FOLDER_FILES = 10_000
"""Files in a folder that is imported at once."""
_BATCH = 16
"""Files of a folder that are in memory and in one transaction together."""


async def read_form(request: "Request", most: int) -> list[NewItem]:
    """The images of a multipart form: parts `files`, and `prompt` for all of them.

    Args:
        request: whose body is the form.
        most: images that it may hold.

    Raises:
        ApiError: no image, too many, one that is too large or none by its first bytes, another part; 408.
    """
    try:
        async with asyncio.timeout(request.app.state.settings.body_seconds):
            form = await request.form(max_files=most + 1, max_fields=8)
    except TimeoutError:
        raise ApiError(408, "body_timeout", "The form took too long to arrive; send it again.") from None
    try:
        return await _new_items(form, most)
    finally:
        await form.close()


async def _new_items(form: FormData, most: int) -> list[NewItem]:
    for name in form:
        if name not in ("files", "files[]", "prompt"):
            raise bad_request(f"No part {name[:60]!r}; send files and prompt.", param=name[:60])
    files = [*form.getlist("files"), *form.getlist("files[]")]
    if not files:
        raise bad_request("Send one image or more as files.", param="files", code="image_required")
    if len(files) > most:
        raise bad_request(
            f"At most {most} files; send the others in another request.",
            param="files",
            code="too_many_images",
        )
    prompt = form.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise bad_request("prompt: a text, not a file.", param="prompt")
    return [await _new_item(file, prompt, f"files[{place}]") for place, file in enumerate(files)]


async def _new_item(file: UploadFile | str, prompt: str | None, param: str) -> NewItem:
    if isinstance(file, str):
        raise bad_request(f"{param}: a file, not a text.", param=param)
    data = await file.read(DEFAULT_LIMITS.max_bytes + 1)
    try:
        check_claim(data)
    except ImageError as error:
        raise image_problem(error, param) from None
    return NewItem(data, _last_part(file.filename or "image"), prompt)


def check_claim(data: bytes) -> None:
    """Refuse what no decoder here would open, by its size and first bytes; nothing is decoded.

    Raises:
        ImageError: `too_large`, `not_an_image`, `unsupported_format`.
    """
    if len(data) > DEFAULT_LIMITS.max_bytes:
        raise ImageError("too_large", f"more than {DEFAULT_LIMITS.max_bytes:,} bytes")
    kind = format_of(data[:32])
    if kind is None:
        raise ImageError("not_an_image", f"the first bytes are {data[:8]!r}")
    if kind not in FORMATS:
        raise ImageError("unsupported_format", f"{kind}; convert it to one of {', '.join(FORMATS)}")


@dataclass
class Imported:
    """What became of the files of a folder."""

    items: list[Item] = field(default_factory=list)
    """New in the queue."""
    known: int = 0
    """Images that the queue has already, without a prompt."""
    refused: list[dict[str, str]] = field(default_factory=list)
    """`name`, `code` and `message` of files that are no images, cannot be read, or lead out of the folder."""


def import_folder(records: "Records", root: Path, path: str) -> Imported:
    """Add the images below a folder to the queue.

    Args:
        records: whose queue.
        root: the folder that nothing may leave, symbolic links resolved.
        path: relative to `root`, or below it.

    Raises:
        ApiError: `path` leads out of `root`, or is no folder; or there are too many files.
    """
    inside = root.resolve()
    folder = _resolve(inside, path)
    if folder is None or not folder.is_dir():
        raise ApiError(
            404, "folder_not_found", "There is no such folder below the server's queue folder.", param="path"
        )
    imported, batch = Imported(), list[NewItem]()
    for file in _files(folder):
        name = str(file.relative_to(inside))
        try:
            batch.append(NewItem(_read_inside(file, inside), name))
        except ImageError as error:
            imported.refused.append({"name": printable(name), "code": error.status, "message": error.reason})
        if len(batch) == _BATCH:
            _add(records, batch, imported)
    _add(records, batch, imported)
    return imported


def _add(records: "Records", batch: list[NewItem], imported: Imported) -> None:
    """Add a batch to the queue, and empty it."""
    items = records.add_items(batch, again=False)
    imported.items += items
    imported.known += len(batch) - len(items)
    batch.clear()


def _files(folder: Path) -> list[Path]:
    """Whatever is no folder below a folder, in order; links to folders are listed, and not followed."""
    found: list[Path] = []
    for home, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(home) / name).is_symlink()]
        found += [Path(home) / name for name in sorted([*files, *links])]
        if len(found) > MAX_FOLDER_FILES:
            raise bad_request(
                f"More than {MAX_FOLDER_FILES:,} files; import its folders one by one.", param="path"
            )
    return found


def _read_inside(file: Path, inside: Path) -> bytes:
    """The bytes of a file, which is an image by its first ones; a link is followed if it stays inside."""
    resolved = _resolve(inside, str(file))
    if resolved is None:
        raise ImageError("unreadable", "a link that leads out of the queue folder")
    data = read_bytes(resolved)
    check_claim(data)
    return data


def _resolve(inside: Path, path: str) -> Path | None:
    """A path with its links resolved; None where it leads out of the folder `inside`."""
    try:
        resolved = (inside / path).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL
        return None
    return resolved if resolved.is_relative_to(inside) else None


def _last_part(name: str) -> str:
    """The name of a file without folders, of whatever system."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]
