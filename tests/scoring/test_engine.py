"""The asker against an endpoint that plays a part, on a clock that leaps: minutes pass in no time."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from tests.scoring.leaping import DONE, Endpoint, Leaping, ask_all, asker, bodies, run
from unirg.scoring import engine
from unirg.scoring.client import Broken, Completion, Faulty, Refused, Unavailable
from unirg.scoring.engine import QUARANTINED, Asker, EndpointAway, History, Pace, StudyFailed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Leaping:
    loop = Leaping()
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=loop.time))
    return loop


# How many at a time


def test_pace_grows_with_answers_is_halved_when_turned_away_and_stays_in_bounds(clock: Leaping) -> None:
    pace = Pace(64)
    assert pace.limit == 16
    for _ in range(10):
        clock.now += 0.01
        pace.answered(0.1, int(pace.limit))
    assert pace.limit == 26
    sent = clock.now
    clock.now += 0.1
    pace.turned_away(sent)
    assert pace.limit == 13
    pace.turned_away(sent)  # which was sent before the halving
    assert pace.limit == 13
    pace.answered(0.1, int(pace.limit))
    assert 13 < pace.limit < 13.1
    for _ in range(20):
        clock.now += 1
        pace.turned_away(clock.now)
    assert pace.limit == 1
    for _ in range(10_000):
        clock.now += 0.1 / pace.limit
        pace.answered(0.1, int(pace.limit))
    assert 24 < pace.limit <= 64


def test_an_endpoint_of_fixed_latency_gets_as_many_as_are_allowed(clock: Leaping) -> None:
    endpoint = Endpoint(clock)
    asking = asker(endpoint, concurrency=64)
    assert run(clock, ask_all(asking, bodies(2000))) == [DONE] * 2000
    assert asking.pace.limit == 64
    assert max(others[0] for others in endpoint.beside.values()) == 63
    assert endpoint.seconds < 1.2 * 2000 / 64 * 0.1


def test_where_more_at_a_time_only_take_longer_it_goes_back(clock: Leaping) -> None:
    """200 a second, however many are asked."""
    free = 0.0

    def queued(endpoint: Endpoint) -> float:
        nonlocal free
        free = max(free, endpoint.seconds) + 1 / 200
        return max(0.1, free - endpoint.seconds)

    endpoint = Endpoint(clock, latency=queued)
    asking = asker(endpoint, concurrency=400)
    assert run(clock, ask_all(asking, bodies(2000))) == [DONE] * 2000
    assert asking.pace.limit < 300
    assert endpoint.seconds < 1.15 * 2000 / 200


def test_a_server_that_works_in_batches_is_not_mistaken_for_one_that_gets_slower(clock: Leaping) -> None:
    """It takes what has come, up to 64, and answers all of it at once: 0.1 s and 4 ms for each."""
    free, batch = 0.0, 0

    def batched(endpoint: Endpoint) -> float:
        nonlocal free, batch
        if free <= endpoint.seconds or batch == 64:
            begins = max(free, endpoint.seconds)
            free, batch = begins + 0.1, 0
        batch += 1
        free += 0.004
        return max(0.1, free - endpoint.seconds)

    endpoint = Endpoint(clock, latency=batched)
    asking = asker(endpoint, concurrency=128)
    assert run(clock, ask_all(asking, bodies(4000))) == [DONE] * 4000
    assert asking.pace.limit >= 64


def test_an_endpoint_that_takes_ten_is_asked_about_ten_at_a_time(clock: Leaping) -> None:
    class Small(Endpoint):
        async def ask(self, body: bytes) -> Completion:
            if self.now >= 10:
                self.asked.append((self.seconds, body))
                raise Unavailable("HTTP 429")
            return await super().ask(body)

    endpoint = Small(clock)
    asking = asker(endpoint, concurrency=256, retries=0)
    assert run(clock, ask_all(asking, bodies(3000))) == [DONE] * 3000
    turned_away = len(endpoint.asked) - 3000
    assert 0 < turned_away < 0.2 * 3000
    assert endpoint.seconds < 2 * 3000 / 10 * 0.1


# An endpoint that is away


@pytest.mark.parametrize("why", ["HTTP 503", "ConnectError"])
def test_an_endpoint_that_turns_everybody_away_is_asked_seldom_and_given_up_with_a_clear_word(
    why: str,
    clock: Leaping,
) -> None:
    endpoint = Endpoint(clock, lambda _, __: Unavailable(why))
    with pytest.raises(EndpointAway, match=rf"completed nothing for 60 s \({why}\).*studies are kept"):
        run(clock, ask_all(asker(endpoint, retries=0), bodies(200)))
    assert 60 < endpoint.seconds < 60 + 2 * engine._LONGEST_WAIT_S
    assert len(endpoint.asked) < 200
    late = [when for when, _ in endpoint.asked if when > 5]
    assert all(later - earlier >= 0.1 for earlier, later in pairwise(late))  # one at a time
    assert len([when for when in late if when > 30]) < 80


def test_after_an_outage_everything_goes_on_and_no_study_pays_for_it(clock: Leaping) -> None:
    def part(endpoint: Endpoint, _: bytes) -> Exception | None:
        return Unavailable("HTTP 503") if 2 < endpoint.seconds < 40 else None

    endpoint = Endpoint(clock, part)
    assert run(clock, ask_all(asker(endpoint, retries=0), bodies(2000))) == [DONE] * 2000
    assert sum(4 < when < 40 for when, _ in endpoint.asked) < 100
    assert endpoint.seconds < 40 + 15 + 2 * 2000 / 32 * 0.1


def test_patience_begins_with_the_last_answer(clock: Leaping) -> None:
    """One answer every 40 s is slow, and not away."""
    last = 0.0

    def part(endpoint: Endpoint, _: bytes) -> Exception | None:
        nonlocal last
        if endpoint.seconds < last + 40:
            return Unavailable("HTTP 503")
        last = endpoint.seconds
        return None

    assert run(clock, ask_all(asker(Endpoint(clock, part)), bodies(8))) == [DONE] * 8


@pytest.mark.parametrize("wait_s", [3.0, 15.0])
def test_what_retry_after_asks_for_is_waited(wait_s: float, clock: Leaping) -> None:
    endpoint = Endpoint(
        clock, lambda endpoint, _: Unavailable("HTTP 429", wait_s) if len(endpoint.asked) < 4 else None
    )
    assert run(clock, ask_all(asker(endpoint), [b"one"])) == [DONE]
    gaps = [later - earlier for earlier, later in pairwise(endpoint.times(b"one"))]
    assert len(gaps) == 3
    assert all(wait_s <= gap - 0.1 <= wait_s + engine._LONGEST_WAIT_S for gap in gaps)


def test_retry_after_holds_for_all_once_everybody_is_turned_away(clock: Leaping) -> None:
    endpoint = Endpoint(
        clock, lambda endpoint, _: Unavailable("HTTP 429", 20.0) if endpoint.seconds < 15 else None
    )
    assert run(clock, ask_all(asker(endpoint), bodies(300))) == [DONE] * 300
    assert not [when for when, _ in endpoint.asked if 0.2 < when < 20]


def test_pauses_are_drawn_from_nothing_to_a_bound_that_doubles(clock: Leaping) -> None:
    asking = asker(Endpoint(clock))
    for attempt in range(40):
        bound = min(15.0, 0.25 * 2**attempt)
        drawn = [asking._back_off(attempt) for _ in range(200)]
        assert 0 <= min(drawn) < 0.2 * bound
        assert 0.8 * bound < max(drawn) <= bound
    assert asker(Endpoint(clock))._back_off(5) != asker(Endpoint(clock))._back_off(5)


# A study's own faults


@pytest.mark.parametrize(("known", "asked"), [(0, 4), (2, 2), (4, 1)])
def test_faulty_answers_count_and_those_of_earlier_runs_too(known: int, asked: int, clock: Leaping) -> None:
    endpoint, history = Endpoint(clock, lambda _, __: Faulty("HTTP 500")), History(attempts=known)
    with pytest.raises(StudyFailed, match="HTTP 500") as failed:
        run(clock, asker(endpoint, retries=3).complete(b"one", history))
    assert len(endpoint.asked) == asked
    assert failed.value.attempts == known + asked


def test_a_study_out_of_tries_is_not_blamed_where_the_server_is_gone(clock: Leaping) -> None:
    def dies(endpoint: Endpoint, _: bytes) -> Exception:
        endpoint.back_at = 1e9
        return Faulty("no answer in time")

    endpoint = Endpoint(clock, dies)
    with pytest.raises(EndpointAway, match="completed nothing for 60 s"):
        run(clock, asker(endpoint, retries=0).complete(b"one", History()))


def test_what_is_refused_is_asked_once(clock: Leaping) -> None:
    endpoint = Endpoint(clock, lambda _, __: Refused("refused: HTTP 400"))
    with pytest.raises(StudyFailed, match="refused: HTTP 400") as failed:
        run(clock, asker(endpoint).complete(b"one", History()))
    assert (len(endpoint.asked), failed.value.attempts) == (1, 1)


def test_a_connection_that_breaks_whoever_else_answers_is_judged_alone(clock: Leaping) -> None:
    """One replica of several dies of it: another one is there each time."""

    def part(_: Endpoint, body: bytes) -> Exception | None:
        return Broken("the connection broke") if body == b"5" else None

    endpoint = Endpoint(clock, part)
    told = run(clock, ask_all(asker(endpoint, retries=0), bodies(200)))
    assert isinstance(told[5], StudyFailed)
    assert (told[5].reason, told[5].attempts) == (QUARANTINED, 2)
    assert told[:5] + told[6:] == [DONE] * 199
    among, alone = endpoint.beside[b"5"][:2], endpoint.beside[b"5"][2:]
    assert (min(among) > 0, alone) == (True, [0, 0])


def test_who_was_beside_it_when_it_broke_is_not_blamed(clock: Leaping) -> None:
    times = 0

    def part(_: Endpoint, body: bytes) -> Exception | None:
        nonlocal times
        times += body == b"5"
        return Broken("the connection broke") if body == b"5" and times <= 3 else None

    history = History()
    assert run(clock, asker(Endpoint(clock, part), retries=0).complete(b"5", history)) == DONE
    assert (history.attempts, history.breaks, history.deaths) == (0, 2, 1)


# A study that the server dies of


def poisoned(clock: Leaping, *poison: bytes) -> Endpoint:
    def part(endpoint: Endpoint, body: bytes) -> Exception | None:
        if body not in poison:
            return None
        endpoint.back_at = endpoint.seconds + 2
        return Broken("the connection broke")

    return Endpoint(clock, part)


def test_who_was_in_flight_when_the_server_died_is_asked_alone_and_two_deaths_alone_are_enough(
    clock: Leaping,
) -> None:
    endpoint, poison = poisoned(clock, b"5", b"90"), (5, 90)
    told = run(clock, ask_all(asker(endpoint, retries=0), bodies(400)))
    for number, one in enumerate(told):
        if number in poison:
            assert isinstance(one, StudyFailed)
            assert (one.reason, one.attempts) == (QUARANTINED, 2)
        else:
            assert one == DONE
    for number in poison:
        first, *alone = endpoint.beside[b"%d" % number]
        assert first > 0
        assert alone == [0, 0]
    suspects = [body for body, others in endpoint.beside.items() if len(others) > 1]
    assert 10 < len(suspects) < 100
    assert all(endpoint.beside[body][-1] == 0 for body in suspects)


def test_each_death_is_told_before_the_study_is_asked_again_and_while_nothing_is_in_flight(
    clock: Leaping,
) -> None:
    endpoint, events = poisoned(clock, b"5"), []

    async def died(history: History) -> None:
        asked = len(endpoint.asked)
        await asyncio.sleep(5)  # a store takes its time
        assert (len(endpoint.asked), endpoint.now) == (asked, 0)
        events.append((history.deaths, len(endpoint.times(b"5"))))

    run(clock, ask_all(asker(endpoint), bodies(50), died))
    assert events == [(1, 2), (2, 3)]


def test_a_study_that_an_earlier_run_saw_kill_once_is_asked_alone_once(clock: Leaping) -> None:
    endpoint, history = poisoned(clock, b"5"), History(deaths=1)

    async def both(asking: Asker) -> Any:
        others = ask_all(asking, [b"%d" % number for number in range(100, 300)])
        return await asyncio.gather(asking.complete(b"5", history), others, return_exceptions=True)

    failed, others = run(clock, both(asker(endpoint)))
    assert isinstance(failed, StudyFailed)
    assert failed.reason == QUARANTINED
    assert others == [DONE] * 200
    assert endpoint.beside[b"5"] == [0]


def test_a_study_that_was_killed_beside_another_is_no_longer_blamed(clock: Leaping) -> None:
    endpoint, history = poisoned(clock, b"5"), History()

    async def both(asking: Asker) -> Any:
        return await asyncio.gather(
            asking.complete(b"6", history), asking.complete(b"5", History()), return_exceptions=True
        )

    done, failed = run(clock, both(asker(endpoint)))
    assert done == DONE
    assert isinstance(failed, StudyFailed)
    assert (history.deaths, history.attempts) == (0, 0)


def test_a_server_of_ours_is_started_again_whenever_it_is_gone(clock: Leaping) -> None:
    """Nobody else does: after a death among many, after one alone, and after one while nothing was asked."""
    started: list[float] = []

    def part(endpoint: Endpoint, body: bytes) -> Exception | None:
        if body != b"5":
            return None
        endpoint.back_at = 1e9
        return Broken("the connection broke")

    async def revive() -> None:
        started.append(endpoint.seconds)
        assert endpoint.now == 0
        endpoint.back_at = 0.0

    async def twice() -> list[Any]:
        asking = asker(endpoint, revive=revive)
        told = await ask_all(asking, bodies(400))
        endpoint.back_at = 1e9
        return told + await ask_all(asking, [b"one more"])

    endpoint = Endpoint(clock, part)
    told = run(clock, twice())
    assert [number for number, one in enumerate(told) if one != DONE] == [5]
    assert len(started) == 4
    assert endpoint.seconds < 20


def test_a_server_that_never_comes_back_ends_the_run_and_blames_nobody(clock: Leaping) -> None:
    def part(endpoint: Endpoint, body: bytes) -> Exception | None:
        if body == b"5":
            endpoint.back_at = 1e9
            return Broken("the connection broke")
        return None

    endpoint, noted = Endpoint(clock, part), []

    async def died(history: History) -> None:
        noted.append(history)

    with pytest.raises(EndpointAway, match="it is not there"):
        run(clock, ask_all(asker(endpoint), bodies(100), died))
    assert noted == []
    assert 60 <= endpoint.seconds < 60 + 2 * engine._LONGEST_WAIT_S
    assert len(endpoint.asked) < 200
