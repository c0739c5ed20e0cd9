"""Sanity: every planted collapse and mix-up raises its alarm, and sound reports raise none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.made_scores import alarms, archive, group, made
from tests.evaluation.worlds import World
from unirg.cohort.corpora.phantom import Phantom
from unirg.evaluation import candidates
from unirg.evaluation.candidates import reference
from unirg.evaluation.sanity import cut_at_limit, prior_reports, sanity
from unirg.metrics.pairs import File

STUDIES = [each.model_copy(update={"split": "test"}) for each in Phantom(200, 3).records()]
IDS = [each.study_id for each in STUDIES]
REFERENCES = {each.study_id: reference(each, "report") for each in STUDIES}
CONSTANT = "Findings: The lungs are clear. The heart is normal in size. Impression: No acute disease."


def sound(seed: int = 0, right: float = 0.5) -> dict[str, str]:
    """As a fair model: many reports as the radiologist's, the others another patient's."""
    rng = np.random.default_rng(seed)
    wrong = rng.permutation(IDS)
    return {
        key: REFERENCES[key if rng.random() < right else other] for key, other in zip(IDS, wrong, strict=True)
    }


def run(texts: Mapping[str, Mapping[str, str]], options: Any = None, **more: Any) -> dict[str, Any]:
    return sanity(made(STUDIES, {name: {} for name in texts}, texts, **more), resamples=500, **options or {})


def of(result: dict[str, Any], system: str = "a") -> Any:
    return group(result)["systems"][system]


def changed(share: float, change: Any) -> dict[str, str]:
    """Sound reports of which a share, evenly spread, is changed."""
    step = 1 / share
    return {
        key: change(text) if int((n + 1) / step) > int(n / step) else text
        for n, (key, text) in enumerate(sound().items())
    }


def test_sound_reports_raise_no_alarm() -> None:
    result = run({"a": sound(0), "b": sound(1, 0.3), "perfect": REFERENCES})
    assert alarms(result) == []
    found = of(result, "perfect")
    assert found["candidates"] == found["expected"]
    assert found["own"] == 1
    assert found["fit"]["low"] > 0


def test_a_model_that_repeats_one_report_for_most_studies_raises_an_alarm() -> None:
    result = run({"a": changed(0.6, lambda text: CONSTANT), "b": sound()})
    kinds = alarms(result)
    assert ("top", "a") in kinds
    assert {system for _, system in kinds} == {"a"}
    found = of(result)
    assert found["frequent"][0] == {"count": 120, "share": 0.6, "text": CONSTANT}
    assert found["candidates"]["top"] == 0.6
    (told,) = [each for each in result["alarms"] if each["alarm"] == "top"]
    assert told["value"] > told["limit"]
    assert "60%" in told["sentence"]


def test_a_model_with_a_handful_of_reports_raises_an_alarm_though_none_prevails() -> None:
    few = list(dict.fromkeys(REFERENCES.values()))[:8]
    texts = {key: few[n % 8] for n, key in enumerate(IDS)}
    assert ("repeated", "a") in alarms(run({"a": texts}))


def test_a_model_that_varies_one_report_a_little_raises_an_alarm() -> None:
    texts = {
        key: "Findings: The lungs are well expanded and clear, the heart is normal in size, there is no "
        f"pleural effusion, the trachea is in the middle, mark {n}. Impression: No acute disease."
        for n, key in enumerate(IDS)
    }
    result = run({"a": texts})
    assert ("near", "a") in alarms(result)
    assert of(result)["candidates"]["repeated"] == 0


def test_the_right_reports_of_the_wrong_studies_raise_an_alarm() -> None:
    shifted = dict(zip(IDS, [*list(REFERENCES.values())[77:], *list(REFERENCES.values())[:77]], strict=True))
    result = run({"a": shifted, "b": sound(right=0.3)})
    assert alarms(result) == [("mixed_up", "a")]
    assert of(result)["own"] == pytest.approx(of(result)["other"], abs=0.05)


def test_a_file_with_two_runs_raises_an_alarm(tmp_path: Path) -> None:
    path = tmp_path / "both.jsonl"
    rows = [{"study_id": key, "candidate": text} for run in (sound(0), sound(1)) for key, text in run.items()]
    path.write_text("\n".join(map(json.dumps, rows)))
    system = candidates.of_file("a", File(str(path), repeats=True), STUDIES)
    assert system.doubled == 200
    more = {"doubled": system.doubled, "differing": system.differing}
    result = run({"a": system.texts["report"], "b": sound()}, a=more)
    assert alarms(result) == [("two_runs", "a")]
    assert result["files"]["a"] == more | {"echoed": 0}
    assert result["files"]["b"] == {"doubled": 0, "differing": 0, "echoed": 0}
    assert "200 studies more than once" in result["alarms"][0]["sentence"]


def test_references_that_come_a_second_time_raise_the_alarm_of_two_runs() -> None:
    result = run({"a": sound(0), "b": sound(1)}, a={"echoed": 90})
    assert alarms(result) == [("two_runs", "a")]
    assert "the references of 90 studies come a second time" in result["alarms"][0]["sentence"]


@pytest.mark.parametrize(
    ("kind", "share", "change"),
    [
        ("empty", 0.04, lambda text: ""),
        ("unfinished", 0.2, lambda text: text[: len(text) * 2 // 3].rstrip(". ") + " the"),
        ("section", 0.2, lambda text: text.split(" Impression:")[0]),
        ("length", 1.0, lambda text: text.replace("Impression:", f"{text[10:]} {text[10:]} Impression:")),
        ("length", 1.0, lambda text: " ".join(text.split()[:6]) + " Impression: End."),
    ],
)
def test_each_planted_fault_raises_its_alarm(kind: str, share: float, change: Any) -> None:
    result = run({"a": changed(share, change), "b": sound()})
    assert (kind, "a") in alarms(result)
    assert {system for _, system in alarms(result)} == {"a"}


@pytest.mark.parametrize("change", [lambda text: "", lambda text: text.split(" Impression:")[0]])
def test_a_fault_of_a_single_report_raises_none(change: Any) -> None:
    assert alarms(run({"a": changed(1 / 200, change)})) == []


def test_reports_cut_at_the_token_limit_raise_an_alarm_where_that_is_known() -> None:
    result = run({"a": sound(), "b": sound(), "c": sound()}, {"cut": {"a": IDS[:8], "b": IDS[:4]}})
    assert alarms(result) == [("cut", "a")]
    assert [of(result, name)["cut"] for name in "abc"] == [0.04, 0.02, None]


def test_what_was_cut_is_read_off_the_predictions(tmp_path: Path) -> None:
    world = World(tmp_path / "store").fill(2)
    made_ = world.predictions("a", world.cohort(), world.answers(1))
    assert cut_at_limit(made_) == frozenset()


def test_a_model_that_repeats_the_previous_report_raises_an_alarm() -> None:
    before = {key: f"Findings: Film {n}. Impression: Seen {n}." for n, key in enumerate(IDS[:80])}
    texts = sound() | dict(list(before.items())[:40])
    result = run({"a": texts, "b": sound()}, {"priors": {"report": before}})
    assert ("prior", "a") in alarms(result)
    assert ("prior", "b") not in alarms(result)
    assert of(result)["prior"] == {"studies": 80, "candidates": 0.5, "references": 0}
    assert of(run({"a": sound()}))["prior"] is None


def test_the_previous_report_is_the_prior_studys_in_each_setting() -> None:
    first, second, third = archive(3)
    second = second.model_copy(update={"prior_study_id": first.study_id})
    third = third.model_copy(update={"prior_study_id": "gone"})
    known = {each.study_id: each for each in (first, second, third)}
    assert prior_reports([first, second, third], known) == {
        "report": {second.study_id: "Findings: Finding 0. Impression: Impression 0."},
        "findings": {second.study_id: "Findings: Finding 0."},
    }


def test_studies_that_only_another_system_reports_on_raise_an_alarm() -> None:
    some = {key: text for key, text in sound().items() if key not in IDS[:10]}
    result = run({"a": some, "b": sound()})
    assert alarms(result) == [("uneven", "a")]
    assert result["uneven"] == {
        "a": {"lacking": 10, "studies": 200},
        "b": {"lacking": 0, "studies": 200},
    }
    assert (of(result)["said"], of(result)["missing"]) == (190, 10)


def test_a_split_that_a_system_was_not_asked_about_leaves_its_means_even() -> None:
    studies = [
        each.model_copy(update={"split": "zero_shot" if n % 2 else "test"}) for n, each in enumerate(STUDIES)
    ]
    asked = [each.study_id for each in studies if each.split == "test"]
    texts = sound()
    some = {key: texts[key] for key in asked}
    about = {"asked": frozenset(asked)}
    both = made(studies, {"a": {}, "b": {}}, {"a": some, "b": texts}, a=about)
    result = sanity(both, resamples=200)
    assert ("uneven", "a") not in alarms(result)
    assert result["uneven"] == {
        "a": {"lacking": 0, "studies": 100},
        "b": {"lacking": 0, "studies": 200},
    }
    fewer = made(
        studies, {"a": {}, "b": {}}, {"a": {key: some[key] for key in asked[5:]}, "b": texts}, a=about
    )
    assert sanity(fewer, resamples=200)["uneven"]["a"] == {"lacking": 5, "studies": 100}
    silent = sanity(made(studies, {"a": {}, "b": {}}, {"a": {}, "b": texts}, a=about), resamples=200)
    assert silent["uneven"]["a"] == {"lacking": 100, "studies": 100}
    assert ("uneven", "a") in alarms(silent)


def test_baselines_repeat_themselves_by_design() -> None:
    texts = {"most-frequent-report": dict.fromkeys(IDS, CONSTANT), "a": sound()}
    assert alarms(run(texts, kinds={"most-frequent-report": "baseline"})) == []


def test_no_alarm_holds_text_or_the_id_of_a_study() -> None:
    marked = {key: "Findings: <script>alert</script>" for key in IDS}
    result = run({"a": marked}, {"cut": {"a": IDS}}, a={"doubled": 3, "differing": 2})
    assert len(result["alarms"]) >= 5
    told = " ".join(each["sentence"] for each in result["alarms"])
    assert "script" not in told
    assert not any(key in told for key in IDS)
    assert of(result)["frequent"][0]["text"] == marked[IDS[0]]


def test_a_text_that_one_study_has_is_not_among_the_frequent_ones() -> None:
    texts = {key: f"Findings: Film {n // 2 if n < 4 else n}. Impression: Seen." for n, key in enumerate(IDS)}
    assert [each["count"] for each in of(run({"a": texts}))["frequent"]] == [2, 2]


def test_the_rate_of_the_references_is_over_the_studies_that_have_a_candidate() -> None:
    half = dict(list(sound().items())[:100])
    found = of(run({"a": half}))
    assert found["expected"] != group(run({"a": half}))["references"]
    assert found["said"] == 100


def test_a_system_without_any_candidate_and_a_small_group_have_no_numbers() -> None:
    found = of(run({"a": {}, "b": sound()}))
    assert (found["said"], found["candidates"]["top"], found["fit"]["mean"]) == (0, None, None)
    small = sanity(made(archive(8), {"a": {}}, {"a": dict.fromkeys(IDS, "")}), resamples=300)
    assert group(small)["too_small"] is True
    assert "systems" not in group(small)
    assert small["alarms"] == []


@pytest.mark.parametrize(("text", "kind"), [(CONSTANT, "top"), ("", "empty")])
def test_a_collapse_over_a_small_group_is_told_though_its_numbers_are_not(text: str, kind: str) -> None:
    few = archive(10, patient_id="p1")
    collapsed = dict.fromkeys((each.study_id for each in few), text)
    result = sanity(made(few, {"a": {}, "b": {}}, {"a": collapsed}), resamples=300)
    assert (kind, "a") in alarms(result)
    assert {system for _, system in alarms(result)} == {"a"}
    assert "mixed_up" not in dict(alarms(result))
    assert group(result) == {"split": "test", "corpus": "phantom", "setting": "report", "too_small": True}
    assert all("(phantom, test, 10 studies alone)" in each["sentence"] for each in result["alarms"])
