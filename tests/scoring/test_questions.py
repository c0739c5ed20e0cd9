from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import toy
from unirg import prompts
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.prompt_recipes import load
from unirg.scoring.questions import Asking, Question, permutation, permuted, questions, ranges
from unirg.study import Split, Study


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


SPLITS: tuple[Split, ...] = ("zero_shot", "test")


def asked(opened: Cohort, study_id: str, with_priors: bool = False, shown: str = "") -> Question:
    """The question of one study."""
    other = (lambda study: opened.with_images(shown)) if shown else None
    found = (
        question
        for one in ranges(opened, SPLITS, None, 10)
        for question in questions(opened, one, frozenset(), Asking(load(), with_priors, other))
    )
    return next(question for question in found if question.study.study_id == study_id)


def ids(found: Iterable[Question]) -> list[str]:
    return [question.study.study_id for question in found]


def test_ranges_hold_every_study_of_the_splits_once_in_the_cohorts_order(cohort: Artifact) -> None:
    opened = Cohort.open(cohort)
    made = ranges(opened, SPLITS, None, 1)
    assert [one.number for one in made] == list(range(len(made)))
    found = [one for part in made for one in ids(questions(opened, part, frozenset(), Asking(load())))]
    assert sorted(found) == sorted(study.study_id for split in SPLITS for study in opened.studies(split))
    assert sum(part.studies for part in made) == len(found)
    (whole,) = ranges(opened, SPLITS, None, 1000)
    assert ids(questions(opened, whole, frozenset(), Asking(load()))) == found


def test_a_limit_takes_the_first_studies_of_each_split(cohort: Artifact) -> None:
    opened = Cohort.open(cohort)
    (part,) = ranges(opened, SPLITS, 4, 1000)
    found = list(questions(opened, part, frozenset(), Asking(load())))
    assert Counter(question.study.split for question in found) == {"zero_shot": 4, "test": 4}
    assert [one for one in ids(found) if opened[one].split == "test"] == [f"s{n:05d}" for n in range(4)]
    assert ranges(opened, ("validate",), 4, 1000) == []


@given(st.sets(st.integers(0, 23)))
def test_what_is_done_is_not_read_again_and_places_stay(cohort: Artifact, done: set[int]) -> None:
    opened = Cohort.open(cohort)
    (part,) = ranges(opened, SPLITS, None, 1000)
    left = list(questions(opened, part, done, Asking(load())))
    assert [question.place for question in left] == sorted(set(range(part.studies)) - done)


def test_a_limited_permutation_still_draws_on_the_whole_split(cohort: Artifact) -> None:
    opened = Cohort.open(cohort)
    shown = permutation(opened, ("test",), 1)
    first = opened.studies("test")[:5]
    assert {shown(study).study_id for study in first} - {study.study_id for study in first}


def test_a_question_is_the_prompt_of_training_with_the_image_inside(cohort: Artifact) -> None:
    opened = Cohort.open(cohort)
    question = asked(opened, "s00001")
    assert pictures(question.messages) == [toy.picture(1)]
    text = prompts.messages(opened["s00001"], "both")[0]["content"][-1]
    assert question.messages[0]["content"][-1] == text
    assert (question.sections, question.with_prior) == ("both", False)
    assert question.study.images == ()


def test_a_study_with_findings_alone_is_asked_for_findings(cohort: Artifact) -> None:
    assert asked(Cohort.open(cohort), "s00004").sections == "findings"


def test_the_prior_s_image_comes_first_where_there_is_a_prior(cohort: Artifact) -> None:
    opened = Cohort.open(cohort)
    question = asked(opened, "s00005", with_priors=True)
    assert pictures(question.messages) == [toy.picture(4), toy.picture(5)]
    assert prompts.report(opened["s00004"]) in question.messages[0]["content"][-1]["text"]
    assert question.with_prior
    assert not asked(opened, "s00004", with_priors=True).with_prior


def test_a_permuted_question_keeps_its_words_and_shows_the_other_s_images(cohort: Artifact) -> None:
    opened = Cohort.open(cohort)
    permuted_one = asked(opened, "s00005", with_priors=True, shown="s00008")
    plain = asked(opened, "s00005", with_priors=True)
    assert pictures(permuted_one.messages) == [toy.picture(7), toy.picture(8)]
    assert permuted_one.messages[0]["content"][-1] == plain.messages[0]["content"][-1]
    # A study without a prior lends its one image twice.
    lent = asked(opened, "s00005", with_priors=True, shown="s00000")
    assert pictures(lent.messages) == [toy.picture(0)] * 2
