"""Real radiographs staged as an institution's own: by DICOM headers, and by a table."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.cohort.site_files import corpus
from unirg.cohort import priors
from unirg.cohort import stage as staging
from unirg.cohort.corpora.institution import Institution
from unirg.cohort.deidentify import BURNED_IN
from unirg.cohort.reader import Cohort
from unirg.cohort.stage import StageConfig
from unirg.study import Study

DATA = Path(__file__).parents[3] / "shared" / "data"
real_data = pytest.mark.skipif(not (DATA / "dicom").is_dir(), reason="no real radiographs at ../shared/data")


def _staged(institution: Institution, store: Path, patch: pytest.MonkeyPatch) -> Cohort:
    patch.setattr(staging, "open_corpus", lambda config: institution)
    return Cohort.open(staging.stage(StageConfig(corpus="institution", size=128, workers=1), str(store)))


def dicom_corpus(folder: Path) -> Institution:
    """The four real DICOM files as an institution's, with made-up reports by study UID."""
    shutil.copytree(DATA / "dicom", folder)
    rows = []
    for path in sorted(folder.iterdir()):
        uid = str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID)
        report = f"FINDINGS: Made-up findings of {path.stem}.\nIMPRESSION: Made up."
        rows.append({"study_instance_uid": uid, "report": report})
    return corpus(folder, *rows, unknown_view="frontal")


def hannover_corpus(folder: Path) -> Institution:
    """Hannover's 64 radiographs as an institution's table: dates from its offsets, made-up text."""
    shutil.copytree(DATA / "hannover_covid19" / "png", folder / "png")
    rows = []
    with (DATA / "hannover_covid19" / "data.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            image = f"png/{row['image_id']}.png"
            if (folder / image).exists():
                day = np.datetime64("2020-06-01") - int(row["admission_offset"] or 0)
                rows.append(
                    {
                        **{
                            "study_id": row["image_id"],
                            "patient_id": row["patient_id"],
                            "study_date": str(day),
                        },
                        **{"sex": row["sex"].replace("w", "f"), "images": image, "views": row["projection"]},
                        "findings": "Made-up findings.",
                    }
                )
    return corpus(folder, *rows)


@pytest.mark.real_data
@real_data
def test_the_real_dicom_files_are_staged_as_an_institution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    institution = dicom_corpus(tmp_path / "dicom")
    studies = {study.findings: study for study in institution.records() if isinstance(study, Study)}
    philips, nih = studies["Made-up findings of RG1_J2KI."], studies["Made-up findings of nih_cxr_nhsx_test."]
    assert (philips.age, philips.sex, philips.acquired_at) == (64, "F", datetime(2004, 8, 26, 18, 50, 59))
    assert (nih.age, nih.sex, nih.acquired_at) == (81, "M", None)
    assert (philips.images[0].projection, nih.images[0].view) == ("PA", "frontal")
    assert institution.files[BURNED_IN] == 1
    cohort = _staged(institution, tmp_path / "store", monkeypatch)
    assert len(cohort.studies()) == 2
    assert cohort.index.dropped == {"DICOM image: no radiograph": 2}


@pytest.mark.real_data
@real_data
def test_hannovers_radiographs_are_staged_as_an_institution_with_their_priors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    institution = hannover_corpus(tmp_path / "hannover")
    studies = [study for study in institution.records() if isinstance(study, Study)]
    assert len(studies) == 64
    assert Counter(study.images[0].projection for study in studies).keys() == {"PA", "AP"}
    assert sum(study.prior_study_id is not None for study in priors.link(studies)) > 10
    cohort = _staged(institution, tmp_path / "store", monkeypatch)
    assert len(cohort.studies()) == 64
    assert cohort.index.dropped == {}
