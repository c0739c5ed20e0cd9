"""The staging benchmark runs and says whether its goals are met; its numbers are for a quiet machine."""

from __future__ import annotations

import re

import pytest

from benchmarks import staging, staging_scale


def test_the_table_has_every_kind_with_their_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    staging.main(["--scale", "0.45", "--jobs", "4", "--repeats", "1", "--studies", "24"])
    table = capsys.readouterr().out
    for kind in staging.KINDS:
        row = (
            rf"{kind.label}\s+[\d.]+ films/s plain\s+[\d.]+ ours\s+[\d.]+ x   (met|MISSED) \(>= {kind.goal}\)"
        )
        assert re.search(row, table)
    assert len(re.findall(r"films/s, 1 worker\s+[\d.]+ with 2\s+[\d.]+ x   (?:met|MISSED)", table)) == len(
        staging.KINDS
    )
    apart = [float(mean) for mean in re.findall(r"([\d.]+) levels of 255", table)]
    assert len(apart) == len(staging.KINDS)
    assert max(apart) < 0.6
    assert re.search(
        r"24 studies\s+[\d.]+ ms datasets\s+[\d.]+ ms ours\s+[\d.]+ x   (met|MISSED) \(< 1.0 ms\)", table
    )


def test_the_scale_table_has_every_size_and_both_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    staging_scale.main(["--studies", "8", "16", "--size", "64"])
    table = capsys.readouterr().out
    assert re.findall(
        r"(\d+) studies +[\d.]+ s +[\d.]+ studies/s +[\d.]+ CPU-s +\d+ MiB .* +\d+ MiB", table
    ) == ["8", "16"]
    assert len(re.findall(r"(?:CPU time per study|memory): [\d.]+ x   (?:met|MISSED)", table)) == 2
