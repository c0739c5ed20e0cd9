"""Reports of MIMIC-CXR, unpacked and within the zip file, and what hostile ones do."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.cohort.mimic import REPORT, dropped, film, folder, reports, tables, tree, write, zipped
from unirg.cohort.corpora import Dropped, mimic_reports
from unirg.cohort.corpora.mimic_cxr import MimicCXR
from unirg.cohort.corpora.mimic_reports import ARCHIVE, MAX_REPORT
from unirg.errors import UserError
from unirg.study import Study


@pytest.mark.parametrize("prefix", ["", "mimic-cxr-reports/"])
def test_reports_are_read_within_the_zip_where_they_are_not_unpacked(tmp_path: Path, prefix: str) -> None:
    rows = [film(1), film(2, study=50000002), film(3, study=50000003)]
    members = {prefix + name: data for name, data in reports(rows[:2], REPORT).items()}
    unpacked = reports(rows[:1], "FINDINGS: Unpacked.\n")
    adapter = MimicCXR(write(tmp_path, tables(rows) | tree(rows) | unpacked | {ARCHIVE: zipped(members)}))
    by_id = {each.study_id: each for each in adapter.records()}
    first, second = by_id["s50414267"], by_id["s50000002"]
    assert isinstance(first, Study)
    assert first.findings == "Unpacked."
    assert isinstance(second, Study)
    assert second.impression == "No made-up process."
    assert by_id["s50000003"] == Dropped("s50000003", "missing report")
    assert not [path for path in tmp_path.rglob("*.txt") if path.name != "s50414267.txt"]


def test_a_report_that_cannot_be_read_drops_its_study_with_the_reason(tmp_path: Path) -> None:
    rows = [film(n, study=50000000 + n) for n in range(1, 6)]
    texts: dict[str, bytes] = {
        f"{folder(rows[0])}.txt": "FINDINGS: Caf\u00e9.\n".encode("latin-1"),
        f"{folder(rows[1])}.txt": b"x" * (MAX_REPORT + 1),
        f"{folder(rows[2])}.txt": b"",
        f"{folder(rows[3])}.txt": b"\xef\xbb\xbfFINDINGS: Clear.\r\n",
    }
    records = list(MimicCXR(write(tmp_path, tables(rows) | tree(rows) | texts)).records())
    assert records[0] == Dropped("s50000001", "report not UTF-8")
    assert records[1] == Dropped("s50000002", "report too long")
    assert isinstance(records[2], Study)
    assert (records[2].findings, records[2].impression) == (None, None)
    assert isinstance(records[3], Study)
    assert records[3].findings == "Clear."
    assert records[4] == Dropped("s50000005", "missing report")


def test_a_hostile_member_of_the_zip_drops_its_study_alone(tmp_path: Path) -> None:
    rows = [film(n, study=50000000 + n) for n in range(1, 5)]
    names = [f"{folder(row)}.txt" for row in rows]
    texts = {
        names[0]: b"\0" * (20 * MAX_REPORT),
        names[1]: b"FINDINGS: " + b"y" * 99,
        names[2]: b"FINDINGS: z\n",
    }
    packed = zipped(texts | {"../../escape.txt": b"", "/etc/passwd": b""})
    stored = zipped(texts, zipfile.ZIP_STORED).replace(b"y" * 99, b"x" * 99)
    for number, archive in enumerate((packed, stored)):
        root = tmp_path / str(number)
        records = list(MimicCXR(write(root, tables(rows) | tree(rows) | {ARCHIVE: archive})).records())
        assert records[0] == Dropped("s50000001", "report too long")
        assert isinstance(records[2], Study)
        assert records[3] == Dropped("s50000004", "missing report")
        if archive is stored:
            assert records[1] == Dropped("s50000002", "damaged report")
    assert not list(tmp_path.rglob("escape.txt"))


@pytest.mark.parametrize("keep", [0, 30, 200, -1])
def test_a_truncated_zip_is_an_error_with_the_remedy(tmp_path: Path, keep: int) -> None:
    rows = [film(1)]
    files = tables(rows) | tree(rows) | {ARCHIVE: zipped(reports(rows))[:keep]}
    with pytest.raises(UserError, match=f"{ARCHIVE}: damaged, or no zip file; fetch it again"):
        list(MimicCXR(write(tmp_path, files)).records())


def test_a_zip_whose_directory_is_larger_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [film(n, study=50000000 + n) for n in range(9)]
    adapter = MimicCXR(write(tmp_path, tables(rows) | tree(rows) | {ARCHIVE: zipped(reports(rows))}))
    assert len(list(adapter.records())) == 9
    monkeypatch.setattr(mimic_reports, "MAX_DIRECTORY", 500)
    with pytest.raises(UserError, match=f"{ARCHIVE}: damaged"):
        list(adapter.records())


def test_an_encrypted_or_oddly_compressed_report_drops_its_study(tmp_path: Path) -> None:
    rows = [film(1)]
    plain = zipped(reports(rows))
    encrypted = bytearray(plain)
    encrypted[plain.index(b"PK\3\4") + 6] |= 1
    encrypted[plain.index(b"PK\1\2") + 8] |= 1
    for archive in (bytes(encrypted), zipped(reports(rows), zipfile.ZIP_LZMA)):
        (record,) = MimicCXR(write(tmp_path, tables(rows) | tree(rows) | {ARCHIVE: archive})).records()
        assert record == Dropped("s50414267", "damaged report")


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "zip"])
def test_a_report_without_an_image_in_the_metadata_is_dropped_by_its_id(tmp_path: Path, packed: bool) -> None:
    known = film(1)
    texts = reports([known, film(2, study=59999999), film(3, subject=19999999, study=50000001)])
    files = {ARCHIVE: zipped(texts)} if packed else texts
    adapter = MimicCXR(write(tmp_path, tables([known]) | tree([known]) | files))
    assert {(one.study_id, one.reason) for one in dropped(adapter)} == {
        ("s59999999", "no image in the metadata"),
        ("s50000001", "no image in the metadata"),
    }
    assert sum(isinstance(record, Study) for record in adapter.records()) == 1
