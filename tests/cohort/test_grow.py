"""Places in time of a cohort that grows: those that all its studies together would have."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from unirg.cohort.grow import relinked
from unirg.cohort.priors import link
from unirg.study import Image, Study


def study(number: int, patient: int, hours: int | None, frontal: bool) -> Study:
    return Study(
        corpus="north",
        study_id=f"s{number}",
        patient_id=f"p{patient}",
        institution="north",
        acquired_at=None if hours is None else datetime(2024, 1, 1) + timedelta(hours=hours),
        acquired_basis=None if hours is None else "date" if hours % 24 == 0 else "timestamp",
        images=(Image(view="frontal" if frontal else "lateral"),),
    )


arrivals = st.lists(
    st.tuples(
        st.builds(
            study,
            st.just(0),
            st.integers(0, 2),
            st.none() | st.integers(0, 3).map(lambda day: 24 * day) | st.integers(0, 80),
            st.booleans(),
        ),
        st.integers(0, 3),  # when it arrives
        st.booleans(),  # whether a cohort can have it
    ),
    max_size=14,
)


@given(arrivals)
def test_relinked_as_they_arrive_studies_are_placed_as_all_together(
    coming: list[tuple[Study, int, bool]],
) -> None:
    numbered = [
        (one.model_copy(update={"study_id": f"s{number}"}), when, usable)
        for number, (one, when, usable) in enumerate(coming)
    ]
    cohort: dict[str, Study] = {}
    others: list[Study] = []
    for now in range(4):
        for one, when, usable in numbered:
            if when == now:
                cohort |= {one.study_id: one} if usable else {}
                others += [] if usable else [one]
        for name, (encounter, prior) in relinked(list(cohort.values()), others).items():
            update = {"encounter": encounter, "prior_study_id": prior}
            cohort[name] = cohort[name].model_copy(update=update)
    together = link([one for one, _, _ in numbered], cohort)
    assert sorted(cohort.values(), key=lambda s: s.study_id) == sorted(
        (one for one in together if one.study_id in cohort), key=lambda s: s.study_id
    )
    assert relinked(list(cohort.values()), others) == {}
