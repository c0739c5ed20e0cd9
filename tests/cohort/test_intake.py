"""What intake makes of records: filtered, numbered, linked and split, whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cohort.films import Films
from unirg.cohort.corpora import Dropped
from unirg.cohort.intake import NO_SECTIONS, Intake
from unirg.cohort.splits import STRADDLES, SplitConfig
from unirg.study import Image, Study

FRONTAL = Image(view="frontal", projection="PA", uri="film.png")


class Given(Films):
    """A corpus of the records given."""

    def __init__(self, records: Sequence[Study | Dropped]) -> None:
        super().__init__(count=0)
        self.given = records

    def records(self) -> Iterator[Study | Dropped]:
        yield from self.given


def study(study_id: str, day: int, **fields: Any) -> Study:
    at = datetime(2020, 1, 1 + day, fields.pop("hour", 0))
    shown: dict[str, Any] = {"patient_id": "p1", "institution": "north", "findings": "Clear.", **fields}
    basis = shown.pop("acquired_basis", "timestamp")
    return Study.checked(
        corpus="films", study_id=study_id, acquired_at=at, acquired_basis=basis, images=(FRONTAL,), **shown
    )


def taken(
    tmp_path: Path, records: Sequence[Study], hold_out: Sequence[str] = (), **split: Any
) -> tuple[dict[str, Study], dict[str, str]]:
    intake = Intake(tmp_path / "intake.sqlite")
    intake.take(Given(records), SplitConfig(**split), hold_out)
    return {one.study_id: one for group in intake.groups(100) for one in group}, dict(intake.drops())


def test_an_exam_that_cannot_be_used_is_an_encounter_and_no_prior(tmp_path: Path) -> None:
    kept, dropped = taken(tmp_path, [study("a", 0), study("b", 1, findings=None), study("c", 2)])
    assert dropped == {"b": NO_SECTIONS}
    assert {one.study_id: (one.encounter, one.prior_study_id) for one in kept.values()} == {
        "a": (1, None),
        "c": (3, "a"),
    }


def test_an_exam_that_the_hold_out_drops_is_an_encounter_and_no_prior(tmp_path: Path) -> None:
    kept, dropped = taken(tmp_path, [study("a", 0), study("b", 1, institution="south")], ["south"])
    assert dropped == {"a": STRADDLES}
    assert (kept["b"].split, kept["b"].encounter, kept["b"].prior_study_id) == ("zero_shot", 2, None)


@pytest.mark.parametrize("basis", ["date", "report_date"])
def test_on_a_day_without_an_hour_no_exam_is_anothers_prior(tmp_path: Path, basis: str) -> None:
    day = [study("b", 1, acquired_basis=basis), study("c", 1, hour=9), study("d", 1, hour=17)]
    kept, _ = taken(tmp_path, [study("a", 0, hour=12), *day, study("e", 2)])
    assert {one.study_id: (one.encounter, one.prior_study_id) for one in kept.values()} == {
        "a": (1, None),
        **dict.fromkeys("bcd", (2, "a")),
        "e": (3, "d"),
    }


def test_the_drawn_validation_set_is_whole_and_has_nobody_of_a_held_out_institution(tmp_path: Path) -> None:
    records = [
        study(
            f"s{number}",
            0,
            patient_id=f"p{number}",
            split="train",
            institution=("north", "south")[number % 2],
        )
        for number in range(60)
    ]
    kept, _ = taken(tmp_path, records, ["south"], validation_studies=20)
    assert Counter((one.institution, one.split) for one in kept.values()) == {
        ("north", "train"): 10,
        ("north", "validate"): 20,
        ("south", "zero_shot"): 30,
    }


class Died(BaseException):
    """What a kill looks like from within: nothing after it is run."""


class Interrupted(Films):
    """A corpus whose reading is broken off once."""

    broken = False

    def records(self) -> Iterator[Study | Dropped]:
        for number, record in enumerate(super().records()):
            if number == 5 and not self.broken:
                self.broken = True
                raise Died
            yield record


def test_broken_off_while_it_reads_the_next_run_takes_the_corpus_as_a_whole(tmp_path: Path) -> None:
    corpus, whole = Interrupted(count=12), Intake(tmp_path / "whole.sqlite")
    whole.take(Films(count=12), SplitConfig())
    with pytest.raises(Died):
        Intake(tmp_path / "intake.sqlite").take(corpus, SplitConfig())
    again = Intake(tmp_path / "intake.sqlite")
    again.take(corpus, SplitConfig())
    assert list(again.groups(4)) == list(whole.groups(4))
    assert again.sizes(4) == whole.sizes(4)
    again.take(Given([]), SplitConfig())  # finished: not read again
    assert list(again.groups(4)) == list(whole.groups(4))
