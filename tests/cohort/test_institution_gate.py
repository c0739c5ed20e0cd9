"""What identifies a patient in an institution's headers, reports and table gets no further."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any

import pytest

from tests.cohort.site_files import ROW, corpus, dicom, only, reasons
from unirg.cohort.corpora import UnreadableImage
from unirg.cohort.deidentify import BURNED_IN, IN_HEADER, IN_REPORT, REMOVED, Gate
from unirg.study import Study

SECRETS = (
    *("00714", "81234567", "quillfeather", "tamsin", "19630402", "1963", "oyelaran", "wilhelmina"),
    *("5550123", "555-0123", "old mill"),
)


# De-identification


def test_headers_names_and_numbers_are_removed_from_the_reports_they_belong_to(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm", OtherPatientNames="Zyskowski^T", OperatorsName="Ward")
    report = "FINDINGS: Ms Tamsin Quillfeather, once Zyskowski, ACC-00714; Wilhelmina Oyelaran saw the ward."
    institution = corpus(tmp_path, {**ROW, "report": report})
    findings = only(institution).findings
    assert findings == f"Ms {REMOVED}, once {REMOVED}, {REMOVED}; {REMOVED} saw the ward."
    assert institution.removed == {"the study's own identifier": 4}


def test_every_value_of_a_header_is_removed_and_a_hostile_number_of_them_is_bounded(tmp_path: Path) -> None:
    dicom(
        tmp_path / "a.dcm",
        PatientName="GIANNONE^MARIA",
        OtherPatientIDs=["ALIAS771", *(f"NO{number}" for number in range(9000))],
        OtherPatientNames=["Foo^Barbra", "Zimmerling^Kate"],
        PhysiciansOfRecord=["Ward^A", "Okonkwo^Ada"],
        OperatorsName=["Finch^B", "Haddad^Noor"],
    )
    report = "FINDINGS: giannone ZIMMERLING ALIAS771 NO7; Ada Okonkwo, Noor Haddad; ward, haddad."
    institution = corpus(tmp_path, {**ROW, "report": report})
    assert only(institution).findings == (
        f"{REMOVED} {REMOVED} {REMOVED} {REMOVED}; {REMOVED}, {REMOVED}; ward, haddad."
    )


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192", "ISO_IR 144", None])
def test_a_name_is_found_in_the_report_whatever_character_set_the_header_has(
    tmp_path: Path, charset: str | None
) -> None:
    name = {"ISO_IR 144": "Иванова", None: "Ivanova"}.get(charset, "Zürnlein")
    dicom(tmp_path / "a.dcm", SpecificCharacterSet=charset, PatientName=f"{name}^A")
    assert only(corpus(tmp_path, {**ROW, "report": f"FINDINGS: {name} is well."})).findings == (
        f"{REMOVED} is well."
    )


def test_a_header_in_an_unknown_character_set_is_read_all_the_same(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"ISO_IR 192", b"NO_SUCH_19"))
    assert only(corpus(tmp_path, ROW)).sex == "F"


def test_a_formula_in_a_table_is_a_text_like_any_other(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm")
    row = {"accession": "ACC-00714", "findings": "=1+1", "race": "@SUM(A1)", "patient_name": "=cmd()"}
    study = only(corpus(tmp_path, row))
    assert (study.findings, study.race) == ("=1+1", "@SUM(A1)")


def test_patterns_are_scrubbed_and_counted_or_refuse_the_study(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm", PatientName="", ReferringPhysicianName="")
    row = {**ROW, "report": "FINDINGS: Clear. Called Dr. Featherstone, 617-555-0123, on 3/14/2019."}
    scrubbing = corpus(tmp_path, row)
    assert only(scrubbing).findings == f"Clear. Called Dr. {REMOVED}, {REMOVED}, on {REMOVED}."
    assert scrubbing.removed == {"name": 1, "phone number": 1, "date": 1}
    assert reasons(corpus(tmp_path, row, gate=Gate(mode="refuse"))) == [IN_REPORT]
    assert reasons(corpus(tmp_path, ROW, gate=Gate(mode="refuse"))) == []


def test_the_own_identifiers_of_a_study_refuse_it_too(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm", PatientName="", ReferringPhysicianName="")
    row = {**ROW, "patient_name": "Featherstone^Al", "report": "FINDINGS: Featherstone is well."}
    assert reasons(corpus(tmp_path, row, gate=Gate(mode="refuse"))) == [IN_REPORT]


def test_a_header_that_names_a_person_is_counted_or_refuses_the_study(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm")
    scrubbing = corpus(tmp_path, ROW)
    assert only(scrubbing)
    assert scrubbing.files["in headers: person's name"] == 2
    assert reasons(corpus(tmp_path, ROW, gate=Gate(mode="refuse"))) == [IN_HEADER]


@pytest.mark.parametrize("changed", [{"BurnedInAnnotation": "YES"}, {"Modality": "SC"}])
def test_an_image_that_may_hold_text_is_flagged_or_left_out(tmp_path: Path, changed: dict[str, str]) -> None:
    dicom(tmp_path / "a.dcm", **changed)
    flagging = corpus(tmp_path, ROW)
    assert only(flagging)
    assert flagging.files[BURNED_IN] == 1
    refusing = corpus(tmp_path, ROW, gate=Gate(burned_in="refuse"))
    assert reasons(refusing) == [f"DICOM image: {BURNED_IN}"]


@pytest.mark.parametrize("mode", ["scrub", "refuse"])
def test_planted_identifiers_appear_nowhere(
    tmp_path: Path, mode: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "Quillfeather_0081234567"
    named = {"PatientAddress": "12 Old Mill Road", "PatientTelephoneNumbers": "617-555-0123"}
    dicom(folder / "Tamsin" / "81234567.dcm", **named)
    hostile: dict[str, Any] = {
        **{"AccessionNumber": "B", "StudyInstanceUID": "1.9", "SOPInstanceUID": "Quillfeather"},
        **{"PatientAge": "Quillfeather", "StudyDate": "Tamsin", "PatientSex": "Tamsin"},
        **{"ViewPosition": "Tamsin", "PatientBirthDate": "Quillfeather", "BodyPartExamined": None},
        "EthnicGroup": "Tamsin",
    }
    dicom(folder / "Oyelaran.dcm", **hostile)
    (folder / "Tamsin.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x10\0\x10\0PN\xff\xffQuillfeather" * 9)
    dicom(
        folder / "orphan.dcm",
        AccessionNumber="Quillfeather-00714",
        StudyInstanceUID="1.1",
        SOPInstanceUID="1.1.1",
    )
    report = (
        "Patient: Tamsin Quillfeather MRN 0081234567\nFINDINGS: Ms. Quillfeather of 12 Old Mill Road, "
        "0081234567, called by Dr. Wilhelmina Oyelaran, 617-555-0123, born 04/02/1963.\n"
        "IMPRESSION: Clear, ACC-00714."
    )
    rows = (
        {**ROW, "report": report, "age": ""},
        {"accession": "B", "report": "FINDINGS: Clear.", "age": ""},
        {"accession": "Tamsin", "report": report, "age": ""},
        {"accession": "Quillfeather", "report": report, "age": "Tamsin"},
    )
    institution = corpus(folder, *rows, gate=Gate(mode=mode))
    records = list(institution.records())
    shown = [repr(records), repr(institution), repr(institution.files), repr(institution.removed)]
    for record in records:
        if isinstance(record, Study):
            shown.append(str(record.model_dump(exclude={"images"})))
            (folder / str(record.images[0].uri)).write_bytes(b"DICM Tamsin")
            with pytest.raises(UnreadableImage) as unreadable:
                institution.read(record.images[0])
            shown += traceback.format_exception(unreadable.value)
    assert len([record for record in records if isinstance(record, Study)]) == (2 if mode == "scrub" else 0)
    everything = "\n".join([*shown, caplog.text, *capfd.readouterr()]).lower()
    assert not [secret for secret in SECRETS if secret in everything]
