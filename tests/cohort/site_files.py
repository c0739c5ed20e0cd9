"""An institution's DICOM files and its table of reports, written by tests."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from unirg.cohort.corpora import Dropped
from unirg.cohort.corpora.institution import Institution
from unirg.study import Study

KEY = bytes(range(32))
CLASS = "1.2.840.10008.5.1.4.1.1"
PIXELS = (np.add.outer(np.arange(24), np.arange(32)) * 4).astype(np.uint8)

HEADER: dict[str, Any] = {
    "PatientName": "QUILLFEATHER^TAMSIN",
    "PatientID": "0081234567",
    "PatientBirthDate": "19630402",
    "PatientSex": "F",
    "EthnicGroup": "White",
    "AccessionNumber": "ACC-00714",
    "StudyInstanceUID": "1.2.3.4",
    "SOPClassUID": f"{CLASS}.1",
    "SOPInstanceUID": "1.2.3.4.1",
    "StudyDate": "20240301",
    "StudyTime": "101500",
    "Modality": "CR",
    "BodyPartExamined": "CHEST",
    "ViewPosition": "PA",
    "ReferringPhysicianName": "Oyelaran^Wilhelmina",
}
ROW = {"accession": "ACC-00714", "report": "FINDINGS: Heart size is normal.\nIMPRESSION: No acute process."}


def dicom(path: Path, syntax: str = ExplicitVRLittleEndian, **changed: Any) -> Path:
    """Write one DICOM file; a changed field that is None is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    pixels = {
        **{"Rows": 24, "Columns": 32, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"},
        **{"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is written here is often invalid
        for name, value in {**HEADER, **pixels, **changed}.items():
            if value is not None:
                setattr(dataset, name, value)
        meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        if "Rows" in dataset:
            dataset.PixelData = PIXELS.tobytes()
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def corpus(folder: Path, *rows: dict[str, str], **options: Any) -> Institution:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "reports.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return Institution(str(folder / "reports.csv"), KEY, "site_a", **options)


def only(institution: Institution) -> Study:
    (record,) = institution.records()
    assert isinstance(record, Study), record
    return record


def reasons(institution: Institution) -> list[str]:
    return [record.reason for record in institution.records() if isinstance(record, Dropped)]
