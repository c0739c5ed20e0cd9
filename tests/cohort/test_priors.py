"""Priors: the same patient's last study before, in true order of time, with a frontal image."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from unirg.cohort.priors import link
from unirg.study import Image, Study

FRONTAL, LATERAL = Image(view="frontal"), Image(view="lateral")


def study(number: int, patient: int, day: int | None, frontal: bool = True, corpus: str = "c") -> Study:
    return Study(
        corpus=corpus,
        study_id=f"s{number:03d}",
        patient_id=f"p{patient}",
        institution="north",
        acquired_at=None if day is None else datetime(2020, 1, 1) + timedelta(days=day),
        acquired_basis=None if day is None else "date",
        images=(FRONTAL if frontal else LATERAL,),
    )


@st.composite
def collections(draw: st.DrawFn) -> list[Study]:
    drawn = draw(
        st.lists(
            st.tuples(
                st.integers(0, 2),
                st.one_of(st.none(), st.integers(0, 6)),
                st.booleans(),
                st.sampled_from("cd"),
            ),
            max_size=20,
        )
    )
    return [study(number, *each) for number, each in enumerate(drawn)]


@given(collections())
def test_the_prior_is_the_last_strictly_earlier_study_with_a_frontal_image(studies: list[Study]) -> None:
    linked = link(studies)
    by_id = {s.study_id: s for s in studies}
    for each in linked:
        usable = [
            s.acquired_at
            for s in studies
            if (s.corpus, s.patient_id) == (each.corpus, each.patient_id)
            and s.key_image
            and s.acquired_at
            and each.acquired_at
            and s.acquired_at < each.acquired_at
        ]
        if each.prior_study_id is None:
            assert usable == []
            continue
        prior = by_id[each.prior_study_id]
        assert (prior.corpus, prior.patient_id) == (each.corpus, each.patient_id)
        assert prior.key_image
        assert prior.acquired_at == max(usable)


@given(collections())
def test_encounters_count_distinct_times(studies: list[Study]) -> None:
    for each in link(studies):
        if each.acquired_at is None:
            assert each.encounter is None
            continue
        earlier = {
            s.acquired_at
            for s in studies
            if (s.corpus, s.patient_id) == (each.corpus, each.patient_id)
            and s.acquired_at
            and s.acquired_at < each.acquired_at
        }
        assert each.encounter == len(earlier) + 1


@given(collections(), st.randoms())
def test_linking_does_not_depend_on_the_order_given_and_keeps_it(
    studies: list[Study], chance: random.Random
) -> None:
    shuffled = list(studies)
    chance.shuffle(shuffled)
    linked = link(shuffled)
    assert [s.study_id for s in linked] == [s.study_id for s in shuffled]
    assert sorted(linked, key=lambda s: s.study_id) == link(studies)


@given(collections())
def test_linking_changes_nothing_else_and_is_done_once(studies: list[Study]) -> None:
    linked = link(studies)
    bare = [s.model_copy(update={"encounter": None, "prior_study_id": None}) for s in linked]
    assert bare == studies
    assert link(linked) == linked


def test_an_equal_time_is_no_prior() -> None:
    first, twin, last = link([study(0, 0, day=1), study(1, 0, day=1), study(2, 0, day=2)])
    assert first.prior_study_id is twin.prior_study_id is None
    assert (first.encounter, twin.encounter, last.encounter) == (1, 1, 2)
    assert last.prior_study_id in ("s000", "s001")


def test_a_study_of_unknown_time_neither_has_nor_is_a_prior() -> None:
    unknown, known = link([study(0, 0, day=None), study(1, 0, day=3)])
    assert (unknown.prior_study_id, unknown.encounter) == (None, None)
    assert (known.prior_study_id, known.encounter) == (None, 1)


def test_a_study_without_a_frontal_image_is_an_encounter_but_no_prior() -> None:
    *_, last = link([study(0, 0, 1), study(1, 0, 2, frontal=False), study(2, 0, 3)])
    assert (last.prior_study_id, last.encounter) == ("s000", 3)


def test_the_same_patient_id_in_another_corpus_is_another_patient() -> None:
    _, second = link([study(0, 0, 1, corpus="c"), study(1, 0, 2, corpus="d")])
    assert second.prior_study_id is None
