"""Scoring an archive while storage, disk and clock misbehave: nothing is lost, and nothing is there twice.

`make soak` runs each fault with UNIRG_SOAK_SEEDS seeds (10).
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import S3
from tests.faults.scoring_world import FEW, QUICK, STUDIES, World
from tests.scoring import clients
from tests.scoring.clients import Client, assert_no_duplicate_and_nothing_partial, scored
from tests.scoring.s3_faults import Trouble, Weather, troubled
from tests.scoring.stub_server import Behaviour, served
from tests.waiting import until

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
) -> None:
    store = f"s3://{moto_s3.bucket()}/store"
    weather = Weather(seed=seed, chance=BAD_DAYS[name], most=2)
    with served(QUICK, tmp_path / "log") as stub, troubled(moto_s3, weather) as seen:
        one = Client(scoring.archive, stub.url, store, environment=seen.environment)
        code = one.wait()
        assert code in (0, 1), one.said
        assert "Traceback" not in one.said
        if code:  # it may give up, and says what to do
            assert "finished work is kept" in one.said
        assert_no_duplicate_and_nothing_partial(store)
        assert weather.met
        made = scored(scoring.archive, stub.url, store, environment=moto_s3.environment)
    assert clients.digest(made) == scoring.digest
    assert assert_no_duplicate_and_nothing_partial(store) == STUDIES


def test_two_machines_on_one_bucket_leave_every_study_once(
    scoring: World,
    moto_s3: S3,
    tmp_path: Path,
) -> None:
    """Without parts, and each with a cache of its own, so that nothing but the bucket joins them."""
    store = f"s3://{moto_s3.bucket()}/store"
    with served(Behaviour(latency_s=0.02, jitter_s=0.04), tmp_path / "log") as stub:
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
    (made,) = clients.committed(store)
    assert clients.digest(made) == scoring.digest
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
    scoring: World,
    tmp_path: Path,
) -> None:
    """The sizes let it fill up among the segments, and at the commit."""
    disk = tmp_path / "disk"
    store = str(disk / "store")
    with tiny_disk(disk, kilobytes), served(QUICK, tmp_path / "log") as stub:
        one = Client(scoring.archive, stub.url, store)
        assert one.wait() == 1, one.said
        assert "free space or choose another place" in one.said or "the disk is full" in one.said
        assert "Traceback" not in one.said
        kept = assert_no_duplicate_and_nothing_partial(store)
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        before = len(stub.asked())
        made = scored(scoring.archive, stub.url, store)
        assert len(stub.asked()) - before == STUDIES - kept
        assert clients.digest(made) == scoring.digest
        assert assert_no_duplicate_and_nothing_partial(store) == STUDIES


def small_files(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_a_disk_that_takes_no_segment_is_told(scoring: World, tmp_path: Path) -> None:
    """The same where nothing may be mounted: no file may be longer than this."""
    store = str(tmp_path / "store")
    with served(QUICK, tmp_path / "log") as stub:
        one = Client(scoring.archive, stub.url, store, before=partial(small_files, 2000))
        assert one.wait() == 1
        assert "free space or choose another place" in one.said
        assert_no_duplicate_and_nothing_partial(store)
        made = scored(scoring.archive, stub.url, store)
    assert clients.digest(made) == scoring.digest


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
    scoring: World,
    tmp_path: Path,
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    store = str(output / "store")
    with served(Behaviour(latency_s=0.02), tmp_path / "log") as stub:
        if when == "from the start":
            output.chmod(0o500)
            one = Client(scoring.archive, stub.url, store, before=without_roots_rights)
            locked = [output]
        else:
            one = Client(scoring.archive, stub.url, store, before=without_roots_rights)
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
        made = scored(scoring.archive, stub.url, store)
    assert clients.digest(made) == scoring.digest


def clock_moves_back(flag: str) -> None:
    """From the moment that this file is there, it is a day earlier."""
    now, day = time.time, 86_400
    time.time = lambda: now() - day * os.path.exists(flag)
    time.time_ns = lambda: int(time.time() * 1e9)


def test_a_clock_moved_back_a_day_changes_nothing(scoring: World, tmp_path: Path) -> None:
    store, flag = tmp_path / "store", tmp_path / "moved"
    with served(Behaviour(latency_s=0.03), tmp_path / "log") as stub:
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
        made = scored(scoring.archive, stub.url, str(store), before=partial(clock_moves_back, str(flag)))
        assert len(stub.asked()) - before == STUDIES - kept
    assert clients.digest(made) == scoring.digest
    assert assert_no_duplicate_and_nothing_partial(str(store)) == STUDIES
