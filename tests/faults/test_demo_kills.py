"""The demo killed at random moments: nothing half-written, nothing left running, the same end."""

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
    key = runs.plain(begun[-1]).rpartition("task ")[2].strip("'")
    return task_names(train.pipeline_spec)[key]
