"""The demo on real radiographs: interrupted, stopped, orphaned, then to its end; then with nothing to do."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests import runs
from unirg import artifact
from unirg.cohort.intake import NO_FRONTAL, NO_SECTIONS

ARGUMENTS = ["--corpus", "iu_xray", "--data", str(runs.IU_XRAY), "--store", "store"]

pytestmark = [
    pytest.mark.soak,  # `make test` has test_canaries.py, whose run is interrupted once
    pytest.mark.real_data,
    pytest.mark.skipif(not runs.IU_XRAY.is_dir(), reason=f"no radiographs at {runs.IU_XRAY}"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def kept(folder: Path) -> dict[str, str]:
    """Digests of what two lives of the run have finished: one interrupted, one stopped."""
    store = folder / "store"
    with runs.demo(folder, *ARGUMENTS) as demo:
        runs.reaches(demo, "train-2")  # SFT
        time.sleep(1.0)
        demo.signal_group(signal.SIGINT)
        assert demo.wait(30) == 130, demo.output
        assert demo.output.rstrip().endswith(
            "demo: interrupted; finished work is kept, the same command goes on"
        )
        assert "Traceback" not in demo.output
        assert demo.wait_until_gone() == {}
    runs.assert_nothing_half_written(store)
    after_interrupt = runs.digests(store)
    assert {key.split("/")[0] for key in after_interrupt} >= {"cohort", "base"}

    with runs.demo(folder, *ARGUMENTS) as demo:
        runs.reaches(demo, "score", runs.PREDICTOR)
        os.kill(demo.process.pid, signal.SIGTERM)
        assert demo.wait(30) == 143, demo.output
        assert demo.output.rstrip().endswith("demo: stopped; finished work is kept, the same command goes on")
        assert demo.processes() == {}  # tasks, judge and predictor ended before it did
        assert re.search(r"sft: \d+ steps in ", demo.output)
    runs.assert_nothing_half_written(store)
    after_stop = runs.digests(store)
    assert after_stop.items() >= after_interrupt.items()
    return after_stop


@pytest.fixture(scope="module")
def first(folder: Path, kept: dict[str, str]) -> runs.Finished:
    with runs.demo(folder, *ARGUMENTS) as orphaned:
        runs.reaches(orphaned, "score", runs.PREDICTOR)
        os.kill(orphaned.process.pid, signal.SIGKILL)  # the task and its predictor are orphans now
        orphaned.process.wait()
        finished = runs.finished(folder, *ARGUMENTS)
        assert orphaned.wait_until_gone() == {}
    return finished


@pytest.fixture(scope="module")
def made(folder: Path, first: runs.Finished) -> dict[str, tuple[str, int]]:
    """Each artifact's digest and the time its manifest was written, before the second run."""
    times = {path.parent: path.stat().st_mtime_ns for path in runs.manifests(folder / "store")}
    found = runs.digests(folder / "store")
    return {key: (found[key], times[folder / "store" / key]) for key in found}


@pytest.fixture(scope="module")
def second(folder: Path, made: dict[str, tuple[str, int]]) -> runs.Finished:
    return runs.finished(folder, *ARGUMENTS)


def test_interrupted_stopped_and_orphaned_the_demo_goes_on_each_time_and_ends_well(
    folder: Path, kept: dict[str, str], first: runs.Finished
) -> None:
    assert first.exit_code == 0, first.output
    runs.assert_nothing_half_written(folder / "store")
    assert runs.digests(folder / "store").items() >= kept.items()


def test_studies_without_images_or_sections_are_counted_and_dropped(
    folder: Path, first: runs.Finished
) -> None:
    (cohort,) = (folder / "store" / "cohort").iterdir()
    counts = artifact.open_artifact(str(cohort), "cohort").manifest.counts
    dropped = {name: number for name, number in counts.items() if name.startswith("dropped.")}
    assert dropped == {f"dropped.{NO_FRONTAL}": 3919, f"dropped.{NO_SECTIONS}": 28}


def test_a_second_run_repeats_nothing_and_starts_no_model_server(
    folder: Path, first: runs.Finished, made: dict[str, tuple[str, int]], second: runs.Finished
) -> None:
    times = {path.parent: path.stat().st_mtime_ns for path in runs.manifests(folder / "store")}
    found = runs.digests(folder / "store")
    assert second.exit_code == 0, second.output
    assert {key: (found[key], times[folder / "store" / key]) for key in found} == made
    assert runs.PREDICTOR in first.servers  # so that its absence below says something
    assert runs.PREDICTOR not in second.servers
    assert " steps in " not in second.output


def test_nothing_of_the_first_run_stays_behind(folder: Path, first: runs.Finished) -> None:
    assert not first.left
    assert list((folder / "store" / ".work").glob("*/")) == []
