"""The audit of a store: what happened in it (`unirg.journal`), verified, and anchored where it does not lie.

The chain of hashes shows an entry that was altered, removed, put elsewhere or between others. It does not
show that the last entries are gone, or that somebody wrote all of it anew: for that the head's number and
hash, an anchor, are kept outside: as tags of runs in the metrics store, or on paper.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from unirg import journal, storage
from unirg.errors import UserError
from unirg.journal import Log
from unirg.lifecycle import store as metrics_store
from unirg.lifecycle.store import Recorded, Run

HEAD = "unirg.audit.head"
"""Tag of a run: the anchor of the audit as the run found it."""
STORE = "unirg.audit.store"
"""Tag of a run: which store's audit, as a digest of its URI."""
READERS = 16
WINDOW = 256
"""Entries read at once and kept in memory."""
_ANCHOR = re.compile(r"([1-9][0-9]{0,9}):([0-9a-f]{32,64})")


class Problem(NamedTuple):
    """What is wrong with the log."""

    number: int
    """Of the entry; 0 where it is none's."""
    sentence: str


class Anchor(NamedTuple):
    """The head of a log at some time."""

    number: int
    hash: str
    """32 to 64 hexadecimal digits from its beginning."""

    @classmethod
    def of(cls, text: str) -> Anchor:
        """Raises: UserError for what is not of the form N:HASH."""
        found = _ANCHOR.fullmatch(text.strip().lower())
        if not found:
            raise UserError(f"{text!r} is no anchor: write N:HASH as `unirg audit anchor` prints it")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


def head(store: str) -> Anchor | None:
    """The anchor of the log as it is now; None where nothing is recorded.

    Raises:
        Damaged: the last entry cannot be read.
    """
    last = journal.head(store)
    return Anchor(last.number, last.hash) if last else None


def tags(store: str) -> dict[str, str]:
    """What a run of the metrics store is tagged with to anchor the log; nothing where nothing is recorded."""
    last = head(store)
    return {HEAD: str(last), STORE: _name(store)} if last else {}


def anchor(store: str, tracking_uri: str, run: str = "", experiment: str = "unirg") -> Anchor:
    """Anchor the log in the metrics store: at a run, or at one of its own for this head.

    Raises:
        UserError: nothing is recorded, or the metrics store or the run cannot be found.
    """
    last = head(store)
    if last is None:
        raise UserError(f"nothing is recorded in {store}: check --store")
    if run:
        metrics_store.tag(Recorded(tracking_uri, "", run), tags(store))
    else:
        key = storage.sha256(f"audit {_name(store)} {last}".encode())
        own = Run(f"audit {last.number}", tags={HEAD: str(last), STORE: _name(store)})
        metrics_store.record(tracking_uri, key, own, experiment=experiment)
    return last


def anchors(store: str, tracking_uri: str) -> list[Anchor]:
    """All anchors of this store's log that the metrics store has, in order.

    Raises:
        UserError: the metrics store cannot be opened, or a tag of it is no anchor.
    """
    ours = [run.tags for run in metrics_store.runs(tracking_uri) if run.tags.get(STORE) == _name(store)]
    return sorted({Anchor.of(tags.get(HEAD, "")) for tags in ours})


def verify(store: str, anchored: Iterable[Anchor] = ()) -> list[Problem]:
    """Whatever is not as it was written, in order; nothing where all is well.

    Raises:
        StorageError: the log cannot be read.
    """
    log = Log(store)
    names = storage.names(log.entries)
    numbers = sorted(number for name in names if (number := journal.number_of(name)))
    strays = [name for name in names if not journal.number_of(name)]
    problems = [Problem(0, f"{storage.join(log.entries, name)} is no entry of the log") for name in strays]
    hashes: dict[int, set[str]] = {}
    for each in anchored:
        hashes.setdefault(each.number, set()).add(each.hash)
    chain = _Chain(hashes)
    for number, data in _objects(log, numbers):
        problems += chain.add(number, data)
    return problems + list(chain.end())


@dataclass
class _Chain:
    """How far the log is verified."""

    anchored: Mapping[int, Collection[str]]
    """Hashes by number."""
    number: int = 0
    hash: str | None = journal.BEGINNING
    """Of the last entry; None where nobody can know it."""

    def add(self, number: int, data: bytes | None) -> Iterator[Problem]:
        """The next object that is there; between it and the one before, others may be missing."""
        if data is None:
            return
        if number != self.number + 1:
            last = number - 1
            gap = (
                f"entry {last} is" if last == self.number + 1 else f"entries {self.number + 1} to {last} are"
            )
            yield Problem(self.number + 1, f"{gap} missing: removed, or lost")
            self.hash = None
        before, self.number, self.hash = self.hash, number, None
        try:
            entry = journal.parsed(data)
        except journal.Damaged as error:
            yield Problem(number, f"entry {number} {error}")
            return
        self.hash = entry.hash
        if entry.number != number:
            yield Problem(number, f"entry {number} says that it is number {entry.number}: it was moved here")
        elif before is not None and entry.previous != before:
            # Its own hash is right: it, or the one before it, was written anew.
            yield Problem(
                number, f"entry {number} does not follow the one before it: one of the two is another"
            )
        if not all(entry.hash.startswith(one) for one in self.anchored.get(number, ())):
            sentence = f"entry {number} is not the one that was anchored: it, or one before it, is another"
            yield Problem(number, sentence)

    def end(self) -> Iterator[Problem]:
        """What the anchors tell that lie beyond the last entry."""
        last = max(self.anchored, default=0)
        if last > self.number:
            sentence = (
                f"the log ends with entry {self.number}, but entry {last} was anchored: its tail is cut"
            )
            yield Problem(self.number + 1, sentence)


def _objects(log: Log, listed: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
    """(number, what lies there) of all that are listed, and of those that a listing does not show yet."""
    expected = 1
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(listed), WINDOW):
            window = listed[start : start + WINDOW]
            for number, data in zip(window, pool.map(log.data, window), strict=True):
                if expected < number:
                    yield from _following(log, expected, number)
                yield number, data
                expected = number + 1
    yield from _following(log, expected)


def _following(log: Log, number: int, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    while number != end and (data := log.data(number)) is not None:
        yield number, data
        number += 1


def _name(store: str) -> str:
    """What tells one store's anchors from another's: MLflow's queries take no URI as it is."""
    return storage.sha256(storage.absolute(store).encode())[:32]
