"""What is finished, one line per study, so that a killed run goes on where it was.

A line is written with one call and carries its own checksum; the system keeps it once written, even if the
process is killed. A crash can tear the last line only: whatever is torn or altered counts as not done.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from zlib import crc32

Key = tuple[str, str]
"""(corpus, study_id)"""
_SYNC_EVERY_S = 1.0


class Journal:
    """An append-only file of outcomes by study; a context that closes it."""

    def __init__(self, path: Path) -> None:
        self.outcomes: dict[Key, dict[str, Any]] = {}
        self._file = path.open("ab+")
        self._file.seek(0)
        whole = 0
        for line in self._file:
            record = _read(line)
            if record is not None:
                self.outcomes[record["corpus"], record["study_id"]] = record
            if line.endswith(b"\n"):
                whole += len(line)
        # The next line must not grow out of a torn one.
        self._file.truncate(whole)
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, record: dict[str, Any]) -> None:
        """Add one study's outcome; `record` has its corpus and study_id.

        Raises:
            OSError: the disk is full; the line may be torn, and the study will be done again.
        """
        self._file.write(_line(json.dumps(record).encode()))
        self._file.flush()
        # A power failure may cost the last second.
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
        self.outcomes[record["corpus"], record["study_id"]] = record

    def clear(self) -> None:
        """Forget everything: the next run begins anew."""
        self._file.truncate(0)
        self.outcomes.clear()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Outcomes, sorted by corpus and study_id."""
        for key in sorted(self.outcomes):
            yield self.outcomes[key]


def _line(text: bytes) -> bytes:
    return b"%08x %s\n" % (crc32(text), text)


def _read(line: bytes) -> dict[str, Any] | None:
    text = line[9:-1]
    return json.loads(text) if line == _line(text) else None
