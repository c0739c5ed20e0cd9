"""A phantom institution that delivers studies as tables with images, under names that must not get out."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import numpy as np
from PIL import Image as PIL

from unirg import storage
from unirg.cohort.corpora.phantom import Phantom
from unirg.cohort.imaging import resize
from unirg.study import Study, keyed_id

SITE_KEY = "5ec2e7" * 6 + "a1b2c3d4"
SECRETS = ("QUACKENBUSH", "QX77")
"""In every patient's and every study's own number, and in every object's name."""
COLUMNS = (
    "mrn",
    "accession",
    "study_date",
    "age",
    "sex",
    "views",
    "images",
    "indication",
    "findings",
    "impression",
)


@dataclass(frozen=True)
class Exam:
    """What the institution knows of a study."""

    accession: str
    mrn: str
    study_date: str
    age: int
    sex: str
    findings: str
    pixels: np.ndarray = field(repr=False, compare=False)
    impression: str = "See above."
    indication: str = "Cough."

    @property
    def study_id(self) -> str:
        return keyed_id(bytes.fromhex(SITE_KEY), "study", self.accession)

    @property
    def patient_id(self) -> str:
        return keyed_id(bytes.fromhex(SITE_KEY), "patient", self.mrn)

    def reported(self, findings: str) -> Exam:
        return replace(self, findings=findings)


def drawn(count: int, seed: int = 0) -> list[Exam]:
    """Phantoms as this institution's; another seed draws other patients, in another year's wording."""
    corpus = Phantom(count, seed)
    return [_exam(corpus, study, seed) for study in corpus.records() if isinstance(study, Study)]


def _exam(corpus: Phantom, study: Study, seed: int) -> Exam:
    assert study.acquired_at is not None
    assert study.key_image is not None
    return Exam(
        accession=f"{SECRETS[1]}-{seed}-{study.study_id}",
        mrn=f"{SECRETS[0]}-{seed}-{study.patient_id}",
        study_date=(study.acquired_at + timedelta(days=366 * seed)).isoformat(),
        age=study.age or 50,
        sex=study.sex or "F",
        findings=f"{study.findings or 'Lungs are clear.'} Read in year {seed}.",
        impression=study.impression or "",
        pixels=resize(corpus.read(study.key_image), 96),
    )


@dataclass(frozen=True)
class Site:
    """Its incoming folder or bucket."""

    place: str

    def deliver(self, name: str, exams: Iterable[Exam], without: Iterable[str] = ()) -> None:
        """Put a delivery; images of accessions in `without` are named in the table and not there."""
        rows = []
        for exam in exams:
            path = f"{exam.mrn}/{exam.accession}.png"
            if exam.accession not in without:
                self.put(f"{name}/{path}", png(exam.pixels))
            texts = {column: getattr(exam, column) for column in COLUMNS if hasattr(exam, column)}
            rows.append(texts | {"views": "PA", "images": path})
        told = io.StringIO()
        writer = csv.DictWriter(told, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        self.put(f"{name}/studies.csv", told.getvalue().encode())

    def put(self, name: str, data: bytes) -> None:
        fs, path = storage.open_fs(storage.join(self.place, name))
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(path, data)

    def age(self, name: str, seconds: float) -> None:
        """Make an object of a folder look as old."""
        then = time.time() - seconds
        os.utime(storage.local_path(self.place) / name, (then, then))


def png(pixels: np.ndarray, level: int = 6) -> bytes:
    buffer = io.BytesIO()
    PIL.fromarray(pixels).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()
