"""Errors per report: the paper's division, significance by category, and who counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.made_scores import alarms, archive, group, made
from unirg.evaluation.errors import SHARES, errors
from unirg.metrics.chexprompt import CATEGORIES

STUDIES = archive(40)


def counted(seed: int, more: float = 0.0) -> dict[str, np.ndarray]:
    """Counts of each category, significant and all, and their sums."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for name in CATEGORIES:
        found[f"errors_{name}_significant"] = rng.poisson(0.2 + more, 40).astype(float)
        found[f"errors_{name}"] = found[f"errors_{name}_significant"] + rng.poisson(0.3, 40)
    found["errors"] = np.sum([found[f"errors_{name}"] for name in CATEGORIES], axis=0)
    found["errors_significant"] = np.sum([found[f"errors_{name}_significant"] for name in CATEGORIES], axis=0)
    return found


def run(systems: Any, judge: str = "a judge", **options: Any) -> dict[str, Any]:
    return errors(made(STUDIES, systems, **options), judge, resamples=300)


def test_a_system_is_shown_by_its_share_of_reports_with_at_most_1_2_3_and_4_or_more_errors() -> None:
    counts = np.array([0] * 4 + [1] * 4 + [2] * 8 + [3] * 12 + [4] * 6 + [9] * 6, dtype=float)
    found = group(run({"a": {"errors": counts, "errors_significant": 0.0}}))["systems"]["a"]
    assert [found["shares"][name]["mean"] for name in SHARES] == [0.2, 0.2, 0.3, 0.3]
    assert [found["shares_significant"][name]["mean"] for name in SHARES] == [1, 0, 0, 0]
    assert [found["at_most"][most]["mean"] for most in "123"] == [0.2, 0.4, 0.7]
    assert found["errors"]["mean"] == pytest.approx(counts.mean())
    share = found["shares"]["4_or_more"]
    assert 0 <= share["low"] < share["mean"] < share["high"] <= 1


@settings(max_examples=25)
@given(st.lists(st.one_of(st.none(), st.integers(0, 12)), min_size=40, max_size=40))
def test_the_shares_divide_the_reports_with_a_verdict_and_at_most_adds_them_up(drawn: list[Any]) -> None:
    counts = np.array([np.nan if each is None else each for each in drawn], dtype=float)
    found = group(run({"a": {"errors": counts}}))["systems"]["a"]
    parts = [found["shares"][name] for name in SHARES]
    assert {part["n"] for part in parts} == {int(np.isfinite(counts).sum())}
    assert {part["missing"] for part in parts} == {drawn.count(None)}
    if np.isfinite(counts).any():
        sums = np.cumsum([part["mean"] for part in parts])
        assert sums == pytest.approx([found["at_most"][most]["mean"] for most in "123"] + [1], abs=1e-5)


def test_categories_and_significance_add_up_to_the_total() -> None:
    found = group(run({"a": counted(1)}))["systems"]["a"]
    for kind in ("errors", "significant", "insignificant"):
        column = "all" if kind == "errors" else kind
        parts = [found["categories"][name][column]["mean"] for name in CATEGORIES]
        assert sum(parts) == pytest.approx(found[kind]["mean"], abs=1e-5)
    both = found["significant"]["mean"] + found["insignificant"]["mean"]
    assert both == pytest.approx(found["errors"]["mean"], abs=1e-5)


def test_significance_that_was_not_kept_by_category_is_absent_rather_than_zero() -> None:
    columns = {name: each for name, each in counted(1).items() if not name.endswith("_significant")}
    found = group(run({"a": columns}))["systems"]["a"]
    assert found["categories"]["omission"]["significant"] is None
    assert found["categories"]["omission"]["insignificant"] is None
    assert found["categories"]["omission"]["all"]["n"] == 40
    assert found["significant"]["mean"] is None


def test_a_system_is_compared_with_each_baseline_study_by_study() -> None:
    few, many = counted(1), counted(2, more=0.5)
    found = run({"a": few, "copy-prior": many}, kinds={"copy-prior": "baseline"})
    difference = group(found)["differences"]["a"]["copy-prior"]["errors"]
    assert difference["mean"] == pytest.approx((few["errors"] - many["errors"]).mean(), abs=1e-5)
    assert difference["excludes_zero"] is True
    assert "copy-prior" not in group(found)["differences"]
    assert alarms(found) == []


def test_a_system_with_more_errors_than_a_baseline_raises_an_alarm() -> None:
    found = run(
        {"a": counted(2, more=0.5), "copy-prior": counted(1)},
        kinds={"copy-prior": "baseline"},
    )
    assert alarms(found) == [("baseline", "a")]


def test_candidates_without_a_verdict_are_counted_and_raise_an_alarm() -> None:
    columns = counted(1)
    holes = {name: np.where(np.arange(40) < 10, np.nan, each) for name, each in columns.items()}
    found = run({"a": holes, "b": columns})
    record = group(found)["systems"]["a"]["errors"]
    assert (record["n"], record["missing"]) == (30, 10)
    assert record["mean"] == pytest.approx(np.nanmean(holes["errors"]), abs=1e-5)
    assert alarms(found) == [("unanswered", "a")]


def test_a_small_group_is_shown_as_too_small() -> None:
    scores = made(archive(12), {"a": {"errors": 1.0}})
    found = group(errors(scores, "a judge", resamples=300))
    assert found == {"split": "test", "corpus": "phantom", "setting": "report", "too_small": True}
