"""Subgroups: who is in which, gaps and regressions that were planted, and healthy data without alarm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.made_scores import alarms, group, made, study
from unirg.evaluation.statistics import bootstrap, gaps, holm, randomisation
from unirg.evaluation.subgroups import ATTRIBUTES, MIN_EFFECT, subgroups
from unirg.study import Image, Study


def one(**fields: Any) -> Study:
    return study(0, **fields)


def person(number: int) -> dict[str, Any]:
    """What patient `number` is, the same in both studies; every attribute independent of the others."""
    rng = np.random.default_rng(number)
    return {
        "sex": str(rng.choice(["F", "M"])),
        "age": int(rng.choice([10, 30, 50, 70])),
        "race": str(rng.choice(["White", "Black or African American", "Asian"])),
        "institution": str(rng.choice(["north", "south"])),
        "images": (Image(view="frontal", projection=rng.choice(["AP", "PA"])),),
    }


STUDIES = [study(n, **person(n // 2)) for n in range(400)]
MALE = np.array([each.sex == "M" for each in STUDIES])
BLACK = np.array([each.race == "Black or African American" for each in STUDIES])


def values(seed: int, low: Any = False, by: float = 0.0) -> np.ndarray:
    """A score with what is common to a patient's studies; `low` rows are lower."""
    rng = np.random.default_rng(seed)
    found = rng.normal(0.5, 0.08, 200).repeat(2) + rng.normal(0, 0.06, 400)
    return found - by * np.broadcast_to(low, 400)


def run(systems: Any, pairs: Any = (), studies: Any = STUDIES, **options: Any) -> dict[str, Any]:
    return subgroups(
        made(studies, systems, **options), pairs, list(next(iter(systems.values()))), resamples=2000
    )


def level(result: dict[str, Any], attribute: str, name: str) -> Any:
    return group(result)["attributes"][attribute]["levels"][name]


@pytest.mark.parametrize(
    ("attribute", "fields", "expected"),
    [
        ("sex", {"sex": "F"}, "female"),
        ("sex", {"sex": "O"}, "other"),
        ("sex", {}, "unknown"),
        ("age", {"age": 0}, "0-17"),
        ("age", {"age": 17}, "0-17"),
        ("age", {"age": 18}, "18-39"),
        ("age", {"age": 64}, "40-64"),
        ("age", {"age": 65}, "65-79"),
        ("age", {"age": 80}, "80 and over"),
        ("age", {"age": 120}, "80 and over"),
        ("age", {}, "unknown"),
        ("race", {"race": "WHITE - RUSSIAN"}, "white"),
        ("race", {"race": "White, non-Hispanic"}, "white"),
        ("race", {"race": "White, Not Hispanic or Latino"}, "white"),
        ("race", {"race": "White, Non Hispanic"}, "white"),
        ("race", {"race": "Not Hispanic/Latino"}, "unknown"),
        ("race", {"race": "White, Hispanic"}, "hispanic"),
        ("race", {"race": "Caucasian"}, "white"),
        ("race", {"race": "White or Caucasian"}, "white"),
        ("race", {"race": "Patient Refused"}, "unknown"),
        ("race", {"race": "Declines to State"}, "unknown"),
        ("race", {"race": "Race and Ethnicity Unknown"}, "unknown"),
        ("race", {"race": "UNABLE TO OBTAIN"}, "unknown"),
        ("race", {"race": "HISPANIC/LATINO - PUERTO RICAN"}, "hispanic"),
        ("race", {"race": "BLACK/CAPE VERDEAN"}, "black"),
        ("race", {"race": "Asian - ASIAN INDIAN"}, "asian"),
        ("race", {"race": "AMERICAN INDIAN/ALASKA NATIVE"}, "native american"),
        ("race", {"race": "NATIVE HAWAIIAN OR OTHER PACIFIC ISLANDER"}, "pacific islander"),
        ("race", {"race": "Other"}, "other"),
        ("race", {}, "unknown"),
        ("view", {"images": (Image(view="frontal", projection="AP"),)}, "AP"),
        ("view", {"images": (Image(view="lateral"), Image(view="frontal", projection="PA"))}, "PA"),
        ("view", {"images": (Image(view="frontal"),)}, "unknown"),
        ("view", {"images": (Image(view="lateral"),)}, "lateral"),
        ("view", {}, "unknown"),
        ("institution", {"institution": "south"}, "south"),
    ],
)
def test_a_study_is_in_the_group_that_a_reader_expects(
    attribute: str, fields: dict[str, Any], expected: str
) -> None:
    assert ATTRIBUTES[attribute](one(**fields)) == expected


@given(st.one_of(st.none(), st.integers(0, 120)), st.text(st.characters(codec="utf-8"), max_size=40))
def test_every_study_is_in_a_group_of_each_attribute(age: int | None, race: str) -> None:
    assert all(each(one(age=age, race=race)) for each in ATTRIBUTES.values())


def test_each_group_has_its_mean_its_quartiles_and_its_gap_to_the_best() -> None:
    column = values(1, MALE, by=0.02)
    result = run({"a": {"bleu2": column}})
    people = [f"phantom/{each.patient_id}" for each in STUDIES]
    found = gaps(column[:, None], np.where(MALE, "male", "female").tolist(), people, [True], 2000, 0)
    male, female = (level(result, "sex", name)["values"]["a"]["bleu2"] for name in ("male", "female"))
    assert (female["best"], female["gap"]) == (True, None)
    assert male["gap"]["gap"] == pytest.approx(column[MALE].mean() - column[~MALE].mean(), abs=1e-6)
    for key in ("low", "high", "p"):
        assert male["gap"][key] == pytest.approx(getattr(found, key)[1, 0], abs=1e-6)
    assert male["gap"]["in_sd"] == pytest.approx(male["gap"]["gap"] / column.std(ddof=1), abs=1e-5)
    quartiles = np.quantile(column[MALE], [0, 0.25, 0.5, 0.75, 1])
    assert [male[key] for key in ("min", "q1", "median", "q3", "max")] == pytest.approx(quartiles, abs=1e-6)
    plain = bootstrap(column[MALE, None], np.array(people)[MALE].tolist(), 2000, 0)
    assert (male["low"], male["high"]) == pytest.approx((plain.low[0], plain.high[0]), abs=1e-6)
    assert group(result)["overall"]["a"]["bleu2"]["mean"] == pytest.approx(column.mean(), abs=1e-6)


def test_alike_groups_of_alike_systems_raise_no_alarm() -> None:
    for seed in range(3):
        systems = {"new": {"bleu2": values(seed)}, "old": {"bleu2": values(seed) + values(seed + 50) / 50}}
        assert alarms(run(systems, [("new", "old")])) == []


def test_a_wide_gap_raises_an_alarm_of_its_attribute_alone() -> None:
    result = run({"a": {"bleu2": values(1, BLACK, by=0.1)}, "b": {"bleu2": values(2)}})
    assert alarms(result) == [("gap", "a")]
    (only,) = result["alarms"]
    assert "race black" in only["sentence"]
    assert only["value"] > only["limit"] == MIN_EFFECT


def test_a_gap_of_a_metric_where_lower_is_better_is_found_too() -> None:
    result = run({"a": {"radcliq_v1": -values(1, BLACK, by=0.1)}})
    assert alarms(result) == [("gap", "a")]
    assert level(result, "race", "black")["values"]["a"]["radcliq_v1"]["gap"]["in_sd"] < -MIN_EFFECT


def test_a_gap_that_is_real_and_tiny_raises_none() -> None:
    tiny = np.where(MALE, 0.499, 0.5) + np.tile([0.02, -0.02], 200)
    result = run({"a": {"bleu2": tiny}})
    gap = level(result, "sex", "male")["values"]["a"]["bleu2"]["gap"]
    assert gap["adjusted"] < 0.05
    assert -MIN_EFFECT < gap["in_sd"] < 0
    assert alarms(result) == []


def test_a_planted_regression_in_one_subgroup_of_a_better_system_raises_an_alarm() -> None:
    old = values(1)
    new = old + np.random.default_rng(9).normal(0.03, 0.03, 400)
    new[BLACK] -= 0.08
    assert new.mean() > old.mean()
    result = run({"new": {"bleu2": new}, "old": {"bleu2": old}}, [("new", "old")])
    found = [each for each in result["alarms"] if each["alarm"] == "regression"]
    assert [each["system"] for each in found] == ["new"]
    assert "worse than old for race black" in found[0]["sentence"]
    lost = group(result)["regressions"]["new - old"]["bleu2"]["race"]
    assert lost["black"]["worse"] is True
    assert lost["black"]["mean"] == pytest.approx((new - old)[BLACK].mean(), abs=1e-6)
    assert lost["white"]["worse"] is False


def test_a_regression_of_a_metric_where_lower_is_better_raises_an_alarm() -> None:
    old = values(1)
    new = old + np.random.default_rng(9).normal(-0.03, 0.03, 400)
    new[BLACK] += 0.08
    result = run({"new": {"radcliq_v1": new}, "old": {"radcliq_v1": old}}, [("new", "old")])
    assert ("regression", "new") in alarms(result)


def test_gaps_are_corrected_over_all_pairs_of_groups_of_all_attributes() -> None:
    found = group(run({"a": {"bleu2": values(1)}}))["attributes"]
    shown = [each["values"]["a"]["bleu2"]["gap"] for one in found.values() for each in one["levels"].values()]
    told = [each for each in shown if each is not None]
    adjusted = holm(np.array([each["p"] for each in told]), 1 + 6 + 3 + 1 + 1)
    assert [each["adjusted"] for each in told] == pytest.approx(adjusted, abs=1e-5)


def test_differences_are_corrected_over_all_groups_of_all_attributes() -> None:
    result = run({"new": {"bleu2": values(1)}, "old": {"bleu2": values(2)}}, [("new", "old")])
    found = group(result)["regressions"]["new - old"]["bleu2"]
    every = [each for levels in found.values() for each in levels.values()]
    assert len(every) == 2 + 4 + 3 + 2 + 2
    adjusted = holm(np.array([each["p"] for each in every]))
    assert [each["adjusted"] for each in every] == pytest.approx(adjusted, abs=1e-5)
    people = [f"phantom/{each.patient_id}" for each, kept in zip(STUDIES, MALE, strict=True) if kept]
    difference = (values(1) - values(2))[MALE, None]
    assert found["sex"]["male"]["p"] == pytest.approx(randomisation(difference, people, 2000, 0)[0], abs=1e-6)


def test_a_small_group_has_no_number_and_the_unknown_are_counted_and_not_compared() -> None:
    studies = [
        each.model_copy(update={"sex": "O" if n < 16 else None if n < 80 else each.sex})
        for n, each in enumerate(STUDIES)
    ]
    column = values(1)
    column[:16] = 0.9
    found = group(run({"a": {"bleu2": column}}, studies=studies))["attributes"]["sex"]
    assert found["unknown"] == 64
    assert found["levels"]["other"] == {"too_small": True}
    assert set(found["levels"]) == {"female", "male", "other"}
    assert sum(found["levels"][name]["values"]["a"]["bleu2"]["best"] for name in ("female", "male")) == 1


def test_a_subgroup_of_many_studies_of_few_patients_is_too_small() -> None:
    studies = [study(n, patient_id=f"p{min(n, 60)}", sex="F" if n < 60 else "M") for n in range(120)]
    found = group(run({"a": {"bleu2": values(1)[:120]}}, studies=studies))["attributes"]["sex"]["levels"]
    assert found["male"] == {"too_small": True}
    assert found["female"]["studies"] == 60


def test_missing_scores_are_counted_by_group() -> None:
    column = values(1)
    column[np.flatnonzero(MALE)[:7]] = np.nan
    shown = level(run({"a": {"bleu2": column}}), "sex", "male")["values"]["a"]["bleu2"]
    assert (shown["n"], shown["missing"]) == (int(MALE.sum()) - 7, 7)


def test_baselines_raise_no_alarm_of_gaps() -> None:
    systems = {"copy-prior": {"bleu2": values(1, BLACK, by=0.1)}}
    assert alarms(run(systems, kinds={"copy-prior": "baseline"})) == []


def test_a_pair_that_names_no_system_is_refused() -> None:
    with pytest.raises(ValueError, match="newer is no system"):
        run({"new": {"bleu2": values(1)}}, [("newer", "new")])
