"""IU X-ray in its layouts: made-up corpora for behaviour, the real one for counts."""

from __future__ import annotations

import csv
import io
import json
import pickle
import shutil
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL

from tests.conftest import S3
from unirg.cohort import imaging
from unirg.cohort.corpora import Dropped, UnreadableImage
from unirg.cohort.corpora.iu_xray import ARCHIVE, MAX_XML_BYTES, SPLITS, USUAL_VIEW, IUXray
from unirg.errors import UserError
from unirg.study import Image, Study

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "iu_xray"
FILM = imaging.encode_png(np.arange(64, dtype=np.uint8).reshape(8, 8))


def xml(uid: str, *image_ids: str, findings: str = "Clear lungs.", impression: str = "Normal.") -> bytes:
    images = "".join(f'<parentImage id="{image_id}"/>' for image_id in image_ids)
    return (
        f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{uid}"/><Abstract>'
        '<AbstractText Label="COMPARISON"/>'
        '<AbstractText Label="INDICATION"> Cough &lt; 2 weeks </AbstractText>'
        f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
        f'<AbstractText Label="IMPRESSION">{impression}</AbstractText></Abstract>{images}</eCitation>'
    ).encode()


def corpus(root: Path, files: Mapping[str, bytes | str]) -> IUXray:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return IUXray(str(root))


def archive(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def views(record: Study | Dropped) -> dict[str, str]:
    assert isinstance(record, Study)
    return {str(image.uri): image.view for image in record.images}


PROJECTIONS = "uid,filename,projection\n7,7_IM-0001-1001.dcm.png,Lateral\n7,7_IM-0001-2001.dcm.png,Frontal\n"


def test_an_unpacked_report_becomes_a_study_with_its_four_sections(tmp_path: Path) -> None:
    (study,) = corpus(tmp_path, {"ecgen-radiology/7.xml": xml("7", findings="")}).records()
    assert isinstance(study, Study)
    assert (study.study_id, study.patient_id, study.institution) == ("CXR7", "CXR7", "indiana")
    assert (study.comparison, study.indication) == (None, "Cough < 2 weeks")
    assert (study.findings, study.impression) == (None, "Normal.")
    assert (study.images, study.acquired_at, study.age) == ((), None, None)


def test_the_archive_the_folder_and_kaggles_table_say_the_same(tmp_path: Path) -> None:
    reports = {f"ecgen-radiology/{uid}.xml": xml(uid) for uid in ("10", "9", "2")}
    table = "uid,MeSH,indication,comparison,findings,impression\n" + "".join(
        f'{uid},normal," Cough < 2 weeks ",,Clear lungs.,Normal.\n' for uid in (9, 2, 10)
    )
    folder = list(corpus(tmp_path / "a", reports).records())
    packed = list(corpus(tmp_path / "b", {f"x/{ARCHIVE}": archive(reports)}).records())
    tabled = list(corpus(tmp_path / "c", {"indiana_reports.csv": table}).records())
    assert [record.study_id for record in folder] == ["CXR2", "CXR9", "CXR10"]
    assert folder == packed
    assert sorted(map(str, tabled)) == sorted(map(str, folder))
    assert {record.study_id: record for record in tabled} == {record.study_id: record for record in folder}


def test_the_xml_is_preferred_to_the_table(tmp_path: Path) -> None:
    table = "uid,indication,comparison,findings,impression\n8,,,Other.,Other.\n"
    records = corpus(tmp_path, {"7.xml": xml("7"), "indiana_reports.csv": table}).records()
    assert [record.study_id for record in records] == ["CXR7"]


@pytest.mark.parametrize(
    ("path", "view"),
    [
        ("kaggle/7_IM-0001-1001.dcm.png", "lateral"),
        ("openi/CXR7_IM-0001-1001.png", "lateral"),
        ("deep/er/CXR7_1_IM-0001-2001.png", "frontal"),
        ("r2gen/CXR7_IM-0001/0.png", "lateral"),
        ("r2gen/CXR7_IM-0001-1001/1.png", "frontal"),
        ("r2gen/CXR7_IM-0001/2.png", "unknown"),
    ],
)
def test_each_layout_is_found_anywhere_and_takes_its_view_from_the_projections(
    tmp_path: Path, path: str, view: str
) -> None:
    report = xml("7", "CXR7_IM-0001-1001", "CXR7_IM-0001-2001")
    files: dict[str, bytes | str] = {"7.xml": report, "p/indiana_projections.csv": PROJECTIONS, path: FILM}
    adapter = corpus(tmp_path, files)
    (study,) = adapter.records()
    assert views(study) == {path: view}
    assert isinstance(study, Study)
    assert np.array_equal(adapter.read(study.images[0]), np.arange(64, dtype=np.uint8).reshape(8, 8))


def test_without_a_projection_the_end_of_the_id_tells_the_usual_view(tmp_path: Path) -> None:
    ids = [f"CXR7_IM-0001-{end}" for end in ("1001", "1002", "2001", "3003", "4004", "4001", "1001-0002")]
    (study,) = corpus(tmp_path, {"7.xml": xml("7", *ids), **{f"{name}.png": FILM for name in ids}}).records()
    by_end = {path.removeprefix("CXR7_IM-0001-").removesuffix(".png"): v for path, v in views(study).items()}
    assert by_end == {
        "1001": "frontal",
        "4004": "frontal",
        "2001": "lateral",
        "1002": "lateral",
        "3003": "lateral",
        "4001": "unknown",
        "1001-0002": "unknown",
    }


def test_a_radiograph_in_three_layouts_appears_once_at_its_full_resolution(tmp_path: Path) -> None:
    paths = [
        "a_r2gen/CXR7_IM-0001/0.png",
        "a_r2gen/CXR7_IM-0001/1.png",
        "b_openi/CXR7_IM-0001-1001.png",
        "b_openi/CXR7_IM-0001-2001.png",
        "c_kaggle/7_IM-0001-1001.dcm.png",
        "c_kaggle/copy/7_IM-0001-1001.dcm.png",
    ]
    files = {"7.xml": xml("7", "CXR7_IM-0001-1001", "CXR7_IM-0001-2001"), **dict.fromkeys(paths, FILM)}
    (study,) = corpus(tmp_path, files).records()
    assert views(study) == {
        "c_kaggle/7_IM-0001-1001.dcm.png": "frontal",
        "b_openi/CXR7_IM-0001-2001.png": "lateral",
    }


def test_an_r2gen_index_among_three_radiographs_is_not_guessed(tmp_path: Path) -> None:
    three = xml("7", *(f"CXR7_IM-0001-{end}" for end in ("1001", "2001", "3001")))
    indexed = {"CXR7_IM-0001/0.png": FILM, "CXR7_IM-0001/1.png": FILM}
    (alone,) = corpus(tmp_path / "a", {"7.xml": three, **indexed}).records()
    assert views(alone) == {"CXR7_IM-0001/0.png": "unknown", "CXR7_IM-0001/1.png": "unknown"}
    named = {"7_IM-0001-3001.dcm.png": FILM}
    (beside,) = corpus(tmp_path / "b", {"7.xml": three, **indexed, **named}).records()
    assert list(views(beside)) == ["7_IM-0001-3001.dcm.png"]


def test_an_r2gen_index_has_the_view_that_all_radiographs_of_its_study_share(tmp_path: Path) -> None:
    three = xml("7", *(f"CXR7_IM-000{series}-1001" for series in (1, 2, 3)))
    (study,) = corpus(tmp_path, {"7.xml": three, "CXR7_IM-0001/1.png": FILM}).records()
    assert views(study) == {"CXR7_IM-0001/1.png": "frontal"}


BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
    '<eCitation><uId id="CXR7"/><AbstractText Label="FINDINGS">&b;</AbstractText></eCitation>'
)
EXTERNAL = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    '<eCitation><uId id="CXR7"/><AbstractText Label="FINDINGS">&a;</AbstractText></eCitation>'
)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\x00",
        xml("7")[:-20],
        b"<eCitation><uId id='CXR7'/>" + b"<a>" * 200_000,
        b"<eCitation/>",
        xml("7; DROP TABLE"),
        b'<?xml version="1.0" encoding="klingon"?><a/>',
        BILLION_LAUGHS.encode(),
        BILLION_LAUGHS.encode("utf-16"),
        EXTERNAL.encode(),
        xml("7", findings="x" * MAX_XML_BYTES),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_malformed_or_hostile_report_is_dropped_by_its_number_and_the_rest_go_on(
    tmp_path: Path, data: bytes, packed: bool
) -> None:
    reports = {"ecgen-radiology/7.xml": data, "ecgen-radiology/8.xml": xml("8")}
    dropped, study = corpus(tmp_path, {ARCHIVE: archive(reports)} if packed else reports).records()
    assert dropped == Dropped("CXR7", "unreadable report")
    assert study.study_id == "CXR8"


def test_two_reports_of_one_number_are_not_two_studies(tmp_path: Path) -> None:
    first, second = corpus(tmp_path, {"a/7.xml": xml("7"), "b/7.xml": xml("7", findings="Other.")}).records()
    assert isinstance(first, Study)
    assert second == Dropped("CXR7", "duplicate study id")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such directory"):
        list(IUXray(str(tmp_path / "nowhere")).records())


def test_a_directory_without_reports_is_named_with_what_was_looked_for(tmp_path: Path) -> None:
    adapter = corpus(tmp_path, {"CXR7_IM-0001-1001.png": FILM, "readme.txt": "?"})
    with pytest.raises(UserError, match=r"NLMCXR_reports\.tgz") as raised:
        list(adapter.records())
    assert str(tmp_path) in str(raised.value)
    assert "indiana_reports.csv" in str(raised.value)


@pytest.mark.parametrize("cut", [0, 20, -30])
def test_a_damaged_archive_is_the_users_to_fetch_again(tmp_path: Path, cut: int) -> None:
    noise = np.random.default_rng(1).bytes(3000).hex()
    data = archive({f"ecgen-radiology/{uid}.xml": xml(str(uid), findings=noise) for uid in range(1, 9)})
    adapter = corpus(tmp_path, {ARCHIVE: data[:cut] if cut else b""})
    with pytest.raises(UserError, match="damaged"):
        list(adapter.records())


def test_an_archive_with_a_flipped_byte_is_damaged(tmp_path: Path) -> None:
    data = bytearray(archive({"ecgen-radiology/7.xml": xml("7")}))
    data[-6] ^= 0xFF  # in the checksum
    with pytest.raises(UserError, match="damaged"):
        list(corpus(tmp_path, {ARCHIVE: bytes(data)}).records())


def test_archive_members_that_point_elsewhere_are_read_as_reports_and_never_extracted(tmp_path: Path) -> None:
    adapter = corpus(tmp_path / "in", {ARCHIVE: archive({"../../7.xml": xml("7"), "/etc/cron.xml": b"x"})})
    assert [record.study_id for record in adapter.records()] == ["CXR7"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == [ARCHIVE, "in"]


@pytest.mark.parametrize(
    "table",
    [
        b"uid,findings\n7,Clear.\n",
        b"uid,indication,comparison,findings,impression\n7,,,\xff,\n",
        b'uid,indication,comparison,findings,impression\n7,,,"Clear,\n8,,,,\n',
        b"uid,uid,indication,comparison,findings,impression\n7,7,,,,\n",
    ],
    ids=["column missing", "not UTF-8", "open quote", "column twice"],
)
def test_a_table_that_cannot_be_read_is_named_and_its_content_is_not(tmp_path: Path, table: bytes) -> None:
    with pytest.raises(UserError, match=r"indiana_reports\.csv") as raised:
        list(corpus(tmp_path, {"indiana_reports.csv": table}).records())
    assert "Clear" not in str(raised.value)


def test_a_row_of_the_table_without_a_number_is_dropped(tmp_path: Path) -> None:
    table = "uid,indication,comparison,findings,impression\n../7,,,a,b\n8,,,a,b\n9,,a,b\n"
    records = list(corpus(tmp_path, {"indiana_reports.csv": table}).records())
    assert [record.study_id for record in records] == ["row-1", "CXR8", "row-3"]


@pytest.mark.parametrize(
    "content", [None, b"", b"not a png", FILM[:50]], ids=["missing", "empty", "other", "truncated"]
)
def test_an_image_that_is_missing_or_corrupt_is_unreadable(tmp_path: Path, content: bytes | None) -> None:
    path = "CXR7_IM-0001-1001.png"
    adapter = corpus(tmp_path, {} if content is None else {path: content})
    with pytest.raises(UnreadableImage) as raised:
        adapter.read(Image(uri=path))
    assert "CXR7" not in str(raised.value)


def test_an_image_outside_the_corpus_is_not_read(tmp_path: Path) -> None:
    adapter = corpus(tmp_path / "root", {"../secret.png": FILM})
    for uri in ("../secret.png", str(tmp_path / "secret.png"), f"file://{tmp_path}/secret.png", None):
        with pytest.raises(UnreadableImage):
            adapter.read(Image(uri=uri))


def test_the_fingerprint_follows_the_content_and_not_the_place_or_the_time(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"7.xml": xml("7"), "CXR7_IM-0001-1001.png": FILM}
    first = corpus(tmp_path / "a", files).fingerprint()
    assert corpus(tmp_path / "b", {**dict(reversed(files.items())), "notes.txt": "x"}).fingerprint() == first
    altered = {
        "report": {**files, "7.xml": xml("7", findings="Other lungs.")},
        "image": {**files, "CXR7_IM-0001-1001.png": FILM[:-1] + b"\0"},
        "added": {**files, "CXR7_IM-0001-2001.png": FILM},
        "removed": {"7.xml": files["7.xml"]},
        "renamed": {"7.xml": files["7.xml"], "CXR7_IM-0001-1002.png": FILM},
    }
    prints = {name: corpus(tmp_path / name, changed).fingerprint() for name, changed in altered.items()}
    assert len({first, *prints.values()}) == 6


def test_a_pickled_corpus_reads_the_same(tmp_path: Path) -> None:
    adapter = corpus(tmp_path, {"7.xml": xml("7"), "CXR7_IM-0001-1001.png": FILM})
    copy = pickle.loads(pickle.dumps(adapter))
    assert list(copy.records()) == list(adapter.records())
    assert copy.fingerprint() == adapter.fingerprint()


def test_the_corpus_reads_the_same_from_s3(tmp_path: Path, moto_s3: S3) -> None:
    reports = {f"ecgen-radiology/{uid}.xml": xml(str(uid), f"CXR{uid}_IM-0001-1001") for uid in range(1, 5)}
    for packed in (False, True):
        files: dict[str, bytes] = {ARCHIVE: archive(reports)} if packed else dict(reports)
        files |= {"images/CXR3_IM-0001-1001.png": FILM, "images/CXR4_IM-0001-1001.png": b""}
        local = corpus(tmp_path / str(packed), files)
        bucket = moto_s3.bucket()
        for name, data in files.items():
            moto_s3.client().put_object(Bucket=bucket, Key=f"iu/{name}", Body=data)
        remote = IUXray(f"s3://{bucket}/iu")
        assert list(remote.records()) == list(local.records())
        assert remote.fingerprint() == local.fingerprint()
        assert np.array_equal(
            remote.read(Image(uri="images/CXR3_IM-0001-1001.png")),
            local.read(Image(uri="images/CXR3_IM-0001-1001.png")),
        )
        for uri in ("images/CXR4_IM-0001-1001.png", "images/CXR9_IM-0001-1001.png"):
            with pytest.raises(UnreadableImage):
                remote.read(Image(uri=uri))
    with pytest.raises(UserError, match="bucket does not exist"):
        list(IUXray("s3://no-such-bucket/iu").records())


def test_what_rexrank_tests_is_tested_with_and_the_rest_trains(tmp_path: Path) -> None:
    def splits(**files: str) -> list[str | None]:
        named = {f"rexrank/ReXRank_IUXray_{name}.json": content for name, content in files.items()}
        reports = {f"{uid}.xml": xml(uid) for uid in ("1", "2", "3")}
        found = corpus(tmp_path / "-".join(files), {**reports, **named}).records()
        return [record.split for record in found if isinstance(record, Study)]

    assert splits() == [None, None, None]
    assert splits(test='{"CXR2_IM-0652": {"report": "a"}}') == ["train", "test", "train"]
    both = splits(test='{"CXR2_IM-0652": {}}', valid='{"CXR3_IM-1384": {}}')
    assert both == ["train", "test", "validate"]


def test_a_file_of_another_corpus_under_the_name_of_rexranks_is_refused(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"1.xml": xml("1")}
    files |= {"ReXRank_IUXray_test.json": '{"p10_p10999901_s50999901": {}}'}
    with pytest.raises(UserError, match="a key is no study of IU's") as caught:
        list(corpus(tmp_path, files).records())
    assert "10999901" not in str(caught.value)


@pytest.fixture(scope="module")
def real() -> dict[str, Study]:
    if not REAL.exists():
        pytest.skip("no real data beside the repository")
    records = list(IUXray(str(REAL)).records())
    studies = [record for record in records if isinstance(record, Study)]
    assert len(studies) == len(records) == 3955
    return {study.study_id: study for study in studies}


@pytest.mark.real_data
def test_the_real_reports_have_the_known_counts_of_sections(real: dict[str, Study]) -> None:
    filled = Counter((study.findings is not None, study.impression is not None) for study in real.values())
    assert filled == {(True, True): 3419, (False, True): 502, (True, False): 6, (False, False): 28}
    assert sum(study.indication is not None for study in real.values()) == 3865
    assert sum(study.comparison is not None for study in real.values()) == 3333


@pytest.mark.real_data
def test_kaggles_table_gives_the_real_reports_of_the_archive(real: dict[str, Study], tmp_path: Path) -> None:
    shutil.copy(REAL / "indiana_reports.csv", tmp_path)
    studies = [record for record in IUXray(str(tmp_path)).records() if isinstance(record, Study)]
    assert len(studies) == 3851
    for study in studies:
        original = real[study.study_id]
        assert (study.findings, study.impression) == (original.findings, original.impression)


@pytest.mark.real_data
def test_the_real_radiographs_have_their_reports_views_and_sizes(real: dict[str, Study]) -> None:
    with (REAL / "images" / "manifest.csv").open(newline="") as file:
        expected = {row["path"].removeprefix("iu_xray/"): row for row in csv.DictReader(file)}
    found = {path: (study, view) for study in real.values() for path, view in views(study).items()}
    assert found.keys() == expected.keys()
    assert len(found) == 15
    for path, row in expected.items():
        study, view = found[path]
        assert (study.study_id, view) == (f"CXR{row['uid']}", row["kaggle_projection"].lower())
        pixels = IUXray(str(REAL)).read(Image(uri=path))
        assert pixels.shape == (int(row["height"]), int(row["width"]))
        with PIL.open(REAL.parent / row["path"]) as film:
            assert np.array_equal(pixels, np.asarray(film.convert("RGB"))[..., 0])


@pytest.mark.real_data
def test_the_usual_view_is_right_as_often_as_documented(real: dict[str, Study]) -> None:
    with (REAL / "indiana_projections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ends = [row["filename"].split("-", 2)[2].removesuffix(".dcm.png") for row in rows]
    usuals = [(USUAL_VIEW.get(end), row["projection"].lower()) for end, row in zip(ends, rows, strict=True)]
    told = [(usual, label) for usual, label in usuals if usual]
    assert (sum(usual == label for usual, label in told), len(told)) == (5922, 6333)


@pytest.mark.real_data
def test_every_view_told_from_an_r2gen_index_is_the_one_in_rexranks_files(
    real: dict[str, Study], tmp_path: Path
) -> None:
    for name in (ARCHIVE, "indiana_projections.csv"):
        shutil.copy(REAL / name, tmp_path)
    expected: dict[str, str] = {}
    for split in ("test", "valid"):
        for entry in json.loads((REAL.parent / f"rexrank/ReXRank_IUXray_{split}.json").read_text()).values():
            for path in entry["image_path"]:
                corpus(tmp_path, {path: FILM})
            if len(entry["image_path"]) == len(entry["frontal_lateral"]):
                expected |= dict(zip(entry["image_path"], entry["frontal_lateral"], strict=True))
    found = {path: view for study in IUXray(str(tmp_path)).records() for path, view in views(study).items()}
    told = {path: found[path] for path in expected if found[path] != "unknown"}
    assert len(told) >= 1624
    assert told == {path: expected[path].lower() for path in told}


@pytest.mark.real_data
def test_no_study_that_rexrank_tests_trains(real: dict[str, Study], tmp_path: Path) -> None:
    shutil.copy(REAL / ARCHIVE, tmp_path)
    for name in SPLITS:
        shutil.copy(REAL.parent / "rexrank" / name, tmp_path)
    found = [record for record in IUXray(str(tmp_path)).records() if isinstance(record, Study)]
    sizes = Counter(study.split for study in found)
    assert sizes == {"train": 3955 - 590 - 296, "test": 590, "validate": 296}
    tested = json.loads((tmp_path / "ReXRank_IUXray_test.json").read_bytes())
    assert {study.study_id for study in found if study.split == "test"} == {
        name.partition("_")[0] for name in tested
    }
    assert {study.study_id for study in found} == set(real)
