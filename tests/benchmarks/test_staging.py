"""The staging benchmark runs and says whether its goals are met; its numbers are for a quiet machine."""

from __future__ import annotations

import re

import pytest

from benchmarks import staging


def test_the_table_has_every_kind_with_their_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    staging.main(["--scale", "0.45", "--jobs", "4", "--repeats", "1"])
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
