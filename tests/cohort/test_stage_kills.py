"""Staging killed or interrupted in the middle: the command itself, on phantoms."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cohort.test_stage import shards_in
from tests.waiting import until
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort

ROOT = Path(__file__).parents[2]
PHANTOMS = ["studies=36", "shard_studies=2", "workers=2"]


def begin(store: Path, *settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "unirg.cli", "stage", *(settings or PHANTOMS), "--store", str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


def wait_for_notes(store: Path, number: int) -> None:
    until(lambda: len(list(store.glob(".work/cohort-*/notes/*.json"))) >= number, 60)


def living(group_id: int) -> list[int]:
    """Processes of a session that still run, zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == group_id and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def wait_until_gone(group_id: int) -> None:
    until(lambda: not living(group_id), 20, lambda: f"still running: {living(group_id)}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = tmp_path_factory.mktemp("undisturbed")
    out, _ = begin(store).communicate(timeout=120)
    return Cohort.open(out.strip()).artifact


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_a_random_moment_a_rerun_goes_on_to_the_same_cohort(
    undisturbed: Artifact, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    with begin(tmp_path) as child:
        wait_for_notes(tmp_path, chance.randint(1, 14))
        time.sleep(chance.uniform(0, 0.1))
        assert child.poll() is None
        child.kill()
    wait_until_gone(child.pid)
    assert list(tmp_path.glob("cohort/*")) == []
    noted = [json.loads(note.read_text())["shard"] for note in tmp_path.glob(".work/*/notes/*.json")]
    before = shards_in(tmp_path)
    again = begin(tmp_path)
    out, told = again.communicate(timeout=120)
    assert again.returncode == 0, told
    done = sum(shard["studies"] for shard in noted)
    assert f"stage: going on at {done} of 36 studies" in told
    assert Cohort.open(out.strip()).artifact.digest == undisturbed.digest
    after = shards_in(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) == {Path(shard.name).name for shard in Cohort.open(out.strip()).index.shards}


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_kills_at_random_moments_over_two_thousand_phantoms_leave_the_same_cohort(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(store: str) -> subprocess.Popen[str]:
        return begin(tmp_path / store, "studies=2000", "shard_studies=32", "workers=2")

    began = time.monotonic()
    out, _ = start("undisturbed").communicate()
    whole, seconds = Cohort.open(out.strip()).artifact, time.monotonic() - began
    chance, kills, done = random.Random(0), 0, list[int]()
    while kills < 20:
        # A run goes on where the killed one was, so short lives spread the kills over its length.
        with start("killed") as child:
            time.sleep(chance.uniform(0.03, 0.12) * seconds)
            assert child.poll() is None, "the run ended before the last kill: lengthen it, or kill earlier"
            child.kill()
        kills += 1
        wait_until_gone(child.pid)
        done.append(len(list((tmp_path / "killed").glob(".work/cohort-*/notes/*.json"))))
    out, _ = start("killed").communicate()
    with capsys.disabled():
        print(f"\nundisturbed {seconds:.0f} s; shards done at each kill: {done}")
    assert Cohort.open(out.strip()).artifact.digest == whole.digest


def wait_for_workers(child: subprocess.Popen[str]) -> None:
    until(lambda: len(living(child.pid)) >= 3, 60)  # itself, multiprocessing's tracker, the first worker


@pytest.mark.parametrize("moment", ["its workers start", "its workers work"])
def test_interrupted_it_says_so_and_leaves_nothing_that_looks_whole(tmp_path: Path, moment: str) -> None:
    with begin(tmp_path) as child:
        if moment == "its workers start":
            wait_for_workers(child)
            time.sleep(0.1)
        else:
            wait_for_notes(tmp_path, 1)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal's Ctrl-C reaches the workers too
        _, told = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "unirg: interrupted; finished work is kept, the same command goes on" in told
    assert "Traceback" not in told
    wait_until_gone(child.pid)
    assert list(tmp_path.glob("cohort/*")) == []


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.6])
def test_killed_while_its_workers_start_it_leaves_none_behind(tmp_path: Path, after_s: float) -> None:
    with begin(tmp_path) as child:
        wait_for_workers(child)
        time.sleep(after_s)
        child.kill()
    wait_until_gone(child.pid)
