"""The members of a tar, one after the other, also of a damaged one.

`tarfile` ends at a damaged header as it does at the end of the tar, without a word: the rest would never be judged.
This reader says where something was lost, and goes on at the next header that is whole.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from judge.errors import first_line

BLOCK = tarfile.BLOCKSIZE
_MOST_PADDING = 2**20
"""Zero bytes that a tar may end with: at least a block, at most the rest of a tape's record."""
_LONGEST_EXTENSION = 2**20
"""Bytes of the names and attributes of a member, at most."""
_CHUNK = 2**20
_LARGEST = 10**18
"""Bytes of a member, at most: positions in a file have 63 bits, and no file is larger."""
_MAGIC = b"ustar"
_MAGIC_AT = 257
_PAX_RECORD = re.compile(rb"(\d{1,10}) ([^=\n]+)=")
_HAS_NO_CONTENT = (
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE),
    *(tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
)
_EXTENSIONS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


@dataclass(frozen=True)
class Member:
    """A file inside a tar, or what else has a name there."""

    name: str
    """As it is stored; bytes that are no UTF-8 as surrogates."""
    offset: int
    """Where its content starts."""
    size: int
    """Bytes of its content."""
    kind: bytes
    """One of `tarfile`'s types."""

    @property
    def is_file(self) -> bool:
        """Whether it is a file with content of its own."""
        return self.kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.kind == tarfile.DIRTYPE


@dataclass(frozen=True)
class Damage:
    """A place of a tar behind which something is lost; what belongs to the member before it, too, maybe."""

    offset: int
    reason: str
    """What is known, on one line."""


class TarMembers:
    """Iterate over the members of a tar, from its first byte on.

    Between two members the caller may read the file, and move its position. Of a stream that is costly to rewind (a
    gzip), contents are read as their member comes, or not at all.

    Args:
        file: at its start; it can seek.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offset = 0
        """Where the next header starts."""
        self._common = dict[str, str]()
        """What a global header says about all members behind it."""

    def __iter__(self) -> Iterator[Member | Damage]:
        try:
            yield from self._members()
        except (OSError, EOFError, zlib.error) as error:
            yield Damage(self._offset, f"cannot be read further: {first_line(error)}")

    def read(self, member: Member, most: int | None = None) -> bytes:
        """The content of a member, or its first bytes; shorter where the tar ends inside it. Raises as the file does.

        Args:
            member: one of this tar.
            most: bytes to read; None for all.
        """
        return self._read_at(member.offset, member.size if most is None else min(most, member.size))

    def _members(self) -> Iterator[Member | Damage]:
        header, said = self._read_at(0, BLOCK), dict[str, str]()
        while True:
            if len(header) < BLOCK:
                yield Damage(self._offset, _ending(header))
                return
            if not header.strip(b"\0"):
                if (damage := self._pass_zeros()) is not None:
                    yield damage
                if not (header := self._read_at(self._offset, BLOCK)):
                    return
                continue
            member = self._parse(header)
            if member is None or (member.kind in _EXTENSIONS and not self._extend(member, said)):
                said.clear()
                yield self._pass_damage()
                if not (header := self._read_at(self._offset, BLOCK)):
                    return
                continue
            if member.kind not in _EXTENSIONS:
                member = self._described(member, said)
                said.clear()
                yield member
            following = self._pass_content(member)
            if following is None:
                yield Damage(self._offset, f"ends inside {member.name!r}")
                return
            header = following

    def _parse(self, header: bytes) -> Member | None:
        """The member that a header announces; None for a damaged one."""
        try:
            found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError):
            return None
        # A sparse file has blocks of another form between its header and its content.
        if found.size < 0 or found.type == tarfile.GNUTYPE_SPARSE:
            return None
        return Member(found.name, self._offset + BLOCK, min(found.size, _LARGEST), found.type)

    def _extend(self, member: Member, said: dict[str, str]) -> bool:
        """Read what a header says about the next member, or all that follow; False where it is damaged."""
        if member.size > _LONGEST_EXTENSION:
            return False
        content = self.read(member)
        if len(content) < member.size:
            return True  # the end of the file, which is found next
        if member.kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if member.kind == tarfile.GNUTYPE_LONGNAME:
                said["path"] = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            return True
        records = _parse_pax(content)
        if records is None:
            return False
        (self._common if member.kind == tarfile.XGLTYPE else said).update(records)
        return True

    def _described(self, member: Member, said: dict[str, str]) -> Member:
        """A member with what was said about it before."""
        said = {**self._common, **said}
        if not said:
            return member
        size = member.size
        if (digits := said.get("size", "")).isdecimal():
            size = int(digits) if len(digits) < len(str(_LARGEST)) else _LARGEST
        return Member(
            said.get("GNU.sparse.name") or said.get("path") or member.name,
            member.offset,
            size,
            tarfile.GNUTYPE_SPARSE if any(name.startswith("GNU.sparse.") for name in said) else member.kind,
        )

    def _pass_content(self, member: Member) -> bytes | None:
        """Go to what follows a member, and return it: a header, less at the end; None where the file ends before."""
        end = member.offset + (0 if member.kind in _HAS_NO_CONTENT else member.size)
        following = -(-end // BLOCK) * BLOCK
        # With the last byte of the content, as a file may be moved behind its end without an error.
        start = end if self._file.tell() >= end else end - 1
        data = self._read_at(start, following - start + BLOCK)
        if len(data) < end - start:
            return None
        self._offset = following
        return data[following - start :]

    def _pass_zeros(self) -> Damage | None:
        """Go to what follows blocks of zeros: the end of the tar, or another one that was joined to it."""
        start = self._offset
        for place, chunk in self._chunks(start):
            rest = chunk.lstrip(b"\0")
            if rest:
                self._offset = (place + len(chunk) - len(rest)) // BLOCK * BLOCK
                zeros = self._offset - start
                joined = zeros == 2 * BLOCK or self._offset % tarfile.RECORDSIZE == 0
                return None if joined and zeros <= _MOST_PADDING else _hole(start, zeros)
            self._offset = place + len(chunk)
        zeros = self._offset - start
        return _hole(start, zeros) if zeros > _MOST_PADDING else None

    def _pass_damage(self) -> Damage:
        """Go to the next header that is whole."""
        start = self._offset
        self._offset += BLOCK
        for place, chunk in self._chunks(self._offset):
            found = chunk.find(_MAGIC)
            while found >= 0:
                block = found // BLOCK * BLOCK
                self._offset = place + block
                header = chunk[block : block + BLOCK]
                if found - block == _MAGIC_AT and len(header) == BLOCK and self._parse(header) is not None:
                    return Damage(start, f"is damaged here; {self._offset - start:,} bytes are lost")
                found = chunk.find(_MAGIC, found + 1)
            self._offset = place + len(chunk)
        return Damage(start, "is damaged from here to its end")

    def _chunks(self, start: int) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) from a place to the end; whole blocks, but for the end."""
        while chunk := self._read_at(start, _CHUNK):
            yield start, chunk
            start += len(chunk)

    def _read_at(self, offset: int, size: int) -> bytes:
        if self._file.tell() != offset:
            self._file.seek(offset)
        return self._file.read(size)


def _ending(header: bytes) -> str:
    """What it means that a file ends without zeros."""
    return "ends inside a header" if header else "has no end mark; it may have been cut here"


def _hole(start: int, zeros: int) -> Damage:
    return Damage(start, f"holds {zeros:,} zero bytes here, where something else may have been")


def _parse_pax(content: bytes) -> dict[str, str] | None:
    """Records `LENGTH NAME=VALUE` of an extended header; None for a damaged one."""
    records, start = dict[str, str](), 0
    while start < len(content):
        found = _PAX_RECORD.match(content, start)
        end = start + int(found[1]) if found else 0
        if not found or end <= found.end() or content[end - 1 : end] != b"\n":
            return None
        name, value = found[2].decode("utf-8", "replace"), content[found.end() : end - 1]
        records[name] = value.decode("utf-8", "surrogateescape")
        start = end
    return records
