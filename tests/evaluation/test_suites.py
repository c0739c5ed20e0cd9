"""`suites.json`: every suite of a small phantom cohort, planted faults, and bare prediction files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.worlds import FINDINGS, WRONG, World, bare
from unirg import artifact, cli
from unirg.artifact import Artifact
from unirg.config import Config, load
from unirg.errors import UserError
from unirg.evaluation import aggregates, suites
from unirg.evaluation.conditions import lexicon
from unirg.evaluation.evaluate import EvaluateConfig, evaluate, opened
from unirg.evaluation.suites import LEXICON, SUITES
from unirg.metrics.engine import Engine


def config(**fields: Any) -> EvaluateConfig:
    given: dict[str, Any] = {"resamples": 200, "scores": ("bleu2",), "composite": {"bleu2": 1}}
    return EvaluateConfig(**given | fields)


def run(
    world: World,
    cohort: Artifact,
    predictions: Mapping[str, Artifact | str],
    checkpoints: Mapping[str, Artifact] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    return suites.read(evaluate(config(**settings), cohort, predictions, checkpoints or {}, str(world.store)))


def raised(found: Mapping[str, Any]) -> set[tuple[str, str, str]]:
    return {(each["suite"], each["alarm"], each["system"]) for each in suites.alarms(found)}


def why(found: Mapping[str, Any], suite: str) -> str:
    (one,) = [each for each in found["not_run"] if each["suite"] == suite]
    return f"{one['why']}; {one['how']}"


def exact(world: World) -> dict[str, str]:
    return world.answers(1.0)


def test_every_suite_is_written_for_a_phantom_cohort(world: World, judge_url: str) -> None:
    cohort = world.fill(20).cohort()
    sft, rl = world.checkpoint("sft"), world.checkpoint("rl", steps=8)
    predictions = {
        "rl": world.predictions("rl", cohort, exact(world), model=rl),
        "sft": world.predictions("sft", cohort, world.answers(0.5), model=sft),
    }
    found = run(
        world,
        cohort,
        predictions,
        {"rl": rl, "sft": sft},
        **{"judge_model": "offline-judge", "judge_url": judge_url, "ablations": {"sft": "rl"}},
        **{"prior_pairs": [("rl", "sft")], "regression_pairs": [("sft", "rl")]},
    )
    assert set(found) == {*SUITES, "not_run"}
    assert found["not_run"] == []
    assert all(found[name]["suite"] == name for name in SUITES)
    assert found["errors"]["judge"] == "offline-judge"
    assert found["conditions"]["labeller"] == LEXICON
    assert found["longitudinal"]["labels"]["sources"] == {"order": 40, "truth": 0, "labeller": 40}
    assert found["longitudinal"]["labels"]["labeller"] == "offline-judge"
    assert found["longitudinal"]["pairs"][0]["shown"] == {"rl": 0, "sft": 0}
    assert found["zero_shot"]["held_out"] == ["harbour"]
    assert found["zero_shot"]["lineage"]["rl"]["status"] == "unknown"  # the test's checkpoints have no inputs
    assert list(found["dynamics"]["runs"]) == ["rl", "sft"]
    assert found["dynamics"]["runs"]["sft"]["of"] == "rl"
    assert "sft - rl" in next(g for g in found["subgroups"]["groups"] if "regressions" in g)["regressions"]
    # No prompt of either held a prior; and sft says the reports of other studies.
    assert {("longitudinal", "mixed up", "rl"), ("sanity", "mixed_up", "sft")} <= raised(found)


def test_what_cannot_run_says_why_and_how(world: World) -> None:
    cohort = world.fill(4).cohort()
    world.studies = [study for study in world.studies if study.split != "zero_shot"]
    sft = world.predictions("sft", cohort, exact(world))
    found = run(world, cohort, {"sft": sft}, suites=("all",), condition_labeller="chexbert")
    assert set(found) == {"reports", "longitudinal", "subgroups", "sanity", "not_run"}
    assert "set judge_model and judge_url" in why(found, "errors")
    assert "unirg weights fetch chexbert" in why(found, "conditions")
    assert "hold_out" in why(found, "zero_shot")
    assert "--checkpoint NAME=URI" in why(found, "dynamics")
    some = run(world, cohort, {"sft": sft}, suites=("sanity", "reports"))
    assert set(some) == {"reports", "sanity", "not_run"}
    assert why(some, "errors") == "it was not asked for; add --suite errors"


class Weights(Config):
    """Configuration of an artifact of scorers."""

    source: str = "toy"


@pytest.mark.parametrize(("source", "name"), [("toy", "CheXbert, toy weights"), ("hub", "CheXbert")])
def test_chexbert_reads_the_conditions_where_its_weights_are_given(
    world: World, monkeypatch: pytest.MonkeyPatch, source: str, name: str
) -> None:
    cohort = world.fill(12).cohort()
    sft = world.predictions("sft", cohort, exact(world))
    with artifact.draft(str(world.store), "weights", 1, Weights(source=source), {}) as draft:
        (draft.out / "chexbert").mkdir()
        (draft.out / "chexbert" / "config.json").write_text("{}")
        weights = draft.commit({})
    asked: list[str] = []

    def read(_: Engine, texts: list[str]) -> list[tuple[int, ...]]:
        asked.extend(texts)
        return [tuple(row) for row in lexicon(texts).tolist()]

    monkeypatch.setattr(Engine, "conditions", read)
    settings = config(suites=("conditions",))
    made = evaluate(settings, cohort, {"sft": sft}, {}, str(world.store), weights)
    found = suites.read(made)
    assert found["conditions"]["labeller"] == name
    assert len(set(asked)) == len(asked) > 0
    by_rules = run(world, cohort, {"sft": sft}, suites=("conditions",), condition_labeller="lexicon")
    assert by_rules["conditions"] == found["conditions"] | {"labeller": LEXICON}


def test_a_subgroup_that_got_worse_raises_its_alarm(world: World) -> None:
    for number in range(60):
        name = list(FINDINGS)[number % 4]
        world.add(f"test{number:03d}", "test", name, sex="FM"[number % 2])
    cohort = world.cohort()
    women = {study.study_id for study in world.studies if study.sex == "F"}
    said = exact(world)
    # The champion misses a tenth of all; the challenger likewise, and half of the women on top of it.
    rng = np.random.default_rng(3)
    champion = {key: WRONG if rng.random() < 0.1 else text for key, text in said.items()}
    challenger = {
        key: WRONG if key in women and rng.random() < 0.6 else text for key, text in champion.items()
    }
    predictions = {
        "champion": world.predictions("champion", cohort, champion),
        "challenger": world.predictions("challenger", cohort, challenger),
    }
    pair = [("challenger", "champion")]
    found = run(world, cohort, predictions, regression_pairs=pair, min_group=10, suites=("subgroups",))
    assert ("subgroups", "regression", "challenger") in raised(found)
    assert ("subgroups", "gap", "challenger") in raised(found)
    assert not {one for one in raised(found) if one[2] == "champion"}
    sentences = [each["sentence"] for each in suites.alarms(found)]
    assert any("worse than champion for sex female" in each for each in sentences)


def test_one_report_for_most_studies_and_two_runs_in_a_file_raise_their_alarms(
    world: World, tmp_path: Path
) -> None:
    cohort = world.fill(16).cohort()
    said = exact(world)
    collapsed = {key: WRONG if number % 5 else text for number, (key, text) in enumerate(said.items())}
    other = world.answers(0.3, seed=5)
    rows = [*said.items(), *other.items()]
    (tmp_path / "doubled.csv").write_text(
        "study_id,candidate\n" + "".join(f'{key},"{text}"\n' for key, text in rows)
    )
    predictions: dict[str, Artifact | str] = {
        "sound": world.predictions("sound", cohort, said),
        "collapsed": world.predictions("collapsed", cohort, collapsed),
        "doubled": str(tmp_path / "doubled.csv"),
    }
    found = run(world, cohort, predictions)
    assert ("sanity", "top", "collapsed") in raised(found)
    assert ("sanity", "two_runs", "doubled") in raised(found)
    assert not {one for one in raised(found) if one[0] == "sanity" and one[2] == "sound"}
    assert found["sanity"]["files"]["doubled"]["doubled"] == len(said)


def test_the_truth_of_the_temporal_categories_counts_where_the_cohort_has_it(tmp_path: Path) -> None:
    from unirg.cohort.stage import StageConfig, stage

    store = str(tmp_path)
    cohort = stage(StageConfig(studies=60, size=64, workers=1, hold_out=("summit",)), store)
    found = suites.read(evaluate(config(suites=("longitudinal", "conditions")), cohort, {}, {}, store))
    sources = found["longitudinal"]["labels"]["sources"]
    assert sources["truth"] > 0
    assert sources["labeller"] == 0
    assert found["longitudinal"]["labels"]["missing"] == {}
    assert found["conditions"]["labeller"] == LEXICON


def lineage(world: World, cohort: Artifact, name: str) -> Artifact:
    """A policy that learned from a cohort, behind which stands a published model."""
    from tests.evaluation.worlds import Made

    with artifact.draft(str(world.store), "base", 1, Made(name="published"), {}) as draft:
        base = draft.committed or draft.commit({})
    with artifact.draft(
        str(world.store), "sft", 1, Made(name=name), {"cohort": cohort, "parent": base}
    ) as draft:
        return draft.committed or draft.commit({})


def test_a_policy_that_saw_the_place_is_refused_for_zero_shot_alone(world: World) -> None:
    world.add("train900", "train", "normal", place="harbour")
    seen_cohort = world.cohort()
    world.studies.clear()
    cohort = world.fill(12).cohort()
    good, bad = lineage(world, cohort, "good"), lineage(world, seen_cohort, "bad")
    predictions = {
        "bad": world.predictions("bad", cohort, exact(world), model=bad),
        "bad, sampled": world.predictions("sampled", cohort, exact(world), model=bad),
        "good": world.predictions("good", cohort, exact(world), model=good),
    }
    found = run(world, cohort, predictions, {"good": good, "bad": bad}, suites=("zero_shot", "reports"))
    refused = {each["system"]: each["why"] for each in found["not_run"] if each["suite"] == "zero_shot"}
    assert set(refused) == {"bad", "bad, sampled"}
    assert "harbour is no zero-shot set for this policy" in refused["bad"]
    assert set(found["zero_shot"]["lineage"]) == {"good", "copy-prior", "most-frequent-report"}
    assert found["zero_shot"]["lineage"]["good"]["sentence"].startswith("lineage checked: harbour")
    assert {system for group in found["reports"]["groups"] for system in group["values"]} >= {"bad", "good"}
    alone = run(world, cohort, {"bad": predictions["bad"]}, {"bad": bad}, suites=("zero_shot",))
    assert "zero_shot" not in alone
    assert any(each["why"].startswith("every policy has learned") for each in alone["not_run"])
    # Its own digest leads to the model, whether or not anybody names the checkpoint.
    unnamed = run(world, cohort, {"bad": predictions["bad"]}, suites=("zero_shot",))
    assert [each for each in unnamed["not_run"] if each["suite"] == "zero_shot"] == [
        each for each in alone["not_run"] if each["suite"] == "zero_shot"
    ]
    assert str(world.store) not in json.dumps(found | unnamed)


def test_a_policy_is_not_refused_where_only_the_unseen_place_is_evaluated(world: World) -> None:
    cohort = world.fill(12).cohort()
    unseen = {key: text for key, text in exact(world).items() if key.startswith("zero")}
    good = lineage(world, cohort, "good")
    said = world.predictions("good", cohort, unseen, model=good)
    found = run(world, cohort, {"good": said}, {"good": good}, suites=("zero_shot",))
    assert [each for each in found["not_run"] if each["suite"] == "zero_shot"] == []
    assert found["zero_shot"]["held_out"] == ["harbour"]
    assert found["zero_shot"]["lineage"]["good"]["status"] == "checked"


def test_the_checkpoint_of_a_prediction_file_is_shown_as_claimed(world: World, tmp_path: Path) -> None:
    cohort = world.fill(12).cohort()
    good = lineage(world, cohort, "good")
    rows = "".join(f'{key},"{text}"\n' for key, text in exact(world).items())
    (tmp_path / "file.csv").write_text("study_id,candidate\n" + rows)
    given: dict[str, Artifact | str] = {"file": str(tmp_path / "file.csv")}
    found = run(world, cohort, given, {"file": good}, suites=("zero_shot",))["zero_shot"]["lineage"]["file"]
    assert found["status"] == "claimed"
    assert found["sentence"].startswith("checkpoint as claimed")
    nobody = run(world, cohort, given, suites=("zero_shot",))
    assert nobody["zero_shot"]["lineage"]["file"]["status"] == "unknown"
    assert ("zero_shot", "unknown lineage", "file") in raised(nobody)


def test_two_bare_prediction_files_run_without_a_cohort_or_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = bare(tmp_path)
    named = [part for name, uri in given.items() for part in ("--predictions", f"{name}={uri}")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", *named, "resamples=200", "--store", str(tmp_path / "store")])
    out, err = capsys.readouterr()
    assert ended.value.code == 0
    made = artifact.open_artifact(out.strip(), "evaluate")
    found, data = suites.read(made), aggregates.read(made)
    assert set(found) == {"reports", "conditions", "sanity", "not_run"}
    means = {
        (value["system"], value["metric"]): value["mean"]
        for value in data["values"]
        if value["setting"] == "report" and value["institution"] is None
    }
    assert means["b", "bleu2"] == means["b", "bleu4"] == means["b", "rouge_l"] == 1
    assert means["a", "rouge_l"] < 0.8
    assert "no cohort was named" in data["notes"][0]
    assert "evaluate: no cohort was named" in err
    assert "longitudinal did not run" in err
    assert "--cohort" in err
    for label, weights in (("BERTScore was", "bertscore"), ("RadGraph-F1, complete were", "radgraph")):
        assert f"{label} not computed: it needs the weights of {weights}; run unirg weights fetch" in err
    assert "were not computed: no judge counted errors; set judge_url" in err
    remedies = [line.rpartition("; ")[2] for line in err.splitlines() if "not computed" in line]
    assert len(set(remedies)) == len(remedies)
    assert "the suites show no means" not in err


def test_an_evaluation_that_is_too_small_says_so_and_shows_a_collapse_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "few.csv"
    rows = [f"s{n},{WRONG},Findings: Mass of {n} mm.,p{n // 2}\n" for n in range(12)]
    path.write_text("study_id,candidate,reference,patient_id\n" + "".join(rows))
    made = evaluate(config(), None, {"few": str(path)}, {}, str(tmp_path / "store"))
    found = suites.read(made)
    assert suites.missing(found)[0] == (
        "the suites show no means: the largest group has 12 studies of 6 patients, and 20 of 10 are needed; "
        "evaluate more studies, or set min_group lower where the patients suffice"
    )
    assert ("sanity", "top", "few") in raised(found)
    alone = suites.read(
        evaluate(config(suites=("sanity",)), None, {"few": str(path)}, {}, str(tmp_path / "b"))
    )
    (line,) = suites.missing(alone)
    assert line.startswith(
        "reports, errors, conditions, longitudinal, zero_shot, subgroups, dynamics did not"
    )


def test_a_second_run_under_other_ids_is_told_on_the_terminal_where_there_is_a_cohort(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = world.fill(4).cohort()
    path = tmp_path / "both.csv"
    rows = [f'{run}{key},"{text}"\n' for run in ("", "run2_") for key, text in exact(world).items()]
    path.write_text("study_id,candidate\n" + "".join(rows))
    named = ["--cohort", cohort.uri, "--predictions", f"both={path}", "--suite", "reports"]
    with pytest.raises(SystemExit):
        cli.main(["evaluate", *named, "resamples=100", "--store", str(world.store)])
    assert "evaluate: both: 16 studies of its file are not evaluated here" in capsys.readouterr().err


def test_files_of_a_public_corpus_stand_beside_its_board(world: World, tmp_path: Path) -> None:
    (tmp_path / "boards_2025-09").mkdir()
    board = tmp_path / "boards_2025-09" / "result_iuxray.csv"
    board.write_text("Model Name,Institution,Date,BLEU\nTheirs,There,2025,0.2\n")
    given = bare(tmp_path)
    settings = config(suites=("reports",), board=str(board.parent), corpus="rexrank_iu_xray")
    found = suites.read(evaluate(settings, None, given, {}, str(world.store)))
    assert {group["corpus"] for group in found["reports"]["groups"]} == {"rexrank_iu_xray"}
    assert any(group["board"] for group in found["reports"]["groups"])
    with pytest.raises(UserError, match="corpus is the cohort's"):
        evaluate(settings, world.fill(2).cohort(), given, {}, str(world.store))


def test_files_are_told_apart_by_their_content_and_bad_sources_are_refused(
    world: World, tmp_path: Path
) -> None:
    given = opened(bare(tmp_path))
    store = str(world.store)
    first = evaluate(config(suites=("reports",)), None, given, {}, store)
    assert evaluate(config(suites=("reports",)), None, given, {}, store) == first
    text = Path(str(given["b"])).read_text().replace("Cardiomegaly", "Normal heart")
    Path(str(given["b"])).write_text(text)
    assert evaluate(config(suites=("reports",)), None, given, {}, store).uri != first.uri
    cohort = world.fill(2).cohort()
    sft = world.predictions("sft", cohort, exact(world))
    with pytest.raises(UserError, match="name it with --cohort"):
        evaluate(config(), None, {"sft": sft}, {}, store)
    with pytest.raises(UserError, match="leave out either"):
        evaluate(config(), cohort, {"sft": sft}, {}, store, references=str(given["b"]))
    with pytest.raises(UserError, match="no file at"):
        evaluate(config(), cohort, {"x": str(tmp_path / "none.csv")}, {}, store)
    with pytest.raises(UserError, match="regression_pairs name stf, which is no system: did you mean sft"):
        evaluate(config(regression_pairs=[("stf", "copy-prior")]), cohort, {"sft": sft}, {}, store)
    with pytest.raises(UserError, match="ablations name sft, which has no checkpoint"):
        evaluate(config(ablations={"sft": "rl"}), cohort, {"sft": sft}, {}, store)
    base = lineage(world, cohort, "without a log")
    untrained = {"sft": world.predictions("x", cohort, exact(world), model=base)}
    with pytest.raises(UserError, match="ablations name sft, whose checkpoint has no training log"):
        evaluate(config(ablations={"sft": "rl"}), cohort, untrained, {"sft": base}, store)
    with pytest.raises(UserError, match="b is an ablation itself"):
        load(EvaluateConfig, None, ["ablations={a: b, b: c}"])
    with pytest.raises(UserError, match="prior_pairs compare a with itself"):
        load(EvaluateConfig, None, ["prior_pairs=[[a, a]]"])
    with pytest.raises(UserError, match="suites"):
        load(EvaluateConfig, None, ["suites=[sanitary]"])


def test_a_public_board_stands_beside_and_counts(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "boards_2025-09"
    folder.mkdir()
    (folder / "result_iuxray.csv").write_text("Model Name,Institution,Date,BLEU\nTheirs,There,2025,0.2\n")
    cohort = world.fill(2).cohort()
    store = str(world.store)
    without = evaluate(config(suites=("reports",)), cohort, {}, {}, store)
    beside = evaluate(config(suites=("reports",), board=str(folder)), cohort, {}, {}, store)
    assert beside.uri != without.uri
    (board,) = suites.read(beside)["reports"]["public"]["boards"].values()
    assert [row["model"] for row in board["rows"]] == ["Theirs"]
