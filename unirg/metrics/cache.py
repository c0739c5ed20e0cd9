"""What scorers computed, kept on disk: one SQLite file that several processes share.

A key is the SHA-256 of a scorer's identity and of the digest of a text or of a pair; so the file holds no
text and no identifier, and other weights, another setting or another precision never find what these left.
A value carries a checksum: a byte that flipped on the disk costs a recomputation, never a wrong score.

SQLite's write-ahead log takes writes of one process while others read, and a process that is killed in the
middle of a write leaves the file as it was before. The log needs shared memory, hence a disk of this machine,
not a network's. The file may be deleted at any time when nobody uses it; nothing else bounds its size.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from unirg.errors import UserError

VERSION = 1
"""Of the file's layout, in its `user_version`."""
_APPLICATION = 0x556E5247
"""Ours, in the file's `application_id`: no other program's database is taken for a cache."""
_WAIT_S = 60.0
"""How long to wait for another process that is writing."""
_CHECK = 8
"""Bytes of checksum before each value."""
_AT_ONCE = 500
"""Keys in one query; SQLite allows 32,766 parameters."""


def text_digest(text: str) -> bytes:
    """SHA-256 of a text, whatever it holds (half a surrogate pair too)."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def pair_digest(candidate: str, reference: str) -> bytes:
    """SHA-256 of a candidate and its reference, in this order."""
    return hashlib.sha256(text_digest(candidate) + text_digest(reference)).digest()


class Cache:
    """Values by scorer identity and digest. Threads may share it; so may processes, each with its own."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            UserError: it is damaged, another program's or another version's, or cannot be made there.
        """
        self.path = path
        self.writable = True
        """False once a write has failed: the disk is full, or the file may only be read."""
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = self._opened()
        except OSError as error:
            raise UserError(
                f"no cache can be kept at {path} ({os.strerror(error.errno or 0)}): name another file"
            ) from None
        except sqlite3.Error as error:
            raise self._explained(error) from None

    def get(self, identity: str, digests: Sequence[bytes]) -> list[bytes | None]:
        """The value of each digest, None where there is none or it does not fit its checksum.

        Raises:
            UserError: the file is damaged.
        """
        keys = [_key(identity, digest) for digest in digests]
        found: dict[bytes, bytes] = {}
        try:
            with self._lock:
                for start in range(0, len(keys), _AT_ONCE):
                    some = keys[start : start + _AT_ONCE]
                    places = ",".join("?" * len(some))
                    rows = self._database.execute(
                        f"SELECT key, value FROM scores WHERE key IN ({places})", some
                    )
                    found.update(rows)
        except sqlite3.Error as error:
            raise self._explained(error) from None
        return [_checked(key, found[key]) if key in found else None for key in keys]

    def put(self, identity: str, values: Mapping[bytes, bytes]) -> None:
        """Keep values by digest, all or none of them; an older value gives way.

        Where the disk is full or the file may only be read, a line on stderr says so once and nothing is
        kept from then on: a score is not lost because it cannot be kept.

        Raises:
            UserError: the file is damaged.
        """
        if not self.writable or not values:
            return
        keyed = [(_key(identity, digest), value) for digest, value in values.items()]
        rows = [(key, _checksum(key, value) + value) for key, value in keyed]
        try:
            with self._lock, self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", rows)
        except sqlite3.OperationalError as error:
            if _is_damage(error):
                raise self._explained(error) from None
            self.writable = False
            print(
                f"the cache {self.path} takes no more scores ({error}): the run goes on without it",
                file=sys.stderr,
                flush=True,
            )
        except sqlite3.Error as error:
            raise self._explained(error) from None

    def close(self) -> None:
        """Fold the log into the file, where no other process uses it."""
        with self._lock:
            self._database.close()

    def _opened(self) -> sqlite3.Connection:
        # isolation_level None: transactions begin where this module says so.
        database = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(database)
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        database.execute("BEGIN")  # one view of the three, while another process may be making the file
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        database.execute("COMMIT")
        if application == _APPLICATION and version != VERSION:
            raise UserError(
                f"the cache {self.path} has layout {version}, this version of unirg reads {VERSION}: "
                "delete it, or name another file"
            )
        if application != _APPLICATION and (application or version or tables):
            raise UserError(f"{self.path} is another program's database: name another file for the cache")
        _with_log(database)
        # Of a power failure the log may lose its last seconds, but no more; it is much faster than FULL.
        database.execute("PRAGMA synchronous = NORMAL")
        if application == _APPLICATION:
            return
        with database:
            database.execute("BEGIN IMMEDIATE")  # of processes that begin at once, the others wait here
            database.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
            database.execute(f"PRAGMA user_version = {VERSION}")
            database.execute(f"PRAGMA application_id = {_APPLICATION}")

    def _explained(self, error: sqlite3.Error) -> UserError:
        if _is_damage(error):
            return UserError(f"the cache {self.path} is damaged or no cache at all: delete it and run again")
        return UserError(f"the cache {self.path} cannot be used ({error}): name another file")


def _with_log(database: sqlite3.Connection) -> None:
    """Switch to the write-ahead log; SQLite does not wait by itself where another process is switching."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _is_damage(error: sqlite3.Error) -> bool:
    # The low byte is the kind of error; a broken schema or a missing table comes as the generic SQLITE_ERROR.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def _key(identity: str, digest: bytes) -> bytes:
    return hashlib.sha256(identity.encode() + b"\0" + digest).digest()


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.sha256(key + value).digest()[:_CHECK]


def _checked(key: bytes, stored: object) -> bytes | None:
    """The value without its checksum, or None where they do not fit (a flipped byte may change its type)."""
    if not isinstance(stored, bytes):
        return None
    check, value = stored[:_CHECK], stored[_CHECK:]
    return value if check == _checksum(key, value) else None
