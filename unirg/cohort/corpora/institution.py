"""An institution's own data: a table of studies with their reports, and images in the folder below it.

Nothing that identifies a patient leaves this module: study and patient ids become keyed hashes, the study's
own identifiers and those that `deidentify` finds by pattern are removed from its texts (or the study is
refused), and errors name the institution, a row number, a keyed study id or a field, never a value, a path
or a column of the table's own.

The table is CSV (UTF-8, quoted) or Parquet. Columns, in any order, upper or lower case; others are ignored:

    study_id | accession | accession_number | study_instance_uid     required
    patient_id | mrn                            required with `images`
    images                                      paths relative to the table's folder, parted by `;`
    findings, impression, report                at least one; `sections` reads a `report`
    views                                       as many as images, parted by `;` (`views.view_of` reads them)
    acquired_at | study_date                    ISO 8601, or YYYYMMDD
    patient_name, age, sex, race, indication, comparison

A table without `images` is joined with the DICOM files anywhere below its folder, by StudyInstanceUID where
a row has one, else by AccessionNumber. What the table leaves out of patient, time, age, sex and race then
comes from their headers. DICOM files that no row names are counted under "no report".

Where a folder stands for the table, each StudyInstanceUID below it is a study without a report: an archive to
score. Its id and the patient's are keyed from that UID and the PatientID.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from unirg import storage
from unirg.cohort import deidentify
from unirg.cohort.corpora import Dropped, source
from unirg.cohort.corpora import institution_dicom as dicom
from unirg.cohort.corpora import institution_values as values
from unirg.cohort.corpora.institution_dicom import Archive, Exam
from unirg.cohort.corpora.institution_values import Refused, Row, first
from unirg.cohort.deidentify import REMOVED, Gate
from unirg.cohort.sections import sections
from unirg.config import Config
from unirg.errors import UserError
from unirg.study import SAFE_ID, Image, Study, StudyError, View, keyed_id

# At DEBUG they write down the path of every file that they open.
for _library in ("fsspec", "s3fs", "botocore", "aiobotocore"):
    logging.getLogger(_library).setLevel(logging.INFO)

SITE_KEY_VARIABLE = "UNIRG_SITE_KEY"
KEY_REMEDY = (
    f"create one with `openssl rand -hex 32`, keep it, and export it as {SITE_KEY_VARIABLE} "
    "(under another key every study gets another id)"
)

STUDY_COLUMNS = ("study_id", "accession", "accession_number", "study_instance_uid")
ACCESSION_COLUMNS = ("accession", "accession_number")
PATIENT_COLUMNS = ("patient_id", "mrn")
DATE_COLUMNS = ("acquired_at", "study_date")
REPORT_COLUMNS = ("findings", "impression", "report")
TEXT_COLUMNS = ("race", "indication", "comparison", "findings", "impression")
COLUMNS = frozenset(
    {*STUDY_COLUMNS, *PATIENT_COLUMNS, *DATE_COLUMNS, *REPORT_COLUMNS, *TEXT_COLUMNS}
    | {"images", "views", "patient_name", "age", "sex"}
)
OWN = "the study's own identifier"


class InstitutionConfig(Config):
    """How an institution's data is read."""

    name: str = "institution"
    """Corpus and institution; it is printed."""
    unknown_view: Literal["unknown", "frontal"] = "unknown"
    """What a study's only radiograph is where nothing names its view. `unknown` drops such a study for want
    of a frontal image; `frontal` suits a site whose single films are frontal but whose headers do not say."""
    gate: Gate = Gate()
    """What happens to direct identifiers."""


class Institution(source.ImageFiles):
    """The studies of one institution's table; `name` is its corpus and its institution, and is printed."""

    public = False

    def __init__(
        self,
        table: str,
        site_key: bytes,
        name: str = "institution",
        *,
        unknown_view: View = "unknown",
        gate: Gate = Gate(),  # noqa: B008 (frozen)
    ) -> None:
        """`table` is a path or URI ending in .csv or .parquet, or a folder of DICOM files without a table;
        `site_key` has 16 bytes or more.

        Raises:
            UserError: no key, an unsafe name, or a table of another kind or on an unknown file system.
        """
        if not re.fullmatch(SAFE_ID, name):
            raise UserError("the institution's name may hold only letters, digits and _ . / -")
        self.name = name
        self.removed: Counter[str] = Counter()
        """Identifiers removed from texts by the latest pass of `records`, by kind."""
        self.files: Counter[str] = Counter()
        """DICOM files of the latest pass: passed over by reason, identifiers in the headers by kind (none
        enters a cohort), images whose pixels may hold text."""
        if len(site_key) < 16:
            raise UserError(f"institution {name}: no site key of 16 bytes or more: {KEY_REMEDY}")
        self._site_key = site_key
        self._unknown_view = unknown_view
        self._gate = gate
        self._label = f"institution {name}"
        folder, slash, self._file = table.rpartition("/")
        self._folder = folder or slash or "."
        try:
            fs, path = storage.open_fs(table)
        except storage.StorageError:  # its text shows the path
            raise UserError(f"{self._label}: the scheme of its table's URI is not known here") from None
        self._tabled = table.lower().endswith((".csv", ".parquet"))
        if not self._tabled:
            if not source.is_folder(fs, path, self._label):
                raise UserError(
                    f"{self._label}: its table must be a .csv or .parquet file, or a folder of DICOM studies"
                )
            self._folder = table.rstrip("/") or "/"

    @classmethod
    def from_environment(
        cls,
        table: str,
        name: str = "institution",
        environ: Mapping[str, str] = os.environ,
        *,
        unknown_view: View = "unknown",
        gate: Gate = Gate(),  # noqa: B008 (frozen)
    ) -> Institution:
        """Take the site key from `UNIRG_SITE_KEY`, so that it stands in no configuration and no log.

        Raises:
            UserError: as above, or the variable is not hexadecimal.
        """
        try:
            site_key = bytes.fromhex(environ.get(SITE_KEY_VARIABLE, ""))
        except ValueError:
            raise UserError(f"{SITE_KEY_VARIABLE} is not hexadecimal: {KEY_REMEDY}") from None
        return cls(table, site_key, name, unknown_view=unknown_view, gate=gate)

    def __repr__(self) -> str:
        return f"Institution({self.name})"

    def fingerprint(self) -> str:
        """Over the table and its images, keyed: it changes with the site key, as the ids do.

        Its images are those that it names, or every file below it that may be DICOM.
        """
        named, joined = ({self._file}, False) if self._tabled else (set[str](), True)
        for _, row in self._rows() if self._tabled else ():
            if row is not None:
                joined = joined or "images" not in row
                named.update(values.paths(row))

        def is_wanted(path: str) -> bool:
            return path in named or (joined and dicom.is_candidate(path))

        files = source.listing(self._folder, is_wanted, self._label)
        return self.keyed(source.fingerprint(self._folder, files, self._label))

    def keyed(self, text: str) -> str:
        """Digest (hex) of what may name a patient: without the site key nobody can try names on it."""
        return hmac.new(self._site_key, f"{self.name}\0{text}".encode(), "sha256").hexdigest()

    def records(self) -> Iterator[Study | Dropped]:
        """Every row in the table's order; one that breaks a rule is dropped with the name of its field.

        Raises:
            UserError: the table is missing, cannot be read, or lacks a column.
        """
        self.removed, self.files = Counter(), Counter()
        if not self._tabled:
            yield from self._untabled()
            return
        seen: set[str] = set()
        archive: Archive | None = None
        reported: set[str] = set()
        for number, row in self._rows():
            if row is None:
                yield Dropped(f"row-{number}", "wrong number of columns, or too long")
                continue
            if archive is None and "images" not in row:
                archive = dicom.scan(self._folder, self._gate, self._label)
                self.files = archive.account()
            exams = (
                archive.exams(row.get("study_instance_uid", ""), first(row, ACCESSION_COLUMNS))
                if archive
                else None
            )
            study = self._study(number, row, exams)
            taken = {exam.uid for exam in exams or ()}
            if study.study_id in seen or taken & reported:
                study = Dropped(study.study_id, "duplicate study id")
            seen.add(study.study_id)
            reported |= taken
            yield study
        for exam in archive.by_uid.values() if archive else ():
            if exam.films and exam.uid not in reported:
                yield Dropped(keyed_id(self._site_key, "study", exam.accession or exam.uid), "no report")

    def _untabled(self) -> Iterator[Study | Dropped]:
        """Every exam of the folder, in the order of its UID, as if a row named that and nothing else.

        An exam without a PatientID is its own patient: nobody is known beyond it.
        """
        archive = dicom.scan(self._folder, self._gate, self._label)
        self.files = archive.account()
        for number, (uid, exam) in enumerate(sorted(archive.by_uid.items()), 1):
            row = {"study_instance_uid": uid, "patient_id": exam.patient or f"of study {uid}"}
            yield self._study(number, row, [exam])

    def fetch(self, image: Image) -> bytes:
        return source.read_image(self._folder, image.uri, self._label)

    def account(self) -> dict[str, int]:
        removed = {f"removed: {kind}": number for kind, number in self.removed.items()}
        return removed | {f"file: {what}": number for what, number in self.files.items()}

    def truth(self) -> pa.Table | None:
        return None

    def _study(self, number: int, row: Row, exams: list[Exam] | None) -> Study | Dropped:
        """The study of a row; `exams` are its DICOM files', None where the table names its images."""
        own_id = first(row, STUDY_COLUMNS)
        if not own_id:
            return Dropped(f"row-{number}", "missing study id")
        study_id = keyed_id(self._site_key, "study", own_id)
        try:
            exam = None if exams is None else dicom.merged(exams)
            if exam and self._gate.mode == "refuse" and exam.names_a_person:
                raise Refused(deidentify.IN_HEADER)
            patient = first(row, PATIENT_COLUMNS) or (exam.patient if exam else "")
            if not patient:
                raise Refused("missing patient id")
            return Study.checked(
                corpus=self.name,
                study_id=study_id,
                patient_id=keyed_id(self._site_key, "patient", patient),
                institution=self.name,
                images=self._images(row, exam),
                **self._described(row, exam),
                **self._texts(row, exam),
            )
        except Refused as reason:
            return Dropped(study_id, str(reason))
        except StudyError as error:
            return Dropped(study_id, f"invalid {error.field.partition('.')[0]}")

    def _images(self, row: Row, exam: Exam | None) -> tuple[Image, ...]:
        if exam is None:
            paths = values.paths(row)
            if not all(source.is_safe(path) for path in paths):
                raise Refused("unsafe image path")
            images = values.images(paths, row.get("views", ""))
        else:
            images = exam.images()
        if len(images) == 1 and images[0].view == "unknown":
            return (images[0].model_copy(update={"view": self._unknown_view}),)
        return images

    def _described(self, row: Row, exam: Exam | None) -> dict[str, Any]:
        """Time, age and sex by the table, else by the headers."""
        acquired = values.acquired(first(row, DATE_COLUMNS))
        age, sex = values.age(row.get("age", "")), values.sex(row.get("sex", ""))
        if exam:
            if not acquired and exam.acquired:
                acquired = dict(zip(("acquired_at", "acquired_basis"), exam.acquired, strict=True))
            age, sex = exam.age if age is None else age, sex or exam.sex
        if age is not None and deidentify.OLDEST < age <= 120:
            age = deidentify.OLDEST + 1
            self.removed["age over 89"] += 1
        return {**acquired, "age": age, "sex": sex}

    def _texts(self, row: Row, exam: Exam | None) -> dict[str, str]:
        """The row's texts as the gate lets them pass, without the study's own identifiers."""
        texts = {column: row.get(column, "") for column in TEXT_COLUMNS}
        report = row.get("report", "")
        if max(len(text) for text in (report, *texts.values())) > deidentify.MAX_TEXT:
            raise Refused("report too long")
        if report:
            found = sections(report)._asdict()
            found["indication"] = found["indication"] or found["history"]
            texts = {column: text or found.get(column) or "" for column, text in texts.items()}
        if exam:
            texts["race"] = texts["race"] or exam.ethnic_group
        texts = {column: unicodedata.normalize("NFC", text) for column, text in texts.items()}
        own = self._own_identifiers("\n".join(texts.values()), row, exam)
        counts: Counter[str] = Counter()
        for column, text in texts.items():
            if own:
                text, counts_own = own.subn(REMOVED, text)
                counts[OWN] += counts_own
            texts[column], by_kind = deidentify.scrub(text)
            counts += by_kind
        if counts and self._gate.mode == "refuse":
            raise Refused(deidentify.IN_REPORT)
        self.removed += counts
        return texts

    @staticmethod
    def _own_identifiers(text: str, row: Row, exam: Exam | None) -> re.Pattern[str] | None:
        names = [row.get("patient_name", ""), *(sorted(exam.names) if exam else ())]
        numbers = [row.get(column, "") for column in STUDY_COLUMNS + PATIENT_COLUMNS]
        others: list[str] = []
        if exam:
            numbers += sorted(exam.numbers)
            others = sorted(exam.other_names)
        return values.own_identifiers(text, names, numbers, others)

    def _rows(self) -> Iterator[tuple[int, Row | None]]:
        """(row number from 1, row) of the table; None for a row whose width differs from the header's."""
        checked = False
        try:
            for number, row in self._csv() if self._file.lower().endswith(".csv") else self._parquet():
                if row is not None and not checked:
                    self._check_columns(row)
                    checked = True
                yield number, row
        except FileNotFoundError:
            raise UserError(f"{self._label}: its table does not exist; check `table`") from None
        if not checked:
            raise UserError(f"{self._label}: its table has no row that fits its header; check the export")

    def _csv(self) -> Iterator[tuple[int, Row | None]]:
        for number, row in source.csv_rows(self._folder, self._file, f"{self._label}: its table"):
            yield number, row and {column: value.strip() for column, value in row.items()}

    def _parquet(self) -> Iterator[tuple[int, Row | None]]:
        number = 0
        try:
            with source.opened(self._folder, self._file, self._label) as file:
                parquet = pq.ParquetFile(file)
                names = {name.strip().lower(): name for name in parquet.schema_arrow.names}
                if len(names) < len(parquet.schema_arrow.names):
                    raise UserError(
                        f"{self._label}: its table: two columns have the same name; rename or remove one"
                    )
                known = {column: name for column, name in names.items() if column in COLUMNS}
                self._check_columns(known)
                for batch in parquet.iter_batches(source.BATCH, columns=list(known.values())):
                    cells = [values.texts(batch.column(name)) for name in known.values()]
                    for row in zip(*cells, strict=True):
                        number += 1
                        yield number, dict(zip(known, row, strict=True))
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            raise UserError(f"{self._label}: its table is not Parquet, or damaged; export it again") from None

    def _check_columns(self, row: Collection[str]) -> None:
        needed = [STUDY_COLUMNS, REPORT_COLUMNS]
        if "images" in row:
            needed.insert(1, PATIENT_COLUMNS)
        elif not {*ACCESSION_COLUMNS, "study_instance_uid"} & set(row):
            needed.append(("images", *ACCESSION_COLUMNS, "study_instance_uid"))
        missing = [" or ".join(names) for names in needed if not set(names) & set(row)]
        if missing:
            raise UserError(f"{self._label}: its table has no column {', no column '.join(missing)}")
