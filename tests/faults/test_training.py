"""Training when something fails: nothing whole is lost, what failed is told, the next start goes on."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.training.ranks import Ranks
from unirg.artifact import Artifact
from unirg.cohort.stage import StageConfig, stage
from unirg.config import load
from unirg.errors import UserError
from unirg.training import policy, sft, train, validation
from unirg.training.callbacks import Saver
from unirg.training.checkpoints import Checkpoints

SETTINGS = ["micro_batch=2", "batch_size=4", "max_steps=4", "save_steps=1", "learning_rate=1e-3"]
COMMIT = Checkpoints.commit


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """A handful of phantoms, and an untrained policy for them."""
    store = str(tmp_path_factory.mktemp("world"))
    cohort = stage(StageConfig(studies=16, size=64, workers=1), store)
    return cohort, policy.base(policy.BaseConfig(), cohort, store)


@pytest.fixture(scope="module")
def undisturbed(world: tuple[Artifact, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return trained(world, tmp_path_factory.mktemp("undisturbed"))


def trained(world: tuple[Artifact, Artifact], store: Path, *settings: str) -> Artifact:
    cohort, base = world
    return train("sft", None, [*SETTINGS, *settings], cohort.uri, base.uri, str(store))


def at_step(monkeypatch: pytest.MonkeyPatch, wanted: int, happens: Callable[[], object]) -> None:
    """Let something happen when the checkpoint of a step has just become whole."""

    def commit(self: Checkpoints, step: int, score: float | None) -> None:
        COMMIT(self, step, score)
        if step == wanted:
            happens()

    monkeypatch.setattr(Checkpoints, "commit", commit)


def test_after_sigterm_the_step_is_finished_and_saved_and_the_same_command_goes_on(
    world: tuple[Artifact, Artifact],
    undisturbed: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as left:
            trained(world, tmp_path, "save_steps=2")
    assert left.value.code == os.EX_TEMPFAIL
    assert signal.getsignal(signal.SIGTERM) is before
    assert "sft: saved at step 3; the same command goes on" in capfd.readouterr().err
    assert trained(world, tmp_path).digest == undisturbed.digest
    assert "sft: going on at 3 of 4 steps" in capfd.readouterr().err


def test_a_full_disk_is_told_and_leaves_the_checkpoint_before_whole(
    world: tuple[Artifact, Artifact], undisturbed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        # No file may be longer than this from here on, so the next checkpoint's weights break off.
        at_step(patch, 2, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard)))
        try:
            with pytest.raises(UserError, match="the disk is full: free some space and run the same command"):
                trained(world, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = Checkpoints(next(tmp_path.glob(".work/*/scratch/checkpoints")), "", 2).newest("sft")
    assert found is not None
    assert found.step == 2
    assert trained(world, tmp_path).digest == undisturbed.digest


@pytest.mark.parametrize("gone", ["optimizer.pt", pytest.param("scheduler.pt", marks=pytest.mark.soak)])
def test_a_newest_checkpoint_without_its_state_is_told_and_the_one_before_goes_on(
    gone: str,
    world: tuple[Artifact, Artifact],
    undisturbed: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        at_step(patch, 3, stop)
        with pytest.raises(KeyboardInterrupt):
            trained(world, tmp_path)
    next(tmp_path.glob(f".work/*/scratch/checkpoints/checkpoint-3/{gone}")).unlink()
    assert trained(world, tmp_path).digest == undisturbed.digest
    said = capfd.readouterr().err
    assert f"sft: checkpoint-3 is passed over: {gone} is missing" in said
    assert "sft: going on at 2 of 4 steps" in said


def test_when_a_rank_dies_the_other_ends_and_the_next_start_goes_on(
    world: tuple[Artifact, Artifact], undisturbed: Artifact, tmp_path: Path
) -> None:
    settings = [*SETTINGS, "processes=2", "micro_batch=2"]
    ranks = Ranks("sft", world, tmp_path, settings, processes=2)
    ranks.wait_for_checkpoint(1)
    ranks.kill(rank=1)
    codes = ranks.wait()
    assert codes[0] == 1, ranks.said(0)
    assert codes[1] == -signal.SIGKILL
    again = Ranks("sft", world, tmp_path, settings, processes=2)
    assert again.wait() == [0, 0], again.said(0) + again.said(1)
    assert "sft: going on at " in again.said(0)
    (made,) = tmp_path.glob("sft/*/model/model.safetensors")
    ours = load_file(made)
    for name, tensor in load_file(undisturbed.path("model/model.safetensors")).items():
        assert ours[name] == pytest.approx(tensor, abs=1e-4), name


def test_the_weights_of_the_best_validation_become_the_artifact_where_the_recipe_says_so(
    world: tuple[Artifact, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {1: 2.0, 2: 1.0, 3: 1.5, 4: 3.0}
    config = load(sft.SFTConfig, None, [*SETTINGS, "export=best", "validate_steps=1", "validation_studies=1"])
    with monkeypatch.context() as patch:
        patch.setattr(validation, "callbacks", lambda *_: [])
        patch.setattr(Checkpoints, "commit", lambda self, step, _: COMMIT(self, step, scores[step]))
        best = sft.sft(config, *world, str(tmp_path))
    two = trained(world, tmp_path, "max_steps=2")
    weights = "model/model.safetensors"
    assert best.manifest.files[weights] == two.manifest.files[weights]


@pytest.fixture
def saver() -> Any:
    """Asks for a checkpoint every second step of a training of 12, of which none is written."""
    made = Saver("grpo", Checkpoints(Path("nowhere"), "", 2), save_steps=2, validate_steps=0)
    made.on_train_begin(None, SimpleNamespace(global_step=0), None)
    return made


def saves(saver: Any, args: object, steps: int = 12) -> list[int]:
    """The steps at whose end it asks for a checkpoint, until it stops."""
    found = []
    for step in range(1, steps + 1):
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        saver.on_step_end(args, SimpleNamespace(global_step=step, max_steps=12), control)
        if control.should_save:
            found.append(step)
            saver.saved = step
        if control.should_training_stop:
            return found
    return found


def rollouts(steps_per_generation: int, num_iterations: int = 1, accumulation: int = 2) -> object:
    return SimpleNamespace(
        steps_per_generation=steps_per_generation,
        num_iterations=num_iterations,
        gradient_accumulation_steps=accumulation,
    )


def test_no_checkpoint_falls_inside_a_generation_batch(saver: Any) -> None:
    assert saves(saver, rollouts(steps_per_generation=6)) == [3, 6, 9, 12]
    saver.saved = 0
    assert saves(saver, rollouts(steps_per_generation=4, num_iterations=2)) == [4, 8, 12]
    saver.saved = 0
    assert saves(saver, rollouts(steps_per_generation=1)) == [2, 4, 6, 8, 10, 12]


def test_sigterm_inside_a_generation_batch_waits_for_its_end(saver: Any) -> None:
    saver.save_steps = 100
    assert saves(saver, rollouts(steps_per_generation=10), steps=3) == []
    saver.asked = True
    assert saves(saver, rollouts(steps_per_generation=10)) == [5]
    assert saver.stopped


def test_a_validated_step_is_saved_as_it_may_be_the_best(saver: Any) -> None:
    saver.save_steps, saver.validate_steps = 100, 5
    assert saves(saver, SimpleNamespace()) == [5, 10, 12]


@pytest.mark.parametrize(("together", "kept"), [(False, False), (True, True)])
def test_only_a_lone_process_ends_at_a_second_sigterm_as_others_get_one_from_torchrun(
    saver: Any, together: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if together:
        monkeypatch.setenv("RANK", "0")
    with saver.heeding_sigterm():
        heeding = signal.getsignal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert saver.asked
        assert (signal.getsignal(signal.SIGTERM) is heeding) == kept


def test_sigterm_in_the_last_step_lets_training_end(saver: Any) -> None:
    saver.saved, saver.asked = 11, True
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    saver.on_step_end(SimpleNamespace(), SimpleNamespace(global_step=12, max_steps=12), control)
    assert control.should_save
    assert not saver.stopped
