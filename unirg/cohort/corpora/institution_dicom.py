"""A folder or bucket of DICOM files by exam: which radiographs of the chest belong together, and whose.

Only the beginning of each file is read, HEAD bytes or more where a header is longer, and per exam only what
a study needs is kept (about 2 kB).
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from unirg.cohort import deidentify
from unirg.cohort.corpora import institution_headers as headers
from unirg.cohort.corpora import institution_values as values
from unirg.cohort.corpora import source
from unirg.cohort.corpora.institution_headers import Time
from unirg.cohort.corpora.institution_values import Refused
from unirg.cohort.corpora.source import SourceFile
from unirg.cohort.deidentify import Gate
from unirg.errors import UserError
from unirg.study import Image, Projection, View

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

HEAD = 64 * 2**10
"""Bytes read of every file; the headers of real radiographs have 2 to 20 kB."""
MAX_HEADER = 4 * 2**20

EXTENSIONS = re.compile(r"(?i)dcm|dicom|dic|ima|img|[0-9]+")
"""Of files that may be DICOM, besides none at all; digits are the end of a UID."""
NOT_FOUND = "no DICOM image found for it"
"""Why a row is dropped whose files are not there, or not yet."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_PATIENT_NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName")
_NUMBERS = ("PatientID", "OtherPatientIDs", "AccessionNumber", "AdmissionID", "PatientTelephoneNumbers")
_OTHER_NAMES = (
    *("ReferringPhysicianName", "RequestingPhysician", "PerformingPhysicianName", "PhysiciansOfRecord"),
    *("NameOfPhysiciansReadingStudy", "OperatorsName"),
)


@dataclass(frozen=True, slots=True)
class Film:
    """A radiograph of the chest."""

    path: str
    view: View
    projection: Projection | None
    taken: datetime | None
    uid: str

    @property
    def order(self) -> tuple[int, datetime, str, str]:
        """PA, AP, unknown; then acquisition time; then id."""
        rank = {"PA": 0, "AP": 1, None: 2}[self.projection] if self.view == "frontal" else 3
        return rank, self.taken or datetime.max, self.uid, self.path


@dataclass(slots=True)
class Exam:
    """What the headers of one StudyInstanceUID say. Never printed: it names the patient."""

    uid: str = field(repr=False)
    accession: str = field(repr=False)
    films: tuple[Film, ...] = field(default=(), repr=False)
    passed_over: frozenset[str] = frozenset()
    """Why other files of its are no films."""
    names_a_person: bool = False
    """A header holds a direct identifier."""
    patients: frozenset[str] = field(default=frozenset(), repr=False)
    names: frozenset[str] = field(default=frozenset(), repr=False)
    other_names: frozenset[str] = field(default=frozenset(), repr=False)
    numbers: frozenset[str] = field(default=frozenset(), repr=False)
    acquired: Time | None = None
    age: int | None = None
    sex: str | None = None
    ethnic_group: str = field(default="", repr=False)

    @property
    def patient(self) -> str:
        """The PatientID, '' where there is none."""
        return next(iter(self.patients), "")

    def images(self) -> tuple[Image, ...]:
        """Its radiographs, the key image first."""
        films = sorted(self.films, key=lambda film: film.order)
        return tuple(Image(view=film.view, projection=film.projection, uri=film.path) for film in films)


@dataclass
class Archive:
    """The exams below a folder, by StudyInstanceUID and by accession number, and an account of the files."""

    by_uid: dict[str, Exam] = field(default_factory=dict, repr=False)
    by_accession: dict[str, list[Exam]] = field(default_factory=dict, repr=False)
    passed_over: Counter[str] = field(default_factory=Counter)
    """Files that are no radiograph of the chest, by reason."""
    findings: Counter[str] = field(default_factory=Counter)
    """Identifying attributes of the headers, by kind: none enters a cohort."""
    burned_in: int = 0
    """Radiographs whose pixels may hold text."""

    def account(self) -> Counter[str]:
        """What there is to say of the files: fixed phrases with their numbers."""
        told = {f"file passed over: {reason}": number for reason, number in self.passed_over.items()}
        told |= {f"in headers: {kind}": number for kind, number in self.findings.items()}
        return +Counter(told | {deidentify.BURNED_IN: self.burned_in})

    def exams(self, uid: str, accession: str) -> list[Exam]:
        """Those of a row of the table: of its study UID where it has one, else of its accession number."""
        if uid:
            return [self.by_uid[uid]] if uid in self.by_uid else []
        return self.by_accession.get(accession, [])


def merged(exams: Sequence[Exam]) -> Exam:
    """The exams of one report as one: those under its accession number that have a radiograph of the chest.

    Raises:
        Refused: no file, none that is a radiograph of the chest (by its reason where all share one), or files
            of several patients.
    """
    if not exams:
        raise Refused(NOT_FOUND)
    usable = sorted((exam for exam in exams if exam.films), key=lambda exam: exam.uid)
    if not usable:
        reasons = sorted(frozenset().union(*(exam.passed_over for exam in exams)))
        raise Refused(f"DICOM image: {reasons[0]}" if len(reasons) == 1 else "no radiograph of the chest")
    one = dataclasses.replace(usable[0])
    for exam in usable[1:]:
        one.films += exam.films
        one.names_a_person |= exam.names_a_person
        one.patients |= exam.patients
        one.names |= exam.names
        one.numbers |= exam.numbers
        one.other_names |= exam.other_names
        one.age = exam.age if one.age is None else one.age
        one.sex, one.ethnic_group = one.sex or exam.sex, one.ethnic_group or exam.ethnic_group
    one.acquired = headers.earliest(exam.acquired for exam in usable)
    if len(one.patients) > 1:
        raise Refused("images of several patients")
    return one


def is_candidate(path: str) -> bool:
    """Whether a file's name lets it be DICOM; hidden files are not."""
    name = path.rpartition("/")[2]
    stem, dot, extension = name.rpartition(".")
    return not name.startswith(".") and (not dot or bool(stem and EXTENSIONS.fullmatch(extension)))


def scan(root: str, gate: Gate, label: str) -> Archive:
    """Read every header below the root once.

    Raises:
        UserError: pydicom is not installed, there is no such folder, or the storage failed.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise UserError("DICOM images need pydicom: pip install 'unirg[dicom]'") from None
    archive = Archive()
    files = source.listing(root, is_candidate, label)
    with headers.quiet():
        for file, head in zip(files, _heads(root, files, HEAD, label), strict=True):
            _enter(archive, file.path, _parsed(root, file, head, label), gate)
    for exam in archive.by_uid.values():
        if exam.accession:
            archive.by_accession.setdefault(exam.accession, []).append(exam)
    return archive


def _heads(root: str, files: Sequence[SourceFile], size: int, label: str) -> Iterator[bytes]:
    """The first bytes of each file, a batch at a time."""
    cut = [dataclasses.replace(file, size=min(file.size, size)) for file in files]
    try:
        yield from source.read_all(root, cut, label)
    except FileNotFoundError:
        raise UserError(f"{label}: a file vanished while its folder was read; run again") from None


def _parsed(root: str, file: SourceFile, head: bytes, label: str) -> Dataset | str:
    """A file's header, or why there is none."""
    if head[128:132] != b"DICM":
        return "not a DICOM file"
    if _DEFLATED in head[:2048]:  # pydicom would inflate it whole, whatever its size
        return "deflated DICOM"
    found = headers.parsed(head, whole=file.size <= len(head))
    if found is None and file.size > len(head):
        (head,) = _heads(root, [file], MAX_HEADER, label)
        found = headers.parsed(head, whole=file.size <= len(head))
    return "unreadable DICOM header" if found is None else found


def _enter(archive: Archive, path: str, header: Dataset | str, gate: Gate) -> None:
    """Put one file into the archive, or count why it is passed over."""
    if isinstance(header, str):
        archive.passed_over[header] += 1
        return
    uid = headers.value(header, "StudyInstanceUID")
    if not uid:
        archive.passed_over["no StudyInstanceUID"] += 1
        return
    accession = headers.value(header, "AccessionNumber")
    exam = archive.by_uid.setdefault(uid, Exam(uid, accession))
    exam.accession = exam.accession or accession
    possible_text = deidentify.burned_in(header)
    reason = headers.unusable(header)
    if reason is None and possible_text and gate.burned_in == "refuse":
        reason = deidentify.BURNED_IN
    if reason is not None:
        archive.passed_over[reason] += 1
        exam.passed_over |= {reason}
        return
    film = _film(header, path)
    if film.uid in {other.uid for other in exam.films}:
        archive.passed_over["copy of another file"] += 1
        return
    exam.films += (film,)
    archive.burned_in += possible_text
    _describe(exam, header)
    findings = deidentify.header_findings(header)
    exam.names_a_person |= bool(findings.keys() & deidentify.DIRECT)
    archive.findings.update(findings)


def _film(header: Dataset, path: str) -> Film:
    view, projection = headers.view_in(header)
    taken = headers.when(header, "Acquisition", "Content")
    uid = headers.value(header, "SOPInstanceUID") or path
    return Film(path, view, projection, taken[0] if taken else None, uid)


def _describe(exam: Exam, header: Dataset) -> None:
    """Add what one radiograph's header says of its exam: the first value stands, of times the earliest."""
    acquired = headers.when(header, "Study", "Acquisition", "Content")
    exam.acquired = headers.earliest((exam.acquired, acquired))
    exam.age = headers.age(header, acquired) if exam.age is None else exam.age
    exam.sex = exam.sex or values.SEXES.get(headers.value(header, "PatientSex").lower())
    exam.ethnic_group = exam.ethnic_group or headers.value(header, "EthnicGroup")
    exam.patients |= {patient} if (patient := headers.value(header, "PatientID")) else set()
    exam.names |= _texts(header, _PATIENT_NAMES)
    exam.numbers |= _texts(header, _NUMBERS)
    exam.other_names |= _texts(header, _OTHER_NAMES)


def _texts(header: Dataset, keywords: Sequence[str]) -> frozenset[str]:
    return frozenset(text for keyword in keywords for text in headers.every(header, keyword) if text)
