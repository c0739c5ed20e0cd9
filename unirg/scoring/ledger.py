"""What is known of every study of a range: a log of immutable segments, each put once, by whoever is first.

Segment n + 1 is put, if it is not there (`storage.put_new`), by a writer who has read segments 1 to n and
left out every study that is final in them. Who comes second reads the other's segment, leaves out what is
final there too, and tries the next number. So among the segments no study has two final rows, however many
writers there are, whatever was delivered twice, and wherever they were killed: a result that was computed
twice is written once. What no segment has is asked again.

Beside final rows a segment has notes: how often a study was tried and how often the server died of it, so
that a restart begins no budget anew.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from unirg import storage
from unirg.errors import UserError

Kind = Literal["scored", "failed", "tried", "death"]
FINAL = ("scored", "failed")
Row = dict[str, Any]
"""One study's: by the names of `SEGMENT`, `kind` and `place` at least."""

SEGMENT = pa.schema(
    [
        pa.field("place", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("institution", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("sections", pa.string()),
        pa.field("with_prior", pa.bool_()),
        pa.field("text", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("prompt_digest", pa.string()),
        pa.field("latency_s", pa.float64()),
        pa.field("reason", pa.string()),
        pa.field("attempts", pa.int32()),
    ]
)
PLAN = "plan.json"
COMPLETE = ".complete"
_COUNTED = ("scored", "failed", "completion_tokens")
"""What a segment tells of itself in its footer, and a range's marker in its name."""
_READS = 4
"""Of a segment that does not come whole."""


class Incomplete(storage.StorageError):
    """The ledger no longer has what it had."""


@dataclass
class Range:
    """The ledger of one range of studies; `places` count from 0 within it. For one thread at a time."""

    uri: str
    """The folder of its segments."""
    final: set[int] = field(default_factory=set)
    tried: dict[int, int] = field(default_factory=dict)
    """Attempts that went wrong, of studies that are not final."""
    deaths: dict[int, int] = field(default_factory=dict)
    """How often the server died with the study alone in flight."""
    counts: Counter[str] = field(default_factory=Counter)
    """Of the segments, by `_COUNTED`."""
    segments: int = 0
    """How many are read."""

    def refresh(self) -> None:
        """Read the segments that others have put since.

        Raises:
            StorageError: storage failed, or a segment is damaged.
        """
        while (table := self._read(self.segments + 1)) is not None:
            self._learn(table)

    def put(self, rows: Iterable[Row]) -> int:
        """Put a segment of these rows, but for those of studies that are final; how many final ones went in.

        Raises:
            StorageError: storage failed; nothing, or all of them, is there, and they may be put again.
        """
        rows = list(_once(rows))
        while True:
            kept = [row for row in rows if row["place"] not in self.final]
            if not kept:
                return 0
            table = _counted(pa.Table.from_pylist(kept, SEGMENT))
            if storage.put_new(self._uri(self.segments + 1), _bytes(table)):
                self._learn(table)
                return sum(row["kind"] in FINAL for row in kept)
            self.refresh()

    def rows(self) -> Iterator[Row]:
        """The final rows in order of their places, of all segments that are there.

        Raises:
            StorageError: storage failed, or a segment is damaged.
            Incomplete: one that was read is there no more.
        """
        found: dict[int, Row] = {}
        number = 1
        while (table := self._read(number)) is not None:
            found |= {row["place"]: row for row in table.to_pylist() if row["kind"] in FINAL}
            number += 1
        if number <= self.segments:
            raise Incomplete(f"{self._uri(number)} is there no more: run the same command again")
        for place in sorted(found):
            yield found[place]

    def _learn(self, table: pa.Table) -> None:
        self.segments += 1
        self.counts.update(_counts(table.schema))
        columns = (table[name].to_pylist() for name in ("place", "kind", "attempts"))
        for place, kind, attempts in zip(*columns, strict=True):
            if kind in FINAL:
                self.final.add(place)
                self.tried.pop(place, None)
                self.deaths.pop(place, None)
            elif place not in self.final:
                known = self.tried if kind == "tried" else self.deaths
                known[place] = max(attempts or 0, known.get(place, 0))

    def _uri(self, number: int) -> str:
        return storage.join(self.uri, f"{number:06d}.parquet")

    def _read(self, number: int) -> pa.Table | None:
        uri = self._uri(number)
        for _ in range(_READS):
            try:
                data = storage.read_bytes(uri)
            except FileNotFoundError:
                return None
            try:
                table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
                if table.column_names == SEGMENT.names:
                    return table
            except (pa.ArrowException, OSError):
                pass  # an object comes whole or not at all, so what came broke off on its way
        raise _damaged(uri, data)


def _damaged(uri: str, data: bytes) -> storage.StorageError:
    return storage.StorageError(
        f"{uri} cannot be read as it was written ({len(data)} bytes came): restore it, or delete it with "
        "those of a higher number, and their studies are scored again"
    )


def _once(rows: Iterable[Row]) -> Iterator[Row]:
    """All rows, but only the first final one of each study."""
    final: set[int] = set()
    for row in rows:
        if row["kind"] in FINAL:
            if row["place"] in final:
                continue
            final.add(row["place"])
        yield row


def _counted(table: pa.Table) -> pa.Table:
    kinds = table["kind"].to_pylist()
    tokens = sum(table["completion_tokens"].drop_null().to_pylist())
    told = zip(_COUNTED, (kinds.count("scored"), kinds.count("failed"), tokens), strict=True)
    return table.replace_schema_metadata({name: str(count) for name, count in told})


def _counts(schema: pa.Schema) -> dict[str, int]:
    told = schema.metadata or {}
    return {name: int(told.get(name.encode(), b"0")) for name in _COUNTED}


def _bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


@dataclass(frozen=True)
class Ledger:
    """The ledgers of all ranges of one artifact in the making."""

    uri: str

    @classmethod
    def of(cls, artifact_uri: str) -> Ledger:
        """Of the artifact that will be there: beside other work in progress of its store."""
        store, stage, key = artifact_uri.rstrip("/").rsplit("/", 2)
        return cls(storage.join(store, ".work", f"{stage}-{key}", "ledger"))

    def range(self, number: int) -> Range:
        """One range's, read."""
        found = self.unread(number)
        found.refresh()
        return found

    def unread(self, number: int) -> Range:
        """One range's, for who wants its rows alone."""
        return Range(storage.join(self.uri, f"{number:06d}"))

    def plan(self, studies: int) -> None:
        """Note how many studies there are, for `status`."""
        plan = json.dumps({"studies": studies, "begun": time.time()}).encode()
        storage.put_new(storage.join(self.uri, PLAN), plan)

    def mark_complete(self, number: int, known: Range) -> None:
        """Note that every study of a range is final, so that neither a restart nor `status` need read it."""
        counts = "-".join(str(known.counts[name]) for name in _COUNTED)
        storage.put_new(storage.join(self.uri, f"{number:06d}.{counts}{COMPLETE}"), b"")

    def complete(self) -> dict[int, Mapping[str, int]]:
        """The ranges that are marked, and their counts."""
        return _marked(storage.names(self.uri))

    def remove(self) -> None:
        """What the artifact has is not kept twice."""
        storage.remove(self.uri)

    def status(self) -> Iterator[str]:
        """Lines on how far it is, from the segments' own counts.

        Raises:
            UserError: there is no such ledger.
            StorageError: storage failed, or a segment is damaged.
        """
        try:
            plan = json.loads(storage.read_bytes(storage.join(self.uri, PLAN)))
        except FileNotFoundError:
            raise UserError(
                f"no scoring is known at {self.uri}: name the URI that `unirg score` prints when it begins"
            ) from None
        names = storage.names(self.uri)
        marked = _marked(names)
        told = Counter[str]()
        for counts in marked.values():
            told.update(counts)
        for name in names:
            number, _, segment = name.partition("/")
            if segment and int(number) not in marked:
                told.update(_told(storage.join(self.uri, name)))
        done = told["scored"] + told["failed"]
        seconds = max(time.time() - plan["begun"], 1e-6)
        left = (plan["studies"] - done) / (done / seconds) if done else math.inf
        yield (
            f"{done} of {plan['studies']} studies ({done / plan['studies']:.0%}), {told['failed']} failed, "
            f"{done / seconds:.3g}/s and {told['completion_tokens'] / seconds:.3g} tokens/s since it began, "
            f"{left:.0f} s to go at that rate"
        )


def _told(uri: str) -> dict[str, int]:
    data = storage.read_bytes(uri)
    try:
        return _counts(pq.read_schema(io.BytesIO(data)))
    except pa.ArrowException:
        raise _damaged(uri, data) from None


def _marked(names: Iterable[str]) -> dict[int, Mapping[str, int]]:
    found: dict[int, Mapping[str, int]] = {}
    for name in names:
        if name.endswith(COMPLETE):
            number, counts, _ = name.split(".")
            found[int(number)] = dict(zip(_COUNTED, map(int, counts.split("-")), strict=True))
    return found
