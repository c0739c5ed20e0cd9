"""What adapters share: a corpus's files listed in one pass, read within limits, and identified.

Paths are relative to the corpus's root, so that a small corpus (64 MiB) copied elsewhere is the same; of a
larger one a copy is another, as no one reads it all to tell. `label` is how errors name the place: an
institution's own path may identify a patient.
"""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np

from unirg import storage
from unirg.cohort import imaging
from unirg.cohort.corpora import UnreadableImage
from unirg.cohort.imaging import MAX_BYTES
from unirg.errors import UserError
from unirg.study import Image

FINGERPRINT_BYTES = 64 * 2**20
BATCH = 256
MAX_ROW = 2**20
"""Characters of a table's row; a longer one is passed over."""
TOO_LONG, BROKEN, NOT_UTF8 = "row too long", "broken CSV", "not UTF-8"
NOT_A_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)
"""EINVAL is how S3's answer to a range of an empty object comes out."""


@dataclass(frozen=True)
class SourceFile:
    path: str
    """Relative to the root, with forward slashes."""
    size: int
    version: str
    """The object's ETag, or the local file's modification time: what a store says of it for free."""
    modified: float = field(default=0.0, compare=False)
    """Seconds since 1970, by the clock of where it lies; 0 where the store does not say."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@contextmanager
def _explained(label: str) -> Iterator[None]:
    """`storage.explained` without the cause, which would show a path in a traceback."""
    try:
        with storage.explained(label):
            yield
    except storage.StorageError as error:
        raise storage.StorageError(str(error)) from None


def listing(
    root: str,
    wanted: Callable[[str], bool],
    label: str | None = None,
    *,
    maxdepth: int | None = None,
    required: bool = True,
) -> list[SourceFile]:
    """The files below `root` (`maxdepth` folders deep) whose relative path is wanted, sorted by path.

    A link to a file out of the root is none, and a pipe or device, which would block, is none.

    Raises:
        UserError: there is no such directory though it is `required`, it cannot be listed, or a link in it
            leads to a folder elsewhere: what lies there would be missing without a word.
    """
    label = label or root
    files = []
    with _explained(label):
        fs, base = storage.open_fs(root)
        empty = True
        for path, info in _found(fs, base, maxdepth, storage.is_local(root)):
            empty = False
            relative = path.removeprefix(base).lstrip("/")
            if info["type"] != "file":
                check_folder(root, relative, label)
            if wanted(relative) and (info["type"] == "file" or is_plain(root, relative)):
                version = (
                    info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
                )
                files.append(SourceFile(relative, int(info["size"]), str(version), _modified(info)))
        if required and empty and not fs.isdir(base):
            raise UserError(f"{label}: no such directory; check its name or fetch the corpus")
    return sorted(files, key=lambda file: file.path)


def is_folder(fs: Any, path: str, label: str) -> bool:
    """Whether a store has a folder there; what it raises shows no path."""
    with _explained(label):
        return bool(fs.isdir(path))


def _found(fs: Any, base: str, maxdepth: int | None, local: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, what the store says of it) of every file below.

    A local tree is walked a folder at a time, as its details in full take 1.3 kB a file; a store lists a
    thousand objects in one request, and would need one for every folder.
    """
    if not local:
        yield from fs.find(base, maxdepth=maxdepth, detail=True).items()
        return
    for _, _, infos in fs.walk(base, maxdepth=maxdepth, detail=True):
        yield from ((info["name"], info) for info in infos.values())


def _modified(info: dict[str, Any]) -> float:
    if "mtime" in info:
        return float(info["mtime"])
    return info["LastModified"].timestamp() if "LastModified" in info else 0.0


def read_all(root: str, files: Sequence[SourceFile], label: str | None = None) -> Iterator[bytes]:
    """The content of each file in order, fetched a batch at a time (concurrently where the store can)."""
    for start in range(0, len(files), BATCH):
        batch = [file for file in files[start : start + BATCH] if file.size]
        with _explained(label or root):
            fs, base = storage.open_fs(root)
            paths = [f"{base}/{file.path}" for file in batch]
            contents = fs.cat_ranges(paths, [0] * len(batch), [f.size for f in batch], on_error="raise")
        by_path = {file.path: content for file, content in zip(batch, contents, strict=True)}
        for file in files[start : start + BATCH]:
            yield by_path.get(file.path, b"")


def fingerprint(root: str, files: Sequence[SourceFile], label: str | None = None) -> str:
    """SHA-256 (hex) over every path, size and content; above 64 MiB over versions in place of content."""
    digest = hashlib.sha256()
    small = sum(file.size for file in files) <= FINGERPRINT_BYTES
    contents = read_all(root, files, label) if small else (file.version.encode() for file in files)
    for file, content in zip(files, contents, strict=True):
        digest.update(f"{file.path}\0{file.size}\0".encode("utf-8", "surrogateescape"))
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def is_safe(relative: str) -> bool:
    """Whether a path stays below the root on every file system: no scheme, drive, `..` or NUL."""
    parts = PurePosixPath(relative).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and not set(relative) & set(":\\\0")


def is_plain(root: str, relative: str) -> bool:
    """Whether a file is one, and lies, behind any symbolic link, below the root."""
    if not storage.is_local(root):
        return True
    base = storage.local_path(root).resolve()
    try:
        found = (base / relative).resolve()
        return found.is_relative_to(base) and found.is_file()
    except (OSError, ValueError, RuntimeError):  # a loop of links, a NUL
        return False


def check_folder(root: str, relative: str, label: str) -> None:
    """Raises: UserError where a link in a local corpus leads to a folder out of it."""
    if storage.is_local(root):
        base = storage.local_path(root).resolve()
        with suppress(OSError, RuntimeError):  # a loop of links leads nowhere
            found = (base / relative).resolve()
            if found.is_dir() and not found.is_relative_to(base):
                raise UserError(f"{label}: a link in it leads to a folder elsewhere: name or mount that one")


def read_image(root: str, relative: str | None, label: str | None = None) -> bytes:
    """One image file, whole.

    Raises:
        UnreadableImage: it is missing (as is what a link names outside the root), larger than the decoder
            accepts, or not below the root.
        UserError: the storage failed, which says nothing about the image.
    """
    if relative is None or not is_safe(relative):
        raise UnreadableImage("not a path below the corpus")
    if not is_plain(root, relative):
        raise UnreadableImage("missing")
    try:
        with _explained(label or root):
            fs, base = storage.open_fs(root)
            try:
                # One byte more than the limit lets the decoder refuse a file without reading all of it.
                return fs.cat_file(f"{base}/{relative}", start=0, end=MAX_BYTES + 1)
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno not in NOT_A_FILE:
                    raise
                raise UnreadableImage("missing") from None
    except FileNotFoundError:
        raise UnreadableImage("missing") from None


class ImageFiles:
    """A corpus whose images are files."""

    def fetch(self, image: Image) -> bytes:
        """One image's file, whole.

        Raises:
            UnreadableImage: it is missing, too large or not below the root.
        """
        raise NotImplementedError

    def read(
        self, image: Image, size: int | None = None, fetched: Callable[[], None] = lambda: None
    ) -> np.ndarray:
        """As `Corpus.read`."""
        data = self.fetch(image)
        fetched()
        return imaging.decode(data, size)


@contextmanager
def opened(root: str, relative: str, label: str, mode: str = "rb", **options: str) -> Iterator[IO[Any]]:
    """One file, to be read in pieces.

    Raises:
        FileNotFoundError: there is none, or a link that leads out of the root.
        UserError: the storage failed.
    """
    if not is_plain(root, relative):
        raise FileNotFoundError(errno.ENOENT, "no such file")
    with _explained(label):
        fs, base = storage.open_fs(root)
        with fs.open(f"{base}/{relative}", mode, **options) as file:
            yield file


def csv_rows(root: str, relative: str, label: str) -> Iterator[tuple[int, dict[str, str] | None]]:
    """(row number from 1, row by lower-case column name) of a UTF-8 CSV; None for a row of another width.

    A name that ends in .gz is read through gzip as a stream. None also for a row that is too long.

    Raises:
        FileNotFoundError: there is none.
        UserError: not UTF-8, broken quoting, a damaged archive, or a column named twice.
    """
    number = 0
    try:
        with opened(root, relative, label) as raw:
            rows = csv_fields(gzip.GzipFile(fileobj=raw) if relative.endswith(".gz") else raw)
            header: list[str] | None = None
            for fields in rows:
                if fields in (BROKEN, NOT_UTF8):
                    raise csv.Error
                row = None if isinstance(fields, str) else fields
                if header is None:
                    header = [column.strip().lower() for column in row or ()]
                    if len(set(header)) != len(header):
                        raise UserError(f"{label}: two columns have the same name; rename or remove one")
                    continue
                number += 1
                fits = row is not None and len(row) == len(header)
                yield number, dict(zip(header, row or (), strict=True)) if fits else None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(f"{label}: damaged or truncated behind row {number}; fetch it again") from None
    except csv.Error:
        raise UserError(
            f"{label}: row {number + 1} is not valid CSV in UTF-8; save it again as UTF-8 with quoted fields"
        ) from None


def csv_fields(file: Any) -> Iterator[list[str] | str]:
    """The fields of each row of a CSV, or why it cannot be read; one bad row costs no other.

    Args:
        file: binary, open for reading.

    Raises:
        csv.Error: a quote is never closed, so what lies behind it belongs to no row.
    """
    # What is not UTF-8 becomes lone surrogates, which are found row by row.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        lines = _Lines(text)
        # strict: a quote that is never closed is an error, not a field that swallows the rest.
        reader = csv.reader(lines, strict=True)
        while True:
            lines.begin()
            try:
                fields = next(reader)
                "".join(fields).encode()
            except StopIteration:
                return
            except _TooLong:
                yield TOO_LONG
            except UnicodeEncodeError:
                yield NOT_UTF8
            except csv.Error:
                lines.skip()
                yield TOO_LONG if lines.size > csv.field_size_limit() else BROKEN
            else:
                if fields:  # a blank line is no row
                    yield fields


class _TooLong(Exception):
    """The lines of one row are longer than MAX_ROW."""


class _Lines:
    """A table's lines, which `csv.reader` takes as many at a time as make a row."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.begin()

    def begin(self) -> None:
        """The next line begins a row."""
        self.size = self._quotes = 0
        self._last = "\n"

    def skip(self) -> None:
        """Go to the row's end: the first line on which every quote is closed."""
        while self._quotes % 2 or not self._last.endswith(("\n", "\r")):
            if not self._next():
                if self._quotes % 2:
                    raise csv.Error
                return

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if not (line := self._next()):
            raise StopIteration
        if self.size <= MAX_ROW:
            return line
        self.skip()
        raise _TooLong

    def _next(self) -> str:
        line = self._file.readline(MAX_ROW + 1)
        self.size += len(line)
        self._quotes += line.count('"')
        self._last = line or self._last
        return line
