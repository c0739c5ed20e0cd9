"""The cells of an institution's table, also of a Parquet one, and how its patients' identifiers are spelt."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unirg.cohort.corpora import Dropped, lenient
from unirg.cohort.corpora.institution import Institution
from unirg.cohort.corpora.institution_values import Refused, acquired, own_identifiers
from unirg.cohort.deidentify import REMOVED
from unirg.errors import UserError
from unirg.study import Study

KEY = bytes(range(32))


def removed(text: str, names: tuple[str, ...] = (), numbers: tuple[str, ...] = ()) -> str:
    own = own_identifiers(text, names, numbers)
    return own.sub(REMOVED, text) if own else text


# Own identifiers


@pytest.mark.parametrize("name", ["M\u00fcller^Hans", "MULLER^HANS", "Mueller^Hans"])
@pytest.mark.parametrize("text", ["M\u00fcller", "Muller", "Mueller", "MUELLER", "M\u00dcLLER"])
def test_a_name_is_found_in_every_spelling_of_its_umlaut(name: str, text: str) -> None:
    assert removed(f"Pat. {text} stable.", (name,)) == f"Pat. {REMOVED} stable."
    assert removed(f"{text}, hans \u2013 stable", (name,)) == f"{REMOVED} \u2013 stable"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Wei\u00df", "Weiss"),
        ("Weiss", "wei\u00df"),
        ("S\u00f8rensen", "Soerensen"),
        ("Garc\u00eda", "GARCIA"),
        ("NGUYEN", "Nguy\u1ec5n"),
        ("B\u00e4r", "Baer"),
        ("Baer", "B\u00e4r"),
        ("Ivanova=\u0418\u0432\u0430\u043d\u043e\u0432\u0430", "\u0438\u0432\u0430\u043d\u043e\u0432\u0430"),
    ],
)
def test_a_name_is_found_with_and_without_its_marks_and_in_every_script(name: str, text: str) -> None:
    assert removed(f"Seen: {text}.", (name,)) == f"Seen: {REMOVED}."


def test_a_short_name_without_its_e_is_another_word() -> None:
    assert removed("RA normal, Su; Rae.", ("Rae^Sue",)) == f"RA normal, Su; {REMOVED}."


@pytest.mark.parametrize("text", ["Xiao Ming Li", "LI, XIAO MING", "Ming Li Xiao", "Ming Xiao-Li"])
def test_a_name_is_found_in_any_order_of_its_parts(text: str) -> None:
    assert removed(f"{text} is stable.", ("LI^XIAO^MING",)) == f"{REMOVED} is stable."


def test_a_name_of_many_parts_is_found_whichever_stands_first() -> None:
    name = "De la Cruz Lopez^Ana^Bo"
    assert removed("Ana Bo de la Cruz Lopez.", (name,)) == f"{REMOVED}."


@pytest.mark.parametrize(
    "text", ["77 71 234", "777-12-34", "7771234", "0077 71234", "7.771.234", "00-7771234"]
)
def test_a_number_of_six_or_more_digits_is_found_in_any_groups(text: str) -> None:
    assert removed(f"MRN {text}, stable.", (), ("7771234",)) == f"MRN {REMOVED}, stable."
    assert removed(f"Film 1{text}1", (), ("7771234",)) == f"Film 1{text}1"


def test_a_number_of_fewer_digits_is_found_as_it_is_written() -> None:
    assert removed("1 2 345 and 12 345, 12345", (), ("12345",)) == f"1 2 345 and 12 345, {REMOVED}"


@pytest.mark.parametrize("unit", ["0 ", "0", "ae", "Aa ", "1-", "\u00e4e"])
def test_a_hostile_text_is_searched_in_a_time_linear_in_its_length(unit: str) -> None:
    names = ("ae" * 128, "^".join(["a", "aa", "ae", "aae"]), "^".join("ae" for _ in range(80)))
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    removed(text, names, ("1" * 256, "7771234", "0000001"))
    assert time.process_time() - start < 3


# Times


@pytest.mark.parametrize(
    "words",
    ["2024-03-01", "20240301", "2024-03-01T00:00:00", "2024-03-01T00:00:00+02:00", "2024-03-01 10:15:00"],
)
def test_midnight_is_a_date_as_in_the_public_corpora(words: str) -> None:
    assert tuple(acquired(words).values()) == lenient.acquired(words)


@pytest.mark.parametrize("words", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-05:00"])
def test_a_time_that_its_offset_moves_out_of_the_calendar_is_refused(words: str) -> None:
    with pytest.raises(Refused, match="invalid acquired_at"):
        acquired(words)


# Parquet


def parquet(
    folder: Path, columns: dict[str, Any], rows: int = 3, names: list[str] | None = None
) -> Institution:
    filled = {
        **{"study_id": [f"S{k}" for k in range(rows)], "mrn": ["P1"] * rows, "images": ["a.png"] * rows},
        **{"views": ["PA"] * rows, "findings": ["Clear."] * rows},
        **columns,
    }
    table = pa.table(filled)
    pq.write_table(table.rename_columns(names) if names else table, folder / "t.parquet")
    return Institution(str(folder / "t.parquet"), KEY, "site_a")


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_a_timestamp_at_midnight_is_a_date(tmp_path: Path, unit: str) -> None:
    times = pa.array([datetime(2024, 3, 1), datetime(2024, 3, 1, 10), None], pa.timestamp(unit))
    records = [
        record for record in parquet(tmp_path, {"study_date": times}).records() if isinstance(record, Study)
    ]
    assert [record.acquired_basis for record in records] == ["date", "timestamp", None]


@pytest.mark.parametrize(
    "dates",
    [pa.array([0, 2**60, 1], pa.timestamp("us")), pa.array([0, 2**30, 1], pa.date32())],
)
def test_a_date_that_no_calendar_has_costs_its_own_row(tmp_path: Path, dates: pa.Array) -> None:
    before, dropped, after = parquet(tmp_path, {"acquired_at": dates}).records()
    assert isinstance(before, Study)
    assert isinstance(after, Study)
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "invalid acquired_at"


def test_only_known_columns_are_read_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, list[str]]] = []
    read = pq.ParquetFile.iter_batches

    def iter_batches(self: pq.ParquetFile, size: int, columns: list[str]) -> Any:
        asked.append((size, columns))
        return read(self, size, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    corpus = parquet(tmp_path, {"thumbnail": [b"x" * 99] * 600, " Age ": [61.0] * 600}, 600)
    assert {record.age for record in corpus.records() if isinstance(record, Study)} == {61}
    assert asked == [(256, ["study_id", "mrn", "images", "views", "findings", " Age "])]


def test_two_columns_of_the_same_name_are_an_error_as_in_csv(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two columns have the same name"):
        list(parquet(tmp_path, {"MRN ": ["2"] * 3}).records())
    names = ["study_id", "mrn", "images", "views", "findings", "findings"]
    with pytest.raises(UserError, match="two columns have the same name"):
        list(parquet(tmp_path, {"other": ["2"] * 3}, names=names).records())


def test_text_that_is_not_utf8_is_an_error_that_does_not_show_it(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"Tam\xff"))
    with pytest.raises(UserError, match="not Parquet, or damaged") as failed:
        list(parquet(tmp_path, {"findings": broken}, 1).records())
    assert failed.value.__suppress_context__
