"""kill -9 at random steps of SFT and of GRPO: the same bytes in the end as without.

`make soak` kills each of them 20 times; UNIRG_SOAK_KILLS and UNIRG_SOAK_SEED make other ones.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.training.ranks import Ranks
from unirg.artifact import Artifact
from unirg.cohort.stage import StageConfig, stage
from unirg.training import policy, run, train

KILLS = int(os.environ.get("UNIRG_SOAK_KILLS", "20"))
SEED = int(os.environ.get("UNIRG_SOAK_SEED", "0"))
STUDIES = 8
"""So few that two kills reach beyond the first epoch."""
STEPS = 5
"""Steps of a training for each time that it is killed."""
COMMON = ["micro_batch=4", "batch_size=4", "learning_rate=1e-3"]
SETTINGS = {
    "sft": [*COMMON, "save_steps=1"],
    "grpo": [
        *COMMON,
        "group_size=2",
        "updates=2",
        "save_steps=2",
        "kl=0.03",
        "max_completion_tokens=16",
        "rewards={bleu2: 0.5, rouge_l: 0.5}",
    ],
}
World = tuple[Artifact, Artifact]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A handful of phantoms, and an untrained policy for them."""
    store = str(tmp_path_factory.mktemp("world"))
    cohort = stage(StageConfig(studies=STUDIES, size=64, workers=1), store)
    return cohort, policy.base(policy.BaseConfig(), cohort, store)


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Artifact]:
    """The artifact of an algorithm after so many steps."""
    return cache(lambda what, steps: trained(what, steps, world, tmp_path_factory.mktemp("undisturbed")))


def settings(algorithm: str, steps: int) -> list[str]:
    return [*SETTINGS[algorithm], f"max_steps={steps}"]


def trained(algorithm: str, steps: int, world: World, store: Path) -> Artifact:
    cohort, base = world
    return train(algorithm, None, settings(algorithm, steps), cohort.uri, base.uri, str(store))


@pytest.mark.parametrize("kills", [2, pytest.param(KILLS, marks=pytest.mark.soak, id="soak")])
@pytest.mark.parametrize("algorithm", sorted(SETTINGS))
def test_kills_at_random_steps_leave_the_bytes_of_an_undisturbed_run(
    algorithm: str,
    kills: int,
    world: World,
    undisturbed: Callable[[str, int], Artifact],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    steps, chance = STEPS * kills, random.Random(SEED)
    killed = []
    for step in sorted(chance.sample(range(1, steps - 4), kills)):
        one = Ranks(algorithm, world, tmp_path, settings(algorithm, steps))
        one.wait_for_checkpoint(step)
        time.sleep(chance.uniform(0, 0.2))
        one.kill()
        assert not list(tmp_path.glob(f"{algorithm}/*")), "it ended before the last kill: lengthen it"
        killed.append(one.newest())
    torn = (tmp_path / "rank-0.log").read_text().count("is passed over")
    found = trained(algorithm, steps, world, tmp_path)
    said = capfd.readouterr().err
    assert f"going on at {killed[-1]} of {steps} steps" in said  # not at the start
    torn += said.count("is passed over")
    with capfd.disabled():
        print(f"\n{algorithm}: killed after the checkpoints of steps {killed}; {torn} were left unfinished")
    assert found.manifest.files == undisturbed(algorithm, steps).manifest.files
    assert list(tmp_path.glob(".work/*/")) == []


@pytest.mark.parametrize("algorithm", sorted(SETTINGS))
def test_a_kill_between_the_last_step_and_the_commit_costs_no_byte(
    algorithm: str,
    world: World,
    undisturbed: Callable[[str, int], Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    steps = STEPS * 2
    with monkeypatch.context() as patch:
        patch.setattr(run.checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(algorithm, steps, world, tmp_path)
    made = trained(algorithm, steps, world, tmp_path)
    assert made.manifest.files == undisturbed(algorithm, steps).manifest.files
    weights = "model/model.safetensors"
    assert made.manifest.files[weights] != world[1].manifest.files[weights]  # it has learnt something
