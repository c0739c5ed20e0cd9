"""What an archive is given as becomes a cohort: itself, a ReXrank file's, a folder of DICOM files'."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image as Picture

from tests import toy
from tests.cohort.site_files import KEY, dicom
from unirg.artifact import Artifact
from unirg.cohort.corpora.institution import SITE_KEY_VARIABLE
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.scoring.inputs import archive_of

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def site_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SITE_KEY_VARIABLE, KEY.hex())


def rexrank(folder: Path) -> Path:
    """A test file of three studies: with a report, without one, and with its image missing."""
    records = {}
    for number in range(3):
        key = f"CXR{number}_IM-0001"
        if number < 2:
            path = folder / key / "0.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(toy.picture(number, 64))
        records[key] = {
            "key_image_path": f"{key}/0.png",
            "image_path": [f"{key}/0.png"],
            "frontal_lateral": ["Frontal"],
            "context": "Indication: Pain. Comparison: None.",
            "section_findings": "Clear." if number == 0 else float("nan"),
            "section_impression": float("nan"),
            "split": "test",
        }
    file = folder / "ReXRank_IUXray_test.json"
    file.write_text(json.dumps(records))
    return file


def test_a_cohort_is_opened_as_it_is(cohort: Artifact, store: str) -> None:
    assert archive_of(cohort.uri, "", store).digest == cohort.digest
    with pytest.raises(UserError, match="is an artifact already"):
        archive_of(cohort.uri, "institution", store)


def test_a_rexrank_file_is_staged_with_studies_that_have_no_report(tmp_path: Path, store: str) -> None:
    file = rexrank(tmp_path / "rexrank")
    made = archive_of(str(file), "", store, ["size=64", "workers=1"])
    studies = Cohort.open(made).studies("zero_shot")
    assert [study.study_id for study in studies] == ["CXR0_IM-0001", "CXR1_IM-0001"]
    assert [study.findings for study in studies] == ["Clear.", None]
    assert sum(Cohort.open(made).index.dropped.values()) == 1
    assert archive_of(str(file), "rexrank", store, ["size=64"]).uri == made.uri


def test_a_folder_of_dicom_files_is_staged_by_its_headers(tmp_path: Path, store: str) -> None:
    for number in range(3):
        uid = f"1.2.3.{number}"
        dicom(
            tmp_path / "dicom" / f"{number}.dcm",
            StudyInstanceUID=uid,
            SOPInstanceUID=f"{uid}.1",
            StudyDate=f"2024030{number + 1}",
        )
    settings = ["size=64", "workers=1"]
    made = archive_of(str(tmp_path / "dicom"), "institution", store, settings)
    opened = Cohort.open(made)
    studies = opened.studies("zero_shot")
    assert len(studies) == len(opened.studies()) == 3
    assert sum(study.prior_study_id is not None for study in studies) == 2
    image = opened.with_images(studies[0].study_id).key_image
    assert image is not None
    assert image.data is not None
    assert image.uri is None
    with Picture.open(io.BytesIO(image.data)) as picture:
        assert picture.size == (64, 64)
    (tmp_path / "dicom").rename(tmp_path / "elsewhere")
    assert archive_of(str(tmp_path / "elsewhere"), "institution", store, settings).uri == made.uri


def test_a_folder_without_a_radiograph_says_what_it_holds(tmp_path: Path, store: str) -> None:
    dicom(tmp_path / "dicom" / "a.dcm", Modality="CT")
    with pytest.raises(UserError, match=r"no study is left to stage \(1 DICOM image: no radiograph"):
        archive_of(str(tmp_path / "dicom"), "institution", store)


@pytest.mark.parametrize(
    ("corpus", "words"), [("", "neither a cohort nor"), ("dicom", "no corpus is called dicom")]
)
def test_raw_studies_need_an_adapter_that_exists(tmp_path: Path, store: str, corpus: str, words: str) -> None:
    with pytest.raises(UserError, match=f"{words}.*institution"):
        archive_of(str(tmp_path), corpus, store)


@pytest.mark.real_data
@pytest.mark.skipif(not (DATA / "dicom").is_dir(), reason="no real radiographs at ../shared/data")
def test_the_real_dicom_files_become_an_archive(store: str) -> None:
    views = ["institution.unknown_view=frontal", "workers=1", "size=128"]
    opened = Cohort.open(archive_of(str(DATA / "dicom"), "institution", store, views))
    assert len(opened.studies("zero_shot")) == 2
    assert opened.index.dropped == {"DICOM image: no radiograph": 2}
