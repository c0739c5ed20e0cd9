"""kill -9 at random moments of SFT and of GRPO: the same bytes in the end as without.

UNIRG_SOAK_KILLS and UNIRG_SOAK_SEED make other ones.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.training.ranks import Ranks
from unirg.artifact import Artifact, open_artifact
from unirg.cohort.stage import StageConfig, stage
from unirg.training import policy
from unirg.training.checkpoints import MARKER

KILLS = int(os.environ.get("UNIRG_SOAK_KILLS", "20"))
SEED = int(os.environ.get("UNIRG_SOAK_SEED", "0"))
COMMON = ["micro_batch=4", "batch_size=4", "save_steps=1", "learning_rate=1e-3"]
SETTINGS = {
    "sft": [*COMMON, "max_steps=100"],
    "grpo": [
        *COMMON,
        "max_steps=100",
        "group_size=2",
        "updates=2",
        "kl=0.03",
        "max_completion_tokens=16",
        "rewards={bleu2: 0.5, rouge_l: 0.5}",
    ],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """A handful of phantoms, and an untrained policy for them."""
    store = str(tmp_path_factory.mktemp("world"))
    cohort = stage(StageConfig(studies=24, size=64, workers=1), store)
    return cohort, policy.base(policy.BaseConfig(), cohort, store)


@pytest.mark.soak
@pytest.mark.parametrize("algorithm", sorted(SETTINGS))
def test_twenty_kills_leave_the_bytes_of_an_undisturbed_run(
    algorithm: str, world: tuple[Artifact, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, _ = _to_the_end(algorithm, world, tmp_path / "undisturbed")
    store, chance, reached = tmp_path / "killed", random.Random(SEED), [0]
    for number in range(KILLS):
        run = Ranks(algorithm, world, store, SETTINGS[algorithm])
        if number % 4:  # the others are killed wherever they are, loading too
            _wait_beyond(reached[-1], run)
        time.sleep(chance.uniform(0, 0.4 if number % 4 else 8))
        run.kill()
        assert not list(store.glob(f"{algorithm}/*")), "it ended before the last kill: lengthen it"
        reached.append(_newest(store))
    found, said = _to_the_end(algorithm, world, store)
    torn = said.count("is passed over")
    with capsys.disabled():
        print(f"\n{algorithm}: {KILLS} kills, at steps {reached[1:]}; {torn} unfinished checkpoints")
    assert found.manifest.files == undisturbed.manifest.files


def _newest(store: Path) -> int:
    found = store.glob(f".work/*/scratch/checkpoints/checkpoint-*/{MARKER}")
    return max((int(path.parent.name.rpartition("-")[2]) for path in found), default=0)


def _wait_beyond(step: int, run: Ranks) -> None:
    until = time.monotonic() + 240
    while _newest(run.store) <= step:
        assert time.monotonic() < until, run.said()
        assert run.processes[0].exitcode is None, run.said()
        time.sleep(0.002)


def _to_the_end(algorithm: str, world: tuple[Artifact, Artifact], store: Path) -> tuple[Artifact, str]:
    run = Ranks(algorithm, world, store, SETTINGS[algorithm])
    assert run.wait(1200) == [0], run.said()
    (manifest,) = store.glob(f"{algorithm}/*/manifest.json")
    return open_artifact(str(manifest.parent)), run.said()
