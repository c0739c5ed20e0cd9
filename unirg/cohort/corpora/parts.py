"""An archive in parts (`deid_png.part00`, ...): a tar cut into pieces, or a tar in each, plain or zstd.

One reader serves all four: the parts are one stream, decompressed if it is zstd, and one tar after another
in it. Nothing is extracted under a name that the archive chose:

    plain   an index of the members (SQLite) is made once, and images are read out of the parts in place
    zstd    has no random access, so the images are unpacked once into the cache, each named by the SHA-256 of
            its path; an interrupted pass goes on without writing again what is there, a finished one is
            marked by `done.json`

Members that are no plain file, leave the archive's folder or exceed the image decoder's limit are refused and
counted; their studies then miss an image. zstd's own limit, a window of 128 MiB, bounds the memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sqlite3
import uuid
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa

from unirg import artifact, storage, telemetry
from unirg.cohort.corpora import UnreadableImage, source, tape
from unirg.cohort.corpora.source import SourceFile
from unirg.cohort.imaging import MAX_BYTES
from unirg.errors import UserError

MAX_RATIO = 20
"""Unpacked to packed size. Films in PNG are compressed already: the real ratio is near 1."""
SLACK = 64 * 2**20
"""Bytes that an archive may unpack to whatever its size."""
VERSION = 1
"""Of what the cache holds."""
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
"""How a frame begins, or a skippable one, which pzstd writes before each."""


@dataclass(frozen=True)
class Parts:
    """The parts of one archive; instances travel to worker processes, so they hold no open file."""

    root: str
    stem: str
    """The archive's folder, and the beginning of its parts' names."""
    files: tuple[SourceFile, ...]
    cache: str

    @classmethod
    def found(cls, root: str, stem: str, cache: str = "") -> Parts | None:
        """The parts `<stem>.part*` directly below the root, in order; None if there is none.

        Raises:
            UserError: a numbered part is missing between two others.
        """
        names = re.compile(rf"{re.escape(stem)}\.part([A-Za-z0-9]{{1,8}})")
        files = source.listing(root, lambda path: bool(names.fullmatch(path)), maxdepth=1, required=False)
        files.sort(key=lambda file: (len(file.path), file.path))
        suffixes = [file.path.rpartition(".part")[2] for file in files]
        if files and all(map(str.isdecimal, suffixes)) and len(files) <= int(suffixes[-1]) - int(suffixes[0]):
            raise UserError(f"{root}: {stem}: a part between two others is missing; fetch it")
        if not files:
            return None
        return cls(root, stem, tuple(files), cache or str(artifact.cache_root() / "corpora"))

    def prepare(self) -> Counter[str]:
        """Make the images readable, once per archive and cache; members refused, by reason.

        Raises:
            UserError: the archive is damaged, incomplete, of another kind or unpacks to far more than its
                size; or the storage or the cache's disk failed.
        """
        done = self._folder / "done.json"
        if not done.exists():
            with storage.explained(str(self._folder)):
                self._folder.mkdir(parents=True, exist_ok=True)
                refused = self._unpack() if self._compressed() else self._index()
                aside = done.with_name(f".{uuid.uuid4().hex}")
                aside.write_text(json.dumps({"refused": refused}))
                aside.replace(done)
        return Counter(json.loads(done.read_text())["refused"])

    def read(self, name: str) -> bytes:
        """One member by its path from the archive's folder on.

        Raises:
            UnreadableImage: the archive holds none of this name, or refused it.
            UserError: as `prepare`, which it calls where that was not done.
        """
        self.prepare()
        if not self._index_path.exists():
            try:
                return self._unpacked(name).read_bytes()
            except FileNotFoundError:
                raise UnreadableImage("missing") from None
        with closing(sqlite3.connect(f"{self._index_path.as_uri()}?mode=ro", uri=True)) as index:
            row = index.execute("SELECT start, size FROM member WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise UnreadableImage("missing")
        return self._range(*row)

    def _range(self, start: int, size: int) -> bytes:
        """Of the parts as one file; each overlapping part is asked for its bytes and no more."""
        pieces = []
        with storage.explained(self.root):
            fs, base = storage.open_fs(self.root)
            for file in self.files:
                if start < file.size and size:
                    end = min(start + size, file.size)
                    piece = fs.cat_file(f"{base}/{file.path}", start=start, end=end)
                    pieces.append(piece)
                    size -= len(piece)
                start = max(0, start - file.size)
        return b"".join(pieces)

    @property
    def _folder(self) -> Path:
        """In the cache, by what the parts are: other parts never meet what was made of these."""
        parts = json.dumps([VERSION, self.stem, [[f.path, f.size, f.version] for f in self.files]])
        return (
            storage.local_path(self.cache) / hashlib.sha256(f"{self.root}\0{parts}".encode()).hexdigest()[:32]
        )

    @property
    def _index_path(self) -> Path:
        return self._folder / "index.sqlite"

    def _unpacked(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self._folder / digest[:2] / digest

    def _compressed(self) -> bool:
        return bool(_ZSTD.match(self._range(0, 4)))

    def _joined(self, cache_type: str) -> io.BufferedReader:
        # Two headers and a long name fit in the buffer; what is beyond would be read for nothing.
        return io.BufferedReader(_Joined(self.root, self.files, cache_type), 4096)

    def _index(self) -> Counter[str]:
        """Every image's place in the parts, which are not unpacked."""
        refused: Counter[str] = Counter()
        aside = self._index_path.with_name(f".{uuid.uuid4().hex}")
        try:
            # Only headers are read, each megabytes from the next: reading ahead would read everything.
            with self._joined("none") as joined, closing(sqlite3.connect(aside)) as index:
                # It is thrown away unless it is finished, so nothing needs to survive a crash halfway.
                index.execute("PRAGMA journal_mode = OFF")
                index.execute("PRAGMA synchronous = OFF")
                index.execute(
                    "CREATE TABLE member (name TEXT PRIMARY KEY, start INT, size INT) WITHOUT ROWID"
                )
                members = tape.members(tape.Seekable(joined, self._size))
                rows = ((name, m.start, m.size) for name, m in self._wanted(members, refused, joined))
                index.executemany("INSERT OR IGNORE INTO member VALUES (?, ?, ?)", rows)
                index.commit()
            aside.replace(self._index_path)
        except tape.Damaged:
            raise self._damaged() from None
        except sqlite3.OperationalError:
            raise storage.StorageError(
                f"{self._folder}: the index cannot be written: free space or choose another place, "
                "then run again"
            ) from None
        finally:
            aside.unlink(missing_ok=True)
        return refused

    def _unpack(self) -> Counter[str]:
        """Every image into a file of its own."""
        refused: Counter[str] = Counter()
        with self._joined("readahead") as joined:
            stream = pa.CompressedInputStream(pa.PythonFile(joined, mode="r"), "zstd")
            sequential = tape.Sequential(stream.read, self._size * MAX_RATIO + SLACK)
            try:
                for name, member in self._wanted(tape.members(sequential), refused, joined):
                    target = self._unpacked(name)
                    if not target.exists():
                        _write(target, sequential.read_exactly(member.size))
                if joined.tell() != self._size:
                    raise tape.Damaged
            except tape.Damaged:
                raise self._damaged() from None
            except tape.Overrun:
                raise UserError(
                    f"{self.root}: {self.stem}: the archive unpacks to more than {MAX_RATIO} times its size, "
                    "as no archive of films does; fetch it again from its owners"
                ) from None
        return refused

    def _wanted(
        self, members: Iterator[tape.Member], refused: Counter[str], joined: IO[bytes]
    ) -> Iterator[tuple[str, tape.Member]]:
        """(path from the archive's folder on, member) of each image; tells how far it is in the parts."""
        told = telemetry.Progress(f"read {self.stem}", self._size >> 20, "MiB")
        for member in members:
            told.advance((joined.tell() >> 20) - told.done)
            name, reason = self._named(member.name), member.refused
            if reason is None and name is None:
                reason = "unsafe name"
            elif reason is None and member.size > MAX_BYTES:
                reason = "too large"
            if reason is not None:
                refused[reason] += 1
            elif name is not None and name.lower().endswith(".png"):
                yield name, member
        told.finish()

    def _named(self, name: str) -> str | None:
        """A member's name from the archive's folder on, wherever the archive was made; None if unsafe."""
        if not source.is_safe(name) or not name.isprintable():
            return None
        clean = f"/{PurePosixPath(name)}"
        head, folder, tail = clean.partition(f"/{self.stem}/")
        return f"{self.stem}/{tail if folder else head[1:]}"

    @property
    def _size(self) -> int:
        return sum(file.size for file in self.files)

    def _damaged(self) -> UserError:
        return UserError(
            f"{self.root}: {self.stem}: the parts are damaged, incomplete or no tar (plain or zstd); "
            "fetch them again"
        )


class _Joined(io.RawIOBase):
    """The parts as one file to be read; one of them is open at a time."""

    def __init__(self, root: str, files: Sequence[SourceFile], cache_type: str) -> None:
        super().__init__()
        self._root = root
        self._files = files
        self._cache_type = cache_type
        self._starts = [0, *accumulate(file.size for file in files)]
        self._position = 0
        self._part = -1
        self._open: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        part = bisect_right(self._starts, self._position) - 1
        if part >= len(self._files):
            return 0
        view = memoryview(buffer).cast("B")
        size = min(len(view), self._starts[part + 1] - self._position)
        with storage.explained(self._root):
            if part != self._part or self._open is None:
                self._let_go()
                fs, base = storage.open_fs(self._root)
                path = f"{base}/{self._files[part].path}"
                self._open, self._part = fs.open(path, "rb", cache_type=self._cache_type), part
            self._open.seek(self._position - self._starts[part])
            data = self._open.read(size)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._let_go()
        super().close()

    def _let_go(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None


def _write(target: Path, data: bytes) -> None:
    """Whole or not at all."""
    target.parent.mkdir(exist_ok=True)
    aside = target.with_name(f".{uuid.uuid4().hex}")
    try:
        aside.write_bytes(data)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
