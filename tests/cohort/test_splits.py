"""Splits: by patient, stable as data grows, and without the held-out institutions."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirg.cohort.splits import (
    OFFICIAL_VALIDATION,
    STRADDLES,
    Disjoint,
    SplitConfig,
    assign,
    check_hold_out,
    draw,
    patient_split,
)
from unirg.config import load
from unirg.errors import UserError
from unirg.study import Study

INSTITUTIONS = ("north", "south", "island")


def study(number: int, patient: int, institution: str, corpus: str = "c", split: str | None = None) -> Study:
    return Study(
        corpus=corpus,
        study_id=f"s{number}",
        patient_id=f"p{patient}",
        institution=institution,
        split=split,  # type: ignore[arg-type]
    )


@st.composite
def collections(draw: st.DrawFn) -> list[Study]:
    drawn = draw(
        st.lists(
            st.tuples(st.integers(0, 12), st.sampled_from(INSTITUTIONS), st.sampled_from("cd")), max_size=30
        )
    )
    return [study(number, *each) for number, each in enumerate(drawn)]


configs = st.builds(
    lambda test, validate, seed: SplitConfig(test=test, validate=validate, seed=seed),
    st.floats(0, 0.49),
    st.floats(0, 0.49),
    st.integers(0, 5),
)
held = st.lists(st.sampled_from(INSTITUTIONS), unique=True, max_size=2)


def patients(studies: list[Study], *splits: str | None) -> set[tuple[str, str]]:
    return {(s.corpus, s.patient_id) for s in studies if s.split in splits}


def check_disjoint(studies: list[Study]) -> None:
    disjoint = Disjoint()
    disjoint.watch(studies)
    disjoint.check()


def present(studies: list[Study], names: list[str]) -> list[str]:
    return [name for name in names if name in {s.institution for s in studies}]


@given(collections(), configs, held)
def test_no_patient_is_in_two_splits(studies: list[Study], config: SplitConfig, away: list[str]) -> None:
    kept, _ = assign(studies, config, present(studies, away))
    of = Counter((s.corpus, s.patient_id) for s in kept)
    seen = [patients(kept, split) for split in ("train", "validate", "test", "zero_shot")]
    assert sum(map(len, seen)) == len(of)
    check_disjoint(kept)


@given(collections(), configs, held)
def test_every_study_is_kept_once_with_a_split_or_counted(
    studies: list[Study], config: SplitConfig, away: list[str]
) -> None:
    kept, dropped = assign(studies, config, present(studies, away))
    assert len(kept) + sum(dropped.values()) == len(studies)
    assert [s.study_id for s in kept] == [
        s.study_id for s in studies if s.study_id in {k.study_id for k in kept}
    ]
    assert all(s.split for s in kept)
    assert set(dropped) <= {STRADDLES}


@given(collections(), configs, held)
def test_a_held_out_institution_is_zero_shot_alone_and_its_patients_are_nowhere_else(
    studies: list[Study], config: SplitConfig, away: list[str]
) -> None:
    away = present(studies, away)
    kept, _ = assign(studies, config, away)
    assert all((s.split == "zero_shot") == (s.institution in away) for s in kept)
    there = {(s.corpus, s.patient_id) for s in studies if s.institution in away}
    assert not there & patients(kept, "train", "validate", "test")
    assert {s.study_id for s in kept if s.institution in away} == {
        s.study_id for s in studies if s.institution in away
    }


@given(collections(), collections(), configs)
def test_a_patients_split_is_the_same_however_much_data_there_is(
    few: list[Study], more: list[Study], config: SplitConfig
) -> None:
    grown = few + [s.model_copy(update={"study_id": f"more-{s.study_id}"}) for s in more]
    before, _ = assign(few, config, [])
    after, _ = assign(grown, config, [])
    assert after[: len(few)] == before
    backwards, _ = assign(list(reversed(grown)), config, [])
    assert sorted(backwards, key=lambda s: s.study_id) == sorted(after, key=lambda s: s.study_id)


def test_the_shares_are_about_those_asked_for() -> None:
    config = SplitConfig(test=0.2, validate=0.1)
    drawn = Counter(patient_split(study(n, n, "north"), config) for n in range(10_000))
    assert drawn["test"] / 10_000 == pytest.approx(0.2, abs=0.02)
    assert drawn["validate"] / 10_000 == pytest.approx(0.1, abs=0.02)


def test_another_seed_chooses_other_patients() -> None:
    def tested(seed: int) -> set[int]:
        config = SplitConfig(test=0.3, seed=seed)
        return {n for n in range(200) if patient_split(study(n, n, "north"), config) == "test"}

    assert tested(0) == tested(0)
    assert tested(0) != tested(1)


@given(configs, st.integers())
def test_patients_of_two_corpora_are_two_patients(config: SplitConfig, seed: int) -> None:
    both, _ = assign([study(0, 1, "north", "c"), study(1, 1, "north", "d")], config, [])
    check_disjoint(
        [both[0].model_copy(update={"split": "train"}), both[1].model_copy(update={"split": "test"})]
    )


def test_an_owners_split_is_honoured_but_for_a_held_out_institution() -> None:
    owned = [study(0, 0, "north", split="test"), study(1, 1, "island", split="train")]
    kept, _ = assign(owned, SplitConfig(test=0, validate=0), ["island"])
    assert [s.split for s in kept] == ["test", "zero_shot"]


def test_a_corpus_can_be_held_out_by_its_name() -> None:
    both = [study(0, 0, "north", "c"), study(1, 0, "north", "d")]
    kept, dropped = assign(both, SplitConfig(test=0, validate=0), ["d"])
    assert [s.split for s in kept] == ["train", "zero_shot"]
    assert dropped == {}


def test_an_owners_split_that_shares_a_patient_is_refused_naming_the_studies() -> None:
    owned = [study(0, 7, "north", split="train"), study(1, 7, "north", split="test")]
    kept, _ = assign(owned, SplitConfig(), [])
    with pytest.raises(UserError, match=r"1 pairs.*s0 \(train\) and s1 \(test\)"):
        check_disjoint(kept)


def test_holding_out_what_is_not_there_is_refused_naming_what_is() -> None:
    with pytest.raises(UserError, match="hold_out names summit; institutions here are c, north"):
        check_hold_out(["summit", "north"], {"c", "north"})


@given(
    st.lists(st.integers(1, 4), max_size=20).map(lambda sizes: [*sizes, *[1] * 80]),
    st.integers(1, 80),  # eighty patients with one study each can always fill up what is left
    st.integers(0, 5),
)
def test_a_draw_has_exactly_the_studies_asked_for_in_whole_patients(
    sizes: list[int], number: int, seed: int
) -> None:
    patients = [(("c", f"p{n}"), size) for n, size in enumerate(sizes)]
    drawn = draw(patients, number, seed)
    assert sum(size for patient, size in patients if patient in drawn) == number
    assert draw(patients[::-1], number, seed) == drawn


def test_a_draw_of_more_than_there_is_says_how_many_there_are() -> None:
    with pytest.raises(UserError, match="validation_studies is 6, and the owner's training split yields 5"):
        draw([(("c", "p0"), 2), (("c", "p1"), 3)], 6, 0)


def test_a_drawn_patient_validates_in_place_of_the_owners_set() -> None:
    owned = [study(0, 0, "north", split="train"), study(1, 1, "north", split="train")]
    owned += [study(2, 2, "north", split="validate"), study(3, 3, "north", split="test")]
    kept, dropped = assign(owned, SplitConfig(), [], {("c", "p1")})
    assert [(s.study_id, s.split) for s in kept] == [("s0", "train"), ("s1", "validate"), ("s3", "test")]
    assert dropped == {OFFICIAL_VALIDATION: 1}


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(UserError, match=r"test 0\.6 and validate 0\.4 leave no patient for training"):
        load(SplitConfig, None, ["test=0.6", "validate=0.4"])
