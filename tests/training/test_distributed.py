"""Several processes: the losses of one, whichever way state is split; another number of them goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.metrics import tiny_radgraph
from tests.training.ranks import Ranks, fixed_rollouts
from unirg import checkpoint
from unirg.artifact import Artifact, draft, open_artifact
from unirg.cohort.stage import StageConfig, stage
from unirg.config import Config
from unirg.training import policy, train

TOLERANCE = 2e-5
"""Of losses and gradient norms, relative: sums over ranks are in another order."""
SETTINGS = [
    "micro_batch=2",
    "batch_size=8",
    "max_steps=6",
    "save_steps=1",
    "learning_rate=1e-3",
    "weight_decay=0.1",
]
ROLLOUTS = [
    "micro_batch=4",
    "batch_size=16",
    "group_size=4",
    "max_steps=4",
    "learning_rate=1e-3",
    "kl=0.03",
    "max_completion_tokens=16",
    "rewards={bleu2: 0.5, radgraph: 0.5}",
]
TRY_AGAIN = 75


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """Phantoms of which an epoch is no whole number of steps, and an untrained policy for them."""
    store = str(tmp_path_factory.mktemp("world"))
    cohort = stage(StageConfig(studies=40, size=64, workers=1), store)
    return cohort, policy.base(policy.BaseConfig(), cohort, store)


@pytest.fixture(scope="module")
def alone(world: tuple[Artifact, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    cohort, base = world
    return train("sft", None, SETTINGS, cohort.uri, base.uri, str(tmp_path_factory.mktemp("alone")))


def curve(artifact: Artifact) -> list[float]:
    """Loss and gradient norm of every step."""
    log = artifact.path(checkpoint.LOG).read_text().splitlines()
    entries = [entry for line in log if "loss" in (entry := json.loads(line))]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    return [entry[name] for entry in entries for name in ("loss", "grad_norm")]


def made(store: Path) -> Artifact:
    (manifest,) = store.glob("sft/*/manifest.json")
    return open_artifact(str(manifest.parent))


@pytest.mark.parametrize(
    "zero", [pytest.param(0, marks=pytest.mark.soak), pytest.param(2, marks=pytest.mark.soak), 3]
)
def test_two_processes_lose_as_one_does_and_one_goes_on_with_what_they_saved_when_told_to_end(
    zero: int, world: tuple[Artifact, Artifact], alone: Artifact, tmp_path: Path
) -> None:
    settings = [*SETTINGS, "processes=2", f"zero={zero}"]
    two = Ranks("sft", world, tmp_path, settings, processes=2)
    two.wait_for_checkpoint(1)
    two.terminate(rank=1)  # told to one of them alone
    codes = two.wait()
    assert codes == [TRY_AGAIN, TRY_AGAIN], two.said(0) + two.said(1)
    one = Ranks("sft", world, tmp_path, settings, processes=1)
    assert one.wait() == [0], one.said()
    assert "1 go on with what 2 processes began" in one.said()
    assert curve(made(tmp_path)) == pytest.approx(curve(alone), rel=TOLERANCE)


@pytest.fixture(scope="module")
def radgraph(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A scorer with a network, which must be made whole beside a policy whose weights are split."""
    with draft(str(tmp_path_factory.mktemp("weights")), "weights", 1, Config(), {}) as made:
        tiny_radgraph.write(made.out / "radgraph")
        return made.commit()


def test_two_processes_under_zero_3_reinforce_as_one_does_from_the_same_rollouts(
    world: tuple[Artifact, Artifact], radgraph: Artifact, tmp_path: Path
) -> None:
    """What a process samples depends on its number; rewards, advantages, loss and gradient must not.

    The log's KL and entropy are means over the tokens of what is computed at once, averaged: here of twice as
    many tokens.
    """
    curves = []
    for processes in (1, 2):
        store = tmp_path / str(processes)
        settings = [*ROLLOUTS, f"processes={processes}", f"zero={0 if processes == 1 else 3}"]
        ranks = Ranks(
            "grpo", world, store, settings, processes=processes, before=fixed_rollouts, weights=radgraph.uri
        )
        codes = ranks.wait()
        assert codes == [0] * processes, ranks.said(0)
        (manifest,) = store.glob("grpo/*/manifest.json")
        log = open_artifact(str(manifest.parent)).path(checkpoint.LOG).read_text().splitlines()
        curves.append([entry for line in log if "loss" in (entry := json.loads(line))])
    one, two = ({name: [entry[name] for entry in curve] for name in curve[0]} for curve in curves)
    rewards = ("reward", "rewards/bleu2/mean", "rewards/radgraph/mean")
    for name in ("loss", "grad_norm", *rewards, "advantage_std", "length/mean"):
        assert two[name] == pytest.approx(one[name], rel=TOLERANCE), name
    for name in ("kl", "entropy"):
        assert two[name] == pytest.approx(one[name], rel=0.05), name
