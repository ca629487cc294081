"""Webdataset tars as inputs: members that share what comes before the first dot of their name are a sample.

Each image of a sample is an input. Its prompt is the sample's `.txt`, else `prompt` or `caption` in its `.json`. The
members of a sample stand together. A tar that is packed by gzip is read, too. Hidden members are left out.
"""

import json
import posixpath
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsBytes, cast

from judge.data.images import DEFAULT_LIMITS, ImageLimits
from judge.data.recognise import HEAD_BYTES, has_image_suffix, starts_like_image
from judge.data.tar_members import Damage, Member, TarMembers
from judge.data.tar_shards import TarImage
from judge.errors import ImageError, first_line

from .files import Opened, Skip, image_error, opened
from .ids import LONGEST_NAME, file_id, place_id, storable
from .shards import InputRow, Shard, check_prompt

PROMPTS = ("prompt", "caption")
"""Where the `.json` of a sample has its prompt, if no other name is given."""
_TEXTS = ("txt", "json")
_MOST_TEXT = 2**22
"""Bytes of a sample's `.txt` or `.json` that are read, at most."""

_Content = SupportsBytes | ImageError
"""What a member holds, or why it cannot be read."""


def read_tar(shard: Shard, skip: Skip, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[InputRow | None]:
    """The images of a tar; None for those to skip. A damaged place is an input with a problem."""
    path, count = shard.paths[0], 0
    try:
        with opened(shard.root, path) as tar:
            samples = _Samples(shard, tar, skip, limits)
            for row in samples.rows():
                yield row
                count += 1
    except (OSError, ImageError) as error:
        problem = error if isinstance(error, ImageError) else image_error(error)
        yield None if skip(count) else InputRow(file_id(path), storable(path), problem=problem)


@dataclass
class _Sample:
    """Members with one key, as far as they were read."""

    key: str
    images: list[tuple[str, _Content]] = field(default_factory=list)
    """(rest of the name, content)"""
    texts: dict[str, _Content] = field(default_factory=dict)


class _Samples:
    """The samples of one tar, as rows."""

    def __init__(self, shard: Shard, tar: Opened, skip: Skip, limits: ImageLimits) -> None:
        self._path, self._tar, self._members = shard.paths[0], tar, TarMembers(tar.file)
        self._skip, self._limits = skip, limits
        self._file = None if tar.streamed else Path(shard.root) / self._path
        named = shard.columns.get("prompt")
        self._prompts = PROMPTS if named is None else (named,)
        self._keys = _Names()
        self._count = 0
        """Inputs that were counted so far."""

    def rows(self) -> Iterator[InputRow | None]:
        """Every input of the tar, None in the place of those to skip."""
        sample = None
        for found in self._members:
            if isinstance(found, Damage):
                yield from self._flush(sample, "ends, or is damaged, inside or right behind this sample")
                sample = None
                yield from self._flush_damage(found)
                continue
            name = posixpath.normpath(found.name) if found.name.startswith("./") else found.name
            folder, slash, base = name.rpartition("/")
            stem, _, suffix = base.partition(".")
            if found.is_folder or not stem:  # `.name` is hidden
                continue
            key = f"{folder}{slash}{stem}"
            if sample is None or sample.key != key:
                yield from self._flush(sample)
                sample = _Sample(key)
            self._add(sample, suffix, found)
        yield from self._flush(sample)

    def _add(self, sample: _Sample, suffix: str, member: Member) -> None:
        """Take what belongs to a sample from one of its members."""
        last = suffix.rpartition(".")[2].lower()
        wanted = not self._skip(self._count + len(sample.images))
        if has_image_suffix(f"x.{suffix}"):
            sample.images.append((suffix, self._content(member, self._limits.max_bytes, wanted)))
        elif last in _TEXTS:
            sample.texts[last] = self._content(member, _MOST_TEXT, True)
        elif member.is_file and (content := self._unnamed_image(member)) is not None:
            sample.images.append((suffix, content))

    def _content(self, member: Member, most: int, wanted: bool) -> _Content:
        """What a member holds: read now in a stream, else when it is needed."""
        if not member.is_file:
            return ImageError("missing", "a link or a sparse file inside the tar; store the image itself")
        if member.size > most:
            return ImageError("too_large", f"{member.size:,} bytes; at most {most:,} are read")
        if self._file is not None:
            return TarImage(self._file, member.offset, member.size)
        try:
            data = self._members.read(member) if wanted else b""
        except (OSError, EOFError, zlib.error) as error:
            return ImageError("unreadable", first_line(error))
        if wanted and len(data) < member.size:
            return ImageError("truncated", f"{posixpath.basename(self._path)} ends inside the image")
        return data

    def _unnamed_image(self, member: Member) -> _Content | None:
        """The content of a member without the suffix of an image, if it starts like one."""
        if self._file is not None or member.size > self._limits.max_bytes:
            try:
                if not starts_like_image(self._members.read(member, HEAD_BYTES)):
                    return None
            except (OSError, EOFError, zlib.error):
                pass
            return self._content(member, self._limits.max_bytes, True)
        # A stream cannot go back to the start.
        content = self._content(member, self._limits.max_bytes, True)
        return content if isinstance(content, ImageError) or starts_like_image(bytes(content)) else None

    def _flush(self, sample: _Sample | None, cut: str | None = None) -> Iterator[InputRow | None]:
        """The rows of a sample that is complete, or cut."""
        if sample is None or not (sample.images or sample.texts):
            return
        if not sample.images and cut:  # the row about the damage says so
            return
        again = sample.key in self._keys
        key, start = self._keys.add(sample.key[:LONGEST_NAME]), self._count
        self._count += max(1, len(sample.images))
        skipped = [self._skip(number) for number in range(start, self._count)]
        if all(skipped):
            yield from [None] * len(skipped)
            return
        if not sample.images:
            hint = "; members of a sample must stand together" if again else ""
            yield self._row(key, ImageError("missing", f"the sample has no image{hint}"), None)
            return
        prompt: str | ImageError | None = ImageError("truncated", f"the tar {cut}") if cut else None
        if not cut:
            prompt = self._prompt(sample.texts)
        names = _Names()
        for (suffix, content), skip in zip(sample.images, skipped, strict=True):
            name = key if len(sample.images) == 1 else names.add(f"{key}.{suffix}"[: 2 * LONGEST_NAME])
            yield None if skip else self._row(name, content, prompt)

    def _flush_damage(self, damage: Damage) -> Iterator[InputRow | None]:
        self._count += 1
        if self._skip(self._count - 1):
            yield None
            return
        reason = f"the tar {damage.reason}; what stood behind is lost, and was not counted"
        place = place_id(self._path, damage.offset)
        yield InputRow(
            place, storable(self._path), problem=ImageError("truncated", reason), place=self._tar.place
        )

    def _row(self, name: str, content: _Content, prompt: str | ImageError | None) -> InputRow:
        problem = next((one for one in (content, prompt) if isinstance(one, ImageError)), None)
        path = storable(self._path)
        row_id = f"{file_id(self._path)}/{storable(name)}"
        text = prompt if isinstance(prompt, str) else None
        if problem is not None:
            return InputRow(row_id, path, prompt=text, problem=problem, place=self._tar.place)
        return InputRow(row_id, path, cast(SupportsBytes, content), text, place=self._tar.place)

    def _prompt(self, texts: Mapping[str, _Content]) -> str | ImageError | None:
        """The prompt of a sample; why it cannot be read, as an image must not be judged without its prompt."""
        try:
            if "txt" in texts:
                return check_prompt(_text(texts["txt"]))
            record = json.loads(_text(texts["json"])) if "json" in texts else None
            values = [record.get(name) for name in self._prompts] if isinstance(record, dict) else []
            return next((check_prompt(storable(value)) for value in values if isinstance(value, str)), None)
        except ImageError as error:
            return ImageError(error.status, f"the prompt: {error.reason}")
        except (ValueError, RecursionError) as error:
            return ImageError("unreadable", f"the sample's .json is no JSON: {first_line(error)}")


class _Names:
    """Names that were given; those that come again get `#2`, `#3` and so on."""

    def __init__(self) -> None:
        self._times = dict[str, int]()

    def __contains__(self, name: str) -> bool:
        return name in self._times

    def add(self, name: str) -> str:
        times = self._times.get(name, 0) + 1
        given = name if times == 1 else f"{name}#{times}"
        self._times[name] = times
        return given if given == name else self.add(given)  # a member may be named `a#2` itself


def _text(content: _Content) -> str:
    if isinstance(content, ImageError):
        raise content
    return bytes(content).decode("utf-8-sig", "backslashreplace")
