"""Workers that crash, hang and eat memory: what is lost is one process and one item."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gdcm
import numpy as np
import pytest
from PIL import Image as PIL

from tests.cohort.hostile import Done, Job, Unstartable, work
from tests.cohort.test_codestream import film, packed_by_gdcm
from tests.cohort.test_imaging import CANARY
from tests.test_processes import alive, soon
from unirg.cohort.workers import CRASHED, TOO_SLOW, Pool
from unirg.errors import UserError

ROOT = Path(__file__).parents[2]


def pool(workers: int = 1, seconds: float = 60.0, memory_bytes: int | None = 2**31) -> Pool[Job, Done]:
    return Pool(workers, work, seconds=seconds, memory_bytes=memory_bytes)


def results(found: Iterator[tuple[Job, Done]]) -> dict[str, tuple[str, ...]]:
    return {job.name: done.items for job, done in found}


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once_and_jobs_are_taken_only_as_workers_come_free(
    workers: int, tmp_path: Path
) -> None:
    taken = 0

    def source() -> Iterator[Job]:
        nonlocal taken
        for number in range(30):
            taken += 1
            yield Job(str(number), (str(number), "x"), trace=tmp_path / "trace")

    found: dict[str, tuple[str, ...]] = {}
    pids = set()
    for job, done in pool(workers).run(source()):
        assert taken - len(found) <= 2 * workers
        found[job.name] = done.items
        pids.add(done.pid)
    assert found == {str(number): (str(number), "x") for number in range(30)}
    assert sorted((tmp_path / "trace").read_text().split()) == sorted(found)
    assert len(pids) <= workers
    assert os.getpid() not in pids


def test_no_more_workers_start_than_there_are_jobs() -> None:
    assert list(pool(3).run([])) == []
    seen = []
    for _ in pool(3).run([Job("only", ("a",))]):
        seen.append(len(multiprocessing.active_children()))
    assert seen == [1]


@pytest.mark.parametrize("how", ["abort", "null", "exit"])
def test_a_crash_condemns_its_item_and_nothing_else(how: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    jobs = [Job("hit", ("a", how, "b", how), trace=trace)]
    jobs += [Job(str(number), ("c",), trace=trace) for number in range(3)]
    found = results(pool(2).run(jobs))
    assert found.pop("hit") == ("a", CRASHED, "b", CRASHED)
    assert found == {str(number): ("c",) for number in range(3)}
    assert sorted(trace.read_text().split()) == ["0", "1", "2", "hit", "hit", "hit"]


@pytest.mark.parametrize("how", ["hang", "hang in C"])
def test_an_item_that_takes_too_long_is_condemned(how: str) -> None:
    began = time.monotonic()
    found = results(pool(2, seconds=1.0).run([Job("slow", ("a", how, "b")), Job("quick", ("c",))]))
    assert found == {"slow": ("a", TOO_SLOW, "b"), "quick": ("c",)}
    assert time.monotonic() - began < 30


def test_the_limit_is_on_one_item_and_not_on_what_follows_the_last() -> None:
    jobs = [Job("long", ("slow", "slow"), after="slow")]
    assert results(pool(seconds=2.5).run(jobs)) == {"long": ("slow", "slow")}
    assert results(pool(seconds=1.0).run([Job("writes", ("a",), after="slow")])) == {"writes": ("a",)}


def test_a_decoder_that_wants_too_much_memory_is_the_image_s_reason() -> None:
    buffer = io.BytesIO()
    PIL.fromarray(np.zeros((6000, 6000), np.uint8)).save(buffer, "PNG")
    job = Job("large", (buffer.getvalue(), "b"))
    refused = results(pool(memory_bytes=48 * 2**20).run([job]))
    assert refused == {"large": ("needs too much memory", "b")}
    assert results(pool().run([job])) == {"large": ("(6000, 6000)", "b")}


def test_real_decoders_of_damaged_films_cost_no_more_than_the_film(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sound = packed_by_gdcm(film(200, 210), gdcm.TransferSyntax.JPEGLSLossless, tmp_path)
    start = sound.index(b"\xff\xd8\xff")
    ends = range(start + 2, start + 60, 7)
    damaged = [sound[:end] + CANARY.encode() + sound[end + 10 :] for end in ends]
    found = results(pool(2).run([Job("films", (*damaged, sound))]))["films"]
    assert found[-1] == "(200, 210)"
    assert set(found) <= {"(200, 210)", CRASHED, "corrupt or truncated"}
    assert len(set(found)) > 1
    assert CANARY not in "".join(capfd.readouterr())


@pytest.mark.parametrize("how", ["eat", "eat slowly"])
def test_memory_spent_outside_a_decoder_is_explained(how: str) -> None:
    with pytest.raises(UserError, match="which may use 128 MiB: use fewer workers or smaller shards"):
        list(pool(memory_bytes=128 * 2**20).run([Job("hungry", (how,))]))


def test_a_death_that_no_item_explains_is_forgiven_once(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    jobs = [Job("one", ("a",), before="exit once", trace=trace)]
    assert results(pool().run(jobs)) == {"one": ("a",)}
    jobs = [Job("two", ("a", "abort", "b"), after="exit once", trace=trace)]
    assert results(pool().run(jobs)) == {"two": ("a", CRASHED, "b")}
    for jobs in ([Job("three", ("a",), before="exit")], [Job("four", ("a", "b"), after="exit")]):
        with pytest.raises(UserError, match=r"died twice at the same job \(exit code 3\).*use fewer workers"):
            list(pool().run(jobs))


def test_what_the_function_raises_is_raised_here_with_its_traceback() -> None:
    with pytest.raises(ValueError, match="of the function") as raised:
        list(pool(2).run([Job(str(number), ("raise",)) for number in range(5)]))
    assert "hostile.py" in "".join(raised.value.__notes__)
    with pytest.raises(RuntimeError, match="Unpicklable in a worker process"):
        list(pool().run([Job("odd", ("raise unpicklable",))]))


def test_a_source_that_fails_ends_the_workers() -> None:
    def source() -> Iterator[Job]:
        yield Job("first", ("hang",))
        raise UserError("no such table")

    with pytest.raises(UserError, match="no such table"):
        list(pool(2).run(source()))


def test_a_worker_that_does_not_start_is_explained() -> None:
    with pytest.raises(UserError, match=r"did not start \(exit code 7\)"):
        list(Pool(2, Unstartable()).run([Job("one")]))


def test_closing_early_ends_the_workers() -> None:
    run = pool(2).run([Job("quick", ("a",)), Job("stuck", ("hang",)), Job("next", ("hang",))])
    assert next(run)[0].name == "quick"
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    run.close()
    assert not any(worker.is_alive() for worker in workers)


def test_an_interrupt_ends_the_workers() -> None:
    timer = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(pool(2).run([Job("stuck", ("hang",)), Job("stuck too", ("hang",))]))
    timer.join()
    assert time.monotonic() - began < 30


PARENT = """
import sys, time
from tests.cohort.hostile import Job, work
from unirg.cohort.workers import Pool

if __name__ == "__main__":
    for _, done in Pool(1, work).run([Job("quick", ("a",)), Job("stuck", ("hang",))]):
        print(done.pid, flush=True)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout
    worker = int(parent.stdout.readline())
    assert alive(worker)
    parent.kill()
    parent.wait()
    assert soon(lambda: not alive(worker))
    parent.stdout.close()
