"""The scoring benchmark runs and says whether its goals are met; its numbers are for a quiet machine."""

from __future__ import annotations

import re

import pytest

from benchmarks import scoring


def test_every_goal_has_a_ratio_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--studies", "40", "--side", "64", "--latency", "0.02", "--rounds", "1", "--memory", "20", "60"]
    scoring.main([*few, "--reports", "12", "--tokens", "4"])
    table = capsys.readouterr().out
    goals = (
        r"rate / ideal \(3200/s\): [\d.]+%   (met|MISSED) \(>= 95%\)",
        r"CPU a study: -?[\d.]+ ms   (met|MISSED) \(< 2 ms\)",
        r"large / small: [\d.]+ x   (met|MISSED) \(<= 1.1\)",
        r"ours / model.generate in \d+s: [\d.]+%   (met|MISSED) \(>= 90%\)",
        r"ours / one at a time: [\d.]+ x   (met|MISSED) \(>= 3\)",
    )
    assert [goal for goal in goals if not re.search(goal, table)] == []
