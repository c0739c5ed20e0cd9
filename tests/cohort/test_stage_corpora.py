"""Every corpus through the whole of staging, out of a bucket and into one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL

from tests.cohort import gradient, mimic, site_files
from tests.cohort import test_chexpert_plus as chexpert
from tests.cohort import test_iu_xray as iu
from tests.cohort import test_rexgradient as rexgradient
from tests.cohort import test_rexrank as rexrank
from tests.conftest import S3
from unirg.cohort import imaging
from unirg.cohort.corpora.institution import SITE_KEY_VARIABLE
from unirg.cohort.corpora.phantom import Phantom
from unirg.cohort.reader import Cohort
from unirg.cohort.stage import StageConfig, open_corpus, stage
from unirg.study import Study


def drawn() -> bytes:
    """A phantom's film as PNG."""
    phantom = Phantom(1, 0)
    (study,) = (record for record in phantom.records() if isinstance(record, Study))
    assert study.key_image
    return imaging.encode_png(phantom.read(study.key_image))


def mimic_cxr(root: Path) -> dict[str, Any]:
    """Two studies of a patient, a minute apart and in one split, and one of another patient."""
    rows = [
        mimic.film(1),
        mimic.film(2, study=50414268, StudyTime="213114.000"),
        mimic.film(3, subject=10000048, study=50578962, split="test"),
    ]
    mimic.write(root / "cxr", mimic.tables(rows) | mimic.tree(rows, content=FILM) | mimic.reports(rows))
    mimic.mimic_iv(root / "iv", [mimic.patient()])
    return {"data": "cxr", "demographics": "iv"}


def chexpert_plus(root: Path) -> dict[str, Any]:
    rows = chexpert.row(7, 1), chexpert.row(7, 2), chexpert.row(8, 1, split="valid")
    images = [f"PNG/PNG/{row['path_to_image'].removesuffix('.jpg')}.png" for row in rows]
    chexpert.corpus(root, chexpert.csv_of(*rows))
    mimic.write(root, dict.fromkeys(images, FILM))
    return {"data": ""}


def rexgradient_160k(root: Path) -> dict[str, Any]:
    def records(*which: tuple[int, int]) -> dict[str, Any]:
        return {
            gradient.key(patient, study): gradient.record(patient, study, StudyDate=f"2015030{study}")
            for patient, study in which
        }

    splits = {"train": records((1, 1), (1, 2)), "test": records((2, 3))}
    paths = [gradient.path(*which, 2) for which in ((1, 1), (1, 2), (2, 3))]
    rexgradient.corpus(root, splits, {path: gradient.film() for path in paths})
    return {"data": ""}


def rexrank_file(root: Path) -> dict[str, Any]:
    mimic.write(root, {f"images{rexrank.MIMIC_FOLDER}/b.jpg": FILM})
    (root / "ReXRank_MIMICCXR_test.json").write_text(json.dumps({rexrank.MIMIC_KEY: rexrank.mimic()}))
    return {"data": "ReXRank_MIMICCXR_test.json", "images": "images"}


def iu_xray(root: Path) -> dict[str, Any]:
    films = {f"CXR{number}_IM-0001-1001.png": FILM for number in (7, 8)}
    members = {f"{number}.xml": iu.xml(str(number), f"CXR{number}_IM-0001-1001") for number in (7, 8)}
    iu.corpus(root, {iu.ARCHIVE: iu.archive(members), **films})
    return {"data": ""}


def institution(root: Path) -> dict[str, Any]:
    """DICOM files and a table; two exams of a patient."""
    later = {"AccessionNumber": "ACC-00715", "StudyInstanceUID": "1.2.3.5", "SOPInstanceUID": "1.2.3.5.1"}
    site_files.dicom(root / "a.dcm")
    site_files.dicom(root / "b.dcm", StudyDate="20240401", **later)
    site_files.corpus(root, site_files.ROW, site_files.ROW | {"accession": "ACC-00715"})
    return {"data": "reports.csv", "split": {"test": 0.0, "validate": 0.0}}


FILM = drawn()


@dataclass(frozen=True)
class Case:
    corpus: str
    write: Callable[[Path], dict[str, Any]]
    splits: dict[str, int]
    priors: int


CASES = [
    Case("mimic_cxr", mimic_cxr, {"train": 2, "test": 1}, 1),
    Case("chexpert_plus", chexpert_plus, {"train": 2, "test": 1}, 1),
    Case("rexgradient", rexgradient_160k, {"train": 2, "test": 1}, 1),
    Case("rexrank", rexrank_file, {"test": 1}, 0),
    Case("iu_xray", iu_xray, {"train": 2}, 0),
    Case("institution", institution, {"train": 2}, 1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.corpus)
def test_a_corpus_in_a_bucket_becomes_a_cohort_in_it(
    case: Case, tmp_path: Path, moto_s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SITE_KEY_VARIABLE, site_files.KEY.hex())
    root = tmp_path / "corpus"
    root.mkdir()
    settings = case.write(root)
    bucket, client = moto_s3.bucket(), moto_s3.client()
    for path in root.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket, f"in/{path.relative_to(root)}")

    def config(base: str) -> StageConfig:
        places = {name: settings[name] for name in ("data", "demographics", "images") if name in settings}
        found = {name: f"{base}/{value}".rstrip("/") for name, value in places.items()}
        fixed = {"corpus": case.corpus, "size": 64, "workers": 1, "split": settings.get("split", {})}
        return StageConfig.model_validate({**fixed, **found})

    remote = config(f"s3://{bucket}/in")
    assert open_corpus(remote).fingerprint() == open_corpus(config(str(root))).fingerprint()
    cohort = Cohort.open(stage(remote, f"s3://{bucket}/store"))
    studies = cohort.studies()
    assert {split: len(cohort.studies(split)) for split in case.splits} == case.splits
    assert len(studies) == sum(case.splits.values())
    assert sum(cohort.prior(study) is not None for study in studies) == case.priors
    for study in studies:
        key = cohort.with_images(study.study_id).key_image
        assert key
        assert key.data
        with PIL.open(io.BytesIO(key.data)) as film:
            assert (film.mode, film.size) == ("L", (64, 64))
            assert np.ptp(np.asarray(film)) > 100
