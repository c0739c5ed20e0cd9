"""MIMIC-CXR and MIMIC-CXR-JPG 2.x: 227,835 studies of Beth Israel Deaconess, Boston, in two trees of images.

Sources: https://physionet.org/content/mimic-cxr and /mimic-cxr-jpg (credentialed). The root holds either
release, both laid over each other, or both in the folders that PhysioNet's downloads have (`RELEASES`):

    files/p10/p10000032/s50414267/<dicom_id>.jpg | .dcm       the JPG is preferred
    files/p10/p10000032/s50414267.txt                         else out of mimic-cxr-reports.zip
    mimic-cxr-2.0.0-metadata.csv.gz, mimic-cxr-2.0.0-split.csv.gz

The two tables (`.csv` unpacked) come with the JPG release; they name views, times and splits, so a root that
has the DICOM tree alone needs them too. Paths are composed of checked ids: no path is taken from a table.

* Study ids are random. A study's time is the earliest StudyDate and StudyTime of its images; StudyTime is a
  number that lost its leading zeros (80556.875 is 08:05:56.875). A study whose images have a date and no
  readable time has the date.
* A ViewPosition that is empty (15,769 images) is unknown.
* The indication is that section, else the history.
* Demographics come from MIMIC-IV where its folder is given (`mimic_iv`).

Memory: 0.1 kB an image and 0.1 kB a study for the tables, and the listing of one of the ten folders
`files/pNN` at a time (0.6 kB a file, 1.7 kB on object storage); with the zip file of reports its directory as
well (0.6 kB a report). Texts are read 256 at a time.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from unirg.cohort.corpora import Dropped, mimic_iv, mimic_reports, source
from unirg.cohort.corpora.mimic_iv import Demographics, MimicIV
from unirg.cohort.corpora.mimic_reports import ARCHIVE
from unirg.cohort.corpora.source import SourceFile
from unirg.cohort.sections import sections
from unirg.cohort.views import UNKNOWN, VIEWS, view_of
from unirg.errors import UserError
from unirg.study import AcquiredBasis, Image, Split, Study, StudyError

RELEASES = ("", "mimic-cxr-jpg/2.1.0", "mimic-cxr-jpg/2.0.0", "mimic-cxr/2.1.0", "mimic-cxr/2.0.0")
GROUPS = tuple(f"p{number}" for number in range(10, 20))
METADATA = "mimic-cxr-2.0.0-metadata"
SPLIT = "mimic-cxr-2.0.0-split"
COLUMNS = {
    METADATA: ("dicom_id", "subject_id", "study_id", "viewposition", "studydate", "studytime"),
    SPLIT: ("study_id", "split"),
}
SPLITS: dict[str, Split] = {"train": "train", "validate": "validate", "test": "test"}

_SUBJECT, _STUDY = re.compile("1[0-9]{7}"), re.compile("[0-9]{8}")
_DICOM = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{8}){4}")
_FILE = re.compile(r"p1[0-9]{7}/s[0-9]{8}(?:\.txt|/[0-9a-f-]{44}\.(?:jpg|dcm))")
_CODES = sorted({UNKNOWN, *VIEWS.values()}, key=str)

NEVER = 2**63 - 1
_FILM = np.dtype(
    [
        ("subject", "<u4"),
        ("study", "<u4"),
        ("rank", "u1"),  # PA before AP before any other
        ("at", "<i8"),  # microseconds since datetime.min, NEVER where a part is missing
        ("day", "<i4"),  # proleptic ordinal, 0 where it is missing
        ("dicom", "S20"),
        ("view", "u1"),  # index into _CODES
    ]
)
_PACKED = struct.Struct("<IIBqi20sB")


class _Exam(NamedTuple):
    """A study in the metadata: its images in the key image's order."""

    subject: int
    study: int
    films: np.ndarray

    @property
    def stem(self) -> str:
        return f"p{self.subject}/s{self.study}"


class MimicCXR(source.ImageFiles):
    """The corpus below `root`, and MIMIC-IV's tables in `demographics`: directories or URIs.

    `public` keeps the images' paths in a cohort: they hold the owner's pseudonyms alone.
    """

    name = "mimic_cxr"
    public = True

    def __init__(self, root: str, demographics: str | None = None) -> None:
        self.root = root
        self.demographics = demographics

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        tables = sorted(self._tables().values(), key=lambda file: file.path)
        digest.update(source.fingerprint(self.root, tables).encode())
        for group in GROUPS:
            files = sorted(self._files(group).values(), key=lambda file: file.path)
            digest.update(source.fingerprint(self.root, files).encode())
        if self.demographics:
            digest.update(mimic_iv.fingerprint(self.demographics).encode())
        return digest.hexdigest()

    def records(self) -> Iterator[Study | Dropped]:
        """Every study of the metadata by patient and study id; rows with malformed ids dropped by number.

        Raises:
            UserError: no such directory, or a table or the zip file is missing, damaged or lacks a column.
        """
        tables = self._tables()
        packed = bytearray()
        yield from self._read_metadata(tables, packed)
        if not packed:
            raise UserError(f"{self.root}: {METADATA} names no image by a valid id; fetch the original again")
        films = _in_order(packed)
        shared = _shared(films)
        splits = self._splits(tables)
        people = MimicIV(self.demographics, set(films["subject"].tolist())) if self.demographics else None
        with mimic_reports.opened(self.root, tables.get(ARCHIVE)) as archive:
            for group, exams in _by_group(films):
                files = self._files(group)
                for start in range(0, len(exams), source.BATCH):
                    batch = exams[start : start + source.BATCH]
                    texts = mimic_reports.read(self.root, [exam.stem for exam in batch], files, archive)
                    for exam, report in zip(batch, texts, strict=True):
                        if exam.study in shared:
                            yield Dropped(f"s{exam.study}", "study of two patients")
                        else:
                            yield self._record(exam, report, files, splits, people)
                known = {exam.stem for exam in exams}
                for stem in sorted(mimic_reports.stems(group, files, archive) - known):
                    yield Dropped(stem.rpartition("/")[2], "no image in the metadata")

    def fetch(self, image: Image) -> bytes:
        return source.read_image(self.root, image.uri)

    def account(self) -> dict[str, int]:
        return {}

    def truth(self) -> pa.Table | None:
        return None

    def _tables(self) -> dict[str, SourceFile]:
        """The tables and the zip file by name, from the first release that has one."""
        names = {ARCHIVE: ARCHIVE}
        names |= {f"{table}{suffix}": table for table in COLUMNS for suffix in (".csv", ".csv.gz")}
        found: dict[str, SourceFile] = {}
        for release in RELEASES:
            for file in self._below(release, names.__contains__, maxdepth=1, required=not release):
                found.setdefault(names[file.name], file)
        return found

    def _files(self, group: str) -> dict[str, SourceFile]:
        """Images and reports of the patients of one folder, by path below it."""
        found: dict[str, SourceFile] = {}
        for release in RELEASES:
            folder = f"{release}/files/{group}".lstrip("/")
            for file in self._below(folder, lambda path: bool(_FILE.fullmatch(path)), required=False):
                found.setdefault(file.path.removeprefix(f"{folder}/"), file)
        return found

    def _below(self, folder: str, wanted: Any, **options: Any) -> list[SourceFile]:
        """The listing of a folder below the root, with paths relative to the root."""
        if not folder:
            return source.listing(self.root, wanted, **options)
        source.check_folder(self.root, folder, self.root)
        place = f"{self.root.rstrip('/')}/{folder}"
        files = source.listing(place, wanted, self.root, **options)
        return [SourceFile(f"{folder}/{file.path}", file.size, file.version) for file in files]

    def _rows(self, tables: dict[str, SourceFile], table: str) -> Iterator[tuple[int, dict[str, str] | None]]:
        if table not in tables:
            raise UserError(
                f"{self.root}: no {table}.csv.gz; fetch it from MIMIC-CXR-JPG, whatever the images"
            )
        label = f"{self.root}: {tables[table].name}"
        number = 0
        for number, row in source.csv_rows(self.root, tables[table].path, label):
            if row is not None and (absent := [column for column in COLUMNS[table] if column not in row]):
                raise UserError(f"{label}: no column {', '.join(absent)}; fetch the original file again")
            yield number, row
        if not number:
            raise UserError(f"{label}: no row; fetch the original file again")

    def _read_metadata(self, tables: dict[str, SourceFile], packed: bytearray) -> Iterator[Dropped]:
        """Append every image of the metadata to `packed`; yield the rows that name none."""
        for number, row in self._rows(tables, METADATA):
            film = _film(row) if row else None
            if film is None:
                yield Dropped(f"metadata-row-{number}", "malformed id in the metadata")
            else:
                packed += film

    def _splits(self, tables: dict[str, SourceFile]) -> dict[int, Split | None]:
        """Split by study; None where the table contradicts itself or names another."""
        splits: dict[int, Split | None] = {}
        for _, row in self._rows(tables, SPLIT):
            if row and _STUDY.fullmatch(row["study_id"].strip()):
                split = SPLITS.get(row["split"].strip().lower())
                study = int(row["study_id"])
                splits[study] = split if splits.setdefault(study, split) == split else None
        return splits

    def _record(
        self,
        exam: _Exam,
        report: bytes | str,
        files: dict[str, SourceFile],
        splits: dict[int, Split | None],
        people: MimicIV | None,
    ) -> Study | Dropped:
        study_id = f"s{exam.study}"
        if isinstance(report, str):
            return Dropped(study_id, report)
        split = splits.get(exam.study)
        if split is None:
            return Dropped(study_id, "no official split, or two")
        listed = list(_images(exam, files))
        images = tuple(image for image in listed if image.uri)
        if any(i.view == "frontal" for i in listed) and not any(i.view == "frontal" for i in images):
            return Dropped(study_id, "missing image")
        try:
            text = sections(report.decode("utf-8-sig"))
        except UnicodeDecodeError:
            return Dropped(study_id, "report not UTF-8")
        at, basis = _acquired(exam.films)
        person = people.of(exam.subject, at) if people else Demographics()
        try:
            return Study.checked(
                corpus=self.name,
                study_id=study_id,
                patient_id=f"p{exam.subject}",
                institution="bidmc",
                split=split,
                acquired_at=at,
                acquired_basis=basis,
                **person._asdict(),
                images=images,
                indication=text.indication or text.history,
                comparison=text.comparison,
                findings=text.findings,
                impression=text.impression,
            )
        except StudyError as error:
            return Dropped(study_id, f"invalid {error.field.partition('.')[0]}")


def _film(row: dict[str, str]) -> bytes | None:
    """A row of the metadata as a `_FILM`; None if an id is malformed."""
    dicom, subject, study = (row[column].strip() for column in ("dicom_id", "subject_id", "study_id"))
    if not (_DICOM.fullmatch(dicom) and _SUBJECT.fullmatch(subject) and _STUDY.fullmatch(study)):
        return None
    view = view_of(row["viewposition"])
    rank = {"PA": 0, "AP": 1}.get(view[1] or "", 2)
    day, time = _day(row["studydate"]), _time(row["studytime"])
    at = NEVER if day is None or time is None else ((day - 1) * 86_400_000_000 + time)
    dicom_bytes = bytes.fromhex(dicom.replace("-", ""))
    return _PACKED.pack(int(subject), int(study), rank, at, day or 0, dicom_bytes, _CODES.index(view))


def _day(text: str) -> int | None:
    """YYYYMMDD as a proleptic ordinal."""
    match = re.fullmatch(r"([0-9]{4})([0-9]{2})([0-9]{2})(?:\.0*)?", text.strip())
    try:
        return date(int(match[1]), int(match[2]), int(match[3])).toordinal() if match else None
    except ValueError:
        return None


def _time(text: str) -> int | None:
    """HHMMSS.ffffff without its leading zeros as microseconds since midnight."""
    match = re.fullmatch(r"([0-9]{1,6})(?:\.([0-9]*))?", text.strip())
    if match is None:
        return None
    hours, minutes, seconds = (int(match[1].zfill(6)[place : place + 2]) for place in (0, 2, 4))
    if hours > 23 or minutes > 59 or seconds > 59:
        return None
    return (hours * 3600 + minutes * 60 + seconds) * 1_000_000 + int((match[2] or "")[:6].ljust(6, "0"))


def _in_order(packed: bytearray) -> np.ndarray:
    """Films by patient, study, and the key image's order: projection, time, id."""
    films = np.frombuffer(packed, _FILM)
    return films[np.lexsort([films[name] for name in ("dicom", "at", "rank", "study", "subject")])]


def _shared(films: np.ndarray) -> set[int]:
    """Studies that the metadata gives to more than one patient."""
    pairs = np.unique(films[["study", "subject"]])
    return set(pairs["study"][1:][pairs["study"][1:] == pairs["study"][:-1]].tolist())


def _by_group(films: np.ndarray) -> Iterator[tuple[str, list[_Exam]]]:
    """The exams of each folder `files/pNN`."""
    for group in GROUPS:
        prefix = int(group[1:]) * 1_000_000
        low, high = np.searchsorted(films["subject"], [prefix, prefix + 1_000_000])
        part = films[low:high]
        new = (part["study"][1:] != part["study"][:-1]) | (part["subject"][1:] != part["subject"][:-1])
        pieces = np.split(part, np.flatnonzero(new) + 1) if len(part) else []
        yield group, [_Exam(int(piece["subject"][0]), int(piece["study"][0]), piece) for piece in pieces]


def _images(exam: _Exam, files: dict[str, SourceFile]) -> Iterator[Image]:
    """The exam's images, each once, the JPG before the DICOM; without `uri` where neither is there."""
    seen: set[bytes] = set()
    for film in exam.films:
        if film["dicom"] in seen:
            continue
        seen.add(film["dicom"])
        digits = film["dicom"].ljust(20, b"\0").hex()
        name = "-".join(digits[place : place + 8] for place in range(0, 40, 8))
        file = files.get(f"{exam.stem}/{name}.jpg") or files.get(f"{exam.stem}/{name}.dcm")
        view, projection = _CODES[film["view"]]
        yield Image(view=view, projection=projection, uri=file.path if file else None)


def _acquired(films: np.ndarray) -> tuple[datetime | None, AcquiredBasis | None]:
    earliest = int(films["at"].min())
    if earliest != NEVER:
        return datetime.min + timedelta(microseconds=earliest), "timestamp"
    days = films["day"][films["day"] > 0]
    return (datetime.fromordinal(int(days.min())), "date") if len(days) else (None, None)
