"""Demographics of MIMIC-CXR's patients: look-alikes of MIMIC-IV's two tables."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.cohort.mimic import (
    PATIENTS,
    Row,
    admission,
    corpus,
    film,
    gz,
    mimic_iv,
    only,
    patient,
    studies,
    write,
)
from unirg.errors import UserError


@pytest.mark.parametrize("inside", ["", "hosp/"])
def test_age_counts_from_the_anchor_and_sex_is_the_gender(tmp_path: Path, inside: str) -> None:
    rows = [film(1), film(2, study=50000002, StudyDate=21830101), film(3, subject=10000764, study=50000003)]
    folder = mimic_iv(tmp_path / "iv", [patient(), patient(99999999)], inside=inside)
    found = {study.study_id: study for study in studies(corpus(tmp_path / "cxr", rows, folder))}
    assert (found["s50414267"].age, found["s50414267"].sex) == (52, "F")
    assert found["s50000002"].age == 55
    stranger = found["s50000003"]
    assert (stranger.age, stranger.sex, stranger.race) == (None, None, None)


@pytest.mark.parametrize(
    ("changed", "age", "sex"),
    [
        ({"anchor_age": 91}, 91, "F"),
        ({"anchor_age": 91, "anchor_year": 2140}, None, "F"),
        ({"anchor_age": 20, "anchor_year": 2201}, None, "F"),
        ({"anchor_age": ""}, None, "F"),
        ({"gender": "M"}, 52, "M"),
        ({"gender": ""}, 52, None),
    ],
)
def test_an_age_out_of_range_or_an_unstated_sex_is_null(
    tmp_path: Path, changed: Row, age: int | None, sex: str | None
) -> None:
    study = only(corpus(tmp_path / "cxr", [film(1)], mimic_iv(tmp_path / "iv", [patient(**changed)])))
    assert (study.age, study.sex) == (age, sex)


@pytest.mark.parametrize(
    ("admissions", "race"),
    [
        ([("2179-01-01 08:00:00", "ASIAN"), ("2180-05-06 21:30:00", "WHITE")], "WHITE"),
        ([("2179-01-01 08:00:00", "ASIAN"), ("2180-05-06 21:31:00", "WHITE")], "ASIAN"),
        ([("2179-01-01 08:00:00", "ASIAN"), ("2180-01-01 08:00:00", "UNKNOWN")], "ASIAN"),
        ([("2180-05-07 08:00:00", "ASIAN"), ("2181-01-01 08:00:00", "WHITE")], "ASIAN"),
        ([("2180-01-01 08:00:00", "ASIAN"), ("2180-01-01 08:00:00", "WHITE")], None),
        ([("2180-01-01 08:00:00", "ASIAN"), ("2180-01-01 08:00:00", "ASIAN")], "ASIAN"),
        ([("2180-01-01 08:00:00", "UNABLE TO OBTAIN")], None),
        ([("", "ASIAN")], None),
        ([], None),
    ],
)
def test_race_is_that_of_the_latest_admission_up_to_the_study_else_of_the_first_after_it(
    tmp_path: Path, admissions: list[tuple[str, str]], race: str | None
) -> None:
    folder = mimic_iv(tmp_path / "iv", [patient()], [admission(*each) for each in admissions])
    assert only(corpus(tmp_path / "cxr", [film(1)], folder)).race == race


def test_race_of_a_study_without_a_time_needs_admissions_that_agree(tmp_path: Path) -> None:
    for number, (second, race) in enumerate((("ASIAN", "ASIAN"), ("WHITE", None))):
        times = [admission("2180-01-01 08:00:00", "ASIAN"), admission("2181-01-01 08:00:00", second)]
        folder = mimic_iv(tmp_path / f"iv{number}", [patient()], times)
        study = only(corpus(tmp_path / "cxr", [film(1, StudyDate="")], folder))
        assert (study.race, study.age) == (race, None)


def test_a_demographics_folder_that_lacks_a_table_or_column_is_an_error(tmp_path: Path) -> None:
    folder = mimic_iv(tmp_path / "iv", [patient()])
    adapter = corpus(tmp_path / "cxr", [film(1)], folder)
    write(
        Path(folder),
        {"admissions.csv.gz": gz([], ["subject_id"]), "patients.csv.gz": gz([patient()], PATIENTS[:2])},
    )
    with pytest.raises(UserError, match="no column anchor_age, anchor_year"):
        list(adapter.records())
    write(Path(folder), {"patients.csv.gz": b""})
    with pytest.raises(UserError, match="no row; fetch"):
        list(adapter.records())
    write(
        Path(folder), {"patients.csv.gz": gzip.compress(b"subject_id,gender,anchor_age,anchor_year\n1,F\n")}
    )
    with pytest.raises(UserError, match="row 1 is not as wide as the header; fetch"):
        list(adapter.records())
    (tmp_path / "iv" / "admissions.csv.gz").unlink()
    with pytest.raises(UserError, match=r"no admissions\.csv\.gz; fetch MIMIC-IV"):
        list(adapter.records())
