"""Running a trainer: which checkpoint to go on from, and the stop at the first number that is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from unirg.errors import UserError
from unirg.training import run
from unirg.training.run import MARKER, TrainConfig, accumulation, last_whole, mark_whole

FILES = {"model.safetensors": b"w" * 100, "optimizer.pt": b"o" * 200, "rng/rng_state.pth": b"r"}


def checkpoint(folder: Path, step: int, marked: bool = True) -> Path:
    made = folder / f"checkpoint-{step}"
    for name, content in FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    if marked:
        mark_whole(made)
    return made


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def folder_for_file(made: Path) -> None:
    (made / "optimizer.pt").unlink()
    (made / "optimizer.pt").mkdir()


TEARS: dict[str, Callable[[Path], object]] = {
    "no marker": lambda made: (made / MARKER).unlink(),
    "an empty marker": lambda made: (made / MARKER).write_text(""),
    "half a marker": lambda made: truncate(made / MARKER),
    "a marker of nothing": lambda made: (made / MARKER).write_text("{}"),
    "no optimiser state": lambda made: (made / "optimizer.pt").unlink(),
    "half the weights": lambda made: truncate(made / "model.safetensors"),
    "a nested file gone": lambda made: (made / "rng" / "rng_state.pth").unlink(),
    "a folder for a file": folder_for_file,
}


def test_training_goes_on_from_the_newest_checkpoint_by_number(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        checkpoint(tmp_path, step)
    assert last_whole(tmp_path) == str(tmp_path / "checkpoint-100")


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_without_a_checkpoint_training_starts_anew(tmp_path: Path, folder: str) -> None:
    assert last_whole(tmp_path / folder) is None


@pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS)
def test_a_torn_checkpoint_is_passed_over_and_removed(tmp_path: Path, tear: Callable[[Path], object]) -> None:
    whole, torn = checkpoint(tmp_path, 10), checkpoint(tmp_path, 20)
    tear(torn)
    assert last_whole(tmp_path) == str(whole)
    assert not torn.exists()
    tear(whole)
    assert last_whole(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_marker_tells_every_file_and_a_second_marking_does_not_tell_the_first(tmp_path: Path) -> None:
    made = checkpoint(tmp_path, 1)
    told = json.loads((made / MARKER).read_text())
    assert told == {name: len(content) for name, content in FILES.items()}
    assert not (made / f".{MARKER}").exists()
    mark_whole(made)
    assert last_whole(tmp_path) == str(made)


@pytest.mark.parametrize(
    ("batch", "micro_batch", "processes", "steps"), [(16, 16, 1, 1), (256, 8, 1, 32), (256, 8, 4, 8)]
)
def test_micro_batches_of_all_processes_make_a_batch(
    batch: int, micro_batch: int, processes: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert accumulation(batch, micro_batch) == steps


@pytest.mark.parametrize(("batch", "micro_batch", "processes"), [(16, 5, 1), (8, 16, 1), (16, 8, 3)])
def test_a_batch_that_they_do_not_make_is_refused(
    batch: int, micro_batch: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    said = f"batch_size = {batch} is no multiple of micro_batch x processes = {micro_batch * processes}"
    with pytest.raises(UserError, match=said):
        accumulation(batch, micro_batch)


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 0}, {"epochs": 0}, {"prior_share": 1.5}, {"micro_batch": 0}, {"max_grad_norm": -1}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        TrainConfig.model_validate({"learning_rate": 1e-4, "micro_batch": 1} | wrong)


@pytest.fixture
def watch() -> Any:
    watching = run._watch("sft")
    watching.on_train_begin(None, SimpleNamespace(max_steps=100, global_step=0), None)
    return watching


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan"])
def test_training_stops_at_a_number_that_is_not_finite_naming_it_and_the_step(
    watch: Any, name: str, value: object
) -> None:
    logs = {"loss": 1.0, "grad_norm": 1.0, name: value}
    with pytest.raises(UserError, match=f"sft: {name} is {value} at step 7: lower learning_rate"):
        watch.on_log(None, SimpleNamespace(global_step=7), None, logs=logs)


def test_finite_numbers_pass_and_the_last_line_tells_the_steps(
    watch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    watch.on_log(None, SimpleNamespace(global_step=7), None, logs={"loss": 0.25, "grad_norm": 3.0})
    watch.on_log(None, SimpleNamespace(global_step=7), None, logs={"train_runtime": 1.0})
    watch.on_train_end(None, None, None)
    assert capsys.readouterr().err.startswith("sft: 7 steps in ")


def test_a_saved_checkpoint_is_marked_whole(watch: Any, tmp_path: Path) -> None:
    made = checkpoint(tmp_path, 4, marked=False)
    assert not (made / MARKER).exists()
    watch.on_save(SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=4), None)
    assert last_whole(tmp_path) == str(made)
