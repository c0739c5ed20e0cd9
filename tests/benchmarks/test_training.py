"""The training benchmark runs and compares like with like; its numbers are for a quiet machine."""

from __future__ import annotations

import re

import pytest

from benchmarks import training, training_sides


def test_the_tables_show_the_same_losses_and_say_whether_each_goal_is_met(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_sides, "TOKENS", 24)
    few = ["--studies", "12", "--side", "64", "--rounds", "1", "--steps", "1", "--micro-batch", "4"]
    training.main([*few, "--scorers", "toy"])
    table = capsys.readouterr().out
    assert (
        len(re.findall(r"loss and gradient norm, (?:one batch|step 1): .* met \(within 0.0001\)", table)) == 2
    )
    sides = re.findall(r"  (stock|stock, 1 worker|ours) +[\d.]+ samples/CPU s .* ([\d.]+) real", table)
    assert [name for name, _ in sides] == ["stock", "stock, 1 worker", "ours"]
    assert float(sides[0][1]) == float(sides[1][1]) < float(sides[2][1]) == 1
    goals = (
        r"real over padded tokens 1.000   met \(>= 0.97\)",
        r"waiting for data [\d.]+% of the time at most   (met|MISSED) \(< 2%\)",
        r"ours / stock: [\d.]+ x   (met|MISSED) \(>= 90% of the [\d.]+ x that padding saved\)",
        r"ours / stock, 1 worker: [\d.]+ x   (met|MISSED) \(>= 90% of the [\d.]+ x that padding saved\)",
        r"images once per group / stock: [\d.]+ x   (met|MISSED) \(>= 2.0\)",
        r"prompt once per group / images: [\d.]+ x   (met|MISSED) \(>= 1.5\)",
        r"of the step [\d.]+%   (met|MISSED) \(<= 10%\)",
        r"pair by pair they would be [\d.]+% of it",
    )
    assert [goal for goal in goals if not re.search(goal, table)] == []
    parts = re.findall(r"([\d.]+) CPU s a step: generation ([\d.]+), rewards ([\d.]+), .* ([\d.]+)\n", table)
    assert len(parts) == 3
    for step, *of_it in parts:
        assert sum(map(float, of_it)) == pytest.approx(float(step), abs=0.03)
        assert all(float(part) > 0 for part in of_it)
