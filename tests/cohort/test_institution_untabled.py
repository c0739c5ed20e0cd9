"""A folder of DICOM files without a table: an archive whose studies nobody has reported yet."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cohort.site_files import HEADER, KEY, dicom
from unirg.cohort.corpora import Dropped
from unirg.cohort.corpora.institution import Institution
from unirg.errors import UserError
from unirg.study import Study, keyed_id


def site(folder: Path) -> Institution:
    return Institution(str(folder), KEY, "site_a")


def test_each_study_uid_is_a_study_with_keyed_ids_and_without_a_report(tmp_path: Path) -> None:
    dicom(tmp_path / "a" / "1.dcm")
    dicom(tmp_path / "a" / "2.dcm", SOPInstanceUID="1.2.3.4.2", ViewPosition="LL")
    dicom(tmp_path / "b", StudyInstanceUID="1.2.3.5", SOPInstanceUID="1.2.3.5.1", AccessionNumber=None)
    studies = [record for record in site(tmp_path).records() if isinstance(record, Study)]
    assert [study.study_id for study in studies] == [
        keyed_id(KEY, "study", "1.2.3.4"),
        keyed_id(KEY, "study", "1.2.3.5"),
    ]
    assert {study.patient_id for study in studies} == {keyed_id(KEY, "patient", HEADER["PatientID"])}
    first = studies[0]
    assert [image.view for image in first.images] == ["frontal", "lateral"]
    assert (first.age, first.sex) == (60, "F")
    assert not any((first.indication, first.comparison, first.findings, first.impression))


def test_a_study_without_a_patient_id_is_its_own_patient(tmp_path: Path) -> None:
    for uid in ("1.2.3.4", "1.2.3.5"):
        dicom(tmp_path / uid, StudyInstanceUID=uid, SOPInstanceUID=f"{uid}.1", PatientID=None)
    studies = [record for record in site(tmp_path).records() if isinstance(record, Study)]
    assert len({study.patient_id for study in studies}) == 2


def test_what_is_no_radiograph_of_the_chest_is_dropped_with_its_reason(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm")
    dicom(tmp_path / "b.dcm", StudyInstanceUID="1.2.9", SOPInstanceUID="1.2.9.1", Modality="CT")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "c.dcm").write_text("no image")
    made = site(tmp_path)
    dropped = [record for record in made.records() if isinstance(record, Dropped)]
    assert dropped == [Dropped(keyed_id(KEY, "study", "1.2.9"), "DICOM image: no radiograph")]
    assert made.account()["file: file passed over: not a DICOM file"] == 1


def test_the_fingerprint_is_over_the_files_and_the_key(tmp_path: Path) -> None:
    dicom(tmp_path / "one" / "a.dcm")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = site(tmp_path / "one").fingerprint()
    assert site(tmp_path / "two").fingerprint() == first
    assert site(Path(f"{tmp_path}/two/")).fingerprint() == first
    assert Institution(str(tmp_path / "one"), bytes(32), "site_a").fingerprint() != first
    dicom(tmp_path / "two" / "b.dcm", SOPInstanceUID="1.2.3.4.2")
    assert site(tmp_path / "two").fingerprint() != first


def test_what_is_neither_table_nor_folder_is_refused_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="or a folder of DICOM studies") as refused:
        site(tmp_path / "QUILLFEATHER")
    assert "QUILLFEATHER" not in str(refused.value)


def test_the_series_of_a_study_are_one_study_and_its_key_image_is_the_frontal(tmp_path: Path) -> None:
    lateral = {"SeriesInstanceUID": "1.2.3.4.8", "SOPInstanceUID": "1.2.3.4.8.1", "ViewPosition": "LL"}
    dicom(tmp_path / "0-lateral.dcm", **lateral)
    dicom(
        tmp_path / "1-ap.dcm", SeriesInstanceUID="1.2.3.4.9", SOPInstanceUID="1.2.3.4.9.1", ViewPosition="AP"
    )
    dicom(tmp_path / "2-pa" / "img", SeriesInstanceUID="1.2.3.4.7", SOPInstanceUID="1.2.3.4.7.1")
    (study,) = site(tmp_path).records()
    assert isinstance(study, Study)
    assert [(image.view, image.projection) for image in study.images] == [
        ("frontal", "PA"),
        ("frontal", "AP"),
        ("lateral", None),
    ]
    assert study.key_image == study.images[0]
    assert study.images[0].uri == "2-pa/img"


def test_what_lies_beside_radiographs_is_passed_over_with_its_reason(tmp_path: Path) -> None:
    dicom(tmp_path / "film.dcm")
    dicom(tmp_path / "copy.dcm")
    document: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11",
        "Modality": "SR",
        "Rows": None,
    }
    dicom(tmp_path / "report.dcm", SOPInstanceUID="1.2.3.4.2", **document)
    dicom(tmp_path / "raw.dcm", SOPInstanceUID="1.2.3.4.3", PresentationIntentType="FOR PROCESSING")
    dicom(tmp_path / "hand.dcm", SOPInstanceUID="1.2.3.4.4", BodyPartExamined="HAND")
    dicom(tmp_path / "no-uid.dcm", SOPInstanceUID="1.2.3.4.5", StudyInstanceUID=None)
    whole = (tmp_path / "film.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:200])
    (tmp_path / "noise.dcm").write_bytes(whole[:132] + bytes(range(256)) * 4)
    made = site(tmp_path)
    (study,) = made.records()
    assert isinstance(study, Study)
    assert len(study.images) == 1
    passed = {name: number for name, number in made.account().items() if "passed over" in name}
    assert passed == {
        "file: file passed over: copy of another file": 1,
        "file: file passed over: no image": 1,
        "file: file passed over: for processing only": 1,
        "file: file passed over: not of the chest": 1,
        "file: file passed over: no StudyInstanceUID": 3,  # what is left of the last two names none
    }


def test_files_of_two_patients_under_one_study_uid_are_no_study(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm")
    dicom(tmp_path / "b.dcm", SOPInstanceUID="1.2.3.4.2", PatientID="0089999999")
    records = list(site(tmp_path).records())
    assert records == [Dropped(keyed_id(KEY, "study", "1.2.3.4"), "images of several patients")]


def test_nothing_that_identifies_is_told_or_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "MRN0081234567"
    dicom(folder / "QUILLFEATHER.dcm")
    dicom(
        folder / "other.dcm", StudyInstanceUID="1.2.9", SOPInstanceUID="1.2.9.1", PatientBirthDate="1963-??"
    )
    (folder / "QUILLFEATHER-2.dcm").write_bytes(bytes(128) + b"DICM" + b"QUILLFEATHER" * 9)
    made = site(folder)
    with caplog.at_level("DEBUG"):
        records = list(made.records())
        fingerprint = made.fingerprint()
    told = f"{records}{made!r}{made.account()}{fingerprint}{caplog.text}"
    kept = [
        record.model_dump(exclude={"images"}) if isinstance(record, Study) else record for record in records
    ]
    for secret in (*map(str, HEADER.values()), "QUILLFEATHER", "Tamsin"):
        if len(secret) > 5 and secret not in ("DICOM", "CHEST"):
            assert secret not in told
            assert secret not in str(kept)
