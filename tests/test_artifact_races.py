"""Artifacts under races and kills: of writers with one key one wins, whole; a reader sees all or nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.artifacts import whole
from tests.conftest import S3
from unirg import storage
from unirg.artifact import ArtifactError, action_key, open_artifact
from unirg.config import Config

ROOT = Path(__file__).parent.parent
REAL = pytest.mark.s3


# Two writers

RACE = """
import sys
from unirg import artifact
from unirg.config import Config
store, content, log = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
with artifact.draft(store, "demo", 1, Config(), {}) as draft:
    if not draft.committed:
        print("building", flush=True)
        sys.stdin.readline()
        (draft.out / "data").write_text(content)
        (draft.out / "logs").mkdir()
        (draft.out / "logs" / "log").write_text(log)
        made = draft.commit()
    else:
        made = draft.committed
for name in made.manifest.files | made.manifest.logs:
    made.path(name)
print(made.digest, made.path("data").read_text(), made.path("logs/log").read_text(), flush=True)
"""


def _racer(store: str, content: str, log: str, cache: Path) -> subprocess.Popen[str]:
    """A writer that says `ready`, waits for a line, says `building`, waits for another, and commits."""
    return subprocess.Popen(
        [sys.executable, "-c", RACE, store, content, log],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "UNIRG_CACHE": str(cache)},
    )


def _hear(racer: subprocess.Popen[str], word: str) -> None:
    assert racer.stdout is not None
    assert racer.stdout.readline() == f"{word}\n"


def _tell(racer: subprocess.Popen[str]) -> None:
    assert racer.stdin is not None
    racer.stdin.write("go\n")
    racer.stdin.flush()


def _result(racer: subprocess.Popen[str]) -> str:
    out, errors = racer.communicate("go\n", timeout=60)
    assert racer.returncode == 0, errors
    return out.splitlines()[-1]


@pytest.mark.parametrize("store", ["file", pytest.param("s3_environment", marks=REAL)], indirect=True)
def test_of_two_processes_with_one_key_one_builds_and_the_other_waits_for_the_same(
    store: str, cache: Path
) -> None:
    first, second = (_racer(store, name, name, cache) for name in "ab")
    for racer in (first, second):
        _hear(racer, "ready")
    _tell(first)
    _hear(first, "building")
    _tell(second)
    assert second.stderr is not None
    assert "another process is building" in second.stderr.readline()
    made = _result(first)
    assert made.endswith(" a a")
    assert _result(second) == made


@pytest.mark.parametrize(
    ("server", "contents"),
    [
        ("moto_s3", ("a", "b")),
        pytest.param("s3_environment", ("a", "b"), marks=REAL),
        pytest.param("s3_environment", ("same", "same"), marks=REAL),
    ],
)
def test_of_two_machines_with_one_key_exactly_one_manifest_wins_and_is_whole(
    server: str, contents: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    s3: S3 = request.getfixturevalue(server)
    bucket = s3.bucket()
    racers = [
        _racer(f"s3://{bucket}/store", content, f"log-{number}", tmp_path / f"machine-{number}")
        for number, content in enumerate(contents)
    ]
    for word in ("ready", "building"):
        for racer in racers:
            _hear(racer, word)
            if word == "ready":
                _tell(racer)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(_result, racers)
    assert first == second
    objects = [entry["Key"] for entry in s3.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert len([key for key in objects if key.endswith("manifest.json")]) == 1


FORKS = """
import os, signal, sys
import botocore.exceptions, aiohttp, s3fs  # once, not in each child
from unirg import artifact, storage
from unirg.config import Config

store = sys.argv[1]

def begin(function, *arguments):
    child = os.fork()
    if not child:
        try:
            os._exit(function(*arguments) or 0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    return child

def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def write(version):
    with artifact.draft(store, "demo", version, Config(), {}) as draft:
        if draft.committed:
            return
        with open(f"{sys.argv[2]}/{version}", "a") as told:
            told.write("x")
        for name in ("a", "deep/b", "logs/c"):
            path = draft.out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{version} {name} " * 1000)
        draft.commit()

def read(version):
    key = artifact.action_key("demo", version, Config(), {})[:16]
    try:
        made = artifact.open_artifact(storage.join(store, "demo", key))
    except artifact.ArtifactError as error:
        return 3 if "no artifact at" in str(error) else 4
    for name in made.manifest.files | made.manifest.logs:
        made.path(name)

"""
CROWD = """
for version in range(30):
    for writer in [begin(write, version) for _ in range(6)]:
        end(writer)
"""
SWEEP = """
def die_at(step):
    def count(*arguments):
        nonlocal step
        step -= 1
        if step == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return count

def write_and_die(version, step):
    count = die_at(step)
    if storage.is_local(store):  # at each file operation below the store
        where = storage.local_path(store)
        def hook(event, arguments):
            if any(str(argument).startswith(str(where)) for argument in arguments):
                count()
        sys.addaudithook(hook)
    else:  # before and after each request that writes
        def counted(function):
            def run(*arguments):
                count()
                result = function(*arguments)
                count()
                return result
            return run
        storage.upload, storage.put_new = counted(storage.upload), counted(storage.put_new)
    write(version)

def outcome(version):
    found = read(version)
    write(version)
    return 10 * (found or 0) + (read(version) or 0)

step = 1
while True:
    died = end(begin(write_and_die, step, step))
    print(died, end(begin(outcome, step)), flush=True)
    if died == 0:
        break
    step += 1
"""


def _forks(script: str, store: str, told: Path) -> list[str]:
    told.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FORKS + script, store, str(told)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_crowd_with_one_key_builds_it_once(tmp_path: Path) -> None:
    """The last ones come while the first one tidies up: none of them may stumble over that."""
    assert _forks(CROWD, str(tmp_path / "store"), tmp_path / "told") == []
    assert [path.read_text() for path in (tmp_path / "told").iterdir()] == ["x"] * 30


# Death in the middle


@pytest.mark.parametrize("place", ["file", pytest.param("s3_environment", marks=REAL)])
def test_killed_at_any_step_a_reader_sees_all_or_nothing_and_a_rerun_completes(
    place: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Kill a writer at its first, second, ... operation on the store, until one gets through."""
    store = str(tmp_path / "store")
    if place != "file":
        store = f"s3://{request.getfixturevalue(place).bucket()}/store"
    *killed, finished = _forks(SWEEP, store, tmp_path / "told")
    assert finished == "0 0"
    nothing, everything = f"{-signal.SIGKILL} 30", f"{-signal.SIGKILL} 0"
    assert set(killed) == {nothing, everything}  # and after a rerun always everything
    assert killed == sorted(killed, reverse=True)  # nothing until the last step, everything from then on
    assert len(killed) >= 10


BUSY = """
import os, sys
from unirg import artifact
from unirg.config import Config
store, first = sys.argv[1], int(sys.argv[2])
for version in range(first, first + 10_000):
    with artifact.draft(store, "demo", version, Config(), {}) as draft:
        if draft.committed:
            continue
        for number in range(20):
            (draft.out / str(number)).write_bytes(b"%d" % number * 20_000)
        print(version, flush=True)
        draft.commit()
"""


def _kill_at_random(store: str, times: int, within_s: float) -> int:
    """Kill a busy writer at random moments; returns how many commits a reader found whole."""
    chance = random.Random(0)
    begun = 1
    for _ in range(times):
        with subprocess.Popen(
            [sys.executable, "-c", BUSY, store, str(begun)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(chance.uniform(0, within_s))
            child.kill()
            begun += 1 + len(child.stdout.readlines())
    complete = 0
    for version in range(1, begun):
        uri = storage.join(store, "demo", action_key("demo", version, Config(), {})[:16])
        try:
            complete += whole(open_artifact(uri))
        except ArtifactError as error:
            assert "no artifact at" in str(error)  # noqa: PT017 - nothing there is the other lawful outcome
    return complete


def test_killed_at_random_moments_a_reader_sees_all_or_nothing(tmp_path: Path) -> None:
    assert _kill_at_random(str(tmp_path), times=4, within_s=0.3) > 0


@pytest.mark.soak
def test_killed_at_a_hundred_random_moments_a_reader_sees_all_or_nothing(store: str) -> None:
    assert _kill_at_random(store, times=100, within_s=1.0) > 0
