"""Cycles of retraining: one scheduler of many begins one, who holds it, who takes it over, how it ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from unirg import storage
from unirg.errors import UserError
from unirg.lifecycle import cycle as cycles
from unirg.lifecycle.cycle import Begin, Busy, Cycle, Cycles, End

HOUR = 3600.0
LEASE_S = 72 * HOUR
KEPT = End(outcome="kept", why="no better", cohort="cohort 2")


class Clock:
    """A scheduler's clock, which a test sets forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def opened(of: Cycles, run: str, lease_s: float = LEASE_S) -> Cycle:
    """Open a cycle as the pipeline does: after the last one, with its cohort."""

    def start(last: Cycle | None) -> Begin:
        ended = last and last.ended()
        cohort = ended.cohort if ended else "cohort 1"
        number = last.number + 1 if last else 1
        return Begin(number=number, run=run, champion=1, checkpoint="model 1", cohort=cohort)

    return of.open(run, lease_s, start)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def local(tmp_path: Path, clock: Clock) -> Cycles:
    return Cycles(str(tmp_path / "store"), clock=clock)


def test_a_cycle_s_life_on_every_storage(store: str, clock: Clock) -> None:
    found = Cycles(store, clock=clock)
    assert found.last() is None
    assert found.all() == []
    first = opened(found, "monday")
    assert (first.number, first.begin.run, first.begin.cohort) == (1, "monday", "cohort 1")
    assert opened(found, "monday") == first
    with pytest.raises(Busy, match=r"run monday is at work on cycle 1 \(last seen 0\.0 h ago\)"):
        opened(found, "tuesday")
    clock.ahead = LEASE_S + HOUR
    assert opened(found, "tuesday").begin == first.begin
    clock.ahead = 0.0
    with pytest.raises(Busy, match="run tuesday is at work"):
        opened(found, "monday")
    assert first.watch() == ""
    assert first.arrived("watch a") == "watch a"
    assert first.arrived("watch b") == "watch a"
    assert first.ended() is None
    assert first.end(KEPT) == KEPT
    again = KEPT.model_copy(update={"outcome": "promoted"})
    assert first.end(again) == KEPT
    second = opened(found, "monday")
    assert (second.number, second.begin.cohort, second.ended()) == (2, "cohort 2", None)
    assert found.all() == [first, second]
    assert found.last() == second
    assert cycles.opened(second.uri) == second


def test_of_many_threads_one_begins_and_the_others_are_told_who(store: str) -> None:
    together = threading.Barrier(8)

    def scheduler(number: int) -> str:
        together.wait()
        try:
            return opened(Cycles(store), f"run-{number}").begin.run
        except Busy as busy:
            return str(busy).split()[1]

    with ThreadPoolExecutor(8) as pool:
        told = set(pool.map(scheduler, range(8)))
    (only,) = Cycles(store).all()
    assert told == {only.begin.run}


def _rounds(place: str, name: str) -> None:
    """Work at cycles as a scheduler, until there are ten."""
    found = Cycles(place)
    while len(found.all()) < 10:
        try:
            now = opened(found, name)
        except Busy:
            continue
        end = KEPT.model_copy(update={"why": name, "cohort": f"cohort {now.number + 1}"})
        if now.end(end).why != now.begin.run:
            os._exit(3)


def test_processes_that_race_for_ten_cycles_leave_each_whole(local: Cycles) -> None:
    forks = multiprocessing.get_context("fork")
    racing = [forks.Process(target=_rounds, args=(local.store, f"run-{number}")) for number in range(4)]
    for one in racing:
        one.start()
    for one in racing:
        one.join(60)
    assert [one.exitcode for one in racing] == [0] * 4
    made = local.all()
    assert [one.number for one in made] == list(range(1, len(made) + 1))
    assert [one.begin.cohort for one in made] == [f"cohort {one.number}" for one in made]
    ends = [one.ended() for one in made]
    assert [end and end.why for end in ends[:9]] == [one.begin.run for one in made[:9]]


def test_busy_says_who_works_how_long_ago_and_when_another_may(local: Cycles, clock: Clock) -> None:
    opened(local, "monday")
    clock.ahead = 71.5 * HOUR
    with pytest.raises(Busy) as told:
        opened(local, "tuesday")
    assert str(told.value) == (
        "run monday is at work on cycle 1 (last seen 71.5 h ago): it goes on there; another run may take "
        "over after 72 h"
    )
    assert isinstance(told.value, UserError)


def test_whoever_shows_itself_keeps_the_cycle(local: Cycles) -> None:
    first = opened(local, "monday")
    begun = Path(first.uri, "begin.json")
    old = time.time() - LEASE_S - HOUR
    os.utime(begun, (old, old))
    first.hold("monday", LEASE_S)
    assert time.time() - begun.stat().st_mtime < 60
    with pytest.raises(Busy):
        opened(local, "tuesday")


def test_a_cycle_is_taken_over_again_and_again(local: Cycles, clock: Clock) -> None:
    first = opened(local, "a")
    for ahead, run in [(1, "b"), (2, "c"), (3, "a")]:
        clock.ahead = ahead * (LEASE_S + HOUR)
        assert opened(local, run) == first
        # Who takes over shows itself now, by the storage's clock.
        clock.ahead = 0.0
        for other in {"a", "b", "c"} - {run}:
            with pytest.raises(Busy, match=f"run {run} is"):
                opened(local, other)
    assert storage.listed(f"{first.uri}/holder") == ["0002", "0003", "0004"]


def test_of_many_that_take_over_one_does(local: Cycles) -> None:
    first = opened(local, "dead")
    old = time.time() - 120
    os.utime(f"{first.uri}/begin.json", (old, old))
    together = threading.Barrier(8)

    def heir(number: int) -> str:
        together.wait()
        try:
            opened(local, f"run-{number}", 60.0)
        except Busy as busy:
            return str(busy).split()[1]
        return f"run-{number}"

    with ThreadPoolExecutor(8) as pool:
        told = set(pool.map(heir, range(8)))
    assert storage.listed(f"{first.uri}/holder") == ["0002"]
    assert told == {storage.read_bytes(f"{first.uri}/holder/0002").decode()}


def test_models_have_cycles_of_their_own(local: Cycles) -> None:
    opened(local, "monday")
    other = Cycles(local.store, "other")
    assert other.last() is None
    assert opened(other, "tuesday").number == 1


def test_a_begin_that_was_killed_as_it_wrote_does_not_hide_the_cycles_before(local: Cycles) -> None:
    first = opened(local, "monday")
    first.end(KEPT)
    # On file: the folder is there before the file is.
    Path(first.uri).with_name("0000002").mkdir()
    assert local.last() == first
    assert local.all() == [first]
    assert opened(local, "tuesday").number == 2


@pytest.mark.parametrize("name", ["begin.json", "end.json", "watch.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"number": 1', b"\xff\xfe"])
def test_what_is_damaged_is_named(local: Cycles, name: str, content: bytes) -> None:
    first = opened(local, "monday")
    first.arrived("watch a")
    Path(first.uri, name).write_bytes(content)
    with pytest.raises(UserError) as told:
        opened(local, "monday").watch()
    assert str(told.value) == f"{first.uri}/{name} is damaged: restore it from a copy"


@pytest.mark.parametrize("run", ["", "two words", "a/b", "x" * 201, "line\n"])
def test_a_run_without_an_id_opens_nothing(local: Cycles, run: str) -> None:
    with pytest.raises(UserError, match="is no id of a pipeline run: use letters, digits"):
        opened(local, run)
    assert local.all() == []


def test_a_uri_of_no_cycle_is_told(local: Cycles) -> None:
    with pytest.raises(UserError, match=r"no cycle of retraining at /nowhere: check the URI"):
        cycles.opened("/nowhere")


def test_a_start_that_fails_leaves_nothing(local: Cycles) -> None:
    def start(last: Cycle | None) -> Begin:
        raise UserError("no champion")

    with pytest.raises(UserError, match="no champion"):
        local.open("monday", LEASE_S, start)
    assert local.all() == []
