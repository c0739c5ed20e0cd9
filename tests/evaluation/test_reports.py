"""The suite of report metrics: ReXrank's aggregation, ranks that are fair to gaps, public boards beside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from unirg.evaluation import scores as scoring
from unirg.evaluation.candidates import SETTINGS, System
from unirg.evaluation.leaderboard import INVERSE, Row
from unirg.evaluation.reports import COVERAGE, reports
from unirg.evaluation.scores import Scores
from unirg.evaluation.statistics import bootstrap
from unirg.metrics.radcliq import radcliq_v1
from unirg.study import Study

ELSEWHERE = ("elsewhere",)
"""Systems that were asked about other studies."""
PARTS = ["radgraph", "bertscore", "sembscore", "bleu2"]
# UniRG-CXR on the findings boards of rajpurkarlab/ReXrank, September 2025.
UNIRG = {
    "rexrank_rexgradient": {"bleu2": 0.291, "bertscore": 0.538, "sembscore": 0.576, "radgraph": 0.298},
    "rexrank_mimic_cxr": {"bleu2": 0.248, "bertscore": 0.493, "sembscore": 0.487, "radgraph": 0.265},
    "rexrank_iu_xray": {"bleu2": 0.265, "bertscore": 0.565, "sembscore": 0.659, "radgraph": 0.286},
    "rexrank_chexpert_plus": {"bleu2": 0.19, "bertscore": 0.428, "sembscore": 0.46, "radgraph": 0.236},
}
SHOWN = {
    **{"rexrank_rexgradient": 1.621, "rexrank_mimic_cxr": 1.217},
    **{"rexrank_iu_xray": 1.977, "rexrank_chexpert_plus": 1.008},
}


def study(number: int, corpus: str = "phantom", split: Any = "test", **texts: Any) -> Study:
    fields: dict[str, Any] = {
        **{"corpus": corpus, "study_id": f"{corpus}-{split}-{number}", "patient_id": f"p{number // 2}"},
        **{"institution": "north", "split": split, "findings": "F", "impression": "I"},
    }
    return Study(**fields | texts)


def made(
    studies: list[Study], metrics: list[str], systems: Mapping[str, Mapping[str, Any]], **kinds: Any
) -> Scores:
    """Scores as given: system -> metric -> number or column; a study has a text where it has a score."""
    known = []
    for name, columns in systems.items():
        some = np.broadcast_to(next(iter(columns.values())), len(studies))
        said = {each.study_id: "x" for each, value in zip(studies, some, strict=True) if not np.isnan(value)}
        texts = {setting: said for setting in SETTINGS}
        asked: frozenset[str] | None = frozenset() if name in ELSEWHERE else None
        known.append(System(name, kinds.get(name, "policy"), texts, {}, "", asked=asked))
    references = {
        "report": [each.findings or each.impression or "" for each in studies],
        "findings": [each.findings or "" for each in studies],
    }
    found = Scores(studies, known, scoring.metrics(metrics, {}), references)  # type: ignore[arg-type]
    for name, columns in systems.items():
        for setting in SETTINGS:
            for metric in found.metrics:
                value = np.broadcast_to(columns.get(metric, np.nan), len(studies)).astype(float)
                found.values[name, setting, metric] = value
    return found


def run(scores: Scores, **options: Any) -> dict[str, Any]:
    result = reports(scores, **{"resamples": 300} | options)
    json.dumps(result, allow_nan=False)
    return result


def group(result: Mapping[str, Any], **wanted: Any) -> dict[str, Any]:
    wanted = {"corpus": "phantom", "split": "test", "setting": "report"} | wanted
    (found,) = [each for each in result["groups"] if all(each[key] == want for key, want in wanted.items())]
    return found


def spread(mean: float, seed: int, size: int = 40) -> np.ndarray:
    """Values around a mean that they have exactly."""
    noise = np.random.default_rng(seed).normal(scale=0.1, size=size)
    return mean + noise - noise.mean()


def order(found: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [(place["rank"], place["system"], place["tied"]) for place in found["order"]]


STUDIES = [study(n) for n in range(40)]


@pytest.mark.parametrize("corpus", UNIRG)
def test_the_public_figure_comes_out_of_studies_with_the_public_means(corpus: str) -> None:
    columns = {name: spread(mean, seed) for seed, (name, mean) in enumerate(UNIRG[corpus].items())}
    scores = made([study(n, corpus) for n in range(40)], PARTS, {"a": columns})
    found = group(run(scores), corpus=corpus)["values"]["a"]
    for metric, mean in UNIRG[corpus].items():
        assert found[metric]["mean"] == pytest.approx(mean, abs=1e-6)
    # The three decimals of the parts leave a little room in the third of the reciprocal.
    assert found[INVERSE]["mean"] == pytest.approx(SHOWN[corpus], rel=0.002)
    assert found[INVERSE]["mean"] == pytest.approx(1 / found["radcliq_v1"]["mean"], rel=1e-5)
    per_study = radcliq_v1(*(columns[name] for name in PARTS))
    assert abs(np.mean(1 / per_study) / SHOWN[corpus] - 1) > 0.01


def test_the_interval_of_the_reciprocal_is_of_the_same_resamples_and_turned_round() -> None:
    values = spread(0.8, 1)
    scores = made(STUDIES, ["radcliq_v1"], {"a": {"radcliq_v1": values}})
    found = group(run(scores, seed=3))["values"]["a"]
    plain = bootstrap(values[:, None], [f"phantom/{each.patient_id}" for each in STUDIES], 300, 3)
    assert found["radcliq_v1"]["low"] == pytest.approx(plain.low[0], abs=1e-6)
    assert found[INVERSE]["low"] == pytest.approx(1 / plain.high[0], abs=1e-6)
    assert found[INVERSE]["high"] == pytest.approx(1 / plain.low[0], abs=1e-6)
    assert found[INVERSE]["low"] < found[INVERSE]["mean"] < found[INVERSE]["high"]


def test_an_interval_that_holds_the_pole_has_no_reciprocal() -> None:
    scores = made(STUDIES, ["radcliq_v1"], {"a": {"radcliq_v1": spread(0.001, 1)}})
    found = group(run(scores))["values"]["a"][INVERSE]
    assert found["mean"] == pytest.approx(1000)
    assert (found["low"], found["high"]) == (None, None)


def test_the_order_follows_radcliq_through_the_pole_and_says_who_is_told_apart() -> None:
    noise = spread(0, 1)
    values = {"perfect": noise - 1.2, "good": noise + 0.6, "same": noise + 0.60001, "poor": spread(1.5, 2)}
    scores = made(STUDIES, ["radcliq_v1"], {name: {"radcliq_v1": column} for name, column in values.items()})
    result = run(scores)
    assert result["order"] == "by 1/RadCliQ-v1, as on ReXrank's site"
    found = group(result)
    assert order(found) == [
        (1, "perfect", []),
        (2, "good", ["same"]),
        (2, "same", ["good"]),
        (4, "poor", []),
    ]
    assert "behind" not in found["order"][0]
    behind = found["order"][1]["behind"]
    assert (behind["system"], behind["metric"]) == ("perfect", "radcliq_v1")
    assert behind["mean"] == pytest.approx(1.8)
    assert behind["excludes_zero"] is True
    assert found["ranks"]["radcliq_v1"]["poor"] == {"rank": 4, "tied": []}


def test_a_place_behind_by_chance_is_not_told_apart() -> None:
    scores = made(
        STUDIES, ["radcliq_v1"], {"a": {"radcliq_v1": spread(0.6, 1)}, "b": {"radcliq_v1": spread(0.605, 2)}}
    )
    last = group(run(scores))["order"][1]
    assert (last["system"], last["rank"]) == ("b", 2)
    assert last["behind"]["excludes_zero"] is False


def test_without_radcliq_the_order_is_the_mean_rank_and_says_so() -> None:
    scores = made(
        STUDIES,
        ["bleu2", "rouge_l"],
        {
            "a": {"bleu2": 0.3, "rouge_l": 0.1},
            "b": {"bleu2": 0.2, "rouge_l": 0.2},
            "c": {"bleu2": 0.1, "rouge_l": 0.05},
        },
    )
    result = run(scores)
    assert result["order"] == "by mean rank over BLEU-2, ROUGE-L: RadCliQ-v1 was not measured"
    assert order(group(result)) == [(1, "a", ["b"]), (1, "b", ["a"]), (3, "c", [])]
    assert INVERSE not in result["metrics"]


def test_a_missing_score_is_counted_and_never_filled() -> None:
    values = np.where(np.arange(40) == 7, np.nan, 0.5)
    scores = made(STUDIES, ["bleu2"], {"a": {"bleu2": values}, "b": {"bleu2": 0.25}})
    found = group(run(scores))
    assert found["values"]["a"]["bleu2"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 39, "missing": 1}
    assert found["values"]["b"]["errors"]["mean"] is None
    assert found["ranks"]["errors"] == {"a": None, "b": None}
    assert found["ranks"]["bleu2"]["a"] == {"rank": 1, "tied": []}


def test_a_system_that_answered_a_few_studies_is_shown_not_ranked_and_alarmed() -> None:
    few = np.where(np.arange(40) < 5, 1.0, np.nan)
    scores = made(STUDIES, ["bleu2"], {"few": {"bleu2": few}, "whole": {"bleu2": 0.2}})
    result = run(scores)
    found = group(result)
    assert found["values"]["few"]["bleu2"]["mean"] == 1
    assert order(found) == [(1, "whole", []), (None, "few", [])]
    assert result["alarms"] == [
        {
            **{"suite": "reports", "alarm": "coverage", "system": "few", "value": 0.125, "limit": COVERAGE},
            "sentence": "few has a report for 12.5% of the studies (phantom, test): its means are over those "
            "alone, and it is not ranked.",
        }
    ]


def test_a_system_that_was_not_asked_about_a_split_is_not_ranked_and_not_alarmed() -> None:
    scores = made(STUDIES, ["bleu2"], {"elsewhere": {"bleu2": np.nan}, "whole": {"bleu2": 0.2}})
    result = run(scores)
    assert order(group(result)) == [(1, "whole", []), (None, "elsewhere", [])]
    assert result["alarms"] == []


@pytest.mark.parametrize("size", [10, 40])
def test_a_system_that_failed_on_every_study_is_alarmed_whatever_the_size(size: int) -> None:
    studies = STUDIES[:size]
    scores = made(studies, ["bleu2"], {"silent": {"bleu2": np.nan}, "whole": {"bleu2": 0.2}})
    (alarm,) = run(scores)["alarms"]
    assert (alarm["alarm"], alarm["system"], alarm["value"]) == ("coverage", "silent", 0)
    assert alarm["sentence"] == (
        "silent has a report for 0.0% of the studies (phantom, test): it has no means."
    )
    assert run(made(studies[:9], ["bleu2"], {"silent": {"bleu2": np.nan}}))["alarms"] == []


def test_the_largest_group_is_told_with_what_a_group_needs() -> None:
    studies = [*(study(n, "one") for n in range(30)), *(study(n, "two") for n in range(8))]
    result = run(made(studies, ["bleu2"], {"a": {"bleu2": 0.5}}), min_group=25)
    assert result["limits"] == {"studies": 25, "patients": 10}
    assert result["largest"] == {"studies": 38, "patients": 19}


def test_a_policy_below_a_baseline_is_alarmed_once_a_corpus() -> None:
    scores = made(
        STUDIES,
        ["bleu2"],
        {"sft": {"bleu2": 0.2}, "grpo": {"bleu2": 0.6}, "copy-prior": {"bleu2": 0.5}},
        **{"copy-prior": "baseline"},
    )
    (alarm,) = run(scores)["alarms"]
    assert (alarm["alarm"], alarm["system"], alarm["value"], alarm["limit"]) == ("baseline", "sft", 3.0, 2.0)
    assert alarm["sentence"] == "sft ranks below copy-prior, which looks at no image (phantom, test)."


def test_groups_are_splits_corpora_and_settings_and_never_mixed() -> None:
    studies = [
        *(study(n, "one") for n in range(30)),
        *(study(n, "two") for n in range(30)),
        *(study(n, "one", "zero_shot") for n in range(30)),
    ]
    column = np.repeat([0.1, 0.3, 0.7], 30)
    result = run(made(studies, ["bleu2"], {"a": {"bleu2": column}}))
    means = {
        (each["split"], each["corpus"], each["setting"]): each["values"]["a"]["bleu2"]["mean"]
        for each in result["groups"]
    }
    assert means == {
        (split, corpus, setting): mean
        for (split, corpus, mean) in [
            *[("test", None, 0.2), ("test", "one", 0.1), ("test", "two", 0.3), ("zero_shot", "one", 0.7)]
        ]
        for setting in SETTINGS
    }
    # Patients of two corpora are two, even where their ids are the same.
    assert group(result, corpus=None)["patients"] == 30


def test_a_study_without_findings_counts_in_its_report_alone() -> None:
    studies = [study(n, findings=None if n < 10 else "F") for n in range(40)]
    result = run(made(studies, ["bleu2"], {"a": {"bleu2": 0.5}}))
    assert group(result)["studies"] == 40
    assert group(result, setting="findings")["studies"] == 30


@pytest.mark.parametrize(
    ("studies", "small"),
    [
        ([study(n) for n in range(19)], True),
        ([study(n) for n in range(20)], False),
        ([study(n % 18).model_copy(update={"study_id": f"s{n}"}) for n in range(40)], True),
    ],
)
def test_small_groups_have_no_numbers(studies: list[Study], small: bool) -> None:
    result = run(made(studies, ["bleu2"], {"elsewhere": {"bleu2": np.nan}, "b": {"bleu2": 0.5}}))
    found = group(result)
    assert ("too_small" in found) is small
    if small:
        assert found == {
            **{"split": "test", "corpus": "phantom", "setting": "report", "too_small": True, "board": None}
        }
        assert result["alarms"] == []


def test_public_boards_stand_beside_their_corpus_without_an_interval() -> None:
    metrics = {**UNIRG["rexrank_iu_xray"], INVERSE: 1.977, "ratescore": 0.69, "green": 0.639}
    row = Row("rexrank_iu_xray", "findings", "UniRG-CXR", "Microsoft Research", "2025", metrics, "2025-09")
    studies = [study(n, "iu_xray") for n in range(40)]
    result = run(made(studies, ["bleu2"], {"a": {"bleu2": 0.5}}), board=[row])
    assert group(result, corpus="iu_xray", setting="findings")["board"] == "rexrank_iu_xray/findings"
    assert group(result, corpus="iu_xray")["board"] is None
    assert result["public"] == {
        "label": "public board, 2025-09; other studies than ours where the cohort is another",
        "boards": {
            "rexrank_iu_xray/findings": {
                **{"corpus": "rexrank_iu_xray", "title": "IU X-ray", "setting": "findings", "studies": 590},
                "rows": [
                    {
                        **{"rank": 1, "model": "UniRG-CXR", "institution": "Microsoft Research"},
                        **{"year": "2025", "metrics": metrics, "agrees": True},
                    }
                ],
            }
        },
    }
    # No public model takes part in our ranks.
    assert {place["system"] for each in result["groups"] for place in each["order"]} == {"a"}


def test_without_boards_nothing_public_is_shown() -> None:
    result = run(made(STUDIES, ["bleu2"], {"a": {"bleu2": 0.5}}))
    assert result["public"]["boards"] == {}


def test_radcliq_that_was_formed_from_its_parts_is_not_absent() -> None:
    columns = {name: 0.5 for name in PARTS}
    missing = {record["metric"] for record in run(made(STUDIES, PARTS, {"a": columns}))["absent"]}
    assert "radcliq_v1" not in missing
    assert {"ratescore", "errors", "radcliq_v0"} <= missing


def test_a_study_that_lacks_a_part_has_no_radcliq() -> None:
    columns: dict[str, Any] = dict.fromkeys(PARTS, 0.5)
    columns["sembscore"] = np.where(np.arange(40) == 0, np.nan, 0.5)
    found = group(run(made(STUDIES, PARTS, {"a": columns})))["values"]["a"]
    assert (found[INVERSE]["n"], found[INVERSE]["missing"]) == (39, 1)
    assert found[INVERSE]["mean"] == pytest.approx(1 / radcliq_v1(0.5, 0.5, 0.5, 0.5), rel=1e-5)


def test_the_same_seed_gives_the_same_bytes() -> None:
    scores = made(STUDIES, PARTS, {"a": {name: spread(0.5, n) for n, name in enumerate(PARTS)}})
    assert json.dumps(run(scores, seed=1)) == json.dumps(run(scores, seed=1))
    assert json.dumps(run(scores, seed=1)) != json.dumps(run(scores, seed=2))


def test_no_system_and_no_study_is_an_empty_suite() -> None:
    assert run(made([], ["bleu2"], {"a": {"bleu2": 0.5}}))["groups"] == []
