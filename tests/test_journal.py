"""The journal: one entry for each thing that happened, whoever writes at once and wherever one is killed."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.lifecycle.stores import made
from unirg import artifact, journal, storage
from unirg.config import canonical_json
from unirg.errors import UserError
from unirg.journal import append, head, read
from unirg.lifecycle.audit import verify

WRITERS = 6


def subjects(number: int) -> dict[str, str]:
    return {"artifact": f"cohort/{number:016x}", "digest": f"{number:064x}"}


def killed(work: Callable[[], object]) -> None:
    """Do something in a process that kills itself before it is done."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was not killed"


def grown(store: str, entries: int) -> None:
    """Put a log of so many entries, faster than one by one, and without their keys."""
    log, previous = journal.Log(store), journal.BEGINNING
    for number in range(1, entries + 1):
        fields = {"version": 1, "number": number, "time": "", "actor": "a", "action": "stage", "note": ""}
        fields |= {"subjects": subjects(number), "previous": previous}
        previous = storage.sha256(canonical_json(fields))
        path = Path(log.uri(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(canonical_json(fields | {"hash": previous}))


def test_entries_follow_each_other_and_say_who_did_what_when(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIRG_ACTOR", "retrain@cluster")
    assert head(store) is None
    first = append(store, "stage", subjects(1))
    second = append(store, "promote", subjects(2), "board of 3 May", "Dr. Ada")
    assert list(read(store)) == [first, second]
    assert (first.number, first.actor, first.note) == (1, "retrain@cluster", "")
    assert (second.number, second.actor, second.note) == (2, "Dr. Ada", "board of 3 May")
    assert (first.previous, second.previous) == (journal.BEGINNING, first.hash)
    assert abs(datetime.fromisoformat(first.time) - datetime.now(UTC)) < timedelta(minutes=1)
    assert second.subjects == subjects(2)
    assert head(store) == second


def test_the_same_action_on_the_same_subjects_is_recorded_once(store: str) -> None:
    first = append(store, "stage", subjects(1))
    other = append(store, "train", subjects(1))
    assert append(store, "stage", subjects(1), "found", "somebody else") == first
    assert append(store, "stage", dict(reversed(subjects(1).items()))) == first
    assert list(read(store)) == [first, other]


def test_of_writers_at_once_none_is_lost_and_what_several_say_is_recorded_once(store: str) -> None:
    barrier = Barrier(WRITERS)

    def write(writer: int) -> list[journal.Entry]:
        barrier.wait()
        mine = [append(store, "stage", subjects(100 * (1 + writer) + number)) for number in range(3)]
        return [*mine, *(append(store, "train", subjects(number)) for number in range(2))]

    with ThreadPoolExecutor(WRITERS) as pool:
        written = list(pool.map(write, range(WRITERS)))
    assert len(list(read(store))) == WRITERS * 3 + 2
    assert verify(store) == []
    shared = {tuple(entry.number for entry in mine[3:]) for mine in written}
    assert len(shared) == 1
    found = {entry.number: entry for entry in read(store)}
    assert all(found[entry.number] == entry for mine in written for entry in mine)


@pytest.mark.parametrize("puts", range(3))
def test_a_writer_killed_anywhere_leaves_what_the_rerun_completes(tmp_path: Path, puts: int) -> None:
    append(str(tmp_path), "stage", subjects(1))
    # The last one's key is missing, too: its writer was killed before it put that.
    (tmp_path / "audit" / "keys" / journal.key_of("stage", subjects(1))).unlink()
    put_new, done = storage.put_new, 0

    def put(uri: str, data: bytes) -> bool:
        nonlocal done
        if done == puts:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return put_new(uri, data)

    def work() -> None:
        storage.put_new = put
        append(str(tmp_path), "stage", subjects(2))

    killed(work)
    assert verify(str(tmp_path)) == []
    for number in (1, 2, 2, 1, 3):
        assert append(str(tmp_path), "stage", subjects(number)).number == number
    assert [entry.subjects for entry in read(str(tmp_path))] == [subjects(number) for number in (1, 2, 3)]
    assert verify(str(tmp_path)) == []


def test_work_whose_maker_was_killed_before_its_entry_gets_it_at_the_rerun(tmp_path: Path) -> None:
    def work() -> None:
        journal.append = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        made(str(tmp_path), "sft", {"cohort": "c" * 64})

    killed(work)
    assert len(list(tmp_path.glob("sft/*/manifest.json"))) == 1
    assert head(str(tmp_path)) is None
    again = made(str(tmp_path), "sft", {"cohort": "c" * 64})
    (entry,) = read(str(tmp_path))
    assert (entry.action, entry.note, entry.subjects["digest"]) == ("train", "found", again.digest)
    made(str(tmp_path), "sft", {"cohort": "c" * 64})
    assert len(list(read(str(tmp_path)))) == 1


def test_a_listing_that_lags_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = str(tmp_path)
    for number in range(4):
        append(store, "stage", subjects(number))
    ls, find = LocalFileSystem.ls, LocalFileSystem.find
    late = ("0000000002.json", "0000000004.json", "0000000005.json")

    def lag(listing: Callable[..., Any]) -> Callable[..., Any]:
        def lagging(*arguments: Any, **options: Any) -> Any:
            found = listing(*arguments, **options)
            return [one for one in found if not str(one).endswith(late)]

        return lagging

    monkeypatch.setattr(LocalFileSystem, "ls", lag(ls))
    monkeypatch.setattr(LocalFileSystem, "find", lag(find))
    assert append(store, "stage", subjects(4)).number == 5
    assert verify(store) == []
    assert [entry.number for entry in read(store)] == [1, 2, 3, 4, 5]


def test_a_clock_that_goes_back_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(1999, 1, 1, tzinfo=tz)

    append(str(tmp_path), "stage", subjects(1))
    monkeypatch.setattr(journal, "datetime", Wrong)
    assert append(str(tmp_path), "stage", subjects(2)).time == "1999-01-01T00:00:00Z"
    assert verify(str(tmp_path)) == []


def test_what_an_entry_costs_does_not_grow_with_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()

    def counted(name: str) -> None:
        function = getattr(storage, name)

        def call(*arguments: Any) -> Any:
            asked[name] += 1
            return function(*arguments)

        monkeypatch.setattr(storage, name, call)

    for name in ("listed", "read_bytes", "put_new", "names"):
        counted(name)
    costs = []
    for entries in (10, 3500):
        store = str(tmp_path / str(entries))
        grown(store, entries)
        asked.clear()
        append(store, "stage", subjects(entries + 1))
        costs.append(dict(asked))
        asked.clear()
        append(store, "stage", subjects(entries + 1))
        assert asked == {"read_bytes": 2}
    assert costs == [{"listed": 2, "read_bytes": 4, "put_new": 3}] * 2


def test_an_entry_of_a_later_version_is_read_verified_and_followed(tmp_path: Path) -> None:
    store = str(tmp_path)
    first = append(store, "stage", subjects(1))
    later = {"version": 2, "number": 2, "previous": first.hash, "witnesses": ["a", "b"], "action": "witness"}
    data = canonical_json(later | {"hash": storage.sha256(canonical_json(later))})
    Path(journal.Log(store).uri(2)).write_bytes(data)
    assert append(store, "stage", subjects(3)).number == 3
    assert [entry.action for entry in read(store)] == ["stage", "witness", "stage"]
    assert verify(store) == []
    Path(journal.Log(store).uri(2)).write_bytes(data.replace(b'"a"', b'"c"'))
    (problem,) = verify(store)
    assert problem.sentence == "entry 2 says that a newer unirg wrote it (version 2), or it is altered"


def test_nobody_writes_behind_an_entry_that_cannot_be_read(tmp_path: Path) -> None:
    store = str(tmp_path)
    append(store, "stage", subjects(1))
    Path(journal.Log(store).uri(1)).write_bytes(b"{}")
    with pytest.raises(journal.Damaged, match=r"0000000001\.json is altered.*restore it from a copy"):
        append(store, "stage", subjects(2))


def test_a_forged_key_hides_no_entry(tmp_path: Path) -> None:
    store = str(tmp_path)
    append(store, "stage", subjects(1))
    for forged in (b"1", b"7", b"", b"-1", b"x" * 99):
        key = tmp_path / "audit" / "keys" / journal.key_of("stage", subjects(2))
        key.write_bytes(forged)
        with pytest.raises(journal.Damaged, match="names no entry with this key: remove it"):
            append(store, "stage", subjects(2))


@pytest.mark.parametrize("text", ["two\nlines", "x" * 201, "\x1b[2J"])
def test_who_acts_and_why_are_one_short_line(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"note has .* one line of at most 200"):
        append(str(tmp_path), "approve", subjects(1), text)
    monkeypatch.setenv("UNIRG_ACTOR", text)
    with pytest.raises(UserError, match="UNIRG_ACTOR has"):
        append(str(tmp_path), "approve", subjects(1))
    with pytest.raises(UserError, match="no action dance: there are stage, train"):
        append(str(tmp_path), "dance", subjects(1))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# Artifacts


def test_what_decides_is_recorded_with_its_digests_and_what_does_not_is_not(store: str) -> None:
    cohort = made(store, "cohort", {"corpus": "c" * 64})
    policy = made(store, "grpo", {"cohort": cohort})
    made(store, "serve", {"checkpoint": policy})
    made(store, "score", {"cohort": cohort, "model": policy.digest})
    made(store, "report", {"evaluation": "e" * 64})
    entries = list(read(store))
    assert [entry.action for entry in entries] == ["stage", "train", "archive"]
    assert entries[1].subjects == {
        "artifact": policy.uri.removeprefix(f"{cohort.store}/"),
        "digest": policy.digest,
        "action_key": policy.manifest.action_key,
        "input.cohort": cohort.digest,
    }
    assert all(entry.note == "" for entry in entries)
    assert verify(store) == []


@contextmanager
def as_reader(folder: Path) -> Iterator[None]:
    """Nothing below the folder can be written; root, who may all, is nobody meanwhile."""
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    me = os.geteuid()
    try:
        if me == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(me)
        for path, mode in modes.items():
            path.chmod(mode)


def test_who_may_only_read_finds_what_is_done_and_is_told_of_a_missing_entry(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's folders are closed to others
        folder = Path(place)
        done = made(place, "sft", {"cohort": "c" * 64})
        with as_reader(folder):
            assert artifact.done(done.uri) == done
        assert capsys.readouterr().err == ""
        for path in (folder / "audit" / "entries").rglob("*.json"):
            path.unlink()
        for path in (folder / "audit" / "keys").iterdir():
            path.unlink()
        with as_reader(folder):
            assert artifact.done(done.uri) == done
        told = capsys.readouterr().err
        assert told.startswith(f"warning: the audit has no entry of sft/{done.uri.rpartition('/')[2]}")
        assert "permission denied" in told


def test_work_that_cannot_be_recorded_fails_and_the_rerun_records_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path)
    append(store, "stage", subjects(1))
    last = Path(journal.Log(store).uri(1))
    content = last.read_bytes()
    last.write_bytes(b"")
    with pytest.raises(journal.Damaged, match=r"0000000001\.json is altered"):
        made(store, "sft", {"cohort": "c" * 64})
    done = made(store, "sft", {"cohort": "c" * 64})
    assert "warning: the audit has no entry of sft/" in capsys.readouterr().err
    last.write_bytes(content)
    assert made(store, "sft", {"cohort": "c" * 64}) == done
    assert [entry.note for entry in read(store)] == ["", "found"]
