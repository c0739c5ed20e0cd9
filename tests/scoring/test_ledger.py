"""The ledger of a range under writers that know nothing of each other, are killed, and repeat themselves."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.waiting import until
from unirg import storage
from unirg.errors import UserError
from unirg.scoring import ledger
from unirg.scoring.ledger import FINAL, Incomplete, Ledger, Range, Row
from unirg.storage import StorageError

PLACES = 12
WRITERS = 3
Step = tuple[str, int, list[tuple[int, str, int]], list[tuple[int, str, int]]]


def row(place: int, kind: str, attempts: int = 1, text: str = "") -> Row:
    who = {"study_id": f"s{place}", "corpus": "c", "institution": "i", "patient_id": "p"}
    return who | {"place": place, "kind": kind, "attempts": attempts, "text": text}


def segments(folder: Path) -> list[list[dict[str, Any]]]:
    """Read from the files, not through the code under test."""
    files = sorted(folder.glob("*.parquet"))
    assert [file.name for file in files] == [f"{number + 1:06d}.parquet" for number in range(len(files))]
    return [pq.ParquetFile(file).read().to_pylist() for file in files]


class Killed(BaseException):
    """As kill -9: nothing of the writer's runs after it."""


class Play:
    """Writers on one range, and what they were given to put."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.writers = [self.fresh(read=False) for _ in range(WRITERS)]
        self.given: dict[int, set[str]] = defaultdict(set)
        """place -> texts of final rows that are there, or may be."""
        self.owed: set[int] = set()
        """Places of final rows that were put."""
        self.notes: dict[tuple[str, int], set[int]] = defaultdict(set)
        self.noted: dict[tuple[str, int], int] = defaultdict(int)
        """What must be remembered of a place that is not final."""
        self.meanwhile: Callable[[], object] | None = None
        self.fault = ""
        self.count = 0
        patch.setattr(storage, "put_new", self.put_new(storage.put_new))

    def fresh(self, read: bool = True) -> Range:
        return Ledger(str(self.folder)).range(0) if read else Range(str(self.folder / "000000"))

    def put_new(self, real: Callable[[str, bytes], bool]) -> Callable[[str, bytes], bool]:
        def put(uri: str, data: bytes) -> bool:
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile:  # between what this writer read and what it writes
                fault, self.fault = self.fault, ""
                meanwhile()
                self.fault = fault
            fault, self.fault = self.fault, ""
            if fault == "killed before":
                raise Killed
            if fault == "refused":
                raise StorageError("503")
            made = real(uri, data)
            if fault == "killed after":
                raise Killed
            if fault == "unheard":
                raise StorageError("the answer never came")
            return made

        return put

    def rows(self, told: Sequence[tuple[int, str, int]]) -> list[Row]:
        made = []
        for place, kind, attempts in told:
            self.count += 1
            made.append(row(place, kind, attempts, f"text {self.count}"))
        return made

    def put(self, number: int, rows: list[Row]) -> None:
        for one in rows:
            if one["kind"] in FINAL:
                self.given[one["place"]].add(one["text"])
            else:
                self.notes[one["kind"], one["place"]].add(one["attempts"])
        before = self.final()
        counted = self.writers[number].put(rows)
        self.acknowledged(rows)
        assert counted <= len(self.final() - before)

    def acknowledged(self, rows: list[Row]) -> None:
        for one in rows:
            if one["kind"] in FINAL:
                self.owed.add(one["place"])
            else:
                known = self.noted[one["kind"], one["place"]]
                self.noted[one["kind"], one["place"]] = max(known, one["attempts"])

    def final(self) -> set[int]:
        return {
            one["place"] for rows in segments(self.folder / "000000") for one in rows if one["kind"] in FINAL
        }

    def do(self, step: Step) -> None:
        what, number, told, others = step
        rows = self.rows(told)
        if others:
            other, between = (number + 1) % WRITERS, self.rows(others)
            self.meanwhile = lambda: self.put(other, between)
        self.fault = what
        try:
            self.put(number, rows)
            if what == "twice":
                self.put(number, rows)
                self.put((number + 1) % WRITERS, rows[::-1])
        except Killed:
            self.writers[number] = self.fresh()
        except StorageError:
            self.put(number, rows)  # as a run does
        self.meanwhile, self.fault = None, ""
        self.holds()

    def holds(self) -> None:
        """No study has two final rows, whatever was put is there, and it is a row that was put."""
        found = [one for rows in segments(self.folder / "000000") for one in rows if one["kind"] in FINAL]
        places = [one["place"] for one in found]
        assert len(places) == len(set(places))
        assert self.owed <= set(places)
        assert all(one["text"] in self.given[one["place"]] for one in found)
        known = self.fresh()
        assert known.final == set(places)
        assert [one["place"] for one in known.rows()] == sorted(places)
        for kind, read in (("tried", known.tried), ("death", known.deaths)):
            assert not set(read) & known.final
            for place in set(range(PLACES)) - known.final:
                assert read.get(place, 0) >= self.noted[kind, place]  # a budget begins no anew
                assert place not in read or read[place] in self.notes[kind, place]


told = st.lists(
    st.tuples(
        st.integers(0, PLACES - 1),
        st.sampled_from(["scored", "scored", "failed", "tried", "death"]),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=5,
)
what = st.sampled_from(["", "", "twice", "killed before", "killed after", "refused", "unheard"])
steps = st.lists(
    st.tuples(what, st.integers(0, WRITERS - 1), told, st.one_of(st.just([]), told)), min_size=1, max_size=8
)


@settings(max_examples=20)
@given(play=steps)
def test_however_writers_interleave_each_study_has_one_row_and_no_budget_begins_anew(
    play: list[Step],
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        world = Play(Path(folder), patch)
        for step in play:
            world.do(step)


def write(number: int, folder: str, places: list[int]) -> int:
    """In a process of its own, when the others are up: a row for each place, three at a time."""
    mine, gate = Range(folder), Path(folder).parent / "up"
    gate.mkdir(exist_ok=True)
    (gate / str(number)).touch()
    until(lambda: len(list(gate.iterdir())) == WRITERS)
    put = 0
    for first in range(0, len(places), 3):
        put += mine.put(
            [row(place, "scored", text=f"writer {number}") for place in places[first : first + 3]]
        )
        time.sleep(0.002)  # so that nobody is done before the others have seen that all are up
    return put


def test_processes_that_write_at_once_leave_each_study_once(tmp_path: Path) -> None:
    folder, places = tmp_path / "000000", list(range(300))
    orders = [places, places[::-1], places[150:] + places[:150]]
    with ProcessPoolExecutor(WRITERS, multiprocessing.get_context("fork")) as pool:
        made = list(pool.map(write, range(WRITERS), [str(folder)] * WRITERS, orders))
    rows = [one for rows in segments(folder) for one in rows]
    assert sorted(one["place"] for one in rows) == places
    assert sum(made) == len(places)
    assert len({one["text"] for one in rows}) > 1  # they met


def put_one(folder: Path) -> Path:
    known = Range(str(folder / "000000"))
    assert known.put([row(place, "scored", text=f"text {place}" * 9) for place in range(20)]) == 20
    return folder / "000000" / "000001.parquet"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_torn_segment_is_told_with_what_to_do(share: float, tmp_path: Path) -> None:
    file = put_one(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    storage.put_new(str(tmp_path / ledger.PLAN), json.dumps({"studies": 20, "begun": 0.0}).encode())
    for read in (lambda: Ledger(str(tmp_path)).range(0), lambda: list(Ledger(str(tmp_path)).status())):
        with pytest.raises(StorageError, match=r"000001\.parquet cannot be read.*restore it, or delete it"):
            read()


def test_a_segment_whose_bytes_have_changed_is_not_taken_for_what_was_written(tmp_path: Path) -> None:
    file = put_one(tmp_path)
    data = bytearray(file.read_bytes())
    text = pq.read_metadata(file).row_group(0).column(ledger.SEGMENT.get_field_index("text"))
    data[text.dictionary_page_offset + text.total_compressed_size // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(StorageError, match="cannot be read as it was written"):
        Ledger(str(tmp_path)).range(0)


def test_a_segment_that_comes_broken_once_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = put_one(tmp_path).read_bytes()
    real, times = storage.read_bytes, 0

    def read(uri: str) -> bytes:
        nonlocal times
        times += 1
        return data[:100] if times == 1 else real(uri)

    monkeypatch.setattr(storage, "read_bytes", read)
    assert len(Ledger(str(tmp_path)).range(0).final) == 20
    assert times == 3  # broken, whole, and the next one, which is not there


def test_a_ledger_that_is_removed_meanwhile_is_told_apart_from_an_empty_one(tmp_path: Path) -> None:
    put_one(tmp_path)
    known = Ledger(str(tmp_path)).range(0)
    Ledger(str(tmp_path)).remove()
    with pytest.raises(Incomplete, match="run the same command again"):
        list(known.rows())


def remove(uri: str) -> None:
    Ledger(uri).remove()


def test_a_ledger_may_be_removed_by_two_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        for number in range(10):
            folder = tmp_path / str(number)
            for name in range(40):
                storage.put_new(str(folder / f"{name:06d}" / "000001.parquet"), b"x")
            list(pool.map(remove, [str(folder)] * 2))
            assert not folder.exists()


def test_the_status_counts_from_the_segments_themselves(tmp_path: Path) -> None:
    made = Ledger(str(tmp_path))
    with pytest.raises(UserError, match="no scoring is known"):
        list(made.status())
    made.plan(8)
    made.plan(9)  # by another client; the first one stands
    made.range(0).put([row(0, "scored") | {"completion_tokens": 5}, row(1, "tried"), row(2, "failed")])
    whole = made.range(1)
    whole.put([row(0, "scored") | {"completion_tokens": 7}])
    made.mark_complete(1, whole)
    (line,) = made.status()
    assert line.startswith("3 of 8 studies (38%), 1 failed, ")
    assert made.complete() == {1: {"scored": 1, "failed": 0, "completion_tokens": 7}}
