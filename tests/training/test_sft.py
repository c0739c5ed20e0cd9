"""SFT on packed batches: stock TRL's losses, exact accounts, data prepared beside the step."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.sft_world import loaded, made
from unirg import checkpoint
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.training import packing
from unirg.training.data import Examples, training_studies
from unirg.training.packing import Encoder
from unirg.training.sft import SFTConfig, sft
from unirg.training.sft_trainer import ByLength, PackedSFTTrainer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    return made(str(tmp_path_factory.mktemp("world")), studies=16, validate=0.0)


def arguments(folder: Path, **given: Any) -> Any:
    from trl import SFTConfig as Arguments

    settings = {
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "max_length": None,
        "completion_only_loss": True,
        "gradient_checkpointing": False,
        "bf16": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    return Arguments(output_dir=str(folder), **(settings | given))


def examples_of(world: tuple[Artifact, Artifact], processor: Any) -> Examples:
    cohort = Cohort.open(world[0])
    return Examples(cohort, training_studies(cohort), processor, 0.7, 0, completion=True)


@pytest.fixture
def ours(world: tuple[Artifact, Artifact], tmp_path: Path) -> Iterator[PackedSFTTrainer]:
    yield from trainer(world, tmp_path, packed=True)


@pytest.fixture
def padded(world: tuple[Artifact, Artifact], tmp_path: Path) -> Iterator[PackedSFTTrainer]:
    yield from trainer(world, tmp_path, packed=False)


def trainer(world: tuple[Artifact, Artifact], folder: Path, packed: bool) -> Iterator[PackedSFTTrainer]:
    model, processor = loaded(world[1])
    made = PackedSFTTrainer(
        model=packing.use(model.train()) if packed else model.train(),
        examples=examples_of(world, processor),
        packed=packed,
        args=arguments(folder),
        processing_class=processor,
    )
    yield made
    made.close()


def steps(trainer: Any) -> list[dict[str, Any]]:
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_losses_and_gradients_are_stock_trls_on_the_same_batches(
    world: tuple[Artifact, Artifact], ours: PackedSFTTrainer, tmp_path: Path
) -> None:
    from trl import SFTTrainer

    model, processor = loaded(world[1])
    type(model).accepts_loss_kwargs = True
    try:
        given = arguments(tmp_path, dataset_kwargs=None)
        rows = examples_of(world, processor).dataset()
        stock = steps(
            SFTTrainer(model=model.train(), args=given, train_dataset=rows, processing_class=processor)
        )
    finally:
        type(model).accepts_loss_kwargs = False
    found = steps(ours)
    assert len(found) == len(stock) == 3
    for mine, theirs in zip(found, stock, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert found[-1]["loss"] < found[0]["loss"]


def test_the_log_accounts_for_every_token_and_image_of_the_epoch(ours: PackedSFTTrainer) -> None:
    samples = [ours.encoder(ours.examples[number]) for number in range(len(ours.examples))]
    log = steps(ours)
    assert sum(entry["tokens"] for entry in log) == sum(len(sample.ids) for sample in samples)
    assert sum(entry["images"] for entry in log) == sum(len(sample.grids) for sample in samples)
    scored = sum(entry["completion_tokens"] for entry in log)
    assert scored == sum(len(sample.completion) for sample in samples)
    assert {entry["padding_share"] for entry in log} == {0.0}
    assert all(entry["data_wait_s"] >= 0 for entry in log)


def test_where_packing_is_not_possible_the_accounts_hold_and_padding_is_told(
    padded: PackedSFTTrainer,
) -> None:
    samples = [padded.encoder(padded.examples[number]) for number in range(len(padded.examples))]
    log = steps(padded)
    assert sum(entry["tokens"] for entry in log) == sum(len(sample.ids) for sample in samples)
    assert sum(entry["completion_tokens"] for entry in log) == sum(len(one.completion) for one in samples)
    assert all(0 <= entry["padding_share"] < 0.5 for entry in log)
    assert max(entry["padding_share"] for entry in log) > 0


def test_batches_are_prepared_in_another_thread_which_ends_with_the_training(
    ours: PackedSFTTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()
    encode = Encoder.__call__

    def told(self: Encoder, item: dict[str, Any]) -> Any:
        threads.add(threading.current_thread().name)
        return encode(self, item)

    monkeypatch.setattr(Encoder, "__call__", told)
    steps(ours)
    assert threads == {"data_0"}
    ours.close()
    assert not any(thread.name.startswith("data") for thread in threading.enumerate())


def test_what_fails_in_the_thread_fails_the_training(ours: PackedSFTTrainer) -> None:
    mute = ours.examples.studies[0].model_copy(update={"findings": None, "impression": None})
    ours.examples.studies = [mute, *ours.examples.studies[1:]]
    with pytest.raises(ValueError, match="has no reference to train on"):
        ours.train()


def test_an_order_by_length_is_a_permutation_that_the_seed_and_the_epoch_decide() -> None:
    lengths = [n * 37 % 100 for n in range(200)]
    epoch = 0
    order = ByLength(lengths, 4, seed=1, epoch=lambda: epoch)
    first = list(order)
    assert sorted(first) == list(range(200))
    assert len(order) == 200
    assert first == list(order)
    epoch = 1
    assert list(order) != first
    groups = [[lengths[n] for n in first[at : at + 4]] for at in range(0, 200, 4)]
    spread = [max(group) - min(group) for group in groups]
    assert sum(spread) / len(spread) < 15  # 60 where the order is by chance


def test_lengths_are_near_the_true_ones(ours: PackedSFTTrainer) -> None:
    """Near enough to sort by: a study with a prior is longer than any without."""
    found = ours.examples.lengths(image=4)
    images = [len(ours.examples[number]["images"]) for number in range(len(found))]
    assert set(images) == {1, 2}
    with_prior = [length for length, count in zip(found, images, strict=True) if count == 2]
    without = [length for length, count in zip(found, images, strict=True) if count == 1]
    assert min(with_prior) > max(without)


def trained(world: tuple[Artifact, Artifact], store: Path, **given: Any) -> Artifact:
    config = SFTConfig(batch_size=4, micro_batch=2, max_steps=2, learning_rate=1e-3, prior_share=0.7, **given)
    return sft(config, world[0], world[1], str(store))


def test_bfloat16_with_checkpointed_activations_trains_to_a_plain_model(
    world: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    made = trained(world, tmp_path, gradient_checkpointing=True, bf16=True)
    before = dict(loaded(world[1])[0].named_parameters())
    after = dict(checkpoint.load_model(made.directory / checkpoint.MODEL).named_parameters())
    assert before.keys() == after.keys()
    assert not any(value.equal(before[name]) for name, value in after.items() if value.ndim > 1)
    log = [json.loads(line) for line in (made.directory / checkpoint.LOG).read_text().splitlines()]
    exact = trained(world, tmp_path)
    plain = [json.loads(line) for line in (exact.directory / checkpoint.LOG).read_text().splitlines()]
    assert log[0]["loss"] == pytest.approx(plain[0]["loss"], rel=0.02)
    assert log[0]["tokens"] == plain[0]["tokens"] > 0
