"""The gate over chosen scores: who passes, which rule fails by how much, and what a look costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.worlds import World
from tests.lifecycle.gate_world import CONFIG, GUARDS, GateWorld, failed, rule
from unirg.artifact import Artifact
from unirg.config import load
from unirg.errors import UserError
from unirg.evaluation.candidates import BASELINES
from unirg.evaluation.evaluate import EvaluateConfig, evaluate
from unirg.lifecycle import gate as gates
from unirg.lifecycle.gate import Side
from unirg.lifecycle.gate_data import Judged, StudySet
from unirg.lifecycle.gate_rules import GateConfig, Guard, GuardsConfig, guarded

BLIND = CONFIG.model_copy(update={"guards": GUARDS.model_copy(update={"condition_margin": None})})
"""Without the guards of conditions, which need labels."""


@pytest.fixture
def world(tmp_path: Path) -> GateWorld:
    return GateWorld(tmp_path / "store")


def pair(world: GateWorld, gain: Any, seed: Any = 1, **more: Any) -> dict[str, Any]:
    """A challenger with a gain in BLEU over a champion, study by study, about noise that has no mean."""
    old = 0.5 + world.noise(0)
    noise = world.noise(seed)
    return {
        "old": world.columns(old),
        "new": world.columns(old + gain + noise - noise.mean(), **more),
    }


# The primary test


def test_a_better_challenger_passes_and_the_verdict_has_the_numbers(world: GateWorld) -> None:
    verdict = world.verdict(world.evaluation(pair(world, 0.1)), BLIND)
    assert verdict["passed"]
    assert failed(verdict) == []
    found = rule(verdict, "superiority over old")
    assert found["estimate"] == pytest.approx(0.1, abs=1e-6)
    assert 0 < found["bound"] < found["estimate"]
    assert found["limit"] == 0
    assert found["failed_by"] is None
    assert found["level"] == BLIND.alpha / BLIND.looks
    assert found["p"] <= found["level"]
    assert (found["studies"], found["patients"]) == (120, 60)
    assert verdict["challenger"] == {"name": "new", "digest": world.side("new").checkpoint.digest}
    assert verdict["champion"]["digest"] == world.side("old").checkpoint.digest
    assert gates.sentences(verdict)[0] == "new passes the gate."


def test_an_equal_challenger_fails_and_the_verdict_says_by_how_much(world: GateWorld) -> None:
    verdict = world.verdict(world.evaluation(pair(world, 0.0)), BLIND)
    assert failed(verdict) == ["superiority over old: bleu2"]
    found = rule(verdict, "superiority")
    assert found["bound"] < 0
    assert found["failed_by"] == pytest.approx(-found["bound"], abs=2e-6)
    lines = gates.sentences(verdict)
    assert lines[0] == "new fails the gate (superiority over old: bleu2): old stays."
    assert f"short by {found['failed_by']:.4f}" in lines[1]
    assert "4 of 5 looks at this test set are left" in lines[-1]


def test_of_a_score_where_less_is_better_less_passes(world: GateWorld) -> None:
    config = BLIND.model_copy(update={"metric": "errors"})
    noise = np.clip(world.noise(1), -0.3, 0.3)
    fewer = pair(world, 0.0, errors=0.5 + noise)
    more = pair(world, 0.0, errors=1.5 + noise)
    assert world.verdict(world.evaluation(fewer), config)["passed"]
    assert "superiority over old: errors" in failed(world.verdict(world.evaluation(more), config))


def test_what_is_not_worse_by_the_margin_passes_as_not_inferior(world: GateWorld) -> None:
    evaluation = world.evaluation(pair(world, -0.005))
    sd = Judged(BLIND, evaluation).spread("old", "bleu2")
    loose = BLIND.model_copy(update={"test": "non_inferiority", "margin": 0.5})
    strict = BLIND.model_copy(update={"test": "non_inferiority", "margin": 0.1})
    passed, short = world.verdict(evaluation, loose), world.verdict(evaluation, strict)
    assert passed["passed"]
    assert not short["passed"]
    assert rule(passed, "non_inferiority")["limit"] == pytest.approx(-0.5 * sd, abs=1e-6)
    assert rule(short, "non_inferiority")["failed_by"] > 0


def test_a_gain_within_the_margin_of_superiority_fails(world: GateWorld) -> None:
    evaluation = world.evaluation(pair(world, 0.1))
    wide = BLIND.model_copy(update={"margin": 2.0})
    assert failed(world.verdict(evaluation, wide)) == ["superiority over old: bleu2"]


def test_without_a_champion_both_baselines_must_be_beaten(world: GateWorld) -> None:
    scores = pair(world, 0.1)
    prior = BASELINES[0]
    low = {name: world.columns(0.3 + world.noise(7)) for name in BASELINES}
    passed = world.verdict(world.evaluation({"new": scores["new"], **low}), BLIND, champion=None)
    assert passed["passed"]
    assert passed["champion"] is None
    assert {each["name"] for each in passed["rules"] if each["kind"] == "primary"} == {
        f"superiority over {name}: bleu2" for name in BASELINES
    }
    high = low | {prior: world.columns(0.9 + world.noise(7))}
    beaten = world.verdict(world.evaluation({"new": scores["new"], **high}), BLIND, champion=None)
    assert failed(beaten) == [f"superiority over {prior}: bleu2"]
    assert "there is still no champion" in beaten["sentence"]
    alone = world.verdict(world.evaluation({"new": scores["new"]}), BLIND, champion=None)
    assert failed(alone) == ["somebody to beat"]


# Harm guards


def test_harm_to_one_subgroup_fails_a_challenger_that_is_better_on_the_whole(world: GateWorld) -> None:
    gain = np.where(world.women, -0.15, 0.45)
    verdict = world.verdict(world.evaluation(pair(world, gain)), BLIND)
    assert rule(verdict, "superiority")["passed"]
    assert "sex female, bleu2" in failed(verdict)
    assert "sex male, bleu2" not in failed(verdict)
    found = rule(verdict, "sex female")
    assert found["bound"] > found["limit"] > 0
    assert found["failed_by"] == pytest.approx(found["bound"] - found["limit"], abs=2e-6)
    assert found["adjusted"] <= GUARDS.alpha
    assert (found["studies"], found["patients"]) == (60, 30)
    assert any("sex female, bleu2: worse by" in line for line in gates.sentences(verdict))


def test_harm_within_the_margin_is_let_pass(world: GateWorld) -> None:
    wide = BLIND.model_copy(update={"guards": BLIND.guards.model_copy(update={"subgroup_margin": 5.0})})
    gain = np.where(world.women, -0.15, 0.45)
    assert world.verdict(world.evaluation(pair(world, gain)), wide)["passed"]


def test_a_condition_that_is_no_longer_told_fails(world: GateWorld) -> None:
    truth = world.states("Pleural Effusion", 0.5)
    same = world.evaluation(pair(world, 0.1), labels={"": truth, "old": truth, "new": truth})
    lost = world.evaluation(pair(world, 0.1), labels={"": truth, "old": truth})
    assert world.verdict(same, CONFIG)["passed"]
    verdict = world.verdict(lost, CONFIG)
    assert failed(verdict) == ["condition Pleural Effusion"]
    assert rule(verdict, "condition Pleural Effusion")["estimate"] == 1  # F1 from 1 to 0


def test_f1_of_a_guard_is_the_difference_of_the_two_systems_f1(world: GateWorld) -> None:
    truth, old, new = (world.states("Edema", share) for share in (0.5, 0.6, 0.4))
    evaluation = world.evaluation(pair(world, 0.1), labels={"": truth, "old": old, "new": new})
    # 60 references; of 72 and 48 statements 60 and 48 agree.
    expected = 2 * 60 / (72 + 60) - 2 * 48 / (48 + 60)
    found = rule(world.verdict(evaluation, CONFIG), "condition Edema")
    assert found["estimate"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "name"),
    [({"errors_significant": 1.5}, "significant errors"), ({"errors": 5.0}, "four errors or more")],
)
def test_more_errors_fail(world: GateWorld, scores: dict[str, float], name: str) -> None:
    assert failed(world.verdict(world.evaluation(pair(world, 0.1, **scores)), BLIND)) == [name]


def test_groups_that_are_too_small_are_not_guarded(world: GateWorld) -> None:
    verdict = world.verdict(world.evaluation(pair(world, 0.1)), BLIND)
    guards = {each["name"] for each in verdict["rules"] if each["kind"] == "guard"}
    assert {"sex female, bleu2", "sex male, bleu2", "institution north, bleu2"} <= guards
    assert not any(name.startswith("race") for name in guards)  # unknown
    assert not any("80 and over" in name for name in guards)


def test_guards_are_corrected_together_by_holm() -> None:
    rng = np.random.default_rng(0)
    people = np.arange(200)
    harms = [0.3, 0.02, 0.0, -0.1]
    guards = [
        Guard(f"g{at}", harm + rng.normal(scale=0.5, size=200), 0.0, "") for at, harm in enumerate(harms)
    ]
    alone = [guarded([each], people, 0.05, 4000, 0)[0] for each in guards]
    together = guarded(guards, people, 0.05, 4000, 0)
    assert together[0].p == alone[0].p
    assert together[0].adjusted == 4 * (alone[0].p or 0)
    assert together[0].level == pytest.approx(0.05 / 4)
    assert together[1].level == pytest.approx(0.05 / 3)  # one was rejected, so three are left
    assert [each.passed for each in together] == [False, True, True, True]
    # The bound tells the same as the corrected test.
    assert all((each.failed_by or 0) > 0 for each in together if not each.passed)
    assert all((each.bound or 0) <= (each.limit or 0) for each in together if each.passed)


def test_more_guards_than_resamples_can_tell_apart_are_refused() -> None:
    guards = [Guard("g", np.arange(20.0), 0.0, "")] * 8
    with pytest.raises(
        UserError, match=r"resamples 100 are too few for 8 guards at 0\.05: raise them to 800"
    ):
        guarded(guards, np.arange(20), 0.05, 100, 0)


# The stage over what `evaluate` writes


def test_the_gate_reads_what_the_evaluation_writes(tmp_path: Path) -> None:
    world = World(tmp_path / "store").fill(30)
    cohort, store = world.cohort(), str(tmp_path / "store")
    sides = {name: Side(name, world.checkpoint(name)) for name in ("good", "poor")}
    predictions: dict[str, Artifact | str] = {
        name: world.predictions(name, cohort, world.answers(right), model=sides[name].checkpoint)
        for name, right in (("good", 1.0), ("poor", 0.2))
    }
    made = evaluate(EvaluateConfig(resamples=200), cohort, predictions, {}, store)
    off = ["guards.metrics=[bleu2]", "guards.significant_margin=null", "guards.four_or_more_margin=null"]
    config = load(GateConfig, "toy/gate", ["metric=bleu2", "resamples=6000", *off])
    up = gates.gate(config, made, sides["good"], sides["poor"], (), store)
    # Answers at random belong to no study in particular, and the suite sanity says so.
    random = gates.gate(config, made, sides["poor"], sides["good"], (), store)
    deaf = config.model_copy(update={"alarms": ()})
    down = gates.gate(deaf, made, sides["poor"], sides["good"], (), store)
    first = gates.gate(config, made, sides["good"], None, (), store)
    assert gates.read(up)["passed"]
    assert gates.read(first)["passed"]
    assert failed(gates.read(random)) == ["no alarm (sanity)"]
    lost = failed(gates.read(down))
    assert "superiority over good: bleu2" in lost
    assert {"institution north, bleu2", "condition Pleural Effusion"} < set(lost)
    inputs = up.manifest.inputs
    assert inputs["challenger"].uri == sides["good"].checkpoint.uri
    assert inputs["champion"].digest == sides["poor"].checkpoint.digest
    assert inputs["evaluation"].digest == made.digest
    studies = Judged(config, made).study_set
    assert len(gates.earlier(store, studies)) == 4
    assert len(studies.studies) == 60


# The first round


def first_round(verdict: dict[str, Any], name: str) -> dict[str, Any]:
    """The rule that failed; nothing was tested, and no alpha spent."""
    assert failed(verdict) == [name]
    assert {each["kind"]: each["passed"] for each in verdict["rules"][-2:]} == {
        "primary": None,
        "guard": None,
    }
    assert verdict["alpha"]["spent"] == 0
    assert verdict["looks"]["left"] == CONFIG.looks
    return rule(verdict, name)


def test_too_few_patients_are_not_tested(world: GateWorld) -> None:
    config = BLIND.model_copy(update={"min_patients": 70})
    found = first_round(
        world.verdict(world.evaluation(pair(world, 0.1)), config), "patients compared with old"
    )
    assert (found["estimate"], found["limit"], found["failed_by"]) == (60, 70, 10)


def test_a_challenger_without_scores_of_many_studies_is_not_tested(world: GateWorld) -> None:
    scores = pair(world, 0.1)
    lacking = np.array(scores["new"]["bleu2"])
    lacking[:3] = np.nan
    evaluation = world.evaluation(scores | {"new": world.columns(lacking)})
    found = first_round(world.verdict(evaluation, BLIND), "unscored studies")
    assert found["estimate"] == 3 / 120
    assert found["failed_by"] == pytest.approx(3 / 120 - 0.01, abs=1e-6)
    assert "new has no bleu2 of 2.5% of the 120 studies" in found["sentence"]


def test_few_missing_scores_are_left_out_on_both_sides(world: GateWorld) -> None:
    scores = pair(world, 0.1)
    for name, at in (("new", 0), ("old", 1)):
        column = np.array(scores[name]["bleu2"])
        column[at] = np.nan
        scores[name] = world.columns(column)
    verdict = world.verdict(world.evaluation(scores), BLIND)
    assert verdict["passed"]
    assert rule(verdict, "superiority")["studies"] == 118


def alarm(system: str | None, name: str = "top") -> dict[str, Any]:
    told = f"{system} gives one and the same report."
    return {"suite": "sanity", "alarm": name, "system": system, "sentence": told}


@pytest.mark.parametrize("system", ["new", None])
def test_an_alarm_about_the_challenger_or_all_fails(world: GateWorld, system: str | None) -> None:
    found = world.verdict(world.evaluation(pair(world, 0.1), alarms=[alarm(system)]), BLIND)
    assert "one and the same report" in first_round(found, "no alarm (sanity)")["sentence"]


def test_an_alarm_about_the_champion_fails_only_where_its_predictions_are_in_doubt(world: GateWorld) -> None:
    collapsed = world.evaluation(pair(world, 0.1), alarms=[alarm("old")])
    doubled = world.evaluation(pair(world, 0.1), alarms=[alarm("old", "two_runs")])
    assert world.verdict(collapsed, BLIND)["passed"]
    assert failed(world.verdict(doubled, BLIND)) == ["no alarm (sanity)"]


def test_a_suite_that_did_not_run_is_no_silence(world: GateWorld) -> None:
    not_run = [{"suite": "sanity", "why": "it was not asked for", "how": "add --suite sanity"}]
    found = first_round(
        world.verdict(world.evaluation(pair(world, 0.1), not_run=not_run), BLIND), "no alarm (sanity)"
    )
    assert found["sentence"] == "Suite sanity did not run: it was not asked for."


@pytest.mark.parametrize(
    ("made", "metric", "said"),
    [
        ({"scorers": "toy scorers"}, "radgraph", "Toy scorers are no basis"),
        ({"judge": "offline-judge"}, "bleu2", "The offline judge is no basis"),
        ({"judge": None}, "bleu2", "No judge counted errors"),
    ],
)
def test_stand_ins_do_not_decide(world: GateWorld, made: dict[str, Any], metric: str, said: str) -> None:
    gain = pair(world, 0.1, radgraph=0.8 + world.noise(3))
    config = BLIND.model_copy(update={"metric": metric})
    evaluation = world.evaluation(gain, **made)
    assert said in first_round(world.verdict(evaluation, config), "same scorers, fit to decide")["sentence"]
    allowed = world.verdict(evaluation, config.model_copy(update={"allow_toy": True}))
    assert allowed["passed"] == (made.get("judge", "") is not None)


def test_two_that_were_asked_differently_are_not_compared(world: GateWorld) -> None:
    evaluation = world.evaluation(pair(world, 0.1), sampled=["new"])
    found = first_round(world.verdict(evaluation, BLIND), "same question")
    assert found["sentence"].startswith("The two were asked differently (temperature)")


def test_toy_scorers_do_not_matter_to_scores_without_a_model(world: GateWorld) -> None:
    evaluation = world.evaluation(pair(world, 0.1), scorers="toy scorers")
    assert world.verdict(evaluation, BLIND)["passed"]


# Looks


def test_the_same_judgement_made_again_is_no_look(world: GateWorld) -> None:
    first = world.judge(world.evaluation(pair(world, 0.0)), BLIND)
    other = world.judge(world.evaluation(pair(world, 0.0, seed=2)), BLIND)
    assert world.judge(world.evaluation(pair(world, 0.0)), BLIND).uri == first.uri
    assert world.judge(world.evaluation(pair(world, 0.0, seed=2)), BLIND).uri == other.uri
    assert gates.read(other)["looks"]["left"] == 3


def test_looks_spend_alpha_until_the_gate_refuses(world: GateWorld) -> None:
    told = []
    for seed in range(1, 7):
        told.append(world.verdict(world.evaluation(pair(world, 0.1 * (seed == 6), seed=seed)), BLIND))
    assert [each["looks"]["left"] for each in told] == [4, 3, 2, 1, 0, 0]
    assert [each["alpha"]["left"] for each in told] == pytest.approx([0.04, 0.03, 0.02, 0.01, 0, 0])
    assert [each["renew_test_set"] for each in told] == [False, False, False, True, True, True]
    refused = told[-1]
    assert failed(refused) == ["looks left"]
    assert refused["alpha"]["spent"] == 0
    assert "renew the test set" in rule(refused, "looks left")["sentence"]
    assert gates.sentences(refused)[-1].startswith("Renew the test set")


def test_other_rules_over_the_same_scores_are_another_look(world: GateWorld) -> None:
    evaluation = world.evaluation(pair(world, 0.0))
    world.verdict(evaluation, BLIND)
    wider = BLIND.model_copy(update={"margin": 0.1})
    assert world.verdict(evaluation, wider)["looks"]["left"] == 3


def test_a_recipe_with_more_looks_does_not_spend_what_is_gone(world: GateWorld) -> None:
    one = BLIND.model_copy(update={"looks": 1})
    world.verdict(world.evaluation(pair(world, 0.0)), one)
    verdict = world.verdict(world.evaluation(pair(world, 0.1, seed=2)), BLIND)
    assert failed(verdict) == ["looks left"]
    assert verdict["alpha"]["left"] == 0


def test_a_test_set_that_grew_a_little_is_the_same_one_and_a_new_one_is_not(world: GateWorld) -> None:
    before = Judged(BLIND, world.evaluation(pair(world, 0.0))).study_set
    world.verdict(world.evaluation(pair(world, 0.0)), BLIND)
    world.grow(4)
    grown = world.evaluation(pair(world, 0.0))
    assert Judged(BLIND, grown).study_set.digest != before.digest
    assert world.verdict(grown, BLIND)["looks"]["left"] == 3
    store = str(world.store)
    assert gates.earlier(store, StudySet(frozenset({"a" * 64}))) == ()
    assert {look.shared for look in gates.earlier(store, before)} == {1.0}
    half = StudySet(frozenset([*sorted(before.studies)[:5], *(f"{at:064d}" for at in range(45))]))
    assert gates.earlier(store, half, 0.1) == ()
    assert len(gates.earlier(store, half, 0.09)) == 2


def test_a_corrected_reference_makes_another_study(world: GateWorld) -> None:
    study = world.ordered[0]
    corrected = study.model_copy(update={"findings": "Another."})
    assert StudySet.of([study], "report").digest != StudySet.of([corrected], "report").digest
    assert StudySet.of([study], "report").digest == StudySet.of([study], "report").digest


def test_the_verdict_is_the_same_wherever_it_is_made(world: GateWorld, tmp_path: Path) -> None:
    again = GateWorld(tmp_path / "elsewhere")
    first = world.judge(world.evaluation(pair(world, 0.05)), BLIND)
    second = again.judge(again.evaluation(pair(again, 0.05)), BLIND)
    assert first.path(gates.FILE).read_bytes() == second.path(gates.FILE).read_bytes()


def test_the_verdict_names_no_patient_and_no_text(world: GateWorld) -> None:
    made = world.judge(world.evaluation(pair(world, np.where(world.women, -0.2, 0.4))), BLIND)
    text = made.path(gates.FILE).read_text() + made.path(gates.STUDIES).read_text()
    assert not any(study.study_id in text or study.patient_id in text for study in world.ordered)
    assert "effusion" not in text.casefold()


# What is refused


def test_a_checkpoint_that_did_not_write_the_predictions_is_refused(world: GateWorld) -> None:
    evaluation = world.evaluation(pair(world, 0.1))
    with pytest.raises(UserError, match="is not the checkpoint that wrote the predictions of new"):
        world.judge(evaluation, BLIND, challenger=Side("new", world.side("other").checkpoint))


def test_predictions_of_a_file_are_refused(world: GateWorld) -> None:
    with pytest.raises(UserError, match="the predictions of new are a file"):
        world.judge(world.evaluation(pair(world, 0.1), files=["new"]), BLIND)


def test_what_the_evaluation_lacks_is_told(world: GateWorld) -> None:
    evaluation = world.evaluation(pair(world, 0.1))
    with pytest.raises(UserError, match=r"has no labels of conditions.*guards\.condition_margin=null"):
        world.judge(evaluation, CONFIG)
    with pytest.raises(UserError, match="has no score radcliq_v1, which the gate's rules need"):
        world.judge(evaluation, BLIND.model_copy(update={"metric": "radcliq_v1"}))
    with pytest.raises(UserError, match=r"newer was not evaluated on split test in .*: it has new, old"):
        world.judge(evaluation, BLIND, challenger=world.side("newer"))
    with pytest.raises(UserError, match="new is both challenger and champion"):
        world.judge(evaluation, BLIND, champion="new")


def test_recipes_that_cannot_hold_their_word_are_refused() -> None:
    with pytest.raises(UserError, match=r"resamples 1000 are too few to tell a level of 0\.00096.*to 5200"):
        load(GateConfig, "paper/gate", ["resamples=1000"])
    with pytest.raises(UserError, match="margin 0 is no margin of non-inferiority"):
        load(GateConfig, "paper/gate", ["test=non_inferiority"])


def test_a_guard_that_is_left_out_needs_no_score() -> None:
    guards = GuardsConfig(subgroup_margin=None, significant_margin=None, four_or_more_margin=None)
    assert GateConfig(metric="bleu2", guards=guards).used == ("bleu2",)
    assert set(load(GateConfig, "paper/gate").used) == {
        "radcliq_v1",
        "radgraph",
        "errors_significant",
        "errors",
    }
