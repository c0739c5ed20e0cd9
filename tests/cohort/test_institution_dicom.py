"""An institution's DICOM files: found by their headers, joined with its reports."""

from __future__ import annotations

import os
import pickle
import shutil
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.cohort.site_files import KEY, ROW, corpus, dicom, only, reasons
from tests.conftest import S3
from unirg.cohort.corpora import Dropped, UnreadableImage
from unirg.cohort.corpora import institution_dicom as archive
from unirg.cohort.corpora.institution import Institution
from unirg.errors import UserError
from unirg.study import Image, keyed_id

# Joining


def test_a_report_finds_its_radiographs_by_accession_number_and_the_headers_describe_the_study(
    tmp_path: Path,
) -> None:
    dicom(tmp_path / "deep" / "er" / "IM0001")
    dicom(tmp_path / "b.dcm", SOPInstanceUID="1.2.3.4.2", ViewPosition="LL")
    study = only(corpus(tmp_path, ROW))
    assert study.study_id == keyed_id(KEY, "study", "ACC-00714")
    assert study.patient_id == keyed_id(KEY, "patient", "0081234567")
    assert (study.acquired_at, study.acquired_basis) == (datetime(2024, 3, 1, 10, 15), "timestamp")
    assert (study.age, study.sex, study.race) == (60, "F", "White")
    assert (study.findings, study.impression) == ("Heart size is normal.", "No acute process.")
    assert study.images == (
        Image(view="frontal", projection="PA", uri="deep/er/IM0001"),
        Image(view="lateral", uri="b.dcm"),
    )


@pytest.mark.parametrize("column", ["accession", "accession_number", "study_instance_uid"])
def test_a_report_is_keyed_by_accession_number_or_study_uid(tmp_path: Path, column: str) -> None:
    dicom(tmp_path / "a.dcm")
    value = "1.2.3.4" if column == "study_instance_uid" else "ACC-00714"
    study = only(corpus(tmp_path, {column: value, "findings": "Clear."}))
    assert len(study.images) == 1
    assert study.study_id == keyed_id(KEY, "study", value)


def test_what_the_table_says_goes_before_the_headers(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm")
    row = {**ROW, "mrn": "9", "study_date": "20200101", "age": "7", "sex": "M", "race": "Other"}
    study = only(corpus(tmp_path, {**row, "findings": "Own."}))
    assert study.patient_id == keyed_id(KEY, "patient", "9")
    assert (study.acquired_at, study.age, study.sex, study.race) == (datetime(2020, 1, 1), 7, "M", "Other")
    assert (study.findings, study.impression) == ("Own.", "No acute process.")


def test_a_reports_history_is_the_indication_where_it_has_none(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm")
    report = "HISTORY: Cough.\nCOMPARISON: None.\nFINDINGS: Clear.\nIMPRESSION: Normal."
    study = only(corpus(tmp_path, {**ROW, "report": report}))
    assert (study.indication, study.comparison) == ("Cough.", "None.")


def test_a_report_column_serves_a_table_that_names_its_images_too(tmp_path: Path) -> None:
    row = {**ROW, "mrn": "9", "images": "a.png", "views": "PA"}
    study = only(corpus(tmp_path, row))
    assert (study.findings, study.impression) == ("Heart size is normal.", "No acute process.")


def test_studies_under_one_accession_number_are_one_study(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm", StudyTime="120000")
    dicom(tmp_path / "b.dcm", StudyInstanceUID="1.2.3.5", SOPInstanceUID="1.2.3.5.1", ViewPosition="LL")
    study = only(corpus(tmp_path, ROW))
    assert [image.view for image in study.images] == ["frontal", "lateral"]
    assert study.acquired_at == datetime(2024, 3, 1, 10, 15)


@pytest.mark.parametrize("uid", ["1.2.3.4", "1.2.3.5"])
def test_a_bare_date_is_no_earlier_than_a_time_of_its_day(tmp_path: Path, uid: str) -> None:
    dicom(tmp_path / "a.dcm", StudyTime="")
    for number, time in enumerate(("120000", "101500")):
        dicom(
            tmp_path / f"{number}.dcm",
            StudyInstanceUID=uid,
            SOPInstanceUID=f"{uid}.1{number}",
            StudyTime=time,
        )
    study = only(corpus(tmp_path, ROW))
    assert (study.acquired_at, study.acquired_basis) == (datetime(2024, 3, 1, 10, 15), "timestamp")
    dicom(tmp_path / "b.dcm", StudyInstanceUID=uid, SOPInstanceUID="1.9", StudyDate="20240229", StudyTime="")
    study = only(corpus(tmp_path, ROW))
    assert (study.acquired_at, study.acquired_basis) == (datetime(2024, 2, 29), "date")


def test_a_second_report_of_the_same_files_is_dropped_whatever_key_it_uses(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm")
    first = {**ROW, "study_instance_uid": ""}
    second = {**ROW, "accession": "", "study_instance_uid": "1.2.3.4"}
    assert reasons(corpus(tmp_path, first, second, first)) == ["duplicate study id"] * 2


def test_images_stand_by_projection_then_time_then_id_whatever_their_file_names(tmp_path: Path) -> None:
    for name, changed in {
        "a": {"ViewPosition": "LL", "ContentDate": "20240301", "ContentTime": "100000"},
        "b": {"ViewPosition": "AP", "ContentDate": "20240301", "ContentTime": "100000"},
        "c": {"ViewPosition": "PA", "AcquisitionDateTime": "20240301103000.5+0100"},
        "d": {"ViewPosition": "PA", "AcquisitionDate": "20240301", "AcquisitionTime": "101000"},
        "e": {"ViewPosition": "PA", "AcquisitionDate": "20240301", "AcquisitionTime": "101000"},
    }.items():
        dicom(tmp_path / f"{name}.dcm", SOPInstanceUID=f"1.2.{'abedc'.index(name)}", **changed)
    assert [image.uri for image in only(corpus(tmp_path, ROW)).images] == [
        f"{name}.dcm" for name in ("e", "d", "c", "b", "a")
    ]


def test_a_copy_of_a_file_counts_once(tmp_path: Path) -> None:
    shutil.copy(dicom(tmp_path / "a.dcm"), tmp_path / "b.dcm")
    institution = corpus(tmp_path, ROW)
    assert len(only(institution).images) == 1
    assert institution.files["file passed over: copy of another file"] == 1


def test_files_that_no_report_names_are_accounted_for_by_study(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm")
    dicom(tmp_path / "b.dcm", AccessionNumber="B", StudyInstanceUID="1.9", SOPInstanceUID="1.9.1")
    _, dropped = corpus(tmp_path, ROW).records()
    assert dropped == Dropped(keyed_id(KEY, "study", "B"), "no report")


# What is a radiograph of the chest


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"Modality": "CT"}, "DICOM image: no radiograph"),
        ({"Modality": "OT", "BodyPartExamined": None}, "DICOM image: no radiograph"),
        ({"BodyPartExamined": "ABDOMEN"}, "DICOM image: not of the chest"),
        ({"NumberOfFrames": 30}, "DICOM image: more than one frame"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "DICOM image: for processing only"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "DICOM image: not greyscale"),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11", "Rows": None, "Modality": "SR"},
            "DICOM image: no image",
        ),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1", "Rows": None, "Modality": "PR"},
            "DICOM image: no image",
        ),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.59", "Rows": None, "Modality": "KO"},
            "DICOM image: no image",
        ),
        ({"AccessionNumber": "OTHER"}, "no DICOM image found for it"),
    ],
)
def test_a_report_without_a_radiograph_of_the_chest_is_dropped_by_its_reason(
    tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    dicom(tmp_path / "a.dcm", **changed)
    assert reasons(corpus(tmp_path, ROW))[0] == reason


def test_other_objects_of_a_study_are_passed_over_and_counted(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm")
    for number, modality in enumerate(("SR", "PR", "KO")):
        dicom(tmp_path / str(number), Modality=modality, Rows=None, SOPInstanceUID=f"1.2.{number}")
    dicom(tmp_path / "c.dcm", Modality="CT", SOPInstanceUID="1.2.7")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "notes").write_text("no DICOM")
    (tmp_path / "empty").touch()
    (tmp_path / ".hidden.dcm").write_bytes((tmp_path / "a.dcm").read_bytes())
    (tmp_path / "export.zip").write_bytes((tmp_path / "a.dcm").read_bytes())
    institution = corpus(tmp_path, ROW)
    assert [image.uri for image in only(institution).images] == ["a.dcm"]
    passed = {k: v for k, v in institution.files.items() if k.startswith("file passed over")}
    assert passed == {
        "file passed over: no image": 3,
        "file passed over: no radiograph": 1,
        "file passed over: not a DICOM file": 2,
        "file passed over: no StudyInstanceUID": 1,
    }


def code(meaning: str) -> Sequence:
    item = Dataset()
    item.CodeMeaning = meaning
    return Sequence([item])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"ViewCodeSequence": code("postero-anterior")}, ("frontal", "PA")),
        ({"ViewCodeSequence": code("left lateral")}, ("lateral", None)),
        ({"SeriesDescription": "W033 CHEST PA"}, ("frontal", "PA")),
        ({"SeriesDescription": "Thorax lat. links"}, ("lateral", None)),
        ({"SeriesDescription": "CHEST PA AND LATERAL"}, ("unknown", None)),
        ({"SeriesDescription": "Chest AP decubitus"}, ("other", None)),
        ({"SeriesDescription": "Pacemaker, lateralised"}, ("unknown", None)),
        ({"ProtocolName": "Chest portable AP"}, ("frontal", "AP")),
        ({"ViewPosition": "ERECT", "AcquisitionDeviceProcessingDescription": "CHEST,PA"}, ("frontal", "PA")),
        ({}, ("unknown", None)),
    ],
)
def test_the_view_comes_from_position_then_code_then_description(
    tmp_path: Path, changed: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    dicom(tmp_path / "a.dcm", **{"ViewPosition": None, **changed})
    (image,) = only(corpus(tmp_path, ROW)).images
    assert (image.view, image.projection) == expected


def test_a_single_film_without_a_view_is_frontal_only_where_the_institution_says_so(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm", ViewPosition=None)
    assert only(corpus(tmp_path, ROW)).key_image is None
    assert only(corpus(tmp_path, ROW, unknown_view="frontal")).key_image is not None
    dicom(tmp_path / "b.dcm", ViewPosition=None, SOPInstanceUID="1.7")
    assert only(corpus(tmp_path, ROW, unknown_view="frontal")).key_image is None


@pytest.mark.parametrize(
    ("changed", "field", "expected"),
    [
        ({"PatientAge": "061Y"}, "age", 61),
        ({"PatientAge": "018M"}, "age", 1),
        ({"PatientAge": "95Y"}, "age", 90),
        ({"PatientAge": "x", "PatientBirthDate": "19630301"}, "age", 61),
        ({"PatientBirthDate": "19000101"}, "age", None),
        ({"PatientBirthDate": None}, "age", None),
        ({"PatientSex": "Tamsin"}, "sex", None),
        ({"StudyTime": ""}, "acquired_at", datetime(2024, 3, 1)),
        ({"StudyTime": "995959"}, "acquired_at", datetime(2024, 3, 1)),
        ({"StudyTime": "0915"}, "acquired_at", datetime(2024, 3, 1, 9, 15)),
        ({"StudyTime": "09:15:30.5"}, "acquired_at", datetime(2024, 3, 1, 9, 15, 30)),
        ({"StudyDate": "2024.03.02"}, "acquired_at", datetime(2024, 3, 2, 10, 15)),
        ({"StudyDate": "20241399"}, "acquired_at", None),
        (
            {"StudyDate": "", "AcquisitionDateTime": "20240305070809.1"},
            "acquired_at",
            datetime(2024, 3, 5, 7, 8, 9),
        ),
    ],
)
def test_what_a_header_says_of_the_patient_is_read_leniently(
    tmp_path: Path, changed: dict[str, Any], field: str, expected: object
) -> None:
    dicom(tmp_path / "a.dcm", **changed)
    assert getattr(only(corpus(tmp_path, ROW)), field) == expected


# Hostile files


def test_a_header_longer_than_the_first_bytes_is_read_on_and_one_without_an_end_is_passed_over(
    tmp_path: Path,
) -> None:
    dicom(tmp_path / "long.dcm", ImageComments="x" * 3 * archive.HEAD)
    endless = dicom(tmp_path / "e.dcm", SOPInstanceUID="1.5", ImageComments="x" * 2 * archive.MAX_HEADER)
    institution = corpus(tmp_path, ROW)
    assert [image.uri for image in only(institution).images] == ["long.dcm"]
    assert institution.files["file passed over: unreadable DICOM header"] == 1
    assert endless.exists()


def test_broken_headers_are_passed_over_by_reason(tmp_path: Path) -> None:
    whole = dicom(tmp_path / "good.dcm").read_bytes()
    dicom(tmp_path / "deflated.dcm", DeflatedExplicitVRLittleEndian, SOPInstanceUID="1.6")
    nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 1
    start = whole.index(b"\x08\x00\x16\x00UI")
    (tmp_path / "nested.dcm").write_bytes(whole[:start] + nested * 4000)
    (tmp_path / "length.dcm").write_bytes(whole[:start] + b"\x08\x00\x16\x00UN\0\0\xff\xff\xff\x7f")
    (tmp_path / "noise.dcm").write_bytes(whole[:132] + np.random.default_rng(1).bytes(5000))
    dicom(tmp_path / "implicit.dcm", ImplicitVRLittleEndian, SOPInstanceUID="1.8", ViewPosition="LL")
    institution = corpus(tmp_path, ROW)
    assert {image.uri for image in only(institution).images} == {"good.dcm", "implicit.dcm"}
    passed = Counter({k: v for k, v in institution.files.items() if k.startswith("file passed over")})
    assert passed["file passed over: deflated DICOM"] == 1
    assert passed.total() == 4


def test_links_out_of_the_folder_and_pipes_are_not_read(tmp_path: Path) -> None:
    outside = dicom(tmp_path / "outside" / "secret.dcm", SOPInstanceUID="1.6")
    folder = tmp_path / "in"
    dicom(folder / "a.dcm")
    (folder / "link.dcm").symlink_to(outside)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "gone").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe")
    institution = corpus(folder, ROW)
    assert [image.uri for image in only(institution).images] == ["a.dcm"]
    assert institution.fingerprint()
    for path in ("link.dcm", "loop"):
        with pytest.raises(UnreadableImage):
            institution.read(Image(uri=path))
    (folder / "dir").symlink_to(outside.parent)
    with pytest.raises(UserError, match="a link in it leads to a folder elsewhere") as refused:
        list(corpus(folder, ROW).records())
    assert str(tmp_path) not in str(refused.value)


def test_files_of_several_patients_in_one_study_are_no_study(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm")
    dicom(tmp_path / "b.dcm", SOPInstanceUID="1.6", PatientID="ANOTHER")
    assert reasons(corpus(tmp_path, ROW)) == ["images of several patients"]


def test_a_study_without_a_patient_id_anywhere_is_dropped(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm", PatientID="")
    assert reasons(corpus(tmp_path, ROW)) == ["missing patient id"]


def test_a_report_beyond_any_reports_length_is_dropped(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm")
    assert reasons(corpus(tmp_path, {**ROW, "report": "FINDINGS: " + "a " * 60_000})) == ["report too long"]


def test_a_table_needs_images_or_a_key_to_the_headers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column images or accession or accession_number or study_"):
        list(corpus(tmp_path, {"study_id": "1", "findings": "Clear."}).records())


# Identity


def test_the_fingerprint_follows_the_files_below_the_table(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm")
    institution = corpus(tmp_path, ROW)
    prints = [institution.fingerprint()]
    (tmp_path / "notes.txt").write_text("not DICOM")
    assert institution.fingerprint() == prints[0]
    dicom(tmp_path / "a.dcm", ViewPosition="AP")
    prints.append(institution.fingerprint())
    dicom(tmp_path / "sub" / "b", SOPInstanceUID="1.6")
    prints.append(institution.fingerprint())
    assert len(set(prints)) == 3


def test_a_bucket_reads_the_same_as_a_folder(tmp_path: Path, moto_s3: S3) -> None:
    local = corpus(tmp_path, ROW)
    dicom(tmp_path / "deep" / "IM1")
    dicom(tmp_path / "b.dcm", SOPInstanceUID="1.6", ViewPosition="LL", ImageComments="x" * 2 * archive.HEAD)
    bucket, client = moto_s3.bucket(), moto_s3.client()
    for path in ("reports.csv", "deep/IM1", "b.dcm"):
        client.put_object(Bucket=bucket, Key=f"tamsin/{path}", Body=(tmp_path / path).read_bytes())
    remote = Institution(f"s3://{bucket}/tamsin/reports.csv", KEY, "site_a")
    assert only(remote) == only(local)
    assert np.array_equal(remote.read(only(remote).images[0]), local.read(only(local).images[0]))
    assert pickle.loads(pickle.dumps(remote)).name == "site_a"
