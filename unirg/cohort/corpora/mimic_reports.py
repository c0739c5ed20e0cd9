"""Reports of MIMIC-CXR by patient and study (`p10000032/s50414267`): unpacked, else within the zip file.

A report that cannot be read is a few fixed words in its place, which name the drop. Nothing is extracted to
disk, no member's name is used as a path, and no read is longer than the limits below.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from unirg.cohort.corpora import source
from unirg.cohort.corpora.source import SourceFile
from unirg.errors import UserError

ARCHIVE = "mimic-cxr-reports.zip"
MAX_REPORT = 2**20
"""Bytes; real reports have less than 20 kB."""
MAX_DIRECTORY = 64 * 2**20
"""Bytes of the zip file's directory, which is read whole; the real one has about 30 MB."""

_MEMBER = re.compile(r"(.*/)?p1[0-9]/p1[0-9]{7}/s[0-9]{8}\.txt")
MISSING, TOO_LONG, DAMAGED = "missing report", "report too long", "damaged report"


def read(
    root: str, stems: Sequence[str], files: Mapping[str, SourceFile], archive: Archive | None
) -> Iterator[bytes | str]:
    """The report of each study, or why there is none."""
    found = [files.get(f"{stem}.txt") for stem in stems]
    contents = source.read_all(root, [file for file in found if file and file.size <= MAX_REPORT])
    for stem, file in zip(stems, found, strict=True):
        if file is None:
            yield archive.read(stem) if archive else MISSING
        else:
            yield next(contents) if file.size <= MAX_REPORT else TOO_LONG


def stems(group: str, files: Mapping[str, SourceFile], archive: Archive | None) -> set[str]:
    """Every study of a folder `pNN` that has a report."""
    found = {path.removesuffix(".txt") for path in files if path.endswith(".txt")}
    return found | (archive.stems(group) if archive else set())


@contextmanager
def opened(root: str, file: SourceFile | None) -> Iterator[Archive | None]:
    """The zip file, where there is one.

    Raises:
        UserError: it is damaged, or the storage failed.
    """
    if file is None:
        yield None
        return
    label = f"{root}: {ARCHIVE}"
    with source.opened(root, file.path, label) as stream:
        yield Archive(stream, label)


class Archive:
    """The zip file of reports, read a member at a time."""

    def __init__(self, file: IO[bytes], label: str) -> None:
        try:
            self._zip = zipfile.ZipFile(_Bounded(file))
        except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OverflowError, EOFError):
            raise UserError(f"{label}: damaged, or no zip file; fetch it again") from None
        matches = (_MEMBER.fullmatch(name) for name in self._zip.NameToInfo)
        first = next((match for match in matches if match), None)
        self._prefix = (first[1] or "") if first else ""

    def stems(self, group: str) -> set[str]:
        """Every study of a folder `pNN` that has a report."""
        start = f"{self._prefix}{group}/"
        return {
            name.removeprefix(start).removesuffix(".txt")
            for name in self._zip.NameToInfo
            if name.startswith(start) and _MEMBER.fullmatch(name)
        }

    def read(self, stem: str) -> bytes | str:
        """The report of a study, or why there is none."""
        info = self._zip.NameToInfo.get(f"{self._prefix}p{stem[1:3]}/{stem}.txt")
        if info is None:
            return MISSING
        if info.file_size > MAX_REPORT:
            return TOO_LONG
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return DAMAGED
        try:
            with self._zip.open(info) as member:
                return member.read(MAX_REPORT)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError):
            return DAMAGED  # RuntimeError: it is encrypted


class _Bounded:
    """A file of which no read is longer than MAX_DIRECTORY, as zipfile believes the size in a header."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY:
            raise zipfile.BadZipFile
        return self._file.read(MAX_DIRECTORY if size < 0 else size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
