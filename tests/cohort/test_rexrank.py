"""ReXrank's test files: IU X-ray's real ones, and made-up look-alikes of the other three sets."""

from __future__ import annotations

import csv
import json
import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from unirg.cohort import imaging
from unirg.cohort.corpora import Dropped, UnreadableImage
from unirg.cohort.corpora.rexrank import Context, ReXrank, parse_context
from unirg.errors import UserError
from unirg.study import Image, Study

REAL = Path(__file__).parents[2].parent / "shared" / "data"
PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)
NAN = math.nan
MIMIC_KEY = "p10_p10999901_s50999901"
MIMIC_FOLDER = "/files/p10/p10999901/s50999901"


def corpus_file(root: Path, name: str, records: dict[str, Any]) -> ReXrank:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(records))
    return ReXrank(str(root / name))


def mimic(**changes: Any) -> dict[str, Any]:
    return {
        "key_image_path": f"{MIMIC_FOLDER}/b.jpg",
        "image_path": [f"{MIMIC_FOLDER}/a.jpg", f"{MIMIC_FOLDER}/b.jpg"],
        "frontal_lateral": ["left lateral", "antero-posterior"],
        "context": "<context>Age:50-60.Gender:M.Indication: Made-up cough. .Comparison: None.</context>",
        "report": "Findings: Made-up lungs. Impression: nan",
        "section_findings": "Made-up lungs.",
        "section_impression": NAN,
        **changes,
    }


def only(adapter: ReXrank) -> Study:
    (study,) = adapter.records()
    assert isinstance(study, Study), study
    return study


def test_a_mimic_study_takes_demographics_and_sections_from_its_context(tmp_path: Path) -> None:
    adapter = corpus_file(tmp_path, "ReXRank_MIMICCXR_test.json", {MIMIC_KEY: mimic()})
    study = only(adapter)
    assert (study.corpus, study.study_id, study.patient_id) == ("rexrank_mimic_cxr", MIMIC_KEY, "p10999901")
    assert (study.split, study.age, study.sex) == ("test", 50, "M")
    assert (study.indication, study.comparison) == ("Made-up cough.", "None.")
    assert (study.findings, study.impression) == ("Made-up lungs.", None)
    assert [(image.view, image.projection, image.uri) for image in study.images] == [
        ("frontal", "AP", f"{MIMIC_FOLDER[1:]}/b.jpg"),
        ("lateral", None, f"{MIMIC_FOLDER[1:]}/a.jpg"),
    ]
    assert not adapter.relabelled


@pytest.mark.parametrize(
    ("views", "others", "relabelled"),
    [
        (["postero-anterior", "antero-posterior"], [("frontal", None)], {}),
        (["postero-anterior", NAN], [("frontal", None)], {"unknown": 1}),
        (["antero-posterior", "Erect"], [("frontal", None)], {"unknown": 1}),
        (["antero-posterior", "left lateral"], [("frontal", None)], {"lateral": 1}),
        (["antero-posterior", "postero-anterior"], [("frontal", "AP")], {}),
        (["antero-posterior"], [("unknown", None)], {"unknown": 1}),
        (["lateral", "lateral", "lateral"], [("lateral", None)], {"lateral": 1}),
        (["lateral", "lateral", "postero-anterior"], [("unknown", None)], {"unknown": 1}),
        (NAN, [("unknown", None)], {"unknown": 1}),
        ([["nested"], {"a": 1}], [("unknown", None)], {"unknown": 1}),
    ],
)
def test_the_files_key_image_is_the_studys_whatever_the_views_say(
    tmp_path: Path, views: Any, others: list[tuple[str, str | None]], relabelled: dict[str, int]
) -> None:
    adapter = corpus_file(tmp_path, "ReXRank_MIMICCXR_test.json", {MIMIC_KEY: mimic(frontal_lateral=views)})
    study = only(adapter)
    assert study.key_image is study.images[0]
    assert study.key_image.uri == f"{MIMIC_FOLDER[1:]}/b.jpg"
    assert [(image.view, image.projection) for image in study.images[1:]] == others
    assert adapter.relabelled == relabelled


def test_a_key_image_that_the_list_lacks_is_still_the_key_image(tmp_path: Path) -> None:
    record = mimic(key_image_path=f"{MIMIC_FOLDER}/c.jpg")
    study = only(corpus_file(tmp_path, "ReXRank_MIMICCXR_test.json", {MIMIC_KEY: record}))
    assert study.key_image is not None
    assert study.key_image.uri == f"{MIMIC_FOLDER[1:]}/c.jpg"
    assert len(study.images) == 3


def test_a_chexpert_plus_study_has_its_projection_and_demographics_in_fields(tmp_path: Path) -> None:
    record = {
        **mimic(
            key_image_path="valid/patient99991/study1/view1_frontal.jpg",
            image_path=["valid/patient99991/study1/view1_frontal.jpg"],
            frontal_lateral=["Frontal"],
            context="",
            section_findings=NAN,
            section_impression="Made-up chest.",
        ),
        **{"ap_pa": ["AP"], "age": 58.0, "sex": "Female", "race": "Made-up", "ethnicity": NAN},
    }
    study = only(corpus_file(tmp_path, "ReXRank_CheXpertPlus_valid.json", {"patient99991_study1": record}))
    assert (study.corpus, study.split, study.patient_id) == (
        "rexrank_chexpert_plus",
        "validate",
        "patient99991",
    )
    assert (study.age, study.sex, study.race, study.institution) == (58, "F", "Made-up", "stanford")
    assert (study.findings, study.impression, study.indication) == (None, "Made-up chest.", None)
    assert (study.images[0].view, study.images[0].projection) == ("frontal", "AP")


@pytest.mark.parametrize(
    ("side", "projection"),
    [("PA", "PA"), (["PA"], "PA"), (["PA", "AP"], "PA"), ([NAN, NAN], None), (3, None)],
)
def test_a_projection_given_once_is_the_key_images(tmp_path: Path, side: Any, projection: str | None) -> None:
    paths = [f"valid/patient99991/study1/view{n}.jpg" for n in (1, 2)]
    record = mimic(
        key_image_path=paths[0], image_path=paths, frontal_lateral=["Frontal", "Lateral"], ap_pa=side
    )
    study = only(corpus_file(tmp_path, "ReXRank_CheXpertPlus_valid.json", {"patient99991_study1": record}))
    assert [image.projection for image in study.images] == [projection, None]


def test_a_gradient_study_shares_its_patient_with_rexgradients(tmp_path: Path) -> None:
    path = "../deid_png/GRDNX1/GRDNA1/studies/1.2/series/1.3/instances/1.4.png"
    key = "pGRDNX1_aGRDNA1_s1.2"
    record = mimic(key_image_path=path[3:], image_path=[path[3:]], frontal_lateral=["POSTERO_ANTERIOR"])
    study = only(corpus_file(tmp_path, "ReXRank_gradient_test.json", {key: record}))
    assert (study.corpus, study.patient_id, study.study_id) == ("rexrank_rexgradient", "GRDNX1", key)
    assert study.images == (Image(view="frontal", projection="PA", uri=path[3:]),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, Context()),
        ("", Context()),
        ("<context></context>", Context()),
        ("<context>Age:50-60.</context>", Context(age="50-60")),
        ("<context>Gender:F.Indication: Pain.</context>", Context(sex="F", indication="Pain.")),
        ("<context>Age:90+.Comparison: ___.</context>", Context(age="90+", comparison="___.")),
        ("<context>Indication: .Comparison: </context>", Context()),
        (
            "<context>Indication: ___M with pain .Comparison: Old</context>",
            Context(None, None, "___M with pain", "Old"),
        ),
        ("Indication: Chest pain. Comparison: None.", Context(None, None, "Chest pain.", "None.")),
        (" Comparison: None Indication pain", Context(comparison="None Indication pain")),
        ("Indication: Age: of car 4. Gender:x", Context(indication="Age: of car 4. Gender:x")),
        ("Pain for 2 days", Context(indication="Pain for 2 days")),
        ("Indication: A\nComparison: B Comparison: C", Context(None, None, "A", "B Comparison: C")),
        (17, None),
        (["Indication: x"], None),
        ("Indication: " + "x" * 2**20, None),
    ],
)
def test_every_part_of_a_context_is_optional(text: Any, expected: Context | None) -> None:
    assert parse_context(text) == expected


def test_a_context_of_nothing_but_labels_and_spaces_is_read_in_linear_time() -> None:
    for piece in (" ", ".", "Comparison:", "Age:", ". Indication:"):
        assert parse_context(piece * (1_000_000 // len(piece))) is not None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key_image_path": NAN}, "no key image"),
        ({"key_image_path": "/../secret.png"}, "unsafe image path"),
        ({"key_image_path": "//etc/passwd"}, "unsafe image path"),
        ({"key_image_path": "a\0b"}, "unsafe image path"),
        ({"key_image_path": 7.5e300, "image_path": "http://x/y.png"}, "unsafe image path"),
        ({"image_path": ["a/" * 600]}, "unsafe image path"),
        ({"image_path": [["a.png"]]}, "unsafe image path"),
        ({"context": {"a": 1}}, "invalid context"),
        ({"section_findings": ["a"]}, "invalid findings"),
        ({"section_findings": "\ud800"}, "invalid findings"),
        ({"section_findings": "x" * 5_000_000}, "record too large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_record_that_breaks_a_rule_is_dropped_with_its_reason_and_the_rest_go_on(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    records = {"bad": mimic(**changes), "good": mimic()}
    dropped, study = corpus_file(tmp_path, "ReXRank_MIMICCXR_test.json", records).records()
    assert dropped == Dropped("bad", reason)
    assert study.study_id == "good"


def test_only_mimics_paths_begin_with_a_slash(tmp_path: Path) -> None:
    record = mimic(key_image_path="/a.png", image_path=["/a.png"])
    (dropped,) = corpus_file(tmp_path, "ReXRank_IUXray_test.json", {"CXR1_IM-1": record}).records()
    assert dropped == Dropped("CXR1_IM-1", "unsafe image path")


def test_ids_that_are_unsafe_or_come_twice_are_dropped_and_not_printed(tmp_path: Path) -> None:
    body = json.dumps(mimic())
    (tmp_path / "ReXRank_IUXray_test.json").write_text(
        f'{{"../x": {body}, "a\\u0000": {body}, "CXR2_IM-1": 5, "CXR2_IM-1": {body}}}'
    )
    records = list(ReXrank(str(tmp_path / "ReXRank_IUXray_test.json")).records())
    assert records == [
        Dropped("study-1", "unsafe study id"),
        Dropped("study-2", "unsafe study id"),
        Dropped("CXR2_IM-1", "unreadable record"),
        Dropped("CXR2_IM-1", "duplicate study id"),
    ]


@pytest.mark.parametrize("name", ["test.json", "ReXRank_Other_test.json", "ReXRank_IUXray_train.json"])
def test_a_file_of_another_name_is_refused_with_the_names_there_are(name: str) -> None:
    with pytest.raises(UserError, match="ReXRank_") as raised:
        ReXrank(f"/data/{name}")
    assert name in str(raised.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ReXRank_IUXray_test.json"
    with pytest.raises(UserError, match="no such file"):
        list(ReXrank(str(path)).records())
    for content in (b"", b"[]", b"\xff\xfe{\0}\0", json.dumps({"a": mimic()}).encode()[:-3]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not one JSON object") as raised:
            list(ReXrank(str(path)).records())
        assert "Made-up" not in str(raised.value)


def test_ages_and_sexes_that_are_not_understood_are_counted(tmp_path: Path) -> None:
    records = {
        str(n): mimic(context=f"<context>Age:{a}.Gender:{s}.</context>")
        for n, (a, s) in enumerate([("50-60", "M"), ("fifty", "M"), ("", "X"), ("400", "F")])
    }
    adapter = corpus_file(tmp_path, "ReXRank_MIMICCXR_test.json", records)
    studies = [study for study in adapter.records() if isinstance(study, Study)]
    assert [(study.age, study.sex) for study in studies] == [
        (50, "M"),
        (None, "M"),
        (None, None),
        (None, "F"),
    ]
    assert adapter.unread == {"age not understood": 1, "age out of range": 1, "sex not understood": 1}


def test_file_and_images_are_read_from_any_file_system_and_identify_the_corpus(tmp_path: Path) -> None:
    local = corpus_file(tmp_path, "ReXRank_MIMICCXR_test.json", {MIMIC_KEY: mimic()})
    film = tmp_path / "films" / MIMIC_FOLDER[1:] / "b.jpg"
    film.parent.mkdir(parents=True)
    film.write_bytes(imaging.encode_png(PIXELS))
    local = ReXrank(str(tmp_path / "ReXRank_MIMICCXR_test.json"), str(tmp_path / "films"))
    memory = fsspec.filesystem("memory")
    memory.pipe("/rexrank/ReXRank_MIMICCXR_test.json", (tmp_path / "ReXRank_MIMICCXR_test.json").read_bytes())
    memory.pipe(f"/rexrank/films{MIMIC_FOLDER}/b.jpg", film.read_bytes())
    remote = ReXrank("memory://rexrank/ReXRank_MIMICCXR_test.json", "memory://rexrank/films")
    copy = pickle.loads(pickle.dumps(remote))
    assert only(copy) == only(remote) == only(local)
    assert copy.fingerprint() == remote.fingerprint() == local.fingerprint()
    image = only(remote).key_image
    assert image is not None
    assert np.array_equal(copy.read(image), PIXELS)
    with pytest.raises(UnreadableImage):
        remote.read(only(remote).images[1])
    memory.pipe(f"/rexrank/films{MIMIC_FOLDER}/a.jpg", b"another")
    assert remote.fingerprint() != local.fingerprint()


@pytest.mark.real_data
def test_the_real_iu_files_give_every_study_with_its_key_image_verbatim() -> None:
    if not (REAL / "rexrank").exists():
        pytest.skip("no real data beside the repository")
    with (REAL / "iu_xray" / "indiana_reports.csv").open(newline="") as file:
        reports = {f"CXR{row['uid']}": row for row in csv.DictReader(file)}
    relabelled, none_for_empty = Counter[str](), 0
    for name, split, count in (("test", "test", 590), ("valid", "validate", 296)):
        path = REAL / "rexrank" / f"ReXRank_IUXray_{name}.json"
        expected = json.loads(path.read_text())
        adapter = ReXrank(str(path))
        studies = [record for record in adapter.records() if isinstance(record, Study)]
        assert [study.study_id for study in studies] == list(expected)
        assert len(studies) == count
        for study in studies:
            record, report = expected[study.study_id], reports[study.patient_id]
            assert (study.corpus, study.split) == ("rexrank_iu_xray", split)
            assert study.key_image is not None
            assert study.key_image.uri == record["key_image_path"]
            assert {image.uri for image in study.images} == set(record["image_path"])
            assert study.findings == record["section_findings"]
            assert study.impression == record["section_impression"]
            if report["indication"] != "#NAME?":  # what Excel made of one that begins with dashes
                assert words(study.indication) == words(report["indication"])
            if words(study.comparison) != words(report["comparison"]):
                assert (study.comparison, report["comparison"]) == ("None", "")
                none_for_empty += 1
        relabelled.update(adapter.relabelled)
    assert relabelled == {"unknown": 68, "lateral": 3}
    assert none_for_empty == 74


def words(text: str | None) -> list[str]:
    return (text or "").split()
