from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import toy
from unirg import prompts
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.scoring.questions import Task, ask, permuted, plan
from unirg.study import Study


def key(study: Study) -> tuple[str, str]:
    return study.corpus, study.study_id


def pictures(messages: list[dict[str, Any]]) -> list[bytes]:
    urls = [part["image_url"]["url"] for part in messages[0]["content"] if part["type"] == "image_url"]
    return [base64.b64decode(url.removeprefix("data:image/png;base64,")) for url in urls]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 100))
def test_permuted_images_are_another_study_s_and_each_is_used_once(visits: list[int], seed: int) -> None:
    studies = [
        Study(corpus="c", study_id=f"{patient}.{visit}", patient_id=f"p{patient}", institution="i")
        for patient, number in enumerate(visits)
        for visit in range(number)
    ]
    if len(studies) == 1:
        with pytest.raises(UserError, match="one study"):
            permuted(studies, seed)
        return
    others = permuted(studies, seed)
    assert sorted(map(key, others)) == sorted(map(key, studies))
    assert all(key(other) != key(study) for other, study in zip(others, studies, strict=True))
    if 2 * max(visits) <= len(studies):
        assert all(other.patient_id != study.patient_id for other, study in zip(others, studies, strict=True))
    assert others == permuted(studies, seed)


def test_permuting_an_empty_split_gives_nothing() -> None:
    assert permuted([], 0) == []


def test_a_plan_holds_the_first_studies_of_each_split_in_order(cohort: Artifact) -> None:
    opened = Cohort.open(cohort)
    tasks = plan(opened, ("zero_shot", "validate", "test"), 4, None)
    assert [task.study.split for task in tasks] == ["zero_shot"] * 4 + ["test"] * 4
    assert [task.key for task in tasks[4:]] == [("toy", f"s{number:05d}") for number in range(4)]
    assert all(task.shown is task.study for task in tasks)


def test_a_limited_permutation_still_draws_on_the_whole_split(cohort: Artifact) -> None:
    tasks = plan(Cohort.open(cohort), ("test",), 5, 1)
    assert len(tasks) == 5
    assert {key(task.shown) for task in tasks} - {task.key for task in tasks}


def test_a_question_is_the_prompt_of_training_with_the_image_inside(cohort: Artifact) -> None:
    opened = Cohort.open(cohort)
    study = opened["s00001"]
    question = ask(opened, Task(study, study), with_priors=False)
    assert pictures(question.messages) == [toy.picture(1)]
    text = prompts.messages(study, "both")[0]["content"][-1]
    assert question.messages[0]["content"][-1] == text
    assert (question.sections, question.with_prior) == ("both", False)


def test_a_study_with_findings_alone_is_asked_for_findings(cohort: Artifact) -> None:
    opened = Cohort.open(cohort)
    study = opened["s00004"]
    assert ask(opened, Task(study, study), with_priors=False).sections == "findings"


def test_the_prior_s_image_comes_first_where_there_is_a_prior(cohort: Artifact) -> None:
    opened = Cohort.open(cohort)
    second, first = opened["s00005"], opened["s00004"]
    question = ask(opened, Task(second, second), with_priors=True)
    assert pictures(question.messages) == [toy.picture(4), toy.picture(5)]
    assert prompts.report(first) in question.messages[0]["content"][-1]["text"]
    assert question.with_prior
    assert not ask(opened, Task(first, first), with_priors=True).with_prior


def test_a_permuted_question_keeps_its_words_and_shows_the_other_s_images(cohort: Artifact) -> None:
    opened = Cohort.open(cohort)
    own, other = opened["s00005"], opened["s00008"]
    asked, plain = (ask(opened, Task(own, shown), with_priors=True) for shown in (other, own))
    assert pictures(asked.messages) == [toy.picture(7), toy.picture(8)]
    assert asked.messages[0]["content"][-1] == plain.messages[0]["content"][-1]
    # A study without a prior lends its one image twice.
    assert pictures(ask(opened, Task(own, opened["s00000"]), True).messages) == [toy.picture(0)] * 2
