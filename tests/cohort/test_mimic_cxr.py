"""MIMIC-CXR: look-alikes in the layout of the two releases with made-up text, one test per trap."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import traceback
from datetime import datetime
from pathlib import Path

import fsspec
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.cohort.mimic import (
    FILM,
    METADATA_COLUMNS,
    PIXELS,
    Row,
    corpus,
    dicom_id,
    dropped,
    film,
    gz,
    mimic_iv,
    only,
    patient,
    reports,
    studies,
    tables,
    tree,
    write,
    zipped,
)
from unirg.cohort import priors
from unirg.cohort.corpora import Dropped, UnreadableImage
from unirg.cohort.corpora.mimic_cxr import METADATA, SPLIT, MimicCXR
from unirg.cohort.corpora.mimic_reports import ARCHIVE
from unirg.errors import UserError
from unirg.study import Image, Study


def numbers(study: Study) -> list[int]:
    return [int(str(image.uri).rpartition("/")[2][:8], 16) for image in study.images]


def test_a_study_is_its_images_its_report_and_its_place_in_time(tmp_path: Path) -> None:
    adapter = corpus(tmp_path, [film(1), film(2, ViewPosition="LATERAL")])
    study = only(adapter)
    assert (study.corpus, study.study_id, study.patient_id) == ("mimic_cxr", "s50414267", "p10000032")
    assert (study.institution, study.split) == ("bidmc", "train")
    assert (study.acquired_at, study.acquired_basis) == (
        datetime(2180, 5, 6, 21, 30, 14, 531_000),
        "timestamp",
    )
    assert study.findings == "Made-up lungs are\n clear."
    assert (study.impression, study.indication) == ("No made-up process.", "Made-up cough.")
    assert (study.comparison, study.age, study.sex, study.race) == ("None.", None, None, None)
    assert [(image.view, image.projection) for image in study.images] == [
        ("frontal", "PA"),
        ("lateral", None),
    ]
    assert study.images[0].uri == f"files/p10/p10000032/s50414267/{dicom_id(1)}.jpg"
    assert np.array_equal(adapter.read(study.images[0]), PIXELS)


@pytest.mark.parametrize("name", ["train", "validate", "test"])
def test_the_official_split_is_the_studys(tmp_path: Path, name: str) -> None:
    assert only(corpus(tmp_path, [film(1, split=name)])).split == name


def test_a_study_without_an_official_split_or_with_two_is_dropped(tmp_path: Path) -> None:
    rows = [
        *(film(1, study=50000001, split="val"), film(2, study=50000002)),
        *(film(3, study=50000002, split="test"), film(4, study=50000002), film(5, study=50000003)),
    ]
    adapter = corpus(tmp_path, rows)
    write(tmp_path, {f"{SPLIT}.csv.gz": tables(rows[:-1])[f"{SPLIT}.csv.gz"]})
    assert dropped(adapter) == [Dropped(f"s5000000{n}", "no official split, or two") for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("time", "clock"),
    [
        ("80556.875", (8, 5, 56, 875_000)),
        ("213014.531", (21, 30, 14, 531_000)),
        ("0.0", (0, 0, 0, 0)),
        ("5.25", (0, 0, 5, 250_000)),
        ("1200", (0, 12, 0, 0)),
        ("80556.1234567", (8, 5, 56, 123_456)),
        ("000005", (0, 0, 5, 0)),
    ],
)
def test_a_study_time_that_lost_its_leading_zeros_is_read(
    tmp_path: Path, time: str, clock: tuple[int, ...]
) -> None:
    study = only(corpus(tmp_path, [film(1, StudyTime=time)]))
    assert study.acquired_at == datetime(2180, 5, 6, *clock)  # type: ignore[arg-type]


@pytest.mark.parametrize("time", ["", "nan", "250000.0", "6000.5", "60.0", "-5", "1e5", "1234567"])
def test_without_a_readable_time_the_date_alone_stands(tmp_path: Path, time: str) -> None:
    study = only(corpus(tmp_path, [film(1, StudyTime=time)]))
    assert (study.acquired_at, study.acquired_basis) == (datetime(2180, 5, 6), "date")


@pytest.mark.parametrize("day", ["", "nan", "21801306", "2180-05-06", "0"])
def test_without_a_readable_date_the_study_has_no_time(tmp_path: Path, day: str) -> None:
    study = only(corpus(tmp_path, [film(1, StudyDate=day)]))
    assert (study.acquired_at, study.acquired_basis) == (None, None)


def test_the_earliest_image_times_the_study(tmp_path: Path) -> None:
    rows = [
        film(1, StudyDate=21800507, StudyTime="1.0"),
        film(2, StudyTime="90000.0"),
        film(3, StudyTime="100000.0"),
        film(4, StudyTime=""),
    ]
    assert only(corpus(tmp_path, rows)).acquired_at == datetime(2180, 5, 6, 9)


def test_studies_are_ordered_by_time_and_not_by_their_random_ids(tmp_path: Path) -> None:
    rows = [
        film(1, study=59999999, StudyTime="80556.875"),
        film(2, study=50000001, StudyTime="213014.0"),
        film(3, study=55555555, StudyDate=21790101),
    ]
    linked = {study.study_id: study for study in priors.link(studies(corpus(tmp_path, rows)))}
    assert linked["s50000001"].prior_study_id == "s59999999"
    assert linked["s59999999"].prior_study_id == "s55555555"
    assert [linked[f"s{n}"].encounter for n in (55555555, 59999999, 50000001)] == [1, 2, 3]


def test_the_key_image_is_pa_before_ap_before_unknown_then_by_time_then_by_id(tmp_path: Path) -> None:
    rows = [
        film(9, ViewPosition="", StudyTime="1.0"),
        film(8, ViewPosition="AP", StudyTime="2.0"),
        film(5, ViewPosition="PA", StudyTime="100000.0"),
        film(7, ViewPosition="PA", StudyTime="90000.0"),
        film(6, ViewPosition="PA", StudyTime="90000.0"),
        film(1, ViewPosition="PA", StudyTime=""),
    ]
    for seed in range(4):
        random.Random(seed).shuffle(rows)
        study = only(corpus(tmp_path / str(seed), rows))
        assert numbers(study) == [6, 7, 5, 1, 8, 9]
        assert study.key_image is study.images[0]


@pytest.mark.parametrize(
    ("position", "view"),
    [
        *[(name, "frontal") for name in ("AP", "PA")],
        *[(name, "lateral") for name in ("LATERAL", "LL")],
        *[(name, "other") for name in ("LPO", "RAO", "RPO", "LAO", "AP AXIAL", "XTABLE LATERAL", "AP LLD")],
        *[(name, "other") for name in ("PA LLD", "AP RLD", "PA RLD", "SWIMMERS", "L5 S1")],
        ("", "unknown"),
    ],
)
def test_every_view_position_of_the_metadata_has_its_view(tmp_path: Path, position: str, view: str) -> None:
    assert only(corpus(tmp_path, [film(1, ViewPosition=position)])).images[0].view == view


def film_dicom() -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    dataset.Rows, dataset.Columns = PIXELS.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation, dataset.PixelData = 0, PIXELS.tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def test_the_dicom_tree_the_jpg_tree_and_both_give_the_same_studies(tmp_path: Path) -> None:
    rows = [film(1), film(2, study=50000002)]
    common = tables(rows) | reports(rows)
    dicoms, jpgs = tree(rows, "dcm", film_dicom()), tree(rows)
    roots = {"dcm": common | dicoms, "jpg": common | jpgs, "both": common | dicoms | jpgs}
    found = {name: MimicCXR(write(tmp_path / name, files)) for name, files in roots.items()}
    chosen = {name: [str(s.images[0].uri)[-3:] for s in studies(each)] for name, each in found.items()}
    assert chosen == {"dcm": ["dcm"] * 2, "jpg": ["jpg"] * 2, "both": ["jpg"] * 2}
    for adapter in found.values():
        first = studies(adapter)[0]
        assert first.model_copy(update={"images": ()}) == studies(found["both"])[0].model_copy(
            update={"images": ()}
        )
        assert adapter.read(first.images[0]).shape == (8, 8)


def test_an_image_without_a_jpg_is_taken_from_the_dicom_tree(tmp_path: Path) -> None:
    rows = [film(1), film(2)]
    files = tables(rows) | reports(rows) | tree(rows[:1]) | tree(rows, "dcm")
    assert [str(i.uri)[-3:] for i in only(MimicCXR(write(tmp_path, files))).images] == ["jpg", "dcm"]


def test_the_folders_of_a_download_of_both_releases_are_found(tmp_path: Path) -> None:
    rows = [film(1)]
    jpg = {f"mimic-cxr-jpg/2.1.0/{name}": data for name, data in (tables(rows) | tree(rows)).items()}
    texts = {f"mimic-cxr/2.1.0/{ARCHIVE}": zipped(reports(rows))}
    study = only(MimicCXR(write(tmp_path, jpg | texts)))
    assert study.impression == "No made-up process."
    assert str(study.images[0].uri).startswith("mimic-cxr-jpg/2.1.0/files/p10/")


@pytest.mark.parametrize("table", [METADATA, SPLIT])
def test_a_truncated_or_missing_table_is_an_error_with_the_remedy(tmp_path: Path, table: str) -> None:
    rows = [film(n, study=50000000 + n) for n in range(300)]
    files = tables(rows)
    name = f"{table}.csv.gz"
    for data in (files[name][:-200], files[name][:40], b"", b"PK not gzip"):
        with pytest.raises(UserError, match=f"{table}.*fetch"):
            list(MimicCXR(write(tmp_path, files | {name: data})).records())
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"no {table}.csv.gz; fetch it from MIMIC-CXR-JPG"):
        list(MimicCXR(str(tmp_path)).records())
    with pytest.raises(UserError, match="no such directory"):
        list(MimicCXR(str(tmp_path / "absent")).records())


def test_a_missing_column_is_told(tmp_path: Path) -> None:
    columns = [name for name in METADATA_COLUMNS if name not in ("StudyTime", "ViewPosition")]
    with pytest.raises(UserError, match="no column viewposition, studytime; fetch"):
        list(MimicCXR(write(tmp_path, {f"{METADATA}.csv.gz": gz([film(1)], columns)})).records())
    files = {
        f"{METADATA}.csv.gz": gz([film(1)], METADATA_COLUMNS),
        f"{SPLIT}.csv.gz": gz([film(1)], ["study_id"]),
    }
    with pytest.raises(UserError, match="no column split; fetch"):
        list(MimicCXR(write(tmp_path, files)).records())
    with pytest.raises(UserError, match=r"metadata.*no row; fetch"):
        list(MimicCXR(write(tmp_path, tables([]))).records())
    with pytest.raises(UserError, match="names no image by a valid id; fetch"):
        list(MimicCXR(write(tmp_path, tables([film(1, study_id="x")]))).records())


def test_unpacked_tables_are_read_too(tmp_path: Path) -> None:
    rows = [film(1)]
    plain = {name.removesuffix(".gz"): gzip.decompress(data) for name, data in tables(rows).items()}
    assert only(MimicCXR(write(tmp_path, plain | tree(rows) | reports(rows)))).split == "train"


def test_a_missing_frontal_drops_the_study_and_a_missing_lateral_does_not(tmp_path: Path) -> None:
    rows = [
        *(film(1, study=50000001), film(2, study=50000001, ViewPosition="LL")),
        *(film(3, study=50000002), film(4, study=50000002, ViewPosition="LL")),
    ]
    files = tables(rows) | reports(rows) | tree([rows[0], rows[3]])
    kept, missing = MimicCXR(write(tmp_path, files)).records()
    assert isinstance(kept, Study)
    assert numbers(kept) == [1]
    assert missing == Dropped("s50000002", "missing image")


@pytest.mark.parametrize(
    "changed",
    [
        {"dicom_id": "../../../../etc/passwd"},
        {"dicom_id": "/etc/passwd"},
        {"dicom_id": dicom_id(1) + "\0"},
        {"dicom_id": dicom_id(1).upper()},
        {"subject_id": "../x"},
        {"subject_id": "20000032"},
        {"subject_id": ""},
        {"study_id": "s50414267/../.."},
        {"study_id": "5041426"},
    ],
)
def test_a_row_with_a_malformed_id_is_dropped_by_number(tmp_path: Path, changed: Row) -> None:
    rows = [film(1), film(2, study=50000002)]
    adapter = corpus(tmp_path, rows)
    write(tmp_path, {f"{METADATA}.csv.gz": gz([rows[0], rows[1] | changed], METADATA_COLUMNS)})
    bad, good, orphan = adapter.records()
    assert orphan == Dropped("s50000002", "no image in the metadata")
    assert bad == Dropped("metadata-row-2", "malformed id in the metadata")
    assert good.study_id == "s50414267"


def test_a_film_named_twice_counts_once_and_a_study_of_two_patients_is_nobodys(tmp_path: Path) -> None:
    rows = [film(1), film(1, ViewPosition="AP"), film(1)]
    assert numbers(only(corpus(tmp_path / "a", rows))) == [1]
    rows = [film(1), film(2, subject=19999999), film(3, study=50000003)]
    records = list(corpus(tmp_path / "b", rows).records())
    assert [each.study_id for each in records if isinstance(each, Study)] == ["s50000003"]
    assert dropped(corpus(tmp_path / "b", rows)) == [Dropped("s50414267", "study of two patients")] * 2


def test_images_are_read_below_the_root_and_nowhere_else(tmp_path: Path) -> None:
    adapter = corpus(tmp_path / "in", [film(1)])
    (tmp_path / "secret.jpg").write_bytes(FILM)
    for uri in ("../secret.jpg", str(tmp_path / "secret.jpg"), "files/absent.jpg"):
        with pytest.raises(UnreadableImage):
            adapter.read(Image(uri=uri))


def test_the_corpus_reads_the_same_from_another_file_system_and_after_pickling(tmp_path: Path) -> None:
    rows = [film(1), film(2, study=50000002, subject=19000001), film(3, study=50000003, split="validate")]
    local = corpus(tmp_path / "cxr", rows[:2], mimic_iv(tmp_path / "iv", [patient()]))
    write(tmp_path / "cxr", tables(rows) | tree(rows) | {ARCHIVE: zipped(reports(rows[2:]))})
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/mimic-cxr-test/", recursive=True)
    try:
        remote = MimicCXR("memory://mimic-cxr-test/cxr", "memory://mimic-cxr-test/iv")
        remote = pickle.loads(pickle.dumps(remote))
        assert studies(remote) == studies(local)
        assert len(studies(remote)) == 3
        assert remote.read(studies(remote)[0].images[0]).shape == (8, 8)
        assert remote.fingerprint() == local.fingerprint()
    finally:
        memory.rm("/mimic-cxr-test", recursive=True)


def test_the_fingerprint_follows_tables_images_reports_and_demographics(tmp_path: Path) -> None:
    rows = [film(1)]
    adapter = corpus(tmp_path, rows)
    prints = [adapter.fingerprint()]
    write(tmp_path, {"files/p10/index.html": b"x", "LICENSE.txt": b"x"})
    assert adapter.fingerprint() == prints[0]
    for files in (reports(rows, "FINDINGS: Other."), tree(rows, "dcm"), tables([film(1, split="test")])):
        write(tmp_path, files)
        prints.append(adapter.fingerprint())
    prints.append(MimicCXR(str(tmp_path), mimic_iv(tmp_path / "iv", [patient()])).fingerprint())
    prints.append(MimicCXR(str(tmp_path), mimic_iv(tmp_path / "iv", [patient(gender="M")])).fingerprint())
    assert len(set(prints)) == len(prints)


def test_no_report_shows_in_an_error(tmp_path: Path) -> None:
    rows = [film(1)]
    secret = "TAMSIN QUILLFEATHER"
    broken = gz([film(1, PerformedProcedureStepDescription=secret)], METADATA_COLUMNS)[:-9]
    files = tables(rows) | reports(rows, secret) | {f"{METADATA}.csv.gz": broken}
    with pytest.raises(UserError) as raised:
        list(MimicCXR(write(tmp_path, files)).records())
    assert secret not in "".join(traceback.format_exception(raised.value, limit=0))
