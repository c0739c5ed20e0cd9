"""The de-identification gate: what identifies a patient goes, what radiologists write stays."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from unirg.cohort.corpora.iu_xray import IUXray
from unirg.cohort.deidentify import DIRECT, REMOVED, Gate, burned_in, header_findings, identifiers, scrub
from unirg.config import load
from unirg.errors import UserError
from unirg.study import Study

IU = Path(__file__).parents[3] / "shared" / "data" / "iu_xray"


@pytest.mark.parametrize(
    ("text", "kind", "left"),
    [
        ("Discussed with Dr. Smith at 3 PM.", "name", "Discussed with Dr. [removed] at 3 PM."),
        ("Paged Dr O'Hara-Lee, who agreed.", "name", "Paged Dr [removed], who agreed."),
        ("Mr. José Zürn was informed.", "name", "Mr. [removed] was informed."),
        ("Mrs. Quillfeather's film.", "name", "Mrs. [removed] film."),
        ("DISCUSSED WITH DR. SMITH.", "name", "DISCUSSED WITH DR. [removed]."),
        ("Patient Name: DOE, JANE Q", "name", "Patient Name: [removed]"),
        ("Patient: Jane Doe. Heart normal.", "name", "Patient: [removed]. Heart normal."),
        ("Name: Doe", "name", "Name: [removed]"),
        ("Electronically signed by: Jane A. Doe", "name", "Electronically signed by: [removed]"),
        ("Findings told to Jane Doe, M.D. by phone", "name", "Findings told to [removed], M.D. by phone"),
        ("MRN: 00812345.", "record number", "MRN: [removed]."),
        ("medical record number 81-234-567", "record number", "medical record number [removed]"),
        ("Accession #A1234567 compared", "record number", "Accession #[removed] compared"),
        ("Film 81234567 of E1234567.", "record number", "Film [removed] of [removed]."),
        ("Call (617) 555-0123.", "phone number", "Call [removed]."),
        ("Call 617-555-0123 or +49 511 5320 123", "phone number", "Call [removed] or [removed]"),
        ("pager 4-5512", "phone number", "pager [removed]"),
        ("Compared to 3/14/2019.", "date", "Compared to [removed]."),
        ("Compared to 3-14-19 and 2019-03-14.", "date", "Compared to [removed] and [removed]."),
        ("dated 3/14, CT", "date", "dated [removed], CT"),
        ("14.03.2019", "date", "[removed]"),
        ("since March 2019", "date", "since [removed]"),
        ("on MARCH 14, 2019.", "date", "on [removed]."),
        ("on 14 Mar 2019 and 14-MAR-2019", "date", "on [removed] and [removed]"),
        ("since 3/2019", "date", "since [removed]"),
        ("write to j.doe@example.org today", "e-mail address", "write to [removed] today"),
        ("see https://pacs.example.org/?mrn=1", "web address", "see [removed]"),
        ("SSN 123-45-6789", "social security number", "SSN [removed]"),
        ("lives at 12 Old Mill Road, fell", "address", "lives at [removed], fell"),
        ("P.O. Box 123", "address", "[removed]"),
        ("Dr. J. Smith, Dr. J Smith", "name", "Dr. [removed], Dr. [removed]"),
        ("Signed by Dr. J. R. Smith", "name", "Signed by Dr. [removed]"),
        ("Reviewed by J. Smith, MD.", "name", "Reviewed by [removed], MD."),
        ("Findings told to J. Smith, MD.", "name", "Findings told to [removed], MD."),
        ("Electronically signed by: J. Smith", "name", "Electronically signed by: [removed]"),
        ("Referring physician: J. Smith", "name", "Referring physician: [removed]"),
        ("Paged Dr.Smith and DR.SMITH.", "name", "Paged Dr.[removed] and DR.[removed]."),
        ("Dr. van der Berg, Dr. de Souza", "name", "Dr. [removed], Dr. [removed]"),
        ("Attending: Ana de la Cruz", "name", "Attending: [removed]"),
        ("Comparison: 12 March.", "date", "Comparison: [removed]."),
        ("Comparison: 14 Feb", "date", "Comparison: [removed]"),
        ("12.03.21 and 3.4.21.", "date", "[removed] and [removed]."),
        ("the film of 12/25 at 0830", "date", "the film of [removed] at 0830"),
        ("12/25 at 8 am, 25/12 at 8:30", "date", "[removed] at 8 am, [removed] at 8:30"),
        ("12 Mar 21, 12 MAY '21", "date", "[removed], [removed]"),
        ("call 555-1234 or paged at 555 1234", "phone number", "call [removed] or paged at [removed]"),
        ("95-year-old woman", "age over 89", "[removed]-year-old woman"),
        ("A 101 y/o man, aged 101", "age over 89", "A [removed] y/o man, aged [removed]"),
    ],
)
def test_direct_identifiers_are_scrubbed_and_counted_by_kind(text: str, kind: str, left: str) -> None:
    assert scrub(text) == (left, Counter({kind: left.count(REMOVED)}))


@pytest.mark.parametrize(
    "text",
    [
        "A 1.2 x 3.4 cm nodule, 12 mm, SUV 3.4, 1.5 cm by 2/3/4 mm.",
        "Compression of T12, L4-5, C5-6-7 and T11-T12; ribs 7-8-10 and 10-11-12; the 3rd, 4th and 5th ribs.",
        "2/3 of the lung; 1/2; 3/4 views; grade 2/6 murmur; ratio 15/31; dated film of 2/3 of the chest.",
        "ICD generator. 2-lead ICD, 3 lead pacemaker. O2 95% on 2-3 L. BP 120/80. HR 90-100.",
        "At 3:45 pm, 14:30, 0930 hours. 24 hours ago, 2 days prior, in 2019, since 2010.",
        "89-year-old, 9 years old, 45 y/o, 90% of patients, 95 percent, 92 mm.",
        "MR BRAIN. DR CHEST. MS. No acute process. MR. The spine is normal. CT Chest With Contrast.",
        "Seen on MR. Degenerative change. DR Chest PA and Lateral. Two View Chest. 2 View Chest Ct",
        "Dr. XXXX was notified at XXXX by Dr. ___ on [**2019**]. Name: XXXX. Patient: rotated to the left.",
        "Patient: Rotated. Technique: AP. Read by attending. Reviewed by radiology. It may 5 turn.",
        "Lines: 7 French catheter, 5 F PICC, 40 cm. COVID-19. H1N1. SARS-CoV-2. B12. Level IIB. 5-FU.",
        "Case discussed. Acc: none. Chart reviewed. Visit 2. Phone call made. Extension 3 cm.",
        "Images 1-24 of 120. Series 3, image 1024. 120 kVp, 2000 mAs. kV 100. DLP 1234.5 mGy.",
        "March 5 mm cuts",
        "3.4 cm, T12, 2/6, C3-4, 1.2.3, level 3.4, 5-10 mm, 1.5.10 mm; murmur 2/6 at 3 cm.",
        "SEGMENT 2 MAY REPRESENT SCAR. The lesion of segment 2 may too. Images 100-1024. Called at 0830.",
        "Discussed with Dr. J. XXXX. Reviewed by the attending. CT level de novo. Read by: ___",
    ],
)
def test_what_radiologists_write_is_left_alone(text: str) -> None:
    assert scrub(text) == (text, Counter())


def test_overlapping_identifiers_are_one() -> None:
    text = "MRN: 123-45-6789, Dr. Smith, MD, Dr. Jane Doe, MD"
    scrubbed, counts = scrub(text)
    assert scrubbed == f"MRN: {REMOVED}, Dr. {REMOVED}, MD, Dr. {REMOVED}, MD"
    assert counts.total() == 3


@pytest.mark.real_data
@pytest.mark.skipif(not IU.is_dir(), reason="no real IU reports at ../shared/data/iu_xray")
def test_hardly_any_of_the_3955_deidentified_reports_is_touched(capsys: pytest.CaptureFixture[str]) -> None:
    read = touched = 0
    kinds: Counter[str] = Counter()
    for study in IUXray(str(IU)).records():
        texts = [getattr(study, name) for name in ("indication", "comparison", "findings", "impression")]
        found = [item.kind for text in texts for item in identifiers(text or "")]
        kinds.update(found)
        read, touched = read + 1, touched + bool(found)
    with capsys.disabled():
        print(f"\nIU reports touched by the gate: {touched} of {read} ({touched / read:.2%}) {dict(kinds)}")
    assert read == 3955
    assert touched / read < 0.005


@pytest.mark.real_data
@pytest.mark.skipif(not IU.is_dir(), reason="no real IU reports at ../shared/data/iu_xray")
def test_a_date_or_a_name_planted_where_the_real_reports_have_a_placeholder_is_found() -> None:
    planted = found = 0
    for study in IUXray(str(IU)).records():
        assert isinstance(study, Study)
        for date in ("03/14/2019", "March 14, 2019", "2019-03-14"):
            before, placeholder, after = (study.comparison or "").partition("XXXX")
            if placeholder:
                planted += 1
                found += any(item.kind == "date" for item in identifiers(before + date + after))
        for text in (study.findings or "", study.impression or ""):
            if "Dr. XXXX" in text:
                planted += 1
                found += "Quill" not in scrub(text.replace("Dr. XXXX", "Dr. Quillfeather"))[0]
    print(f"\nplanted {planted}, found {found}")
    assert planted > 3000
    assert found >= 0.995 * planted


@pytest.mark.parametrize(
    "piece",
    [
        *("1", "a", " ", "A ", "1/", "Dr ", "Dr.  ", "1-", "a@", "1 Aa ", "+1 ", "MRN "),
        *("A. ", "Dr. A. ", "de ", "Dr de la ", "Aa de ", "1 Jan ", "1/1 at ", "1.1.", "call 1"),
    ],
)
def test_a_hostile_text_takes_a_time_linear_in_its_length(piece: str) -> None:
    lengths = 10_000, 100_000
    times = []
    for length in lengths:
        text = (piece * length)[:length]
        start = time.process_time()
        identifiers(text)
        times.append(time.process_time() - start)
    assert times[1] < 40 * max(times[0], 0.005)


def header(**values: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


@pytest.mark.parametrize(
    ("keyword", "value", "kind"),
    [
        ("PatientName", "QUILLFEATHER^TAMSIN", "person's name"),
        ("ReferringPhysicianName", "Smith^J", "person's name"),
        ("OperatorsName", "Doe^J", "person's name"),
        ("PatientAddress", "12 Old Mill Road", "address or phone number"),
        ("PatientTelephoneNumbers", "555", "address or phone number"),
        ("OtherPatientIDs", "26210", "other patient id"),
        ("PatientComments", "husband 617-555-0123", "identifier in free text"),
        ("StudyDescription", "for Dr. Smith", "identifier in free text"),
        ("PatientName", "GIANNONE^MARIA", "person's name"),
        ("PatientName", "Iannone^A", "person's name"),
        ("PatientName", "Unknown^Maria", "person's name"),
    ],
)
def test_what_names_a_person_in_a_header_is_a_direct_finding(keyword: str, value: str, kind: str) -> None:
    findings = header_findings(header(**{keyword: value}))
    assert findings == {kind: 1}
    assert kind in DIRECT


@pytest.mark.parametrize(
    ("keyword", "value", "kind"),
    [
        ("PatientBirthDate", "19400305", "date"),
        ("StudyDate", "20240301", "date"),
        ("AccessionNumber", "714", "record number"),
        ("PatientID", "714", "record number"),
        ("InstitutionName", "General", "institution"),
        ("InstitutionAddress", "Main", "institution"),
        ("DeviceSerialNumber", "92", "device"),
        ("StudyDescription", "CHEST 2 VIEWS", None),
        ("PatientSex", "F", None),
        ("ViewPosition", "PA", None),
        ("PatientName", "ANONYMIZED", None),
        ("PatientName", "", None),
        ("PatientName", "0007", None),
        ("PatientName", "Anonymous^Patient", None),
        ("PatientName", "XXXX^XX=NOT GIVEN", None),
        ("PatientName", "DE-IDENTIFIED_12", None),
    ],
)
def test_the_rest_of_the_profile_is_counted_only(keyword: str, value: str, kind: str | None) -> None:
    findings = header_findings(header(**{keyword: value}))
    assert findings == ({kind: 1} if kind else {})
    assert kind not in DIRECT


def test_a_name_that_repeats_the_patient_id_as_research_archives_have_it_is_none() -> None:
    assert header_findings(header(PatientName="Covid0000", PatientID="Covid0000")) == {"record number": 1}


def test_private_elements_and_nested_items_are_looked_into() -> None:
    dataset = header(RequestAttributesSequence=Sequence([header(RequestingPhysician="Smith^J")]))
    dataset.add_new(0x00110010, "LO", "ACME")
    assert header_findings(dataset) == {"person's name": 1, "private element": 1}


@pytest.mark.parametrize(
    ("values", "flagged"),
    [
        ({"BurnedInAnnotation": "YES"}, True),
        ({"BurnedInAnnotation": "NO", "Modality": "DX"}, False),
        ({"Modality": "SC"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "DX"}, True),
        ({"Modality": "CR"}, False),
    ],
)
def test_burned_in_text_is_flagged_by_the_header(values: dict[str, str], flagged: bool) -> None:
    assert burned_in(header(**values)) is flagged


def test_the_gate_is_configured_like_every_stage() -> None:
    assert load(Gate, overrides=["mode=refuse"]).mode == "refuse"
    with pytest.raises(UserError, match="mode"):
        load(Gate, overrides=["mode=off"])
