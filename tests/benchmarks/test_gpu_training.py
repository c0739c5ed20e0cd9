"""The benchmark for a GPU runs with a toy on the CPU; its numbers are for the GPU and the full size."""

from __future__ import annotations

import re

import pytest

from benchmarks.gpu import training
from unirg.training import sizes


def test_it_tells_of_every_batch_and_of_the_parts_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    training.main(
        ["--toy", "--batches", "2", "2c", "--seconds", "0", "--steps", "2", "--updates", "adamw", "lora"]
    )
    table = capsys.readouterr().out
    rows = re.findall(r"\n +(2c?) +([\d.]+) +(\d+) +- +([\d.]+) +0.0", table)
    assert [row[0] for row in rows] == ["2", "2c"] * 2
    for _, samples, _, seconds in rows:
        assert float(samples) * float(seconds) == pytest.approx(2, rel=0.05)
    trained = re.search(r"SFT, adamw: ([\d,]+) of ([\d,]+) parameters train", table)
    assert trained
    assert trained[1] == trained[2]
    for part in ("generation", "training", "rewards"):
        assert re.search(rf"  {part} +[\d.]+ s +[\d.]+%", table)
    assert "MFU " not in table.split("peak GiB")[-1]  # of no CPU


def test_its_model_is_of_the_shape_that_the_operations_are_counted_by() -> None:
    work = training.Work(
        sizes.Shape.model_validate(training.TOY), side=64, prompt=20, report=12, device="cpu"
    )
    assert work.model().num_parameters() == work.shape.parameters
