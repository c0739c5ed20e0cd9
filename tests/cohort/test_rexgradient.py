"""ReXGradient-160K, as made-up look-alikes in its layout: metadata, images, and the archive in parts."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from tests.cohort.gradient import RAMP, film, key, path, record
from unirg.cohort.corpora import Dropped, UnreadableImage
from unirg.cohort.corpora.rexgradient import METADATA, ReXGradient
from unirg.errors import UserError
from unirg.study import Image, Study


def corpus(root: Path, splits: Mapping[str, Any], images: Mapping[str, bytes] | None = None) -> ReXGradient:
    for split, studies in splits.items():
        target = root / METADATA[split]  # type: ignore[index]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(studies if isinstance(studies, str) else json.dumps(studies))
    for name, data in (images or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return ReXGradient(str(root), str(root / "cache"))


def only(adapter: ReXGradient) -> Study:
    (study,) = adapter.records()
    assert isinstance(study, Study), study
    return study


def test_a_record_becomes_a_study_with_its_owners_split(tmp_path: Path) -> None:
    splits = {
        "test": {key(3, 3): record(3, 3)},
        "train": {key(): record()},
        "validate": {key(2, 2): record(2, 2)},
    }
    study, second, third = corpus(tmp_path, splits).records()
    assert isinstance(study, Study)
    assert (study.corpus, study.institution) == ("rexgradient", "rexgradient")
    assert (study.study_id, study.patient_id) == (key(), "GRDNP1")
    assert (study.acquired_at, study.acquired_basis) == (datetime(2015, 3, 2), "date")
    assert (study.age, study.sex, study.race) == (45, "F", None)
    assert (study.indication, study.comparison) == ("Made-up cough.", "None.")
    assert (study.findings, study.impression) == ("Made-up lungs.", "Made-up chest.")
    assert study.images == (
        Image(view="frontal", projection="PA", uri=path(instance=2)),
        Image(view="lateral", uri=path(instance=1)),
    )
    assert [one.split for one in (study, second, third) if isinstance(one, Study)] == [
        "train",
        "validate",
        "test",
    ]


@pytest.mark.parametrize(
    ("changes", "images", "unread"),
    [
        ({"ImageViewPosition": ["AP", "PA"]}, ["frontal PA 2", "frontal AP 1"], {}),
        ({"ImageViewPosition": ["POSTERO_ANTERIOR", "PA"]}, ["frontal PA 1", "frontal PA 2"], {}),
        ({"ImageViewPosition": ["UNKNOWN", "N/A"]}, ["unknown None 1", "unknown None 2"], {}),
        ({"ImageViewPosition": ["ERECT", None]}, ["unknown None 1", "unknown None 2"], {}),
        (
            {"ImageViewPosition": ["PA"]},
            ["unknown None 1", "unknown None 2"],
            {"views not parallel to images": 1},
        ),
        (
            {"ImageViewPosition": ["AP"] * 3},
            ["frontal AP 1", "frontal AP 2"],
            {"views not parallel to images": 1},
        ),
        (
            {"ImageViewPosition": None},
            ["unknown None 1", "unknown None 2"],
            {"views not parallel to images": 1},
        ),
        ({"ImagePath": f"../{path()}", "ImageViewPosition": "PA"}, ["frontal PA 1"], {}),
        ({"ImagePath": [None, f"../{path()}"]}, ["frontal PA 1"], {}),
        ({"ImagePath": [f"../{path()}"] * 2}, ["lateral None 1"], {}),
        ({"ImagePath": None, "ImageViewPosition": None}, [], {}),
    ],
)
def test_the_key_image_stands_first_and_ragged_lists_tell_no_view_that_is_not_sure(
    tmp_path: Path, changes: dict[str, Any], images: list[str], unread: dict[str, int]
) -> None:
    adapter = corpus(tmp_path, {"train": {key(): record(**changes)}})
    study = only(adapter)
    found = [f"{one.view} {one.projection} {str(one.uri)[-5:-4]}" for one in study.images]
    assert found == images
    assert adapter.unread == unread


def test_a_value_in_an_unknown_format_is_missing_and_counted_and_the_study_is_kept(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "StudyDate": "March 2015",
        "PatientAge": "old",
        "PatientSex": "?",
        "Findings": math.nan,
    }
    adapter = corpus(
        tmp_path, {"train": {key(): record(**changes), key(1, 2): record(1, 2, StudyDate=20150302)}}
    )
    for _ in range(2):  # each pass counts anew
        study, other = adapter.records()
        assert isinstance(study, Study)
        assert (study.acquired_at, study.acquired_basis, study.age, study.sex) == (None, None, None, None)
        assert study.findings is None
        assert isinstance(other, Study)
        assert other.acquired_at == datetime(2015, 3, 2)
        assert adapter.unread == {name: 1 for name in (f"{x} not understood" for x in ("date", "age", "sex"))}


def test_a_patient_that_the_record_lacks_is_taken_from_the_key(tmp_path: Path) -> None:
    assert only(corpus(tmp_path, {"train": {key(7): record(PatientID=None)}})).patient_id == "GRDNP7"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ImagePath": ["../../secret.png"]}, "unsafe image path"),
        ({"ImagePath": ["/etc/passwd"]}, "unsafe image path"),
        ({"ImagePath": ["../deid_png/../../x.png"]}, "unsafe image path"),
        ({"ImagePath": ["../deid_png/a\0.png"]}, "unsafe image path"),
        ({"ImagePath": ["..\\..\\x.png"]}, "unsafe image path"),
        ({"ImagePath": ["file:///etc/passwd"]}, "unsafe image path"),
        ({"ImagePath": ["../" + "a/" * 600]}, "unsafe image path"),
        ({"ImagePath": [{"a": 1}]}, "unsafe image path"),
        ({"PatientID": "../x"}, "invalid patient_id"),
        ({"PatientID": ["a"]}, "invalid patient_id"),
        ({"Impression": {"a": "b"}}, "invalid impression"),
        ({"Impression": "\ud83d"}, "invalid impression"),
        ({"Findings": "x" * 10_000_000}, "record too large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_record_that_breaks_a_rule_is_dropped_with_its_reason_and_the_rest_go_on(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    adapter = corpus(tmp_path, {"train": {key(): record(**changes), key(1, 2): record(1, 2)}})
    dropped, study = adapter.records()
    assert dropped == Dropped(key(), reason)
    assert study.study_id == key(1, 2)
    assert not adapter.unread


def test_ids_that_are_unsafe_or_come_twice_are_dropped_and_unsafe_ones_not_printed(tmp_path: Path) -> None:
    body = json.dumps(record())
    train = f'{{"../x": {body}, "{key()}": {body}, "{key()}": {body}, "p2": []}}'
    records = list(corpus(tmp_path, {"train": train, "test": {key(): record()}}).records())
    assert isinstance(records.pop(1), Study)
    assert records == [
        Dropped("train-1", "unsafe study id"),
        Dropped(key(), "duplicate study id"),
        Dropped("p2", "unreadable record"),
        Dropped(key(), "duplicate study id"),
    ]


def test_metadata_that_is_missing_or_cut_off_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_metadata_view_position\.json"):
        list(ReXGradient(str(tmp_path), str(tmp_path / "cache")).records())
    adapter = corpus(tmp_path, {"train": json.dumps({key(): record()})[:-5]})
    with pytest.raises(UserError, match="cut off") as raised:
        list(adapter.records())
    assert METADATA["train"] in str(raised.value)
    assert "Made-up" not in str(raised.value)


def test_a_16_bit_film_keeps_its_grey_values_from_any_file_system(tmp_path: Path) -> None:
    local = corpus(tmp_path, {"test": {key(): record()}}, {path(instance=2): film()})
    memory = fsspec.filesystem("memory")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            memory.pipe(f"/rexgradient/{file.relative_to(tmp_path)}", file.read_bytes())
    remote = pickle.loads(pickle.dumps(ReXGradient("memory://rexgradient", str(tmp_path / "cache"))))
    assert only(remote) == only(local)
    assert remote.fingerprint() == local.fingerprint()
    lateral, frontal = only(remote).images[1], only(remote).images[0]
    for adapter in (local, remote):
        assert np.array_equal(adapter.read(frontal), np.rint(RAMP / 257).astype(np.uint8))
        with pytest.raises(UnreadableImage):
            adapter.read(lateral)
        for uri in ("../x.png", "/etc/passwd", None):
            with pytest.raises(UnreadableImage):
                adapter.read(Image(uri=uri))


def test_the_fingerprint_follows_metadata_images_and_parts(tmp_path: Path) -> None:
    splits, images = {"test": {key(): record()}}, {path(instance=2): film()}
    prints = {
        corpus(tmp_path / "a", splits, images).fingerprint(),
        corpus(tmp_path / "b", splits, {**images, "notes.txt": b"x"}).fingerprint(),
        corpus(tmp_path / "c", {"test": {key(): record(Findings="Other.")}}, images).fingerprint(),
        corpus(tmp_path / "d", splits, {path(instance=2): film(RAMP[::-1])}).fingerprint(),
        corpus(tmp_path / "e", splits, {**images, "deid_png.part00": b"x"}).fingerprint(),
    }
    assert len(prints) == 4
