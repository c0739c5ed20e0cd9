"""Training that is killed and run again ends in the same bytes as training that is left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unirg.artifact import Artifact
from unirg.cohort.stage import StageConfig, stage
from unirg.training import policy, run, train
from unirg.training.checkpoints import MARKER

COMMON = ["micro_batch=4", "batch_size=4", "save_steps=1", "learning_rate=1e-3"]
SETTINGS = {
    "sft": [*COMMON, "max_steps=8"],
    "grpo": [
        *COMMON,
        "max_steps=5",
        "group_size=2",
        "kl=0.03",
        "max_completion_tokens=16",
        "rewards={bleu2: 0.5, rouge_l: 0.5}",
    ],
}
KILLED_AFTER = {"sft": 3, "grpo": 2}
"""Steps whose checkpoint is on disk when the process is killed."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """A handful of phantoms, and an untrained policy for them."""
    store = str(tmp_path_factory.mktemp("world"))
    cohort = stage(StageConfig(studies=16, size=64, workers=1), store)
    return cohort, policy.base(policy.BaseConfig(), cohort, store)


@pytest.fixture(scope="module")
def undisturbed(
    world: tuple[Artifact, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    store = str(tmp_path_factory.mktemp("undisturbed"))
    return {algorithm: trained(algorithm, world, store) for algorithm in SETTINGS}


def trained(algorithm: str, world: tuple[Artifact, Artifact], store: str) -> Artifact:
    cohort, base = world
    return train(algorithm, None, SETTINGS[algorithm], cohort.uri, base.uri, store)


def kill_midway(algorithm: str, world: tuple[Artifact, Artifact], store: Path) -> Path:
    """Start the training as a process and kill -9 it between two steps; returns its checkpoints' folder."""
    cohort, base = world
    options = ["--cohort", cohort.uri, "--parent", base.uri, "--store", str(store)]
    command = [sys.executable, "-m", "unirg.cli", "train", algorithm, *options, "--", *SETTINGS[algorithm]]
    marker = f".work/{algorithm}-*/scratch/checkpoints/checkpoint-{KILLED_AFTER[algorithm]}/{MARKER}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (found := list(store.glob(marker))):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(random.Random(algorithm).uniform(0, 0.1))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return found[0].parents[1]


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("algorithm", sorted(SETTINGS))
def test_training_killed_midway_and_run_again_gives_the_bytes_of_an_undisturbed_run(
    algorithm: str,
    world: tuple[Artifact, Artifact],
    undisturbed: dict[str, Artifact],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    kill_midway(algorithm, world, tmp_path)
    assert list(tmp_path.glob(f"{algorithm}/*")) == []  # a killed run leaves no artifact
    again = trained(algorithm, world, str(tmp_path))
    assert "going on at " in capfd.readouterr().err  # it began where the killed one was, not at the start
    assert again.manifest.files == undisturbed[algorithm].manifest.files
    assert again.digest == undisturbed[algorithm].digest
    assert list(tmp_path.glob(".work/*/")) == []


def test_a_checkpoint_torn_by_the_kill_is_passed_over_for_the_one_before(
    world: tuple[Artifact, Artifact], undisturbed: dict[str, Artifact], tmp_path: Path
) -> None:
    folder = kill_midway("sft", world, tmp_path)
    whole = checkpoints(folder)
    newest = folder / f"checkpoint-{whole[-1]}" / "optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:1000] if newest.exists() else b"")
    assert trained("sft", world, str(tmp_path)).digest == undisturbed["sft"].digest


@pytest.mark.parametrize("algorithm", sorted(SETTINGS))
def test_a_kill_between_the_last_step_and_the_commit_costs_no_byte(
    algorithm: str,
    world: tuple[Artifact, Artifact],
    undisturbed: dict[str, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(algorithm, world, str(tmp_path))
    assert trained(algorithm, world, str(tmp_path)).manifest.files == undisturbed[algorithm].manifest.files


def test_another_configuration_does_not_go_on_from_a_killed_runs_checkpoints(
    world: tuple[Artifact, Artifact], undisturbed: dict[str, Artifact]
) -> None:
    digests = {artifact.digest for artifact in undisturbed.values()}
    assert len(digests) == len(SETTINGS)
