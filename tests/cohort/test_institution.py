"""An institution's table: what becomes of it, and that nothing in it identifies anybody afterwards."""

from __future__ import annotations

import csv
import logging
import pickle
import traceback
import tracemalloc
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import S3
from unirg.cohort import imaging
from unirg.cohort.corpora import Dropped, UnreadableImage
from unirg.cohort.corpora.institution import REMOVED, Institution
from unirg.errors import UserError
from unirg.study import Image, Study, keyed_id

KEY = bytes(range(32))
FILM = imaging.encode_png(np.arange(64, dtype=np.uint8).reshape(8, 8))
ROW = {
    "accession": "ACC-00714",
    "mrn": "0081234567",
    "patient_name": "QUILLFEATHER^TAMSIN^J",
    "acquired_at": "2024-03-01T10:15:00",
    "age": "061Y",
    "sex": "F",
    "race": "White",
    "indication": "Cough",
    "comparison": "",
    "findings": "Heart size is normal.",
    "impression": "No acute process.",
    "images": "films/a.png;films/b.png",
    "views": "PA;LATERAL",
}
SECRETS = ("00714", "81234567", "quillfeather", "tamsin")


def table(folder: Path, *rows: dict[str, Any], kind: str = "csv") -> Institution:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"studies.{kind}"
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return Institution(str(path), KEY, "site_a")


def only(corpus: Institution) -> Study:
    (record,) = corpus.records()
    assert isinstance(record, Study), record
    return record


def test_a_row_becomes_a_study_under_keyed_ids(tmp_path: Path) -> None:
    study = only(table(tmp_path, ROW))
    assert (study.corpus, study.institution) == ("site_a", "site_a")
    assert study.study_id == keyed_id(KEY, "study", "ACC-00714")
    assert study.patient_id == keyed_id(KEY, "patient", "0081234567")
    assert (study.acquired_at, study.acquired_basis) == (datetime(2024, 3, 1, 10, 15), "timestamp")
    assert (study.age, study.sex, study.race, study.comparison) == (61, "F", "White", None)
    assert [(image.view, image.projection, image.uri) for image in study.images] == [
        ("frontal", "PA", "films/a.png"),
        ("lateral", None, "films/b.png"),
    ]


def test_parquet_says_the_same_as_csv_whatever_its_types(tmp_path: Path) -> None:
    typed = {
        **ROW,
        "acquired_at": datetime(2024, 3, 1, 10, 15),
        "age": 61.0,
        "comparison": None,
        "images": ["films/a.png", "films/b.png"],
    }
    assert only(table(tmp_path, typed, kind="parquet")) == only(table(tmp_path, ROW))
    numbered = {**ROW, "accession": 714.0, "mrn": 81, "acquired_at": date(2024, 3, 1), "age": float("nan")}
    as_text = {**ROW, "accession": "714", "mrn": "81", "acquired_at": "2024-03-01", "age": ""}
    assert only(table(tmp_path, numbered, kind="parquet")) == only(table(tmp_path, as_text))


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("acquired_at", "2024-03-01", datetime(2024, 3, 1)),
        ("acquired_at", "20240301", datetime(2024, 3, 1)),
        ("acquired_at", "2024-03-01T10:00:00+02:00", datetime(2024, 3, 1, 8)),
        ("acquired_at", "", None),
        ("age", "7", 7),
        ("age", "045Y", 45),
        ("age", "018M", 1),
        ("age", "", None),
        ("sex", "female", "F"),
        ("sex", "M", "M"),
        ("sex", "unknown", None),
        ("sex", "", None),
    ],
)
def test_dates_ages_and_sexes_are_read_as_institutions_write_them(
    tmp_path: Path, field: str, text: str, expected: object
) -> None:
    assert getattr(only(table(tmp_path, {**ROW, field: text})), field) == expected


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"accession": ""}, "missing study id"),
        ({"mrn": " "}, "missing patient id"),
        ({"images": "/etc/passwd"}, "unsafe image path"),
        ({"images": "films/a.png;../../b.png"}, "unsafe image path"),
        ({"images": "s3://elsewhere/a.png"}, "unsafe image path"),
        ({"images": "C:\\films\\a.png"}, "unsafe image path"),
        ({"images": "films/a.png"}, "invalid views"),
        ({"age": "-3"}, "invalid age"),
        ({"age": "130"}, "invalid age"),
        ({"age": "sixty"}, "invalid age"),
        ({"sex": "Q"}, "invalid sex"),
        ({"acquired_at": "yesterday"}, "invalid acquired_at"),
        ({"acquired_at": "1709287200"}, "invalid acquired_at"),
    ],
)
def test_a_bad_row_is_dropped_with_its_reason_and_the_next_goes_on(
    tmp_path: Path, changed: dict[str, str], reason: str
) -> None:
    good = {**ROW, "accession": "ACC-2"}
    dropped, study = table(tmp_path, {**ROW, **changed}, good).records()
    expected = keyed_id(KEY, "study", "ACC-00714") if changed.get("accession") is None else "row-1"
    assert dropped == Dropped(expected, reason)
    assert study.study_id == keyed_id(KEY, "study", "ACC-2")


def test_a_second_row_of_an_accession_is_dropped(tmp_path: Path) -> None:
    first, second = table(tmp_path, ROW, {**ROW, "findings": "Other."}).records()
    assert isinstance(first, Study)
    assert second == Dropped(first.study_id, "duplicate study id")


def test_a_row_of_another_width_is_dropped_by_its_number(tmp_path: Path) -> None:
    corpus = table(tmp_path, ROW)
    with (tmp_path / "studies.csv").open("a") as file:
        file.write("ACC-9,QUILLFEATHER\n")
    assert list(corpus.records())[1:] == [Dropped("row-2", "wrong number of columns, or too long")]


@pytest.mark.parametrize("line", ["lungs ", "lungs\n", 'a ""quoted"" word, '])
def test_a_report_of_ten_megabytes_costs_its_own_row_only(tmp_path: Path, line: str) -> None:
    quoted = {**ROW, "findings": '5" tube', "impression": "a, b"}
    corpus = table(tmp_path, ROW, {**ROW, "accession": "2", "findings": line * (10**7 // len(line))}, quoted)
    tracemalloc.start()
    records = list(corpus.records())
    assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    tracemalloc.stop()
    assert records[1] == Dropped("row-2", "wrong number of columns, or too long")
    assert records[2].study_id == records[0].study_id


def test_a_quote_within_a_field_is_a_mark_of_inches(tmp_path: Path) -> None:
    corpus = table(tmp_path, ROW)
    rows = ("accession,mrn,images,findings", 'ACC-9,1,,5" tube', 'ACC-8,1,,6" tube')
    (tmp_path / "studies.csv").write_text("\n".join(rows))
    assert [study.findings for study in corpus.records() if isinstance(study, Study)] == [
        '5" tube',
        '6" tube',
    ]


@pytest.mark.parametrize(
    ("text", "expected", "count"),
    [
        ("Film ACC-00714 of MRN 0081234567.", f"Film {REMOVED} of MRN {REMOVED}.", 2),
        ("MRN0081234567, also 81234567", f"MRN{REMOVED}, also {REMOVED}", 2),
        ("acc-00714b, acc-007145", f"{REMOVED}b, acc-007145", 1),
        ("Ms. Quillfeather's film", f"Ms. {REMOVED}'s film", 1),
        ("QUILLFEATHER, TAMSIN J", f"{REMOVED}", 1),
        ("J. Tamsin Quillfeather", f"{REMOVED}", 1),
        ("Tamsin J. Quillfeather", REMOVED, 1),
        ("acc00714, ACC 00714 and Acc_00714", f"{REMOVED}, {REMOVED} and {REMOVED}", 3),
        ("QuillfeatherTamsinJ", REMOVED, 1),
        ("Tamsinite deposits, vitamin J", "Tamsinite deposits, vitamin J", 0),
        ("Film 900071 and 181234 of others", "Film 900071 and 181234 of others", 0),
        ("Accession 9000714 and 181234567 of others", f"Accession {REMOVED} and {REMOVED} of others", 2),
    ],
)
def test_the_rows_own_identifiers_are_removed_from_its_texts_and_counted(
    tmp_path: Path, text: str, expected: str, count: int
) -> None:
    for column in ("indication", "comparison", "findings", "impression"):
        corpus = table(tmp_path, {**ROW, column: text})
        study = only(corpus)
        assert getattr(study, column) == expected
        assert corpus.removed.total() == count


def test_an_identifier_too_short_to_tell_leaves_the_numbers_of_the_report(tmp_path: Path) -> None:
    row = {**ROW, "accession": "1", "mrn": "00012", "patient_name": "Li Wu", "findings": "1. A 12 mm nodule."}
    assert only(table(tmp_path, row)).findings == "1. A 12 mm nodule."
    assert only(table(tmp_path, {**row, "findings": "Wu, Li: clear."})).findings == f"{REMOVED}: clear."


def test_an_identifier_that_begins_with_another_goes_whole(tmp_path: Path) -> None:
    row = {**ROW, "accession": "12345", "mrn": "12345-678", "findings": "Film 12345-678 and 0012345."}
    assert only(table(tmp_path, row)).findings == f"Film {REMOVED} and {REMOVED}."


def test_a_name_is_found_in_either_unicode_form(tmp_path: Path) -> None:
    composed, parted = "Zürn, José", "Zu\u0308rn, Jose\u0301"
    for name, text in ((composed, parted), (parted, composed)):
        row = {**ROW, "patient_name": name, "findings": f"Mr. {text}."}
        assert only(table(tmp_path, row)).findings == f"Mr. {REMOVED}."


@settings(max_examples=50)
@given(
    mrn=st.from_regex(r"[0-9]{5,10}", fullmatch=True),
    name=st.lists(st.from_regex(r"[A-Z][a-z]{2,9}", fullmatch=True), min_size=1, max_size=3),
    before=st.text("abc 123.,:;-\n", max_size=20),
    separator=st.sampled_from([" ", ", ", "\n", ": ", "-", "("]),
)
def test_no_identifier_standing_alone_survives(
    tmp_path_factory: pytest.TempPathFactory, mrn: str, name: list[str], before: str, separator: str
) -> None:
    found = f"{before}{separator}{separator.join([mrn, *name])}{separator}after"
    row = {**ROW, "mrn": mrn, "patient_name": "^".join(name), "findings": found}
    findings = only(table(tmp_path_factory.mktemp("t"), row)).findings or ""
    assert separator + mrn not in findings
    assert not any(separator + part + separator in findings for part in name)


def test_nothing_that_identifies_a_patient_shows_in_any_record_error_or_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "Quillfeather_0081234567"
    report = "Tamsin Quillfeather (MRN 0081234567, ACC-00714) has clear lungs."
    row = {**ROW, "findings": report, "images": "Quillfeather/81234567.png", "views": "PA"}
    shown: list[str] = []
    for changed in ({}, {"age": "Tamsin"}, {"sex": "Quillfeather"}, {"images": "/Tamsin"}, {"mrn": ""}):
        corpus = table(folder, {**row, **changed})
        records = list(corpus.records())
        shown += [repr(corpus), repr(records), corpus.fingerprint()]
        if isinstance(records[0], Study):
            shown.append(str(records[0].model_dump(exclude={"images"})))
            with pytest.raises(UnreadableImage) as unreadable:
                corpus.read(records[0].images[0])
            shown += traceback.format_exception(unreadable.value)
    broken = {"csv": b'accession,mrn,images,findings\nACC-00714,"Quillfeather', "parquet": b"PAR1 Tamsin"}
    for kind, data in broken.items():
        (folder / f"studies.{kind}").write_bytes(data)
        with pytest.raises(UserError) as failed:
            list(Institution(str(folder / f"studies.{kind}"), KEY).records())
        shown += traceback.format_exception(failed.value, limit=0)
    (folder / "folder.csv").mkdir()
    for path in (
        folder / "folder.csv",
        folder / "absent.csv",
        f"gopher://{folder}/studies.csv",
        folder / "studies.xlsx",
    ):
        with pytest.raises(UserError) as failed:
            list(Institution(str(path), KEY).records())
        shown += traceback.format_exception(failed.value, limit=0)
    everything = "\n".join([*shown, caplog.text]).lower()
    assert not [secret for secret in SECRETS if secret in everything]


def test_a_table_on_s3_reads_the_same_and_its_failures_show_no_path(tmp_path: Path, moto_s3: S3) -> None:
    local = table(tmp_path, ROW)
    bucket, client = moto_s3.bucket(), moto_s3.client()
    client.put_object(Bucket=bucket, Key="tamsin/studies.csv", Body=(tmp_path / "studies.csv").read_bytes())
    client.put_object(Bucket=bucket, Key="tamsin/films/a.png", Body=FILM)
    remote = Institution(f"s3://{bucket}/tamsin/studies.csv", KEY, "site_a")
    assert only(remote) == only(local)
    assert remote.read(only(remote).images[0]).shape == (8, 8)
    with pytest.raises(UnreadableImage):
        remote.read(only(remote).images[1])
    for absent in (f"s3://{bucket}/tamsin/absent.csv", "s3://no-such-bucket/tamsin/studies.csv"):
        with pytest.raises(UserError) as failed:
            list(Institution(absent, KEY, "site_a").records())
        assert "tamsin" not in "".join(traceback.format_exception(failed.value, limit=0))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_that_lacks_a_column_is_told_which(tmp_path: Path, kind: str) -> None:
    row = {name: value for name, value in ROW.items() if name not in ("mrn", "findings", "impression")}
    with pytest.raises(
        UserError, match=r"site_a.*no column patient_id or mrn, no column findings or impression"
    ):
        list(table(tmp_path, row, kind=kind).records())


def test_a_table_without_rows_or_with_a_column_twice_is_an_error(tmp_path: Path) -> None:
    corpus = table(tmp_path, ROW)
    (tmp_path / "studies.csv").write_text("accession,mrn,images,findings\n")
    with pytest.raises(UserError, match="no row"):
        list(corpus.records())
    (tmp_path / "studies.csv").write_text("accession,mrn,MRN,images,findings\na,b,c,d,e\n")
    with pytest.raises(UserError, match="same name"):
        list(corpus.records())


@pytest.mark.parametrize("key", [None, "", "zz zz", "abcd"])
def test_a_missing_or_weak_site_key_is_an_error_with_the_remedy(tmp_path: Path, key: str | None) -> None:
    environ = {} if key is None else {"UNIRG_SITE_KEY": key}
    with pytest.raises(UserError, match="openssl rand -hex 32") as raised:
        Institution.from_environment(str(tmp_path / "studies.csv"), environ=environ)
    assert "UNIRG_SITE_KEY" in str(raised.value)
    assert not key or key not in str(raised.value)


def test_the_environments_key_gives_the_ids(tmp_path: Path) -> None:
    table(tmp_path, ROW)
    corpus = Institution.from_environment(
        str(tmp_path / "studies.csv"), "site_a", {"UNIRG_SITE_KEY": KEY.hex()}
    )
    assert only(corpus).study_id == keyed_id(KEY, "study", "ACC-00714")


def test_an_unsafe_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        Institution(str(tmp_path / "studies.csv"), KEY, "St. Mary\n")


def test_images_are_read_below_the_table_and_nowhere_else(tmp_path: Path) -> None:
    corpus = table(tmp_path / "in", ROW)
    (tmp_path / "in" / "films").mkdir()
    (tmp_path / "in" / "films" / "a.png").write_bytes(FILM)
    (tmp_path / "in" / "films" / "b.png").write_bytes(FILM[:50])
    (tmp_path / "secret.png").write_bytes(FILM)
    first, second = only(corpus).images
    assert np.array_equal(corpus.read(first), np.arange(64, dtype=np.uint8).reshape(8, 8))
    for image in (second, Image(uri="../secret.png"), Image(uri=str(tmp_path / "secret.png"))):
        with pytest.raises(UnreadableImage):
            corpus.read(image)


def test_the_fingerprint_follows_table_images_key_and_name(tmp_path: Path) -> None:
    corpus = table(tmp_path, ROW)
    path = str(tmp_path / "studies.csv")
    (tmp_path / "unnamed.png").write_bytes(FILM)
    prints = [corpus.fingerprint()]
    (tmp_path / "unnamed.png").write_bytes(FILM + b"x")
    assert corpus.fingerprint() == prints[0]
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.png").write_bytes(FILM)
    prints.append(corpus.fingerprint())
    (tmp_path / "films" / "a.png").write_bytes(FILM[::-1])
    prints.append(corpus.fingerprint())
    prints.append(Institution(path, KEY[::-1], "site_a").fingerprint())
    prints.append(Institution(path, KEY, "site_b").fingerprint())
    prints.append(table(tmp_path, {**ROW, "findings": "Other."}).fingerprint())
    assert len(set(prints)) == len(prints)


def test_a_pickled_corpus_reads_the_same_and_shows_no_key(tmp_path: Path) -> None:
    corpus = table(tmp_path, ROW)
    copy = pickle.loads(pickle.dumps(corpus))
    assert list(copy.records()) == list(corpus.records())
    assert KEY.hex() not in repr(copy)


def test_a_table_whose_header_never_ends_is_an_error(tmp_path: Path) -> None:
    corpus = table(tmp_path, ROW)
    (tmp_path / "studies.csv").write_text("a," * 10**6 + "\n1,2\n")
    with pytest.raises(UserError, match="no row"):
        list(corpus.records())
