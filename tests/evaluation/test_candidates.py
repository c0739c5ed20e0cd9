"""Systems by artifact and by prediction file: one rule for all, and two runs in a file are survived."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.canary import CANARY, everything_shown
from tests.evaluation.worlds import World
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.evaluation import candidates
from unirg.study import Study

STUDIES = [
    Study(corpus="phantom", study_id=f"s{n}", patient_id=f"p{n}", institution="north", findings="Clear.")
    for n in range(4)
]
CSV = "study_id,candidate\ns0,Findings: Clear. Impression: Normal.\ns1,Large heart.\ns2,\n"


def written(tmp_path: Path, text: str, name: str = "file.csv") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def submission(rows: Sequence[tuple[str, Any]]) -> str:
    """A ReXrank submission, which may name a study twice."""
    records = (
        f"{json.dumps(study_id)}: {json.dumps({'model_prediction': words, 'section_findings': 'F'})}"
        for study_id, words in rows
    )
    return "{" + ",\n".join(records) + "}"


def test_a_file_becomes_a_system_with_both_settings_and_a_reason_for_each_gap(tmp_path: Path) -> None:
    system = candidates.from_file("other", written(tmp_path, CSV), STUDIES)
    assert (system.name, system.kind) == ("other", "policy")
    assert system.texts["report"] == {
        "s0": "Findings: Clear. Impression: Normal.",
        "s1": "Findings: Large heart.",
        "s2": "",
    }
    assert system.texts["findings"] == {"s0": "Findings: Clear.", "s1": "Findings: Large heart.", "s2": ""}
    assert system.reasons == {"s3": "no prediction: its file has none of this study"}
    assert system.note == (
        "1 of 3 candidates are empty and are scored as that; "
        "1 of 3 candidates have no heading: their whole text counts as findings"
    )
    assert (system.doubled, system.differing) == (0, 0)
    assert system.asked == frozenset({"s0", "s1", "s2"})
    assert system.attempts(STUDIES)
    assert not system.attempts(STUDIES[3:])


@pytest.mark.parametrize("name", ["f.csv", "f.jsonl", "f.json", "list.json"])
def test_every_kind_of_file_gives_the_same_system(tmp_path: Path, name: str) -> None:
    rows = [("s0", "Clear,\n研究 \u202e\u2011."), ("s1", "Large heart.")]
    content = {
        "f.csv": "candidate,study_id\n" + "".join(f'"{words}",{key}\n' for key, words in rows),
        "f.jsonl": "".join(json.dumps({"study_id": key, "candidate": words}) + "\n" for key, words in rows),
        "f.json": submission(rows),
        "list.json": json.dumps([{"study_id": key, "candidate": words} for key, words in rows]),
    }[name]
    system = candidates.from_file("other", written(tmp_path, content, name), STUDIES)
    assert system.texts["report"] == {
        "s0": "Findings: Clear, 研究 \u202e\u2011.",
        "s1": "Findings: Large heart.",
    }


def test_a_file_and_an_artifact_with_the_same_texts_are_the_same_system(world: World, tmp_path: Path) -> None:
    cohort = world.fill(4).cohort()
    answers = world.answers(0.5) | {"test000-0": "", "test000-1": " "}
    lines = "".join(json.dumps({"study_id": k, "candidate": v}) + "\n" for k, v in answers.items())
    studies = candidates.attempted({}, Cohort.open(cohort))
    ours = candidates.policy("a", world.predictions("a", cohort, answers), studies)
    theirs = candidates.from_file("a", written(tmp_path, lines, "f.jsonl"), studies)
    assert ours == theirs


def test_headings_in_capitals_are_headings(tmp_path: Path) -> None:
    text = "study_id,candidate\ns0,FINDINGS: Clear. IMPRESSION: Normal.\n"
    system = candidates.from_file("other", written(tmp_path, text), STUDIES)
    assert system.texts["findings"] == {"s0": "Findings: Clear."}
    assert system.note == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.csv", "study_id,candidate\ns0,One.\ns1,Two.\ns0,One.\ns1,Other.\n"),
        ("heading.csv", "study_id,candidate\ns0,One.\ns1,Two.\nstudy_id,candidate\ns0,One.\ns1,Other.\n"),
        (
            "mark.csv",
            "\ufeffstudy_id,candidate\ns0,One.\ns1,Two.\n\ufeffstudy_id,candidate\ns0,One.\ns1,O.\n",
        ),
        (
            "f.jsonl",
            "".join(f'{{"study_id": "s{n % 2}", "candidate": "{c}."}}\n' for n, c in enumerate("ABAX")),
        ),
        ("keys.json", submission([("s0", "One."), ("s1", "Two."), ("s0", "One."), ("s1", "Other.")])),
        (
            "documents.json",
            submission([("s0", "One."), ("s1", "Two.")])
            + "\n"
            + submission([("s0", "One."), ("s1", "Other.")]),
        ),
    ],
)
def test_two_runs_in_one_file_are_counted_and_the_first_counts(
    tmp_path: Path, name: str, content: str
) -> None:
    system = candidates.from_file("other", written(tmp_path, content, name), STUDIES)
    assert (system.doubled, system.differing) == (2, 1)
    assert system.texts["report"]["s1"] in ("Findings: Two.", "Findings: B.")
    assert system.note.startswith("2 studies have more than one prediction, 1 with different texts")


def test_two_runs_in_an_artifact_are_counted_and_the_first_counts(world: World) -> None:
    cohort = world.fill(4).cohort()
    answers = world.answers(1.0)
    studies = candidates.attempted({}, Cohort.open(cohort))
    once = candidates.policy("a", world.predictions("a", cohort, answers), studies)
    twice = candidates.policy("a", world.predictions("a", cohort, answers, repeat=2), studies)
    assert (twice.doubled, twice.differing) == (len(answers), 0)
    assert twice.texts == once.texts
    assert twice.reasons == once.reasons == {}


def test_studies_that_are_not_evaluated_are_counted(tmp_path: Path) -> None:
    system = candidates.from_file("other", written(tmp_path, CSV + "x1,a\nx2,b\n研究,c\n"), STUDIES)
    assert "3 studies of its file are not evaluated here" in system.note
    assert system.texts["report"].keys() == {"s0", "s1", "s2"}


def test_a_file_of_other_studies_altogether_is_refused_without_its_texts(tmp_path: Path) -> None:
    uri = written(tmp_path, f"study_id,candidate\n{CANARY},{CANARY}\n")
    with pytest.raises(UserError, match="none of the 1 studies") as refused:
        candidates.from_file("other", uri, STUDIES)
    assert uri in str(refused.value)
    assert CANARY not in everything_shown(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("f.csv", f"study_id,text\ns0,{CANARY}\n", "has no column candidate or model_prediction"),
        # A file of references is no system: every score would be perfect.
        ("f.json", '{"s0": {"report": "' + CANARY + '"}}', "has no column candidate"),
        ("f.csv", f"id,candidate\ns0,{CANARY}\n", "row 2 has no study_id"),
        ("f.jsonl", '{"study_id": "s0", "candidate": 3}', "line 1: column candidate holds no text"),
        ("f.json", '{"s0": {"model_prediction": "a", "model_prediction": "' + CANARY + '"}}', "key twice"),
        ("f.json", '[{"study_id": "s0", "study_id": "' + CANARY + '"}]', "key twice"),
        ("f.json", submission([("s0", CANARY)]) + "}", "line 1 is no JSON"),
        ("f.json", "", "has no studies"),
        ("f.json", '{"s0": {"model_prediction": "a"}} 3', "neither a list nor a mapping"),
        ("f.json", "[" * 100_000, "nested too deep"),
    ],
)
def test_a_wrong_file_is_refused_by_place_and_without_its_text(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    with pytest.raises(UserError) as refused:
        candidates.from_file("other", written(tmp_path, content, name), STUDIES)
    assert said in str(refused.value)
    assert CANARY not in everything_shown(refused.value)


@pytest.mark.parametrize("nothing", ['""', '" \\n"', '"nan"', '"Findings: "'])
def test_a_text_without_words_is_a_candidate_that_says_nothing(tmp_path: Path, nothing: str) -> None:
    lines = f'{{"study_id": "s0", "candidate": {nothing}}}\n{{"study_id": "s1", "candidate": "a"}}\n'
    system = candidates.from_file("other", written(tmp_path, lines, "f.jsonl"), STUDIES)
    assert system.texts["report"] == {"s0": "", "s1": "Findings: a"}
    assert "1 of 2 candidates are empty" in system.note


@pytest.mark.parametrize("nothing", ['"candidate": NaN', '"candidate": null', '"other": 1'])
def test_a_study_without_a_text_is_missing_though_it_was_asked(tmp_path: Path, nothing: str) -> None:
    lines = f'{{"study_id": "s0", {nothing}}}\n{{"study_id": "s1", "candidate": "a"}}\n'
    system = candidates.from_file("other", written(tmp_path, lines, "f.jsonl"), STUDIES)
    assert system.texts["report"].keys() == {"s1"}
    assert system.reasons["s0"] == "no prediction: its file has no text of this study"
    assert system.asked == frozenset({"s0", "s1"})


def test_an_artifact_was_asked_about_its_predictions_and_its_failures(world: World) -> None:
    cohort = world.fill(2).cohort()
    studies = candidates.attempted({}, Cohort.open(cohort))
    said, lost = {"test000-0": "", "test000-1": "Findings: Clear."}, {"zero000-0": "HTTP 500"}
    system = candidates.policy("a", world.predictions("a", cohort, said, lost), studies)
    assert system.asked == frozenset({*said, *lost})
    assert system.texts["report"] == said
    assert system.note == "1 of 2 candidates are empty and are scored as that"


def test_half_a_surrogate_pair_becomes_the_mark_of_a_lost_character(tmp_path: Path) -> None:
    lines = '{"study_id": "s0", "candidate": "a \\ud83d b \\ud83d\\ude00"}\n'
    system = candidates.from_file("other", written(tmp_path, lines, "f.jsonl"), STUDIES)
    assert system.texts["report"]["s0"] == "Findings: a \ufffd b \U0001f600"


def test_files_say_which_studies_of_a_cohort_are_evaluated(world: World, tmp_path: Path) -> None:
    cohort = Cohort.open(world.fill(4).cohort())
    uri = written(tmp_path, "study_id,candidate\ntest000-1,a\ntrain001-0,b\nelsewhere,c\n")
    found = candidates.attempted({}, cohort, {"other": uri})
    assert {study.study_id for study in found} == {"test000-1", "train001-0"}
    strangers = written(tmp_path, "study_id,candidate\nelsewhere,c\n", "strangers.csv")
    with pytest.raises(UserError, match=r"other: none of the 1 studies of .*strangers\.csv"):
        candidates.attempted({}, cohort, {"other": strangers})
