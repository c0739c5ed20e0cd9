"""Predictions as DICOM: a Comprehensive SR for each, in the form of TID 2000, preliminary and unverified.

A cohort keeps no UID of DICOM: an institution's would tell whose exam it is. So a document's study UID is a
pseudonym made of the study's id, the patient is the cohort's, and no image is referenced; the document says
so itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING

from unirg.cohort.corpora import institution_headers as headers
from unirg.scoring.archive import NOTICE
from unirg.scoring.export import Author, Report
from unirg.storage import sha256

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept, ComprehensiveSR, ContainerContentItem
    from pydicom.dataset import Dataset

FOLDER = 1000
"""Documents of one folder."""
LONGEST = 64
"""Characters of DICOM's short texts (LO)."""
PSEUDONYMS = (
    "Study, series and patient are pseudonyms: the cohort that was scored keeps no DICOM UID, so no image is "
    "referenced. The study's id in the cohort: "
)
UNFINISHED = "The model did not end this report: it was cut off at the most tokens allowed."
_SECTIONS = {
    "findings": (("121070", "Findings"), ("121071", "Finding")),
    "impression": (("121072", "Impressions"), ("121073", "Impression")),
}


def write(reports: Iterable[Report], author: Author, folder: Path) -> int:
    """Write `000000/UID.dcm`, ... in the predictions' order; how many.

    Raises:
        ImportError: highdicom is not installed.
    """
    number = 0
    with headers.quiet():  # pydicom's warnings quote values
        for number, report in enumerate(reports, 1):
            document = _document(report, author)
            path = folder / f"{(number - 1) // FOLDER:06d}" / f"{document.SOPInstanceUID}.dcm"
            path.parent.mkdir(exist_ok=True)
            document.save_as(path, enforce_file_format=True)
    return number


def uid(*parts: str) -> str:
    """The same UID for the same parts, below the root for UUIDs, which needs no registration."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(0).join(('unirg', *parts))).int}"


def _document(report: Report, author: Author) -> ComprehensiveSR:
    from highdicom.sr import ComprehensiveSR
    from pydicom.valuerep import DT

    when = author.finished.astimezone(UTC)
    content = _content(report, author)
    made = ComprehensiveSR(
        evidence=[_pseudonym(report)],
        content=content,
        series_instance_uid=uid("series", report.key, when.isoformat()),
        series_number=1,
        series_description=NOTICE,
        # Another time or text is another document, and a UID never names two.
        sop_instance_uid=uid("document", report.key, when.isoformat(), sha256(report.text.encode())),
        instance_number=1,
        manufacturer="UniRG",
        manufacturer_model_name=short(author.name),
        software_versions=short(author.digest),
        is_complete=report.complete,
        is_final=False,
        is_verified=False,
        record_evidence=False,
        specific_character_set="ISO_IR 192",
        content_date=when.date(),
        content_time=when.time(),
        series_date=when.date(),
        series_time=when.time(),
    )
    # The library writes down when it ran, and takes for an image what only says whose study it is.
    made.InstanceCreationDate, made.InstanceCreationTime = made.ContentDate, made.ContentTime
    made.TimezoneOffsetFromUTC = "+0000"
    for equipment in made.get("ContributingEquipmentSequence", []):
        equipment.ContributionDateTime = DT(when.strftime("%Y%m%d%H%M%S+0000"))
    if "CurrentRequestedProcedureEvidenceSequence" in made:
        del made.CurrentRequestedProcedureEvidenceSequence
    made.PatientIdentityRemoved = "YES"
    made.DeidentificationMethod = "Ids of the scored cohort"
    return made


def _pseudonym(report: Report) -> Dataset:
    """What the library takes patient and study from."""
    from pydicom.dataset import Dataset
    from pydicom.uid import ComputedRadiographyImageStorage

    made = Dataset()
    made.StudyInstanceUID = uid("study", report.corpus, report.study_id)
    made.SOPClassUID = ComputedRadiographyImageStorage
    made.SOPInstanceUID = made.SeriesInstanceUID = uid("no image")
    made.PatientID = short(report.patient_id)
    for empty in ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(made, empty, "")
    made.StudyDate = made.StudyTime = made.ReferringPhysicianName = ""
    return made


def _content(report: Report, author: Author) -> ContainerContentItem:
    from highdicom import sr

    contains, modifies = sr.RelationshipTypeValues.CONTAINS, sr.RelationshipTypeValues.HAS_CONCEPT_MOD
    language = _dcm("121049", "Language of Content Item and Descendants")
    model = sr.DeviceObserverIdentifyingAttributes(
        uid=uid("model", author.digest),
        name=author.name,
        manufacturer_name="UniRG",
        model_name=author.name,
        serial_number=author.digest,
    )
    items = sr.ContentSequence(
        [sr.CodeContentItem(language, sr.CodedConcept("en", "RFC5646", "English"), modifies)]
    )
    items.extend(sr.ObserverContext(_dcm("121007", "Device"), model))
    notes = [NOTICE, *([] if report.complete else [UNFINISHED])]
    notes += [f"The model's digest is: {author.basis}", f"{PSEUDONYMS}{report.corpus}/{report.study_id}"]
    items.extend(sr.TextContentItem(_dcm("121106", "Comment"), note, contains) for note in notes)
    for name, text in report.sections.items():
        heading, item = (_dcm(*code) for code in _SECTIONS[name])
        section = sr.ContainerContentItem(heading, relationship_type=contains)
        section.ContentSequence = sr.ContentSequence([sr.TextContentItem(item, text, contains)])
        items.append(section)
    root = sr.ContainerContentItem(
        sr.CodedConcept("18748-4", "LN", "Diagnostic Imaging Report"), template_id="2000"
    )
    root.ContentSequence = items
    return root


def _dcm(value: str, meaning: str) -> CodedConcept:
    from highdicom.sr import CodedConcept

    return CodedConcept(value, "DCM", meaning)


def short(text: str) -> str:
    """A short text as DICOM has it: no backslash, which parts values; a long one is told apart by a hash."""
    text = text.replace("\\", "/")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 17]}~{sha256(text.encode())[:16]}"
