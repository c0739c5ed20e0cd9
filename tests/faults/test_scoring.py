"""Scoring an archive while endpoint, storage, disk and clock misbehave: nothing is lost, nothing is there twice.

`make soak` runs each fault with UNIRG_SOAK_SEEDS seeds (10).
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import S3
from tests.faults.scoring_world import QUICK, STUDIES, World, world  # noqa: F401 - a fixture
from tests.scoring import clients
from tests.scoring.clients import Client, assert_complete, assert_no_duplicate_and_nothing_partial, scored
from tests.scoring.s3_faults import Trouble, Weather, troubled
from tests.scoring.stub_server import Behaviour, Fault, served
from tests.waiting import until

SOAK_SEEDS = int(os.environ.get("UNIRG_SOAK_SEEDS", "10"))
SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, SOAK_SEEDS))]
FEW = [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, SOAK_SEEDS))]

# The endpoint


STORMS: dict[str, Behaviour] = {
    "30% 503": Behaviour(chance={"unavailable": 0.3}, most=9),
    "429 with Retry-After": Behaviour(chance={"busy": 0.3}, most=9),
    "more than it takes at a time": Behaviour(capacity=3),
    "500": Behaviour(chance={"error": 0.3}),
    "connection reset": Behaviour(chance={"reset": 0.2}),
    "hang": Behaviour(chance={"hang": 0.03}, hang_s=60.0),
    "truncated JSON": Behaviour(chance={"cut": 0.2}),
    "body that breaks off": Behaviour(chance={"short": 0.2}),
    "200 with an empty body": Behaviour(chance={"blank": 0.3}),
    "wrong content type": Behaviour(chance={"html": 0.3}),
    "answers in another order": Behaviour(jitter_s=0.1),
    "all of them": Behaviour(
        capacity=6,
        jitter_s=0.02,
        chance=dict.fromkeys(("unavailable", "busy", "error", "reset", "cut", "short", "blank", "html"), 0.05),
    ),
}


def stormy(name: str, seed: int) -> Behaviour:
    settings = vars(STORMS[name]) | {"seed": seed, "latency_s": 0.01}
    return Behaviour(**settings)


@pytest.mark.parametrize("seed", FEW)
@pytest.mark.parametrize("name", STORMS)
def test_what_an_endpoint_does_for_a_while_changes_nothing_in_the_result(
    name: str,
    seed: int,
    world: World,  # noqa: F811
    tmp_path: Path,
) -> None:
    store = str(tmp_path / "store")
    with served(stormy(name, seed), tmp_path / "log") as stub:
        made = scored(world.archive, stub.url, store, "timeout_s=1", "retries=4")
        times = Counter(stub.answered())
    assert clients.digest(made) == world.digest
    assert_complete(made, STUDIES)
    assert assert_no_duplicate_and_nothing_partial(store) == STUDIES
    assert set(times.values()) == {1}  # no answer that came was asked for again


@pytest.mark.parametrize("seed", FEW)
def test_a_study_that_never_gets_an_answer_of_its_own_fails_with_its_reason_and_the_rest_goes_on(
    seed: int,
    world: World,  # noqa: F811
    tmp_path: Path,
) -> None:
    chance = random.Random(seed)
    kinds: list[Fault] = ["refused", "length", "empty", "error", "cut", "blank", "html"]
    bad = dict(zip(chance.sample(sorted(world.questions), len(kinds)), kinds, strict=True))
    always = {kind: [world.questions[study]] for study, kind in bad.items()}
    with served(Behaviour(latency_s=0.01, always=always, seed=seed), tmp_path / "log") as stub:
        made = scored(world.archive, stub.url, str(tmp_path / "store"), "retries=2")
        asked = Counter(stub.asked())
    failures = {row["study_id"]: row for row in clients.failures(made)}
    assert set(failures) == set(bad)
    assert_complete(made, STUDIES)
    assert clients.digest(made) == clients.digest(world.undisturbed, frozenset(bad))
    for study, kind in bad.items():
        (times,) = [count for name, count in asked.items() if name.startswith(world.questions[study])]
        assert failures[study]["attempts"] == times == (1 if kind in ("refused", "length", "empty") else 3), kind
    told = {kind: failures[study]["reason"] for study, kind in bad.items()}
    assert "400" in told["refused"]
    assert "empty" in told["empty"]
    assert "truncated" in told["length"]


@pytest.mark.parametrize("seed", FEW)
def test_a_server_killed_in_the_middle_of_batches_costs_only_time(
    seed: int,
    world: World,  # noqa: F811
    tmp_path: Path,
) -> None:
    chance = random.Random(seed)
    store = str(tmp_path / "store")
    with served(Behaviour(latency_s=0.05), tmp_path / "log", restart_s=0.2) as stub:
        one = Client(world.archive, stub.url, store)
        for _ in range(3):
            before = len(stub.answered())
            until(lambda: len(stub.answered()) >= before + chance.randint(5, 30), 60)  # noqa: B023
            time.sleep(chance.uniform(0, 0.05))
            with suppress(OSError):
                stub.kill()
            assert_no_duplicate_and_nothing_partial(store)
        assert one.wait() == 0, one.said
    (made,) = clients.committed(store)
    assert clients.digest(made) == world.digest
    assert assert_no_duplicate_and_nothing_partial(store) == STUDIES


@pytest.mark.parametrize("seed", FEW)
def test_a_study_that_kills_the_server_is_left_out_and_the_rest_goes_on(
    seed: int,
    world: World,  # noqa: F811
    tmp_path: Path,
) -> None:
    poison = random.Random(seed).sample(sorted(world.questions), 2)
    always: dict[Fault, list[str]] = {"poison": [world.questions[study] for study in poison]}
    with served(Behaviour(latency_s=0.02, always=always), tmp_path / "log", restart_s=0.1) as stub:
        made = scored(world.archive, stub.url, str(tmp_path / "store"))
        asked = Counter(stub.asked())
    failures = {row["study_id"]: row["reason"] for row in clients.failures(made)}
    assert set(failures) == set(poison)
    assert all("quarantined" in reason for reason in failures.values())
    assert clients.digest(made) == clients.digest(world.undisturbed, frozenset(poison))
    assert_complete(made, STUDIES)
    for study in poison:  # once among others, and twice alone; each may be with the other one
        (times,) = [count for name, count in asked.items() if name.startswith(world.questions[study])]
        assert times <= 4


def test_deaths_alone_are_remembered_by_the_next_run(world: World, tmp_path: Path) -> None:  # noqa: F811
    """A client that is killed with a suspect in flight begins no count anew."""
    (poison,) = random.Random(0).sample(sorted(world.questions), 1)
    question, store = world.questions[poison], str(tmp_path / "store")
    behaviour = Behaviour(latency_s=0.02, always={"poison": [question]})
    with served(behaviour, tmp_path / "log", restart_s=0.1) as stub:

        def times() -> int:
            return sum(name.startswith(question) for name in stub.asked())

        def noted() -> bool:
            return any(
                row["kind"] == "death" for parts in clients.ledger(store).values() for rows in parts for row in rows
            )

        one = Client(world.archive, stub.url, store)
        until(noted, 60, lambda: one.said)
        one.kill()
        before = times()
        made = scored(world.archive, stub.url, store)
        assert times() - before <= 1
    assert [row["study_id"] for row in clients.failures(made)] == [poison]


def test_tried_attempts_are_remembered_by_the_next_run(world: World, tmp_path: Path) -> None:  # noqa: F811
    study = sorted(world.questions)[5]
    question, store = world.questions[study], str(tmp_path / "store")
    with served(Behaviour(latency_s=0.05, always={"error": [question]}), tmp_path / "log") as stub:

        def times() -> int:
            return sum(name.startswith(question) for name in stub.asked())

        def noted() -> bool:
            rows = [row for parts in clients.ledger(store).values() for rows in parts for row in rows]
            return any(row["kind"] == "tried" for row in rows)

        one = Client(world.archive, stub.url, store, "retries=20", "segment_s=0.2")
        until(noted, 60, lambda: one.said)
        one.kill()
        before = times()
        assert before >= 1
        made = scored(world.archive, stub.url, store, "retries=20")
        assert times() <= 21 + 2  # what was tried since the last segment may be tried again
    (failure,) = clients.failures(made)
    assert (failure["study_id"], failure["attempts"]) == (study, 21)


def test_an_endpoint_that_is_gone_ends_the_run_with_a_clear_word_and_the_next_one_asks_for_the_rest(
    world: World,  # noqa: F811
    tmp_path: Path,
) -> None:
    store = str(tmp_path / "store")
    with served(Behaviour(latency_s=0.02), tmp_path / "log", restart_s=-1) as stub:
        one = Client(world.archive, stub.url, store, "patience_s=2", "segment_s=1")
        until(lambda: len(stub.answered()) >= 60, 60, lambda: one.said)
        stub.kill()
        began = time.monotonic()
        assert one.wait() == 1, one.said
        assert time.monotonic() - began < 20
    assert "finished studies are kept" in one.said
    assert "Traceback" not in one.said
    kept = assert_no_duplicate_and_nothing_partial(store)
    assert kept >= 40
    with served(QUICK, tmp_path / "log-2") as stub:
        made = scored(world.archive, stub.url, store)
        assert len(stub.asked()) == STUDIES - kept
    assert clients.digest(made) == world.digest


def test_an_endpoint_that_turns_everybody_away_is_not_stormed(world: World, tmp_path: Path) -> None:  # noqa: F811
    with served(Behaviour(chance={"unavailable": 1.0}, most=10**6), tmp_path / "log") as stub:
        one = Client(world.archive, stub.url, str(tmp_path / "store"), "patience_s=4")
        assert one.wait() == 1, one.said
        assert len(stub.asked()) < 60
    assert "503" in one.said


# Two workers


@pytest.mark.parametrize("seed", FEW)
@pytest.mark.parametrize("parts", [("0/1", "0/1"), ("0/2", "1/2"), ("0/1", "0/2", "1/2")])
def test_several_workers_leave_every_study_once(
    parts: tuple[str, ...],
    seed: int,
    world: World,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Also where one of them is killed and started again."""
    store, chance = str(tmp_path / "store"), random.Random(seed)
    with served(Behaviour(latency_s=0.02, jitter_s=0.04, seed=seed), tmp_path / "log") as stub:
        workers = [Client(world.archive, stub.url, store, part=part) for part in parts]
        until(lambda: len(stub.answered()) >= chance.randint(10, 60), 60)
        workers[0].kill()
        workers[0] = Client(world.archive, stub.url, store, part=parts[0])
        while any(one.process.exitcode is None for one in workers):
            assert_no_duplicate_and_nothing_partial(store)
        for one in workers:
            assert one.wait() == 0, one.said
        assert clients.committed(store) == []
        before = len(stub.asked())
        made = scored(world.archive, stub.url, store)
        assert len(stub.asked()) == before  # parts leave nothing to ask
    assert clients.digest(made) == world.digest
    assert assert_no_duplicate_and_nothing_partial(store) == STUDIES


# Storage


@pytest.fixture
def bucket(moto_s3: S3) -> Iterator[Callable[[Weather], "contextmanager[S3]"]]:
    yield partial(troubled, moto_s3)


BAD_DAYS: dict[str, dict[Trouble, float]] = {
    "30% 503": {"unavailable": 0.3},
    "slow": {"slow": 0.3},
    "truncated bodies": {"short": 0.3},
    "answers that never come": {"unheard": 0.3},
    "all of them": {"unavailable": 0.1, "slow": 0.1, "short": 0.1, "unheard": 0.1},
}


@pytest.mark.parametrize("seed", FEW)
@pytest.mark.parametrize("name", BAD_DAYS)
def test_object_storage_on_a_bad_day_loses_nothing_and_doubles_nothing(
    name: str,
    seed: int,
    world: World,  # noqa: F811
    moto_s3: S3,
    tmp_path: Path,
) -> None:
    store = f"s3://{moto_s3.bucket()}/store"
    weather = Weather(seed=seed, chance=BAD_DAYS[name], most=2)
    with served(QUICK, tmp_path / "log") as stub, troubled(moto_s3, weather) as seen:
        one = Client(world.archive, stub.url, store, environment=seen.environment)
        code = one.wait()
        assert code in (0, 1), one.said
        assert "Traceback" not in one.said
        if code:  # it may give up, and says what to do
            assert "finished work is kept" in one.said
        assert_no_duplicate_and_nothing_partial(store)
        assert weather.met
        made = scored(world.archive, stub.url, store, environment=moto_s3.environment)
    assert clients.digest(made) == world.digest
    assert assert_no_duplicate_and_nothing_partial(store) == STUDIES


def test_two_machines_on_one_bucket_leave_every_study_once(
    world: World,  # noqa: F811
    moto_s3: S3,
    tmp_path: Path,
) -> None:
    """Without parts, and each with a cache of its own, so that nothing but the bucket joins them."""
    store = f"s3://{moto_s3.bucket()}/store"
    with served(Behaviour(latency_s=0.02, jitter_s=0.04), tmp_path / "log") as stub:
        machines = [
            Client(
                world.archive,
                stub.url,
                store,
                environment=moto_s3.environment | {"UNIRG_CACHE": str(tmp_path / f"machine-{number}")},
            )
            for number in range(2)
        ]
        for one in machines:
            assert one.wait() == 0, one.said
    (made,) = clients.committed(store)
    assert clients.digest(made) == world.digest
    assert assert_no_duplicate_and_nothing_partial(store) == STUDIES


# Disk and clock


@contextmanager
def tiny_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A file system of this size, where the test may mount one."""
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], check=True, stderr=-3
        )
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("no right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [40, 60, 100])
def test_a_full_disk_is_told_and_what_is_finished_stays(
    kilobytes: int,
    world: World,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The sizes let it fill up among the segments, and at the commit."""
    disk = tmp_path / "disk"
    store = str(disk / "store")
    with tiny_disk(disk, kilobytes), served(QUICK, tmp_path / "log") as stub:
        one = Client(world.archive, stub.url, store)
        assert one.wait() == 1, one.said
        assert "free space or choose another place" in one.said or "the disk is full" in one.said
        assert "Traceback" not in one.said
        kept = assert_no_duplicate_and_nothing_partial(store)
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        before = len(stub.asked())
        made = scored(world.archive, stub.url, store)
        assert len(stub.asked()) - before == STUDIES - kept
        assert clients.digest(made) == world.digest
        assert assert_no_duplicate_and_nothing_partial(store) == STUDIES


def small_files(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_a_disk_that_takes_no_segment_is_told(world: World, tmp_path: Path) -> None:  # noqa: F811
    """The same where nothing may be mounted: no file may be longer than this."""
    store = str(tmp_path / "store")
    with served(QUICK, tmp_path / "log") as stub:
        one = Client(world.archive, stub.url, store, before=partial(small_files, 2000))
        assert one.wait() == 1
        assert "free space or choose another place" in one.said
        assert_no_duplicate_and_nothing_partial(store)
        made = scored(world.archive, stub.url, store)
    assert clients.digest(made) == world.digest


def without_roots_rights() -> None:
    """From here on this process is held to the modes of files, even as root."""
    libc = ctypes.CDLL(None, use_errno=True)
    drop, override, search = 24, 1, 2  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for index in range(3):
        sets[index] &= ~(1 << override | 1 << search)
    libc.capset(header, sets)
    libc.prctl(drop, override, 0, 0, 0)


@pytest.mark.parametrize("when", ["from the start", "in the middle"])
def test_a_read_only_output_is_told_and_the_next_run_goes_on(
    when: str,
    world: World,  # noqa: F811
    tmp_path: Path,
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    store = str(output / "store")
    with served(Behaviour(latency_s=0.02), tmp_path / "log") as stub:
        if when == "from the start":
            output.chmod(0o500)
            one = Client(world.archive, stub.url, store, before=without_roots_rights)
            locked = [output]
        else:
            one = Client(world.archive, stub.url, store, before=without_roots_rights)
            until(lambda: clients.ledger(store), 60, lambda: one.said)
            locked = [path for path in output.rglob("*") if path.is_dir()]
            for path in locked:
                path.chmod(0o500)
        assert one.wait() in (1, 2), one.said
        assert "permission denied" in one.said
        assert "Traceback" not in one.said
        for path in locked:
            path.chmod(0o700)
        assert_no_duplicate_and_nothing_partial(store)
        made = scored(world.archive, stub.url, store)
    assert clients.digest(made) == world.digest


def clock_moves_back(flag: str) -> None:
    """From the moment that this file is there, it is a day earlier."""
    now, day = time.time, 86_400
    time.time = lambda: now() - day * os.path.exists(flag)
    time.time_ns = lambda: int(time.time() * 1e9)


def test_a_clock_moved_back_a_day_changes_nothing(world: World, tmp_path: Path) -> None:  # noqa: F811
    store, flag = tmp_path / "store", tmp_path / "moved"
    with served(Behaviour(latency_s=0.03), tmp_path / "log") as stub:
        one = Client(
            world.archive, stub.url, str(store), "segment_s=0.5", before=partial(clock_moves_back, str(flag))
        )
        until(lambda: clients.ledger(str(store)), 60, lambda: one.said)
        flag.touch()
        until(lambda: sum(map(len, clients.ledger(str(store)).values())) >= 4, 60, lambda: one.said)
        one.kill()
        # What was written before the clock moved now lies a day ahead.
        for path in store.rglob("*"):
            os.utime(path, (time.time() + 86_400,) * 2)
        kept = assert_no_duplicate_and_nothing_partial(str(store))
        before = len(stub.asked())
        made = scored(world.archive, stub.url, str(store), before=partial(clock_moves_back, str(flag)))
        assert len(stub.asked()) - before == STUDIES - kept
    assert clients.digest(made) == world.digest
    assert assert_no_duplicate_and_nothing_partial(str(store)) == STUDIES
