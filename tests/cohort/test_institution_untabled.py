"""A folder of DICOM files without a table: an archive whose studies nobody has reported yet."""

from __future__ import annotations

import shutil
from pathlib import Path

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
