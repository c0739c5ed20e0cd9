"""The members of one tar after another in a stream that nobody vouches for.

Only headers are interpreted, by `tarfile.TarInfo.frombuf`, because `tarfile` itself either ends at the first
archive or skips damage in silence, and keeps every member in memory. Long names come from GNU's or pax's
extension headers; every other extension is ignored.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Protocol

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENSION = 64 * 2**10
"""Bytes of an extension header: a name, an owner, a few times."""
CHUNK = 2**20

_PAX = re.compile(rb"([0-9]{1,9}) ([^=]{1,255})=")
_EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
_NO_CONTENT = (*_LINKS, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


class Damaged(Exception):
    """No tar, or one that is cut off or holds a header that is none."""


class Overrun(Exception):
    """More content than the limit."""


@dataclass(frozen=True)
class Member:
    name: str
    """As the archive has it, so it may be anything."""
    start: int
    """Of its content, from the stream's beginning."""
    size: int
    refused: str | None = None
    """Why it is no plain file."""


class Tape(Protocol):
    position: int

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; fewer at the end only."""
        ...

    def skip(self, size: int) -> None:
        """Pass over what is next.

        Raises:
            Damaged: the stream ends before.
        """
        ...


class Seekable:
    """A file of known size."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size
        self.position = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.position += len(data)
        return data

    def skip(self, size: int) -> None:
        self.position += size
        if self.position > self._size:
            raise Damaged
        self._file.seek(self.position)


class Sequential:
    """A decompressor's output; what it raises on damaged input (OSError) is `Damaged`."""

    def __init__(self, read: Callable[[int], bytes], limit: int) -> None:
        self._read, self._limit = read, limit
        self.position = 0

    def read(self, size: int) -> bytes:
        pieces = []
        while size > 0:
            try:
                piece = self._read(min(size, CHUNK))
            except OSError:
                raise Damaged from None
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
            self.position += len(piece)
            if self.position > self._limit:
                raise Overrun
        return b"".join(pieces)

    def read_exactly(self, size: int) -> bytes:
        data = self.read(size)
        if len(data) < size:
            raise Damaged
        return data

    def skip(self, size: int) -> None:
        while size > 0:
            passed = len(self.read(min(size, CHUNK)))
            if not passed:
                raise Damaged
            size -= passed


def members(tape: Tape) -> Iterator[Member]:
    """Every member that is no folder. The caller may read its content, and no further, before the next.

    Raises:
        Damaged: see there; also a last archive without its end mark, since what followed may be missing.
    """
    name: str | None = None
    size: int | None = None
    sparse = ended = False
    while block := tape.read(BLOCK):
        if len(block) < BLOCK:
            raise Damaged
        ended = not block.strip(b"\0")
        if ended:
            continue  # another archive may begin
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise Damaged from None
        if header.size < 0 or header.size > 2**62:
            raise Damaged
        if header.type in _EXTENSIONS or header.type == tarfile.XGLTYPE:
            fields = _extension(tape, header)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = fields.get("path")
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                name = fields.get("path", name)
                size = _size(fields.get("size"))
                sparse = any(field.startswith("GNU.sparse.") for field in fields)
            continue
        length = 0 if header.type in _NO_CONTENT else header.size if size is None else size
        end = tape.position + -(-length // BLOCK) * BLOCK
        if header.type != tarfile.DIRTYPE:
            reason = "sparse file" if sparse else _refused(header.type)
            yield Member(header.name if name is None else name, tape.position, length, reason)
        tape.skip(end - tape.position)
        name, size, sparse = None, None, False
    if not ended:
        raise Damaged


def _refused(kind: bytes) -> str | None:
    if kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        return None
    return "link" if kind in _LINKS else "no plain file"


def _extension(tape: Tape, header: tarfile.TarInfo) -> dict[str, str]:
    """The fields of an extension header; GNU's long name is one of them."""
    if header.size > MAX_EXTENSION:
        raise Damaged
    data = tape.read(header.size)
    if len(data) < header.size:
        raise Damaged
    tape.skip(-header.size % BLOCK)
    if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        return {"path": data.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    fields: dict[str, str] = {}
    position = 0
    while position < len(data) and data[position]:
        match = _PAX.match(data, position)
        if match is None or not match.end() - position < int(match[1]) <= len(data) - position:
            raise Damaged
        end = position + int(match[1])
        key, value = (
            part.decode("utf-8", "surrogateescape") for part in (match[2], data[match.end() : end - 1])
        )
        fields[key] = value
        position = end
    return fields


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", text):
        raise Damaged
    return int(text)
