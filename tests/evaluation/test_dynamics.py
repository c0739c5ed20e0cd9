"""The suite of training dynamics: curves as logged, ablations over their recipe, an alarm for each fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from tests.evaluation.tables import scored, spread, visits
from unirg.errors import UserError
from unirg.evaluation.dynamics import ALARMS, MARGINS, dynamics
from unirg.evaluation.report.plots import running_mean
from unirg.training.alarms import Alarms

STEPS = 40
Log = list[dict[str, Any]]


def log(studies: int = 64, **changes: Callable[[int], float]) -> Log:
    """A healthy RL run that is validated every tenth step, but for the entries given as functions of it."""
    found: Log = []
    for step in range(1, STEPS + 1):
        row: dict[str, Any] = {
            **{"step": step, "loss": 0.1, "reward": 0.3 + step / 100, "entropy": 0.6, "length/mean": 50.0},
            **{"rewards/bertscore/mean": 0.3 + step / 200, "rewards/errors/mean": 0.2, "learning_rate": 1e-5},
        }
        found.append(row | {k: f(step) for k, f in changes.items() if k[0] != "V"})
        if step % 10 == 0:
            entry: dict[str, Any] = {
                **{"step": step, "validation/radcliq_v1": 1.2 - step / 100, "validation/missing": 0},
                **{"validation/errors": 3 - step / 40, "validation/studies": studies},
                **{"validation/bertscore": 0.4 + step / 400, "validation/loss": 2 - step / 100},
                **{"validation/asked": 3 * studies, "validation/seconds": 1.0},
            }
            found.append(entry | {f"validation/{k[1:]}": f(step) for k, f in changes.items() if k[0] == "V"})
    return found


def run(histories: Mapping[str, Log], ablations: Mapping[str, str] | None = None, **options: Any) -> Any:
    result = dynamics(histories, ablations, **options)
    json.dumps(result, allow_nan=False)
    return result


def alarms(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(alarm["alarm"], alarm["system"]) for alarm in result["alarms"]]


def curve(result: Mapping[str, Any], name: str, key: str) -> dict[str, Any]:
    (found,) = [each for each in result["curves"] if (each["run"], each["key"]) == (name, key)]
    return found


RUNS = {"whole": log(), "no errors": log(Verrors=lambda step: 3.0), "on bleu": log()}
OF = {"no errors": "whole", "on bleu": "whole"}


def test_healthy_runs_with_their_ablations_raise_no_alarm() -> None:
    result = run(RUNS, OF)
    assert result["alarms"] == []
    assert list(result)[:2] == ["suite", "alarms"]
    assert result["not_logged"] == []
    assert result["ends"] == []


def test_a_curve_is_what_was_logged_and_its_running_mean() -> None:
    result = run({"a": log()})
    found = curve(result, "a", "validation/radcliq_v1")
    assert (found["name"], found["origin"]) == ("radcliq_v1", "validation")
    assert found["steps"] == [10, 20, 30, 40]
    assert found["values"] == pytest.approx([1.1, 1.0, 0.9, 0.8])
    reward = curve(result, "a", "rewards/bertscore/mean")
    assert (reward["name"], reward["origin"], len(reward["steps"])) == ("bertscore", "training", STEPS)
    assert reward["smoothed"] == pytest.approx(running_mean(reward["values"]).tolist(), abs=1e-6)
    keys = {each["key"] for each in result["curves"]}
    assert {"loss", "reward", "entropy", "validation/loss", "validation/errors"} < keys
    assert not {"learning_rate", "validation/seconds", "validation/studies", "validation/asked"} & keys


def test_the_ends_of_a_run_are_told_beside_its_best() -> None:
    bent = log(Vradcliq_v1=lambda step: {10: 1.1, 20: 0.8, 30: 0.82, 40: 0.81}[step])
    record = run({"a": bent})["runs"]["a"]
    assert record["last"]["radcliq_v1"] == {
        **{"first": 1.1, "last": 0.81, "best": 0.8, "best_step": 20, "validations": 4}
    }
    assert record["last"]["bertscore"]["best_step"] == 40
    assert record["last"]["loss"]["best"] == 1.6
    assert (record["steps"], record["validation"], record["of"]) == (
        40,
        {"studies": 64, "missing": 0},
        None,
    )


def test_ablations_are_laid_over_the_recipe_that_they_are_of() -> None:
    histories = {**RUNS, "another": log(), "less": log()}
    figures = run(histories, OF | {"less": "another"})["figures"]
    by = {(each["key"], each["of"]): each for each in figures}
    assert by["validation/radcliq_v1", "whole"] == {
        **{"figure": "2c", "key": "validation/radcliq_v1", "name": "radcliq_v1"},
        **{"higher_is_better": False, "of": "whole", "runs": ["whole", "no errors", "on bleu"]},
    }
    assert by["validation/errors", "another"]["runs"] == ["another", "less"]
    assert by["validation/errors", "another"]["figure"] == "2d"
    assert by["validation/bertscore", "whole"]["figure"] == "2b"
    assert by["rewards/bertscore/mean", "whole"]["figure"] is None
    assert by["validation/loss", "whole"]["figure"] is None
    assert {each["key"] for each in figures[:2]} == {"validation/radcliq_v1", "validation/errors"}


def test_without_ablations_all_runs_lie_over_each_other() -> None:
    figures = run({"a": log(), "b": log()})["figures"]
    assert {each["of"] for each in figures} == {None}
    assert figures[0]["runs"] == ["a", "b"]


def test_a_run_without_a_log_or_a_validation_says_what_is_not_there() -> None:
    plain = [{"step": step, "loss": 1 / step} for step in range(1, 9)]
    result = run({"sft": plain, "empty": []})
    assert [each["key"] for each in result["curves"]] == ["loss"]
    assert result["runs"]["empty"] == {
        **{"of": None, "steps": 0, "validation": None, "raised": [], "last": {}}
    }
    assert [(each["figure"], each["key"]) for each in result["not_logged"]] == [
        ("2c", "validation/radcliq_v1"),
        ("2d", "validation/errors"),
    ]
    assert result["alarms"] == []


# Faults.


def test_every_alarm_of_a_trainer_can_be_told_with_its_limit() -> None:
    settings = Alarms().model_dump()
    for name, told in ALARMS.items():
        assert settings[name] in ("warn", "stop", "off")
        history = log()
        history[20]["alarm/" + name] = 0.5
        (alarm,) = run({"a": history}, limits={"a": settings})["alarms"]
        assert (alarm["alarm"], alarm["system"], alarm["value"]) == (name, "a", 0.5)
        assert alarm["limit"] == settings[told.limit]
        assert alarm["sentence"].startswith("As it was trained, a ")


def test_an_alarm_of_another_version_is_told_by_its_name_and_one_without_a_number_as_null() -> None:
    history = log()
    history[3]["alarm/novel"] = float("inf")
    (alarm,) = run({"a": history})["alarms"]
    assert (alarm["alarm"], alarm["value"], alarm["limit"]) == ("novel", None, None)


@pytest.mark.parametrize("metric", MARGINS)
def test_a_run_that_ends_behind_its_best_is_told_where_that_was(metric: str) -> None:
    change: Any = {f"V{metric}": lambda step: {10: 1.5, 20: 0.5, 30: 0.7, 40: 1.0}[step]}
    (alarm,) = run({"a": log(**change)})["alarms"]
    assert (alarm["alarm"], alarm["value"], alarm["limit"]) == ("past its best", 0.5, MARGINS[metric])
    assert "1.000 after 0.500 at step 20 (lower is better)" in alarm["sentence"]


def test_a_step_back_within_the_margin_is_none() -> None:
    wavers = log(Vradcliq_v1=lambda step: {10: 1.1, 20: 0.8, 30: 0.83, 40: 0.84}[step])
    assert alarms(run({"a": wavers})) == []


def test_a_whole_recipe_that_brings_nothing_is_told_and_an_ablation_may_stagnate() -> None:
    flat = log(Verrors=lambda step: 3.0)
    assert alarms(run({"a": flat})) == [("no progress", "a")]
    assert alarms(run({"a": log(), "b": flat}, {"b": "a"})) == []


def test_a_value_that_is_no_number_is_told_with_its_first_step() -> None:
    broken = log(loss=lambda step: float("nan") if step > 36 else 0.1)
    result = run({"a": broken})
    assert alarms(result) == [("not finite", "a")]
    assert "at 4 steps, the first at step 37" in result["alarms"][0]["sentence"]
    assert len(curve(result, "a", "loss")["steps"]) == 36


def test_many_missing_scores_are_told_and_few_are_not() -> None:
    # 3 scores (RadCliQ-v1, errors, BERTScore) of 64 studies.
    (alarm,) = run({"a": log(Vmissing=lambda step: 20)})["alarms"]
    assert (alarm["alarm"], alarm["value"]) == ("missing scores", round(1 - 20 / 192, 6))
    assert alarms(run({"a": log(Vmissing=lambda step: 9.0)})) == []


def test_a_score_that_no_study_has_counts_among_the_missing() -> None:
    """Of a judge that answers nothing there is no mean, and its scores were asked for all the same."""
    silent = [
        {k: v for k, v in row.items() if k != "validation/errors"} for row in log(Vmissing=lambda step: 64)
    ]
    (alarm,) = run({"a": silent})["alarms"]
    assert (alarm["alarm"], alarm["value"]) == ("missing scores", round(1 - 64 / 192, 6))
    assert "256 of 768 scores are missing" in alarm["sentence"]


def test_significant_errors_stand_beside_all_errors_in_figure_2d() -> None:
    result = run({"a": log(Verrors_significant=lambda step: 1.0)})
    assert {each["key"] for each in result["figures"] if each["figure"] == "2d"} == {
        *("validation/errors", "validation/errors_significant")
    }
    assert run({"a": log()})["not_logged"] == []


def test_runs_validated_on_different_studies_cannot_be_compared() -> None:
    result = run({"a": log(), "b": log(studies=32)}, {"b": "a"})
    assert alarms(result) == [("not comparable", "b")]
    assert (result["alarms"][0]["value"], result["alarms"][0]["limit"]) == (32, 64)


def test_an_ablation_that_is_not_known_or_of_itself_is_refused() -> None:
    with pytest.raises(UserError, match="whom has no training log"):
        run({"a": log()}, {"a": "whom"})
    with pytest.raises(UserError, match="cannot be an ablation of a"):
        run({"a": log()}, {"a": "a"})
    with pytest.raises(UserError, match="cannot be an ablation of b"):
        run({"a": log(), "b": log(), "c": log()}, {"b": "a", "c": "b"})


# The ends, study by study.

STUDIES = visits(30, 2)
NOISE = spread(0.3, 1, len(STUDIES))


def test_the_ends_are_paired_differences_with_intervals() -> None:
    scores = scored(
        STUDIES,
        {"whole": {"bleu2": NOISE + 0.1, "errors": 2.0}, "on bleu": {"bleu2": NOISE + 0.05, "errors": 2.5}},
        ["bleu2"],
    )
    result = run(RUNS, OF, scores=scores, resamples=300)
    (group,) = result["ends"]
    assert (group["split"], group["corpus"], group["studies"], group["patients"]) == (
        *("test", "phantom"),
        *(60, 30),
    )
    (compared,) = group["differences"]
    assert (compared["run"], compared["ablation"]) == ("whole", "on bleu")
    assert compared["metrics"]["bleu2"]["mean"] == pytest.approx(0.05)
    assert compared["metrics"]["bleu2"]["excludes_zero"] is True
    assert compared["metrics"]["errors"]["mean"] == -0.5
    assert result["alarms"] == []
    assert set(result["metrics"]) == set(compared["metrics"])


def test_an_ablation_ahead_of_the_whole_recipe_is_told() -> None:
    systems = {"whole": {"errors": NOISE + 2.5}, "no errors": {"errors": NOISE + 2.0}}
    result = run(RUNS, OF, scores=scored(STUDIES, systems, []), resamples=300)
    (alarm,) = result["alarms"]
    assert (alarm["alarm"], alarm["system"], alarm["value"]) == ("ablation ahead", "whole", 0.5)
    assert alarm["sentence"].startswith("no errors is better than whole, of which it leaves out a part, in ")
    near = {"whole": {"errors": NOISE + spread(0.001, 3, 60)}, "no errors": {"errors": NOISE}}
    assert alarms(run(RUNS, OF, scores=scored(STUDIES, near, []), resamples=300)) == []


def test_too_few_studies_have_no_ends() -> None:
    studies = visits(19, 1)
    systems = {"whole": {"errors": np.arange(19.0) + 9}, "no errors": {"errors": np.arange(19.0)}}
    result = run(RUNS, OF, scores=scored(studies, systems, []))
    assert result["ends"] == [{"split": "test", "corpus": "phantom", "too_small": True}]
    assert result["alarms"] == []
