"""Look-alikes of MIMIC-CXR's releases and of MIMIC-IV's tables, with made-up text and ids."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unirg.cohort import imaging
from unirg.cohort.corpora import Dropped
from unirg.cohort.corpora.mimic_cxr import METADATA, SPLIT, MimicCXR
from unirg.study import Study

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)
FILM = imaging.encode_png(PIXELS)
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  Made-up cough.

 COMPARISON:  None.

 FINDINGS:

 Made-up lungs are
 clear.

 IMPRESSION:

 No made-up process.
"""
METADATA_COLUMNS = [
    *("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows"),
    *("Columns", "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning"),
    *("ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning"),
]
Row = dict[str, Any]


def dicom_id(number: int) -> str:
    return "-".join([f"{number:08x}", *["0abcdef1"] * 3, "00000000"])


def film(number: int, subject: int = 10000032, study: int = 50414267, **changed: Any) -> Row:
    row: Row = {
        **dict.fromkeys(METADATA_COLUMNS, ""),
        "dicom_id": dicom_id(number),
        "subject_id": subject,
        "study_id": study,
        "ViewPosition": "PA",
        "Rows": 8,
        "Columns": 8,
        "StudyDate": 21800506,
        "StudyTime": "213014.531",
        "split": "train",
    }
    return row | changed


def gz(rows: Sequence[Row], columns: Sequence[str]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return gzip.compress(buffer.getvalue().encode(), mtime=0)


def folder(row: Row) -> str:
    subject = str(row["subject_id"])
    return f"files/p{subject[:2]}/p{subject}/s{row['study_id']}"


def tree(rows: Sequence[Row], suffix: str = "jpg", content: bytes = FILM) -> dict[str, bytes]:
    return {f"{folder(row)}/{row['dicom_id']}.{suffix}": content for row in rows}


def reports(rows: Sequence[Row], text: str = REPORT) -> dict[str, bytes]:
    return {f"{folder(row)}.txt": text.encode() for row in rows}


def tables(rows: Sequence[Row]) -> dict[str, bytes]:
    return {
        f"{METADATA}.csv.gz": gz(rows, METADATA_COLUMNS),
        f"{SPLIT}.csv.gz": gz(rows, ["dicom_id", "study_id", "subject_id", "split"]),
    }


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def write(root: Path, files: Mapping[str, bytes]) -> str:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def corpus(root: Path, rows: Sequence[Row], demographics: str | None = None) -> MimicCXR:
    """The JPG release with unpacked reports."""
    return MimicCXR(write(root, tables(rows) | tree(rows) | reports(rows)), demographics)


def studies(adapter: MimicCXR) -> list[Study]:
    records = list(adapter.records())
    assert all(isinstance(record, Study) for record in records), records
    return [record for record in records if isinstance(record, Study)]


def only(adapter: MimicCXR) -> Study:
    (study,) = studies(adapter)
    return study


def dropped(adapter: MimicCXR) -> list[Dropped]:
    return [record for record in adapter.records() if isinstance(record, Dropped)]


PATIENTS = ["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"]
ADMISSIONS = ["subject_id", "hadm_id", "admittime", "dischtime", "insurance", "race"]


def mimic_iv(root: Path, patients: Sequence[Row], admissions: Sequence[Row] = (), inside: str = "") -> str:
    """The two tables, with a patient of no chest film before the others."""
    patients, admissions = (
        [patient(10000001), *patients],
        [admission("2180-01-01", "X", 10000001), *admissions],
    )
    blank = dict.fromkeys([*PATIENTS, *ADMISSIONS], "")
    files = {"patients": (patients, PATIENTS), "admissions": (admissions, ADMISSIONS)}
    return write(
        root,
        {
            f"{inside}{name}.csv.gz": gz([blank | row for row in rows], columns)
            for name, (rows, columns) in files.items()
        },
    )


def patient(subject: int = 10000032, **changed: Any) -> Row:
    return {"subject_id": subject, "gender": "F", "anchor_age": 52, "anchor_year": 2180} | changed


def admission(at: str, race: str, subject: int = 10000032) -> Row:
    return {"subject_id": subject, "admittime": at, "race": race}
