"""Scoring an archive while storage, disk and clock misbehave: nothing is lost, and nothing is there twice.

`make soak` runs each fault with UNIRG_SOAK_SEEDS seeds (10).
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import S3
from tests.faults.scoring_world import FEW, QUICK, STUDIES, Happened, World
from tests.scoring import clients
from tests.scoring.clients import (
    GIVES_UP,
    Client,
    assert_no_duplicate_and_nothing_partial,
    hurried,
    scored,
)
from tests.scoring.s3_faults import Trouble, Weather, troubled
from tests.scoring.stub_server import Behaviour, served
from tests.waiting import until
from unirg import storage

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
    scoring: World,
    moto_s3: S3,
    tmp_path: Path,
    happened: Happened,
) -> None:
    store = f"s3://{moto_s3.bucket()}/store"
    weather = Weather(seed=seed, chance=BAD_DAYS[name], most=2)
    with served(QUICK, tmp_path / "log") as stub, troubled(moto_s3, weather) as seen:
        one = Client(
            scoring.archive,
            stub.url,
            store,
            "segment_studies=32",
            before=hurried,
            environment=seen.environment,
        )
        code = one.wait()
        assert code in (0, GIVES_UP), one.said
        assert "Traceback" not in one.said
        if code:  # it may give up, and says what to do
            assert "finished work is kept" in one.said
        kept = assert_no_duplicate_and_nothing_partial(store)
        assert set(weather.met) <= set(BAD_DAYS[name])
        assert len(weather.met) >= min(len(BAD_DAYS[name]), 3)  # of four by chance, one may not come
        happened(f"store: {name}", weather.met | {"runs that gave up": int(code != 0)})
        before = len(stub.asked())
        made = scored(scoring.archive, stub.url, store, environment=moto_s3.environment)
        assert len(stub.asked()) - before == STUDIES - kept
    assert clients.digest(made) == scoring.digest
    assert assert_no_duplicate_and_nothing_partial(store) == STUDIES


@pytest.mark.parametrize("seed", FEW)
def test_two_machines_on_one_bucket_leave_every_study_once(
    seed: int,
    scoring: World,
    moto_s3: S3,
    tmp_path: Path,
    happened: Happened,
) -> None:
    """Without parts, and each with a cache of its own, so that nothing but the bucket joins them."""
    store = f"s3://{moto_s3.bucket()}/store"
    with served(Behaviour(latency_s=0.02, jitter_s=0.04, seed=seed), tmp_path / "log") as stub:
        machines = [
            Client(
                scoring.archive,
                stub.url,
                store,
                environment=moto_s3.environment | {"UNIRG_CACHE": str(tmp_path / f"machine-{number}")},
            )
            for number in range(2)
        ]
        for one in machines:
            assert one.wait() == 0, one.said
        twice = len(stub.asked()) - STUDIES
    assert twice > 0
    happened("two machines on one bucket", {"studies asked twice": twice})
    (made,) = clients.committed(store)
    assert clients.digest(made) == scoring.digest
    assert assert_no_duplicate_and_nothing_partial(store) == STUDIES


def test_a_ledger_that_a_killed_client_left_beside_its_artifact_is_removed(
    scoring: World, moto_s3: S3, tmp_path: Path
) -> None:
    store = f"s3://{moto_s3.bucket()}/store"
    with served(QUICK, tmp_path / "log") as stub:
        worker = Client(scoring.archive, stub.url, store, part="0/1", environment=moto_s3.environment)
        assert worker.wait() == 0, worker.said
        left = {uri: storage.read_bytes(uri) for uri in clients.files(store, ".work", "").values()}
        made = scored(scoring.archive, stub.url, store, environment=moto_s3.environment)
        assert clients.files(store, ".work", "") == {}
        for uri, data in left.items():
            storage.put_new(uri, data)
        again = scored(scoring.archive, stub.url, store, environment=moto_s3.environment)
        assert len(stub.asked()) == STUDIES
    assert again.digest == made.digest
    assert len(left) > 10
    assert clients.files(store, ".work", "") == {}


# Disk and clock


@contextmanager
def tiny_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A file system of this size.

    Raises:
        CalledProcessError, FileNotFoundError: the test may mount none.
    """
    size = f"size={kilobytes}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def small_files(limit: int) -> None:
    """For a client: no file may be longer than this."""
    hurried()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.parametrize("kilobytes", [30, 60, 100])
def test_a_full_disk_is_told_and_what_is_finished_stays(
    kilobytes: int, scoring: World, tmp_path: Path, happened: Happened
) -> None:
    """It fills up at the first segments, at later ones, and at the commit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        with tiny_disk(disk, kilobytes):
            larger = ["mount", "-o", "remount,size=8m", str(disk)]
            kept = until_it_is_full(disk, scoring, hurried, lambda: subprocess.run(larger, check=True))
            assert (kept == STUDIES) == (kilobytes == 100)
    except (subprocess.CalledProcessError, FileNotFoundError):
        kept = until_it_is_full(disk, scoring, partial(small_files, 140 * kilobytes), lambda: None)
    happened(f"full disk: {kilobytes} KiB", {"studies kept": kept})


@pytest.mark.parametrize("limit", [2_000, 14_000])
def test_a_limit_on_the_size_of_files_is_told_and_what_is_finished_stays(
    limit: int, scoring: World, tmp_path: Path, happened: Happened
) -> None:
    """It takes no segment; or all of them, and not the files of the artifact."""
    kept = until_it_is_full(tmp_path, scoring, partial(small_files, limit), lambda: None)
    assert kept == (STUDIES if limit > 10_000 else 0)
    happened(f"no file over {limit} bytes", {"studies kept": kept})


def until_it_is_full(
    disk: Path, scoring: World, before: Callable[[], None], relieve: Callable[[], object]
) -> int:
    """Score until it ends for want of room, then again once it is relieved; how many studies were kept."""
    store = str(disk / "store")
    with served(QUICK, disk.parent / f"{disk.name}-log") as stub:
        one = Client(scoring.archive, stub.url, store, before=before)
        assert one.wait() == GIVES_UP, one.said
        assert "free space or choose another place" in one.said or "the disk is full" in one.said
        assert "Traceback" not in one.said
        kept = assert_no_duplicate_and_nothing_partial(store)
        assert clients.committed(store) == []
        relieve()
        asked = len(stub.asked())
        made = scored(scoring.archive, stub.url, store)
        assert len(stub.asked()) - asked == STUDIES - kept
        assert clients.digest(made) == scoring.digest
        assert assert_no_duplicate_and_nothing_partial(store) == STUDIES
    return kept


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


def held_to_modes() -> None:
    hurried()
    without_roots_rights()


@pytest.mark.parametrize("when", ["from the start", "in the middle"])
def test_a_read_only_output_is_told_and_the_next_run_goes_on(
    when: str, scoring: World, tmp_path: Path, happened: Happened
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    store = str(output / "store")
    with served(Behaviour(latency_s=0.02), tmp_path / "log") as stub:
        if when == "from the start":
            output.chmod(0o500)
            one = Client(scoring.archive, stub.url, store, before=held_to_modes)
            locked = [output]
        else:
            one = Client(scoring.archive, stub.url, store, before=held_to_modes)
            until(lambda: clients.ledger(store), 60, lambda: one.said)
            locked = locked_now(output)
        assert one.wait() == GIVES_UP, one.said
        assert "permission denied" in one.said
        assert "Traceback" not in one.said
        for path in locked:
            path.chmod(0o700)
        kept = assert_no_duplicate_and_nothing_partial(store)
        assert (kept == 0) == (when == "from the start")
        asked = len(stub.asked())
        made = scored(scoring.archive, stub.url, store)
        assert len(stub.asked()) - asked == STUDIES - kept
    happened(f"read-only {when}", {"studies kept": kept})
    assert clients.digest(made) == scoring.digest


def locked_now(output: Path) -> list[Path]:
    """Its folders, in which nothing can be written any more."""
    locked = [path for path in output.rglob("*") if path.is_dir()]
    for path in locked:
        path.chmod(0o500)
    return locked


def test_an_output_that_is_read_only_for_a_moment_costs_only_time(scoring: World, tmp_path: Path) -> None:
    output = tmp_path / "output"
    store = str(output / "store")
    with served(Behaviour(latency_s=0.02), tmp_path / "log") as stub:
        one = Client(scoring.archive, stub.url, store, before=without_roots_rights)
        until(lambda: clients.ledger(store), 60, lambda: one.said)
        locked, there = locked_now(output), sum(map(len, clients.ledger(store).values()))
        enough = len(stub.answered()) + clients.CONCURRENCY
        until(lambda: len(stub.answered()) >= enough, 60, lambda: one.said)
        time.sleep(0.3)  # in which there are answers for several segments
        assert sum(map(len, clients.ledger(store).values())) == there
        for path in locked:
            path.chmod(0o700)
        assert one.wait() == 0, one.said
        assert len(stub.asked()) == STUDIES
    (made,) = clients.committed(store)
    assert clients.digest(made) == scoring.digest


def clock_moves_back(flag: str) -> None:
    """From the moment that this file is there, it is a day earlier."""
    now, day, seen = time.time, 86_400, set[str]()

    def told() -> float:
        if not os.path.exists(flag):
            return now()
        if not seen:
            seen.add(flag)
            print(f"the clock has moved: {flag}", flush=True)
        return now() - day

    time.time = told
    time.time_ns = lambda: int(told() * 1e9)


@pytest.mark.parametrize("seed", FEW)
def test_a_clock_moved_back_a_day_changes_nothing(
    seed: int, scoring: World, tmp_path: Path, happened: Happened
) -> None:
    store, flag = tmp_path / "store", tmp_path / "moved"
    with served(Behaviour(latency_s=0.03, jitter_s=0.01, seed=seed), tmp_path / "log") as stub:
        one = Client(
            scoring.archive,
            stub.url,
            str(store),
            "segment_s=0.5",
            before=partial(clock_moves_back, str(flag)),
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
        # The first run may never have looked at the clock again; the second one begins with it.
        two = Client(scoring.archive, stub.url, str(store), before=partial(clock_moves_back, str(flag)))
        assert two.wait() == 0, two.said
        assert str(flag) in two.said
        assert len(stub.asked()) - before == STUDIES - kept
    (made,) = clients.committed(str(store))
    assert clients.digest(made) == scoring.digest
    assert assert_no_duplicate_and_nothing_partial(str(store)) == STUDIES
    happened("clock moved back", {"studies kept": kept})
