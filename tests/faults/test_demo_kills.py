"""The demo interrupted, told to stop and killed: nothing half-written, nothing left running, the same end."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from pipelines.demo import task_names
from pipelines.train import train
from tests import runs

SMALL = ["--recipe", "toy_real", "--set", "studies=60", "--set", "size=128"]
"""A run of the whole pipeline in little time: mechanics, not learning."""
SOAK = os.environ.get("UNIRG_SOAK_RECIPE", "toy")
"""Recipe of the random kills: the demo's own, or `small`."""
KILLS = int(os.environ.get("UNIRG_SOAK_KILLS", "10"))
SEED = int(os.environ.get("UNIRG_SOAK_SEED", "0"))


def reaches(demo: runs.Demo, task: str, server: str = "") -> None:
    """Wait until a task of this name is under way, with `server` running for it."""
    log = demo.log.parent / "store" / "kfp.log"
    begun = log.stat().st_size if log.exists() else 0

    def under_way() -> bool:
        if not log.exists():
            return False
        with log.open() as file:
            file.seek(begun)
            latest = [line for line in file if "Executing task" in line][-1:]
        commands = " ".join(demo.processes().values())
        return (
            bool(latest) and f"'{task}" in _plain(latest[0]) and runs.TASK in commands and server in commands
        )

    demo.wait_until(under_way)


def _plain(line: str) -> str:
    return line.replace("\x1b[96m", "").replace("\x1b[0m", "")


@pytest.mark.timeout(600)
def test_a_demo_that_is_interrupted_stopped_and_orphaned_goes_on_each_time_and_ends_right(
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    arguments = [*SMALL, "--store", "store"]

    with runs.demo(tmp_path, *arguments) as demo:
        reaches(demo, "train-2")  # SFT
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

    with runs.demo(tmp_path, *arguments) as demo:
        reaches(demo, "score", runs.PREDICTOR)
        os.kill(demo.process.pid, signal.SIGTERM)
        assert demo.wait(30) == 143, demo.output
        assert demo.output.rstrip().endswith("demo: stopped; finished work is kept, the same command goes on")
        assert demo.processes() == {}  # tasks, judge and predictor ended before it did
    runs.assert_nothing_half_written(store)
    after_stop = runs.digests(store)
    assert after_stop.items() >= after_interrupt.items()

    with runs.demo(tmp_path, *arguments) as orphaned:
        reaches(orphaned, "score", runs.PREDICTOR)
        os.kill(orphaned.process.pid, signal.SIGKILL)  # the task and its predictor are orphans now
        orphaned.process.wait()
        with runs.demo(tmp_path, *arguments) as demo:
            code = demo.wait(400)
            assert code == 0, demo.output
        assert orphaned.wait_until_gone() == {}
    runs.assert_nothing_half_written(store)
    assert runs.digests(store).items() >= after_stop.items()
    assert "Composite reward" in demo.output
    assert list(store.glob(".work/*/")) == []


@pytest.mark.soak
def test_ten_kills_at_random_moments_leave_the_digests_and_numbers_of_an_undisturbed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = SMALL if SOAK == "small" else ["--recipe", SOAK]
    undisturbed, numbers, seconds = _to_the_end(tmp_path / "undisturbed", recipe)
    folder = tmp_path / "killed"
    folder.mkdir()
    table, chance = [], random.Random(SEED)
    # A run goes on where the killed one was, so lives of about a tenth spread the kills over its length.
    share = seconds / KILLS
    for number in range(1, KILLS + 1):
        with runs.demo(folder, *recipe, "--store", "store") as demo:
            moment = chance.uniform(0.2 * share, 1.5 * share)
            while demo.seconds < moment and demo.process.poll() is None:
                time.sleep(0.02)
            if demo.process.poll() is not None:
                break
            demo.signal_group(signal.SIGKILL)
            demo.process.wait()
            assert demo.wait_until_gone() == {}
            runs.assert_nothing_half_written(folder / "store")
            done = len(runs.manifests(folder / "store"))
            table.append(f"{number:4}  {moment:8.1f} s  {_task(folder):28}  {done:3} of {len(undisturbed)}")
    found, found_numbers, _ = _to_the_end(folder, recipe)
    with capsys.disabled():
        print(f"\nundisturbed: {seconds:.0f} s, {len(undisturbed)} artifacts")
        print("\n".join([f"kill  {'into run':>10}  {'running':28}  artifacts", *table]))
        print(numbers)
    assert len(table) == KILLS, "the run ended before the last kill: lengthen it, or kill earlier"
    assert found == undisturbed
    assert found_numbers == numbers


def _to_the_end(folder: Path, recipe: list[str]) -> tuple[dict[str, str], str, float]:
    """Run the demo; its artifacts' digests, its headline numbers, and the seconds that it took."""
    folder.mkdir(exist_ok=True)
    with runs.demo(folder, *recipe, "--store", "store") as demo:
        assert demo.wait(3600) == 0, demo.output
        output = demo.output
        headline = output[output.index("held-out studies") : output.index("\nreport ")]
        return runs.digests(folder / "store"), headline, demo.seconds


def _task(folder: Path) -> str:
    """The task that was running, as people call it; or the one that had just ended."""
    log = folder / "store" / "kfp.log"
    begun = (
        [line for line in log.read_text().splitlines() if "Executing task" in line] if log.exists() else []
    )
    if not begun:
        return "none yet"
    key = _plain(begun[-1]).rpartition("task ")[2].strip("'")
    return task_names(train.pipeline_spec)[key]
