"""The stage `evaluate` over artifacts written by the real writers, judged by the real offline judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.evaluation.worlds import FINDINGS, World
from unirg.artifact import Artifact
from unirg.errors import UserError
from unirg.evaluation import aggregates
from unirg.evaluation.evaluate import EvaluateConfig, evaluate
from unirg.metrics import verdicts
from unirg.metrics.bleu import bleu
from unirg.metrics.chexprompt import Judge, Verdict

FAST = {"resamples": 200}


def config(**fields: Any) -> EvaluateConfig:
    return EvaluateConfig(**FAST | fields)


def judged(judge_url: str, **fields: Any) -> EvaluateConfig:
    return config(judge_model="offline-judge", judge_url=judge_url, **fields)


def run(world: World, settings: EvaluateConfig, cohort: Artifact, **predictions: Artifact) -> dict[str, Any]:
    return aggregates.read(evaluate(settings, cohort, predictions, {}, str(world.store)))


def value(data: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    """The one record of `values` that fits, in all corpora and institutions unless said otherwise."""
    wanted = {"corpus": None, "institution": None, "setting": "report"} | wanted
    (found,) = [v for v in data["values"] if all(v[key] == want for key, want in wanted.items())]
    return found


def test_a_perfect_system_scores_one_and_makes_no_error(world: World, judge_url: str) -> None:
    cohort = world.fill().cohort()
    perfect = world.predictions("perfect", cohort, world.answers(1.0))
    data = run(world, judged(judge_url), cohort, perfect=perfect)
    for metric, expected in {"composite": 1, "bleu2": 1, "rouge_l": 1, "errors": 0}.items():
        found = data["headline"]["perfect"]["test"][metric]
        assert found == {"mean": expected, "low": expected, "high": expected, "n": 24, "missing": 0}


def test_the_number_of_each_study_and_its_mean_agree(world: World, judge_url: str) -> None:
    cohort = world.fill().cohort()
    answers = world.answers(0.5)
    sft = world.predictions("sft", cohort, answers)
    done = evaluate(judged(judge_url), cohort, {"sft": sft}, {}, str(world.store))
    rows = pq.read_table(done.path("scores.parquet")).to_pylist()
    mine = [row for row in rows if row["system"] == "sft" and row["split"] == "test"]
    study = next(study for study in world.studies if study.study_id == mine[0]["study_id"])
    reference = f"Findings: {study.findings} Impression: {study.impression}"
    assert mine[0]["report_bleu2"] == pytest.approx(bleu(answers[study.study_id], reference))
    composite = np.mean(
        [mine[0]["report_bleu2"], mine[0]["report_rouge_l"], 1 / (mine[0]["report_errors"] + 1)]
    )
    assert mine[0]["report_composite"] == pytest.approx(composite)
    mean = np.mean([row["report_errors"] for row in mine])
    assert value(aggregates.read(done), system="sft", split="test", metric="errors")["mean"] == pytest.approx(
        mean, abs=1e-6
    )
    categories = [name for name in rows[0] if name.startswith("report_errors_") and "significant" not in name]
    assert len(categories) == 6
    assert all(sum(row[name] for name in categories) == row["report_errors"] for row in rows)


def test_copy_prior_repeats_the_prior_and_else_says_what_training_says_most(world: World) -> None:
    world.add("train0", "train", "normal")
    world.add("train1", "train", "normal")
    world.add("train2", "train", "effusion")
    world.add("test0", "test", "cardiomegaly", "cardiomegaly")
    world.add("test1", "test", "effusion", "effusion")
    cohort = world.cohort()
    done = evaluate(config(composite={"bleu2": 1}), cohort, {}, {}, str(world.store))
    rows = {(r["system"], r["study_id"]): r for r in pq.read_table(done.path("scores.parquet")).to_pylist()}
    assert rows["copy-prior", "test0-1"]["report_composite"] == pytest.approx(1)
    assert rows["copy-prior", "test0-0"] | {"system": ""} == (
        rows["most-frequent-report", "test0-0"] | {"system": ""}
    )
    notes = {system["name"]: system["note"] for system in aggregates.read(done)["systems"]}
    assert notes["copy-prior"].startswith("2 of 4 studies have a prior report")
    assert notes["most-frequent-report"] == "the commonest training report, which occurs 2 times in 3"


def test_the_most_frequent_report_comes_from_training_alone(world: World) -> None:
    world.add("train0", "train", "effusion")
    for number in range(20):
        world.add(f"test{number}", "test", "normal")
    cohort = world.cohort()
    data = run(world, config(), cohort)
    assert value(data, system="most-frequent-report", split="test", metric="bleu2")["mean"] < 0.5


def test_without_training_studies_the_baselines_are_missing_with_the_reason(world: World) -> None:
    world.add("test0", "test", "normal")
    world.add("test1", "test", "normal", "effusion")
    cohort = world.cohort()
    data = run(world, config(), cohort)
    assert value(data, system="most-frequent-report", split="test", metric="bleu2")["missing"] == 3
    reasons = {(entry["system"], entry["reason"]): entry["studies"] for entry in data["unscored"]}
    assert reasons["copy-prior", "no prior report, and no training report has these sections"] == 2


def test_without_a_judge_its_numbers_are_missing_and_the_rest_is_there(world: World) -> None:
    cohort = world.fill(10).cohort()
    sft = world.predictions("sft", cohort, world.answers(1.0))
    done = evaluate(config(), cohort, {"sft": sft}, {}, str(world.store))
    data = aggregates.read(done)
    assert data["judge"] is None
    assert value(data, system="sft", split="test", metric="errors")["n"] == 0
    assert value(data, system="sft", split="test", metric="errors")["mean"] is None
    assert value(data, system="sft", split="test", metric="composite")["missing"] == 20
    assert value(data, system="sft", split="test", metric="bleu2")["mean"] == 1
    assert data["unscored"] == []
    assert pq.read_table(done.path("scores.parquet"))["report_reason"].unique().to_pylist() == [
        verdicts.NO_JUDGE
    ]


def test_a_judge_named_without_its_address_is_refused(world: World) -> None:
    cohort = world.fill(1).cohort()
    with pytest.raises(UserError, match="judge_url is not set"):
        evaluate(config(judge_model="offline-judge"), cohort, {}, {}, str(world.store))


def test_findings_are_compared_alone_and_only_where_the_reference_has_any(world: World) -> None:
    world.add("train0", "train", "normal")
    for number in range(20):
        world.add(f"test{number}", "test", "effusion")
    world.add("last", "test", "effusion", findings=None)
    cohort = world.cohort()
    text = f"Findings: {FINDINGS['effusion'][0]} Impression: something else"
    sft = world.predictions("sft", cohort, {study.study_id: text for study in world.studies[1:]})
    data = run(world, config(), cohort, sft=sft)
    found = value(data, system="sft", split="test", metric="bleu2", setting="findings")
    assert (found["mean"], found["n"], found["missing"]) == (1, 20, 0)
    assert value(data, system="sft", split="test", metric="bleu2")["n"] == 21


def test_studies_that_one_system_lacks_are_counted_listed_and_kept_out_of_the_comparison(
    world: World,
) -> None:
    cohort = world.fill(10).cohort()
    answers = world.answers(1.0)
    lost = {"test000-0": "HTTP 500", "zero001-1": "no answer in 60 s"}
    a = world.predictions("a", cohort, answers)
    b = world.predictions("b", cohort, {k: v for k, v in answers.items() if k not in lost}, lost)
    data = run(world, config(comparisons=[("a", "b")]), cohort, a=a, b=b)
    assert data["uneven"]["studies"] == 2
    assert data["uneven"]["listed"][0] == {
        **{"study_id": "test000-0", "corpus": "phantom", "split": "test"},
        "missing_in": ["b"],
    }
    assert {"system": "b", "setting": "report", "split": "test", "studies": 1} | {
        "reason": "no prediction: HTTP 500"
    } in data["unscored"]
    assert value(data, system="b", split="test", metric="bleu2")["missing"] == 1
    compared = next(c for c in data["comparisons"] if c["split"] == "test" and c["metric"] == "bleu2")
    assert (compared["n"], compared["missing"], compared["difference"]) == (19, 1, 0)


def test_a_part_of_a_split_that_is_too_small_has_no_number(world: World) -> None:
    for number in range(12):
        place = "north" if number < 11 else "one-patient"
        world.add(f"test{number:02d}", "test", "effusion", "normal", place=place)
    world.add("zero", "zero_shot", "effusion", "normal", place="harbour")
    cohort = world.cohort()
    sft = world.predictions("sft", cohort, world.answers(1.0))
    data = run(world, config(), cohort, sft=sft)
    small = [(g["split"], g["institution"]) for g in data["groups"] if "too_small" in g]
    assert small == [("test", "one-patient"), ("zero_shot", "harbour")]
    for found in data["values"]:
        few = (found["split"], found["institution"]) in small
        assert few or found["institution"] or found["n"] == 0 or found["mean"] is not None
        assert not few or (found["mean"], found["low"], found["high"]) == (None, None, None)
    whole = data["headline"]["sft"]["zero_shot"]["bleu2"]  # what was asked for is answered, with its n
    assert (whole["mean"], whole["n"]) == (1, 2)
    raised = run(world, config(min_group=25), cohort, sft=sft)
    assert {g["institution"] for g in raised["groups"] if "too_small" in g} == {
        "north",
        "one-patient",
        "harbour",
    }


def test_studies_of_a_split_that_a_system_was_not_asked_about_are_not_uneven(world: World) -> None:
    cohort = world.fill(4).cohort()
    answers = world.answers(1.0)
    some = {key: text for key, text in answers.items() if key.startswith("test")}
    a, b = world.predictions("a", cohort, some), world.predictions("b", cohort, answers)
    assert run(world, config(), cohort, a=a, b=b)["uneven"] == {"studies": 0, "listed": []}


def test_studies_that_no_system_was_asked_about_stay_outside(world: World) -> None:
    cohort = world.fill(4).cohort()
    few = dict(list(world.answers(1.0).items())[:3])
    data = run(world, config(), cohort, a=world.predictions("a", cohort, few))
    assert sum(group["studies"] for group in data["groups"] if group["institution"] is None) == 3
    assert value(data, system="copy-prior", split="test", metric="bleu2")["missing"] == 0


def test_a_comparison_says_which_system_is_better(world: World, judge_url: str) -> None:
    cohort = world.fill().cohort()
    good = world.predictions("good", cohort, world.answers(1.0))
    bad = world.predictions("bad", cohort, world.answers(0.0))
    settings = judged(judge_url, comparisons=[("bad", "good"), ("good", "good")], systems=["good", "bad"])
    data = run(world, settings, cohort, good=good, bad=bad)
    said = {(c["a"], c["b"], c["metric"]): c for c in data["comparisons"] if c["split"] == "test"}
    errors = said["bad", "good", "errors"]
    assert errors["low"] > 0
    assert errors["sentence"] == "bad is worse than good: the interval excludes zero."
    assert said["good", "good", "bleu2"]["excludes_zero"] is False
    assert [system["name"] for system in data["systems"]][:2] == ["good", "bad"]


def test_an_empty_split_is_told_as_absent(world: World) -> None:
    world.add("train0", "train", "normal")
    world.add("test0", "test", "effusion")
    cohort = world.cohort()
    data = run(world, config(), cohort)
    assert data["headline"]["copy-prior"]["zero_shot"] is None
    assert {group["split"] for group in data["groups"]} == {"test"}


def test_a_second_evaluation_is_the_first_and_needs_no_judge(world: World, judge_url: str) -> None:
    cohort = world.fill(2).cohort()
    sft = {"sft": world.predictions("sft", cohort, world.answers(0.5))}
    first = evaluate(judged(judge_url), cohort, sft, {}, str(world.store))
    again = evaluate(judged("http://127.0.0.1:9/v1"), cohort, sft, {}, str(world.store))
    assert again == first


def test_a_killed_evaluation_keeps_its_verdicts_and_ends_with_the_same_bytes(
    world: World, judge_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = world.fill(6).cohort()
    sft = {"sft": world.predictions("sft", cohort, world.answers(0.5))}
    monkeypatch.setattr(verdicts, "_CHUNK", 4)
    asked: list[int] = []
    disturbed = True
    real = Judge.score

    def failing(self: Judge, pairs: list[tuple[str, str]]) -> list[Verdict]:
        asked.append(len(pairs))
        if len(asked) == 3 and disturbed:
            raise KeyboardInterrupt
        return real(self, pairs)

    monkeypatch.setattr(Judge, "score", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluate(judged(judge_url), cohort, sft, {}, str(world.store))
    kept = list(world.store.glob(".work/evaluate-*/scratch/scores.sqlite*"))
    assert kept
    assert not any(b"effusion" in file.read_bytes() for file in kept)
    resumed = evaluate(judged(judge_url), cohort, sft, {}, str(world.store))
    total = sum(asked[3:])
    asked.clear()
    disturbed = False
    undisturbed = evaluate(judged(judge_url), cohort, sft, {}, str(tmp_path / "other"))
    assert resumed.digest == undisturbed.digest
    assert total == sum(asked) - 8  # two chunks were kept


def test_what_cannot_be_compared_is_refused(world: World) -> None:
    cohort = world.fill(2).cohort()
    sft = world.predictions("sft", cohort, world.answers(1.0))
    base = world.checkpoint("base")
    store = str(world.store)
    with pytest.raises(UserError, match="belongs to a baseline"):
        evaluate(config(), cohort, {"copy-prior": sft}, {}, store)
    with pytest.raises(UserError, match="did you mean sft"):
        evaluate(config(comparisons=[("stf", "copy-prior")]), cohort, {"sft": sft}, {}, store)
    with pytest.raises(UserError, match="check other"):
        evaluate(config(systems=["sft", "other"]), cohort, {"sft": sft}, {}, store)
    served = world.predictions("base", cohort, world.answers(1.0), model=world.checkpoint("sft"))
    with pytest.raises(UserError, match="is not the one"):
        evaluate(config(), cohort, {"base": served}, {"base": base}, store)
    world.add("late", "test", "normal")
    with pytest.raises(UserError, match="another cohort"):
        evaluate(config(), world.cohort(), {"sft": sft}, {}, store)
    missing = world.predictions("x", world.cohort(), {"nobody": "Findings: none"})
    with pytest.raises(UserError, match="1 studies are not in cohort"):
        evaluate(config(), world.cohort(), {"x": missing}, {}, store)


def test_predictions_with_two_runs_are_evaluated_by_the_first_and_say_so(world: World) -> None:
    cohort = world.fill(2).cohort()
    answers = world.answers(1.0)
    once = evaluate(
        config(), cohort, {"sft": world.predictions("sft", cohort, answers)}, {}, str(world.store)
    )
    doubled = world.predictions("sft", cohort, answers, repeat=2)
    twice = evaluate(config(), cohort, {"sft": doubled}, {}, str(world.store))
    assert pq.read_table(twice.path("scores.parquet")).equals(pq.read_table(once.path("scores.parquet")))
    assert "8 studies have more than one prediction" in aggregates.read(twice)["systems"][0]["note"]
