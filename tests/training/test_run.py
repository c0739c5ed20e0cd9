"""Running a trainer: its settings, and the stop at the first number that is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from unirg.config import identity
from unirg.errors import UserError
from unirg.storage import StorageError
from unirg.training import run
from unirg.training.__main__ import main
from unirg.training.callbacks import Watch
from unirg.training.settings import TrainConfig, accumulation


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
    [
        {"learning_rate": 0},
        {"epochs": 0},
        {"prior_share": 1.5},
        {"micro_batch": 0},
        {"max_grad_norm": -1},
        {"processes": 0},
        {"zero": 1},
        {"offload": True},
        {"export": "best"},
        {"kept": 0},
        {"lora": {"targets": []}},
    ],
)
def test_settings_out_of_range_or_without_what_they_need_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainConfig.model_validate({"learning_rate": 1e-4, "micro_batch": 1, **wrong})


@pytest.fixture
def watch() -> Watch:
    watching = Watch("sft")
    watching.on_train_begin(None, SimpleNamespace(max_steps=100, global_step=0), None)
    return watching


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan"])
def test_training_stops_at_a_number_that_is_not_finite_naming_it_and_the_step(
    watch: Watch, name: str, value: object
) -> None:
    logs = {"loss": 1.0, "grad_norm": 1.0, name: value}
    with pytest.raises(UserError, match=f"sft: {name} is {value} at step 7: lower learning_rate"):
        watch.on_log(None, SimpleNamespace(global_step=7), None, logs=logs)


def test_finite_numbers_pass_and_the_last_line_tells_the_steps(
    watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch.on_log(None, SimpleNamespace(global_step=7), None, logs={"loss": 0.25, "grad_norm": 3.0})
    watch.on_log(None, SimpleNamespace(global_step=7), None, logs={"train_runtime": 1.0})
    watch.on_train_end(None, None, None)
    assert capsys.readouterr().err.startswith("sft: 7 steps in ")


def test_another_number_of_processes_than_the_configuration_names_begins_no_training() -> None:
    config = TrainConfig(learning_rate=1e-4, micro_batch=1, processes=2)
    with pytest.raises(UserError, match="processes = 2, but 1 began this training"):
        run._check_processes(config, None, "sft")


def test_zero_without_torchrun_is_refused() -> None:
    with pytest.raises(UserError, match="zero = 2 needs torchrun"):
        run.prepare(TrainConfig(learning_rate=1e-4, micro_batch=1, zero=2))


def test_the_entry_point_tells_a_mistake_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "nothing")
    assert main(["sft", "--cohort", missing, "--parent", missing, "--store", str(tmp_path)]) == 2
    assert f"unirg: no artifact at {missing}" in capsys.readouterr().err


def test_a_store_that_is_away_is_no_mistake_so_that_a_trainjob_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object) -> None:
        raise StorageError("s3://bucket: cannot connect: try again later")

    monkeypatch.setattr("unirg.training.__main__.train", away)
    assert main(["sft", "--cohort", "c", "--parent", "p", "--store", str(tmp_path)]) == 1
    assert "unirg: s3://bucket: cannot connect" in capsys.readouterr().err


def test_another_number_goes_on_where_the_configuration_says_so() -> None:
    config = TrainConfig(learning_rate=1e-4, micro_batch=1, processes=8, resume_processes=4)
    assert config.started_processes == 4
    assert identity(config) == identity(TrainConfig(learning_rate=1e-4, micro_batch=1, processes=8))
    with pytest.raises(UserError, match="without resume_processes"):
        run._check_processes(config, None, "sft")
