"""Scoring an archive while its endpoint misbehaves, or others score it too: nothing is lost, or there twice.

`make soak` runs each fault with UNIRG_SOAK_SEEDS seeds (10).
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.scoring_world import FEW, QUICK, STUDIES, Happened, World
from tests.scoring import clients
from tests.scoring.clients import (
    COME_AGAIN,
    CONCURRENCY,
    SEGMENT,
    Client,
    assert_complete,
    assert_no_duplicate_and_nothing_partial,
    scored,
)
from tests.scoring.stub_server import Behaviour, Fault, served
from tests.waiting import until

# The endpoint


STORMS: dict[str, tuple[Behaviour, int]] = {
    "30% 503": (Behaviour(chance={"unavailable": 0.3}, most=9), 0),
    "429 with Retry-After": (Behaviour(chance={"busy": 0.3}, most=9), 0),
    "more than it takes at a time": (Behaviour(capacity=3), 0),
    "500": (Behaviour(chance={"error": 0.3}), 2),
    "connection reset": (Behaviour(chance={"reset": 0.2}), 2),
    "hang": (Behaviour(chance={"hang": 0.03}, hang_s=60.0), 2),
    "truncated JSON": (Behaviour(chance={"cut": 0.2}), 2),
    "body that breaks off": (Behaviour(chance={"short": 0.2}), 2),
    "200 with an empty body": (Behaviour(chance={"blank": 0.3}), 2),
    "wrong content type": (Behaviour(chance={"html": 0.3}), 2),
    "answers in another order": (Behaviour(jitter_s=0.1), 0),
    "all of them": (
        Behaviour(
            capacity=4,
            jitter_s=0.02,
            chance=dict.fromkeys(
                ("unavailable", "busy", "error", "reset", "cut", "short", "blank", "html"), 0.05
            ),
        ),
        2,
    ),
}
"""What the endpoint does, and how often a study may be asked again for it: no more often than it has to be,
and never for what is the endpoint's state."""


def stormy(name: str, seed: int) -> Behaviour:
    settings = vars(STORMS[name][0]) | {"seed": seed, "latency_s": 0.01}
    return Behaviour(**settings)


@pytest.mark.parametrize("seed", FEW)
@pytest.mark.parametrize("name", STORMS)
def test_what_an_endpoint_does_for_a_while_changes_nothing_in_the_result(
    name: str,
    seed: int,
    scoring: World,
    tmp_path: Path,
    happened: Happened,
) -> None:
    store, behaviour = str(tmp_path / "store"), stormy(name, seed)
    settings = [f"retries={STORMS[name][1]}", *(["timeout_s=1"] if name == "hang" else [])]
    with served(behaviour, tmp_path / "log") as stub:
        made = scored(scoring.archive, stub.url, store, *settings)
        asked, answered, met = stub.asked(), stub.answered(), stub.faults()
    assert clients.digest(made) == scoring.digest
    assert_complete(made, STUDIES)
    assert assert_no_duplicate_and_nothing_partial(store) == STUDIES
    assert set(met) == set(behaviour.chance) | ({"full"} if behaviour.capacity else set())
    if name != "hang":  # where a second is all it gets, an answer may be too late
        assert len(answered) == len(set(answered)) == STUDIES  # no answer that came was asked for again
        assert len(asked) == STUDIES + met.total()
    if behaviour.jitter_s:
        assert answered != list(dict.fromkeys(asked))
    happened(name, met)


@pytest.mark.parametrize("seed", FEW)
def test_a_study_that_never_gets_an_answer_of_its_own_fails_with_its_reason_and_the_rest_goes_on(
    seed: int,
    scoring: World,
    tmp_path: Path,
    happened: Happened,
) -> None:
    chance = random.Random(seed)
    kinds: list[Fault] = ["refused", "length", "empty", "error", "cut", "blank", "html"]
    bad = dict(zip(chance.sample(sorted(scoring.questions), len(kinds)), kinds, strict=True))
    always = {kind: [scoring.questions[study]] for study, kind in bad.items()}
    with served(Behaviour(latency_s=0.01, always=always, seed=seed), tmp_path / "log") as stub:
        made = scored(scoring.archive, stub.url, str(tmp_path / "store"), "retries=2")
        asked, met = Counter(stub.asked()), stub.faults()
    failures = {row["study_id"]: row for row in clients.failures(made)}
    assert set(failures) == set(bad)
    assert_complete(made, STUDIES)
    assert clients.digest(made) == clients.digest(scoring.undisturbed, frozenset(bad))
    for study, kind in bad.items():
        (times,) = [count for name, count in asked.items() if name.startswith(scoring.questions[study])]
        wanted = 1 if kind in ("refused", "length", "empty") else 3
        assert failures[study]["attempts"] == times == met[kind] == wanted, kind
    told = {kind: failures[study]["reason"] for study, kind in bad.items()}
    assert "400" in told["refused"]
    assert "empty" in told["empty"]
    assert "truncated" in told["length"]
    assert "500" in told["error"]
    assert "no JSON" in told["html"]
    assert "no completion" in told["cut"]
    assert "no completion" in told["blank"]
    happened("no answer of its own", met)


@pytest.mark.parametrize("seed", FEW)
def test_a_server_killed_in_the_middle_of_batches_costs_only_time(
    seed: int,
    scoring: World,
    tmp_path: Path,
    happened: Happened,
) -> None:
    chance = random.Random(seed)
    store = str(tmp_path / "store")
    with served(Behaviour(latency_s=0.05), tmp_path / "log", restart_s=0.2) as stub:
        one = Client(scoring.archive, stub.url, store)
        for _ in range(3):
            enough = len(stub.answered()) + chance.randint(5, 30)
            until(lambda: len(stub.answered()) >= enough, 60)  # noqa: B023
            time.sleep(chance.uniform(0, 0.05))
            stub.kill()
            assert_no_duplicate_and_nothing_partial(store)
        assert one.wait() == 0, one.said
        lost = len(stub.asked()) - len(stub.answered())
        assert stub.starts() == 1 + 3
        assert lost >= 3  # each time something was under way
        assert len(set(stub.answered())) == STUDIES
    happened("server killed", {"kills": 3, "requests lost": lost})
    (made,) = clients.committed(store)
    assert clients.digest(made) == scoring.digest
    assert assert_no_duplicate_and_nothing_partial(store) == STUDIES


@pytest.mark.parametrize("seed", FEW)
def test_a_study_that_kills_the_server_is_left_out_and_the_rest_goes_on(
    seed: int,
    scoring: World,
    tmp_path: Path,
    happened: Happened,
) -> None:
    poison = random.Random(seed).sample(sorted(scoring.questions), 2)
    always: dict[Fault, list[str]] = {"poison": [scoring.questions[study] for study in poison]}
    with served(Behaviour(latency_s=0.02, always=always), tmp_path / "log", restart_s=0.8) as stub:
        made = scored(scoring.archive, stub.url, str(tmp_path / "store"), "retries=0")
        asked, deaths = Counter(stub.asked()), stub.starts() - 1
    failures = {row["study_id"]: row for row in clients.failures(made)}
    assert set(failures) == set(poison)
    assert all("quarantined" in row["reason"] for row in failures.values())
    assert clients.digest(made) == clients.digest(scoring.undisturbed, frozenset(poison))
    assert_complete(made, STUDIES)
    for study in poison:  # once among others, where the other one may kill first, and twice alone
        (times,) = [count for name, count in asked.items() if name.startswith(scoring.questions[study])]
        assert times == 3
        assert failures[study]["attempts"] == 2
    assert deaths in (5, 6)
    happened("poison", {"deaths": deaths})


def test_deaths_alone_are_remembered_by_the_next_run(scoring: World, tmp_path: Path) -> None:
    """A client that is killed with a suspect in flight begins no count anew."""
    (poison,) = random.Random(0).sample(sorted(scoring.questions), 1)
    question, store = scoring.questions[poison], str(tmp_path / "store")
    behaviour = Behaviour(latency_s=0.02, always={"poison": [question]})
    with served(behaviour, tmp_path / "log", restart_s=0.3) as stub:

        def times() -> int:
            return sum(name.startswith(question) for name in stub.asked())

        def noted() -> bool:
            return any(
                row["kind"] == "death"
                for parts in clients.ledger(store).values()
                for rows in parts
                for row in rows
            )

        one = Client(scoring.archive, stub.url, store)
        until(noted, 60, lambda: one.said)
        one.kill()
        stub.up()
        before = times()
        made = scored(scoring.archive, stub.url, store)
        assert times() - before <= 1
    assert [row["study_id"] for row in clients.failures(made)] == [poison]


def test_tried_attempts_are_remembered_by_the_next_run(scoring: World, tmp_path: Path) -> None:
    study = sorted(scoring.questions)[5]
    question, store = scoring.questions[study], str(tmp_path / "store")
    with served(Behaviour(latency_s=0.05, always={"error": [question]}), tmp_path / "log") as stub:

        def times() -> int:
            return sum(name.startswith(question) for name in stub.asked())

        def noted() -> bool:
            rows = [row for parts in clients.ledger(store).values() for rows in parts for row in rows]
            return any(row["kind"] == "tried" for row in rows)

        one = Client(scoring.archive, stub.url, store, "retries=4", "segment_s=0.2")
        until(noted, 60, lambda: one.said)
        one.kill()
        (known,) = [
            max(row["attempts"] for rows in parts for row in rows if row["kind"] == "tried")
            for parts in clients.ledger(store).values()
            if any(row["kind"] == "tried" for rows in parts for row in rows)
        ]
        before = times()
        assert before >= known >= 1
        made = scored(scoring.archive, stub.url, store, "retries=4")
        assert times() - before == 5 - known
    (failure,) = clients.failures(made)
    assert (failure["study_id"], failure["attempts"]) == (study, 5)


def test_an_endpoint_that_is_gone_ends_the_run_with_a_clear_word_and_the_next_one_asks_for_the_rest(
    scoring: World,
    tmp_path: Path,
) -> None:
    store = str(tmp_path / "store")
    with served(Behaviour(latency_s=0.05), tmp_path / "log", restart_s=-1) as stub:
        one = Client(scoring.archive, stub.url, store, "patience_s=2")
        # More than three segments by so much that what is kept is not in full ones alone.
        until(lambda: len(stub.answered()) >= 3 * SEGMENT + CONCURRENCY + 1, 60, lambda: one.said)
        stub.kill()
        began = time.monotonic()
        assert one.wait() == COME_AGAIN, one.said
        assert 1.5 < time.monotonic() - began < 20
        answered = len(stub.answered())
    assert "finished studies are kept" in one.said
    assert "Traceback" not in one.said
    kept = assert_no_duplicate_and_nothing_partial(store)
    assert answered - CONCURRENCY <= kept <= answered  # all but those whose answers the death cut off
    with served(QUICK, tmp_path / "log-2") as stub:
        made = scored(scoring.archive, stub.url, store)
        assert len(stub.asked()) == STUDIES - kept
    assert clients.digest(made) == scoring.digest


def test_an_endpoint_that_turns_everybody_away_is_not_stormed(scoring: World, tmp_path: Path) -> None:
    with served(Behaviour(chance={"unavailable": 1.0}, most=10**6), tmp_path / "log") as stub:
        began = time.monotonic()
        one = Client(scoring.archive, stub.url, str(tmp_path / "store"), "patience_s=3")
        assert one.wait() == COME_AGAIN, one.said
        assert time.monotonic() - began > 3
        assert CONCURRENCY <= len(stub.asked()) < 60
    assert "503" in one.said
    assert "Traceback" not in one.said


def test_studies_that_wait_long_keep_no_more_than_a_segment_from_the_ledger(
    scoring: World, tmp_path: Path
) -> None:
    """One of each range, so that all ranges stay open."""
    slow = [scoring.questions[f"s{number:07d}"] for number in (3, 70, 140)]
    store, behaviour = str(tmp_path / "store"), Behaviour(latency_s=0.01, always={"hang": slow})
    with served(behaviour, tmp_path / "log") as stub:
        one = Client(scoring.archive, stub.url, store, "timeout_s=60")
        until(lambda: len(stub.answered()) == STUDIES - 3, 60, lambda: one.said)
        time.sleep(0.5)  # an answer is on its way
        one.kill()
    assert assert_no_duplicate_and_nothing_partial(store) >= STUDIES - 3 - SEGMENT
    # Nor do they, or a put under way, let it fall into many small segments.
    assert sum(map(len, clients.ledger(store).values())) <= 1.5 * STUDIES / SEGMENT
    with served(QUICK, tmp_path / "log-2") as stub:  # and none of the ranges passes for complete
        assert clients.digest(scored(scoring.archive, stub.url, store)) == scoring.digest


def test_a_finished_study_waits_no_longer_than_it_may_for_its_segment(scoring: World, tmp_path: Path) -> None:
    slow = [scoring.questions[f"s{number:07d}"] for number in (3, 70, 140)]
    store, behaviour = str(tmp_path / "store"), Behaviour(latency_s=0.01, always={"hang": slow})
    with served(behaviour, tmp_path / "log") as stub:
        one = Client(scoring.archive, stub.url, store, "timeout_s=60", "segment_s=1")
        until(lambda: len(stub.answered()) == STUDIES - 3, 60, lambda: one.said)
        until(lambda: assert_no_duplicate_and_nothing_partial(store) == STUDIES - 3, 10, lambda: one.said)
        one.kill()


# Two workers


@pytest.mark.parametrize("seed", FEW)
@pytest.mark.parametrize("parts", [("0/1", "0/1"), ("0/2", "1/2"), ("0/1", "0/2", "1/2")])
def test_several_workers_leave_every_study_once(
    parts: tuple[str, ...],
    seed: int,
    scoring: World,
    tmp_path: Path,
    happened: Happened,
) -> None:
    """Also where one of them is killed and started again."""
    store, chance = str(tmp_path / "store"), random.Random(seed)
    with served(Behaviour(latency_s=0.02, jitter_s=0.04, seed=seed), tmp_path / "log") as stub:
        workers = [Client(scoring.archive, stub.url, store, part=part) for part in parts]
        enough = chance.randint(10, 60)
        until(lambda: len(stub.answered()) >= enough, 60)
        workers[0].kill()
        assert workers[0].process.exitcode == -signal.SIGKILL
        workers[0] = Client(scoring.archive, stub.url, store, part=parts[0])
        while any(one.process.exitcode is None for one in workers):
            assert_no_duplicate_and_nothing_partial(store)
        for one in workers:
            assert one.wait() == 0, one.said
        assert clients.committed(store) == []
        before = len(stub.asked())
        made = scored(scoring.archive, stub.url, store)
        assert len(stub.asked()) == before  # parts leave nothing to ask
    twice = before - STUDIES
    assert twice > 0 or parts != ("0/1", "0/1")  # or these two would have shown nothing
    happened(f"workers {' '.join(parts)}", {"kills": 1, "studies asked twice": twice})
    assert clients.digest(made) == scoring.digest
    assert assert_no_duplicate_and_nothing_partial(store) == STUDIES
