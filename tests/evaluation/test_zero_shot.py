"""Zero-shot: unseen places beside seen ones, the drop and its interval, marks of lineage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.made_scores import alarms, archive, group, made
from unirg.evaluation.statistics import gaps
from unirg.evaluation.unseen import Unseen
from unirg.evaluation.zero_shot import LARGE_DROP, zero_shot

STUDIES = [
    *archive(120),
    *archive(80, split="zero_shot", institution="summit"),
    *archive(60, split="zero_shot", corpus="iu_xray", institution="indiana"),
]
PLACES = ("indiana", "iu_xray", "summit")
ALL = {"corpus": None, "institution": None, "split": "zero_shot"}
SUMMIT = {"corpus": "phantom", "institution": "summit", "split": "zero_shot"}


def values(seed: int, summit: float = 0.0, indiana: float = 0.0) -> np.ndarray:
    found = np.random.default_rng(seed).normal(0.5, 0.1, len(STUDIES))
    found[120:200] -= summit
    found[200:] -= indiana
    return found


def run(systems: Any, lineage: Any = None, **options: Any) -> dict[str, Any]:
    if lineage is None:
        lineage = dict.fromkeys(systems, Unseen(PLACES, ("cohort 1",), (), ()))
    return zero_shot(made(STUDIES, systems, **options), PLACES, lineage, resamples=1000)


def test_each_unseen_place_stands_beside_the_test_set_with_its_drop() -> None:
    column = values(1, summit=0.03)
    result = run({"a": {"bleu2": column}})
    assert result["held_out"] == ["indiana", "iu_xray", "summit"]
    assert group(result, corpus=None, institution=None)["values"]["a"]["bleu2"]["n"] == 120
    assert "drops" not in group(result, corpus=None, institution=None)
    found = group(result, **SUMMIT)
    drop = found["drops"]["a"]["bleu2"]
    assert drop["drop"] == pytest.approx(column[:120].mean() - column[120:200].mean(), abs=1e-6)
    assert drop["in_sd"] == pytest.approx(drop["drop"] / column[:120].std(ddof=1), abs=1e-5)
    assert drop["low"] < drop["drop"] < drop["high"]
    assert drop["p"] <= drop["adjusted"]
    assert group(result, **ALL)["studies"] == 140


def test_the_interval_is_that_of_two_independent_groups() -> None:
    column = values(1, summit=0.03)
    shown = group(run({"a": {"bleu2": column}}), **SUMMIT)["drops"]["a"]["bleu2"]
    labels = ["seen"] * 120 + ["away"] * 80
    people = [f"{each.corpus}/{each.patient_id}" for each in STUDIES[:200]]
    found = gaps(column[:200, None], labels, people, [True], 1000, 0)
    assert [-found.high[0, 0], -found.low[0, 0]] == pytest.approx([shown["low"], shown["high"]], abs=1e-6)


@settings(max_examples=10)
@given(st.integers(0, 2**16), st.floats(-0.1, 0.1))
def test_a_drop_is_the_same_whether_higher_or_lower_is_better(seed: int, summit: float) -> None:
    column = values(seed, summit)
    result = run({"a": {"bleu2": column, "radcliq_v1": -column}})
    drops = group(result, **SUMMIT)["drops"]["a"]
    assert drops["bleu2"] == drops["radcliq_v1"]


def test_an_unseen_place_that_does_better_has_a_drop_below_zero() -> None:
    drop = group(run({"a": {"bleu2": values(1, summit=-0.1)}}), **SUMMIT)["drops"]["a"]["bleu2"]
    assert drop["high"] < 0
    assert drop["excludes_zero"] is True


def test_a_large_drop_on_one_place_raises_an_alarm_for_the_policy_alone() -> None:
    column = values(1, indiana=0.1)
    result = run(
        {"a": {"bleu2": column}, "b": {"bleu2": values(2)}, "c": {"bleu2": column}}, kinds={"c": "baseline"}
    )
    assert alarms(result) == [("large_drop", "a")]
    (only,) = result["alarms"]
    assert "iu_xray, indiana" in only["sentence"]
    assert only["value"] > only["limit"] == LARGE_DROP


def test_the_worst_is_one_of_radcliq_and_its_like_and_no_single_category_of_errors() -> None:
    parts = ("bleu2", "bertscore", "sembscore", "radgraph")
    columns = {name: values(at, summit=0.06) for at, name in enumerate(parts)}
    columns["errors_omission"] = -values(9, summit=0.5)
    result = run({"a": columns})
    drops = group(result, **SUMMIT)["drops"]["a"]
    assert {*parts, "radcliq_v1"} <= set(drops)
    assert "errors_omission" not in drops
    assert drops["radcliq_v1"]["in_sd"] > max(drops[name]["in_sd"] for name in parts)
    (only,) = result["alarms"]
    assert "RadCliQ-v1" in only["sentence"]


def test_alike_places_raise_none() -> None:
    assert alarms(run({"a": {"bleu2": values(1)}, "b": {"bleu2": values(2)}})) == []


def test_systems_are_marked_by_what_is_known_of_their_lineage() -> None:
    checked = Unseen(PLACES, ("cohort 1",), (), ())
    lost = Unseen(PLACES, (), (), ("sft 2",))
    claimed = replace(checked, claimed=True)
    result = run(
        {name: {"bleu2": values(1)} for name in ("ours", "lost", "claimed", "file", "copy-prior")},
        {"ours": checked, "lost": lost, "claimed": claimed},
        kinds={"copy-prior": "baseline"},
    )
    assert {name: each["status"] for name, each in result["lineage"].items()} == {
        **{"ours": "checked", "lost": "unknown", "claimed": "claimed", "file": "unknown"},
        "copy-prior": "baseline",
    }
    assert result["lineage"]["claimed"]["sentence"].startswith("checkpoint as claimed")
    assert alarms(result) == [("unknown lineage", "lost"), ("unknown lineage", "file")]
    assert result["lineage"]["file"]["sentence"].startswith("lineage unknown")
    assert set(group(result, **SUMMIT)["values"]) == {"ours", "lost", "claimed", "file", "copy-prior"}


def test_a_lineage_checked_for_other_places_is_no_check() -> None:
    with pytest.raises(ValueError, match="was not checked for indiana"):
        run({"ours": {"bleu2": 0.5}}, {"ours": Unseen(("summit", "iu_xray"), (), (), ())})


def test_missing_scores_are_counted_and_small_places_too_small() -> None:
    column = values(1)
    column[120:130] = np.nan
    studies = [*STUDIES, *archive(8, split="zero_shot", corpus="tiny", institution="hut")]
    scores = made(studies, {"a": {"bleu2": np.append(column, np.full(8, 0.5))}})
    result = zero_shot(scores, ["summit"], {}, resamples=300)
    record = group(result, **SUMMIT)["values"]["a"]["bleu2"]
    assert (record["n"], record["missing"]) == (70, 10)
    hut = group(result, split="zero_shot", corpus="tiny", institution="hut")
    assert hut["too_small"] is True
    assert "values" not in hut


def test_without_a_test_set_there_are_means_and_no_drop() -> None:
    scores = made(STUDIES[120:], {"a": {"bleu2": values(1)[120:]}})
    found = group(zero_shot(scores, ["summit"], {}, resamples=300), **SUMMIT)
    assert found["values"]["a"]["bleu2"]["n"] == 80
    assert "drops" not in found
