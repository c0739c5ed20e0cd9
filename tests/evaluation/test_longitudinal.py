"""The longitudinal suite: cells are the right studies, copy-prior stands beside, each fault has its alarm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.evaluation.tables import scored, spread, visits
from unirg.errors import UserError
from unirg.evaluation.leaderboard import INVERSE
from unirg.evaluation.longitudinal import ENCOUNTERS, encounter, longitudinal
from unirg.evaluation.statistics import holm
from unirg.evaluation.temporal import CATEGORIES, NO_LABELLER, Category, Temporal
from unirg.metrics.judge_questions import BROKEN
from unirg.study import Study

STUDIES = visits(30, 6)
LATER = CATEGORIES[1:]
SEEN = np.array([study.encounter or 0 for study in STUDIES])


def temporal(studies: Sequence[Study] = STUDIES, **fields: Any) -> Temporal:
    """The later studies of a patient go through the categories in turn."""
    found: dict[str, Category] = {}
    for study in studies:
        number = study.encounter or 1
        found[study.study_id] = "first_study" if number == 1 else LATER[number % 4]
    first = sum(category == "first_study" for category in found.values())
    values: dict[str, Any] = {
        **{"categories": found, "missing": {}, "labeller": "a model"},
        "sources": {"order": first, "truth": 0, "labeller": len(found) - first},
    }
    return Temporal(**values | fields)


def healthy(metric: str = "bleu2", sign: float = 1) -> dict[str, dict[str, Any]]:
    """A policy above copy-prior everywhere, the more so with priors."""
    noise = spread(0.3, 1, len(STUDIES))
    return {
        "with": {metric: noise + sign * np.where(SEEN > 1, 0.2, 0.1)},
        "without": {metric: noise + sign * 0.1},
        "copy-prior": {metric: noise + spread(0, 2, len(STUDIES), 0.01)},
    }


PAIRS = [("with", "without")]


def run(
    systems: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = ("bleu2",),
    labels: Temporal | None = None,
    studies: Sequence[Study] = STUDIES,
    **options: Any,
) -> dict[str, Any]:
    scores = scored(studies, systems or healthy(), metrics)
    settings: dict[str, Any] = {"resamples": 300, "pairs": PAIRS}
    result = longitudinal(scores, labels or temporal(studies), **settings | options)
    json.dumps(result, allow_nan=False)
    return result


def cell(result: Mapping[str, Any], by: str, name: str, setting: str = "report") -> dict[str, Any]:
    (group,) = [each for each in result["groups"] if each["setting"] == setting]
    (found,) = [each for each in group["cells"] if (each["by"], each["cell"]) == (by, name)]
    return found


def alarms(result: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    return [(alarm["alarm"], alarm["system"]) for alarm in result["alarms"]]


def test_a_healthy_system_raises_no_alarm() -> None:
    shown = {
        "with": {study.study_id: study.prior_study_id is not None for study in STUDIES},
        "without": dict.fromkeys((study.study_id for study in STUDIES), False),
    }
    result = run(shown=shown)
    assert result["alarms"] == []
    assert list(result)[:2] == ["suite", "alarms"]
    assert result["pairs"] == [{"with": "with", "without": "without", "shown": {"with": 150, "without": 0}}]


def test_cells_are_the_encounters_and_the_categories_with_all_their_studies() -> None:
    result = run()
    (group, _) = result["groups"]
    assert [(each["by"], each["cell"]) for each in group["cells"]] == [
        ("all", "all"),
        ("prior", "with a prior"),
        *(("encounter", name) for name in ENCOUNTERS),
        *(("category", name) for name in CATEGORIES),
    ]
    sizes = {name: cell(result, "encounter", name)["studies"] for name in ENCOUNTERS}
    assert sizes == {"1": 30, "2": 30, "3": 30, "4": 30, "5+": 60}
    assert cell(result, "category", "first_study")["priors"] == 0
    assert cell(result, "prior", "with a prior")["studies"] == 150
    assert cell(result, "all", "all")["patients"] == 30
    assert group["unordered"] == 0


def test_numbers_of_a_cell_are_those_of_its_studies_and_differences_are_study_by_study() -> None:
    systems = healthy()
    result = run(systems)
    found = cell(result, "encounter", "1")
    at = SEEN == 1
    ours, theirs = systems["with"]["bleu2"], systems["copy-prior"]["bleu2"]
    assert found["values"]["with"]["bleu2"]["mean"] == pytest.approx(ours[at].mean(), abs=1e-6)
    against = found["against_copy_prior"]["with"]["bleu2"]
    assert against["mean"] == pytest.approx((ours - theirs)[at].mean(), abs=1e-6)
    # The scores vary ten times as much as the differences.
    assert against["high"] - against["low"] < 0.03
    assert against["excludes_zero"] is True
    assert "copy-prior" not in found["against_copy_prior"]
    (bring,) = found["priors_bring"]
    assert bring["metrics"]["bleu2"]["mean"] == 0
    (bring,) = cell(result, "encounter", "4")["priors_bring"]
    assert bring["metrics"]["bleu2"]["mean"] == pytest.approx(0.1)
    assert cell(result, "category", "first_study")["values"] == found["values"]


def test_a_policy_below_copy_prior_in_one_category_is_alarmed_there_alone() -> None:
    systems = healthy()
    bad = np.array([study.encounter in (3, 7) for study in STUDIES])  # regression
    systems["with"]["bleu2"] = systems["with"]["bleu2"] - np.where(bad, 0.3, 0)
    systems["without"]["bleu2"] = systems["with"]["bleu2"] - 0.01
    result = run(systems, pairs=())
    assert alarms(result) == [("below copy-prior", "with"), ("below copy-prior", "without")]
    (alarm, _) = result["alarms"]
    category = LATER[3 % 4].replace("_", " ")
    assert alarm == {
        **{"suite": "longitudinal", "alarm": "below copy-prior", "system": "with", "limit": 0.0},
        **{"value": pytest.approx(-0.1, abs=0.02)},
        "sentence": "with is worse than repeating the previous report in BLEU-2 (phantom, test; "
        f"{category}).",
    }


def test_below_copy_prior_in_errors_is_above_it_in_their_number() -> None:
    systems = healthy("errors", sign=-1)
    assert alarms(run(systems, metrics=())) == []
    systems["without"]["errors"] = systems["copy-prior"]["errors"] + 1
    result = run(systems, metrics=())
    assert alarms(result) == [("below copy-prior", "without")]
    assert result["lead"] is None


def test_a_difference_by_chance_is_no_alarm() -> None:
    systems = healthy()
    size = len(STUDIES)
    systems["with"]["bleu2"] = systems["copy-prior"]["bleu2"] + spread(-0.001, 5, size)
    systems["without"]["bleu2"] = systems["with"]["bleu2"] + spread(0.001, 6, size)
    assert alarms(run(systems)) == []


def test_p_values_are_corrected_over_the_cells_with_priors_and_no_others() -> None:
    systems = healthy()
    rng = np.random.default_rng(5)
    systems["with"]["bleu2"] = systems["copy-prior"]["bleu2"] + rng.normal(0, 0.1, len(SEEN))
    (group,) = [g for g in run(systems)["groups"] if g["setting"] == "report"]
    cells = [cell["against_copy_prior"]["with"]["bleu2"] | {"by": cell["by"]} for cell in group["cells"]]
    family = [one for one in cells if one["adjusted"] is not None]
    assert len(family) == 5  # all with a prior, and the later categories
    raw = np.array([one["p"] for one in family])
    assert [one["adjusted"] for one in family] == pytest.approx(holm(raw).tolist(), abs=1e-5)
    assert all(one["adjusted"] is None for one in cells if one["by"] == "encounter")


def test_priors_that_do_harm_are_alarmed_though_both_beat_copy_prior() -> None:
    systems = healthy()
    systems["with"]["bleu2"] = systems["without"]["bleu2"] - np.where(SEEN > 1, 0.05, 0)
    (alarm,) = run(systems)["alarms"]
    assert (alarm["alarm"], alarm["system"]) == ("priors hurt", "with")
    assert alarm["value"] == pytest.approx(-0.05)
    assert "with, which is shown priors, is worse than without, which is not" in alarm["sentence"]
    assert "all studies with a prior" in alarm["sentence"]


def test_a_system_that_writes_the_same_with_priors_ignores_them_or_is_the_same_file() -> None:
    scores = scored(STUDIES, healthy(), ["bleu2"])
    first, second, third = scores.systems
    scores.systems = [first, replace(second, texts=first.texts), third]
    (alarm,) = longitudinal(scores, temporal(), PAIRS, resamples=300)["alarms"]
    assert (alarm["alarm"], alarm["value"], alarm["limit"]) == ("priors ignored", 1.0, 0.95)


def test_a_pair_the_wrong_way_round_is_mixed_up() -> None:
    ids = [study.study_id for study in STUDIES]
    shown = {"with": dict.fromkeys(ids, False), "without": dict.fromkeys(ids[:7], True)}
    assert alarms(run(shown=shown)) == [("mixed up", "with"), ("mixed up", "without")]
    # What is not known is no alarm, nor is a corpus without priors.
    assert alarms(run(shown={})) == []
    single = visits(40, 1)
    shown = {name: dict.fromkeys((s.study_id for s in single), False) for name in ("with", "without")}
    flat = {"with": {"bleu2": 0.4}, "without": {"bleu2": 0.4}}
    assert alarms(run(flat, studies=single, shown=shown)) == []


def test_a_labeller_that_disagrees_with_the_truth_is_alarmed() -> None:
    wrong = temporal(confusion={("progression", "progression"): 90, ("progression", "regression"): 10})
    (alarm,) = run(labels=wrong)["alarms"]
    assert (alarm["alarm"], alarm["system"], alarm["value"]) == ("labeller", "a model", 0.9)
    right = temporal(confusion={("progression", "progression"): 96, ("progression", "regression"): 4})
    assert run(labels=right)["alarms"] == []


def test_a_labeller_that_left_many_without_a_category_is_alarmed_and_one_that_nobody_asked_is_not() -> None:
    labels = temporal()
    gone = [study.study_id for study in STUDIES if study.encounter == 2]
    kept = {key: value for key, value in labels.categories.items() if key not in gone}
    fewer = replace(
        labels, categories=kept, missing=dict.fromkeys(gone, BROKEN), sources={"order": 30, "labeller": 120}
    )
    result = run(labels=fewer)
    assert alarms(result) == [("unlabelled", None)]
    assert result["alarms"][0]["value"] == 0.8
    assert result["labels"]["missing"] == {BROKEN: 30}
    assert cell(result, "encounter", "2")["studies"] == 30
    nobody = replace(fewer, missing=dict.fromkeys(gone, NO_LABELLER), labeller=None)
    assert alarms(run(labels=nobody)) == []


def test_small_cells_are_too_small_and_raise_nothing() -> None:
    studies = [study for study in STUDIES if study.encounter != 4 or study.patient_id < "p2"]
    keep = [study in studies for study in STUDIES]
    systems = {name: {"bleu2": columns["bleu2"][keep]} for name, columns in healthy().items()}
    small = np.array([study.encounter == 4 for study in studies])
    systems["with"]["bleu2"] = systems["with"]["bleu2"] - 5 * small
    found = cell(run(systems, studies=studies), "encounter", "4")
    assert found == {
        **{"by": "encounter", "cell": "4", "studies": 12, "patients": 12, "priors": 12, "too_small": True}
    }
    # Many studies of few patients are few.
    few = visits(9, 6)
    result = run({"a": {"bleu2": 0.5}}, studies=few, pairs=())
    assert all(each["too_small"] for group in result["groups"] for each in group["cells"])


def test_missing_scores_are_counted_and_never_filled() -> None:
    systems = healthy()
    systems["with"]["bleu2"] = np.where((SEEN == 2) & (np.arange(len(SEEN)) < 60), np.nan, 0.5)
    found = cell(run(systems), "encounter", "2")
    assert found["values"]["with"]["bleu2"] == {
        **{"mean": 0.5, "low": 0.5, "high": 0.5, "n": 20, "missing": 10}
    }
    assert found["against_copy_prior"]["with"]["bleu2"]["missing"] == 10
    nobody = found["values"]["with"]["errors"]
    assert (nobody["mean"], nobody["n"], nobody["missing"]) == (None, 0, 30)


def test_radcliq_comes_from_its_parts_leads_and_stands_as_its_reciprocal_too() -> None:
    parts = ["radgraph", "bertscore", "sembscore", "bleu2"]
    systems = {
        name: dict.fromkeys(parts, value)
        for name, value in (("good", 0.5), ("bad", 0.2), ("copy-prior", 0.3))
    }
    result = run(systems, metrics=parts, pairs=())
    assert result["lead"] == "radcliq_v1"
    assert result["metrics"][INVERSE] == {"label": "1/RadCliQ-v1", "higher_is_better": True}
    values = cell(result, "category", "progression")["values"]["good"]
    assert values[INVERSE]["mean"] == pytest.approx(1 / values["radcliq_v1"]["mean"], rel=1e-5)
    assert alarms(result) == [("below copy-prior", "bad")]


def test_without_copy_prior_nothing_is_compared_with_it() -> None:
    result = run({"a": {"bleu2": 0.5}}, pairs=())
    assert cell(result, "all", "all")["against_copy_prior"] == {}
    assert result["alarms"] == []


def test_studies_of_unknown_order_are_in_no_encounter_and_counted() -> None:
    studies = [study.model_copy(update={"encounter": None, "prior_study_id": None}) for study in STUDIES]
    labels = replace(temporal(), categories={})
    result = run({"a": {"bleu2": 0.5}}, studies=studies, labels=labels, pairs=())
    assert result["groups"][0]["unordered"] == 180
    assert all(cell(result, "encounter", name)["studies"] == 0 for name in ENCOUNTERS)
    assert cell(result, "all", "all")["values"]["a"]["bleu2"]["mean"] == 0.5


def test_a_pair_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="priors are compared of nobody, which is no system: with"):
        run(pairs=[("nobody", "without")])
    with pytest.raises(UserError, match="with itself"):
        run(pairs=[("with", "with")])


@pytest.mark.parametrize(("number", "name"), [(1, "1"), (4, "4"), (5, "5+"), (12, "5+"), (None, None)])
def test_the_fifth_and_later_encounters_are_one(number: int | None, name: str | None) -> None:
    assert encounter(STUDIES[0].model_copy(update={"encounter": number})) == name


def test_the_same_seed_gives_the_same_bytes_and_no_id_is_in_them() -> None:
    assert json.dumps(run(seed=1)) == json.dumps(run(seed=1))
    assert json.dumps(run(seed=1)) != json.dumps(run(seed=2))
    assert not any(study.study_id in json.dumps(run()) for study in STUDIES)
