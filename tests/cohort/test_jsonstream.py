"""One JSON object of studies, read a study at a time."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unirg.cohort.corpora import jsonstream
from unirg.cohort.corpora.jsonstream import CHUNK, MAX_RECORD, Unreadable, records
from unirg.errors import UserError


def read(content: bytes | str) -> list[tuple[str, Any]]:
    data = content if isinstance(content, bytes) else content.encode()
    fsspec.filesystem("memory").pipe("/jsonstream/a.json", data)
    return list(records("memory://jsonstream", "a.json", "a.json"))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonstream, "CHUNK", 3)


TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS, VALUES), st.sampled_from([None, 1]), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_any_object_is_read_as_json_reads_it_however_the_pieces_fall(
    small_chunks: None, members: dict[str, Any], indent: int | None, ascii_only: bool
) -> None:
    assert read(json.dumps(members, indent=indent, ensure_ascii=ascii_only)) == list(members.items())


def test_numbers_come_out_as_texts_and_literal_nan_as_none(small_chunks: None) -> None:
    text = '{"a": 00, "b": 12345, "c": {"d": NaN, "e": -1.50, "f": ' + "9" * 5000 + '}, "g": Infinity}'
    assert read(text.replace("00", "0")) == [
        ("a", "0"),
        ("b", "12345"),
        ("c", {"d": None, "e": "-1.50", "f": "9" * 5000}),
        ("g", None),
    ]


def test_a_key_that_comes_twice_comes_out_twice() -> None:
    assert read('\ufeff{"a": "1", "a": "2"}\n') == [("a", "1"), ("a", "2")]


@pytest.mark.parametrize(
    "bad",
    [
        '{"x": tru}',
        '{"x": "a\\qb, }{", "y": []}',
        "{x: 1}",
        "nonsense",
        "[" * 1500 + "]" * 1500,
        '{"x": "\\\\", "y": "\\"}{", "z": oops}',
    ],
    ids=lambda text: text[:20],
)
def test_a_malformed_record_costs_only_itself(small_chunks: None, bad: str) -> None:
    good = '{"r": "good"}'
    assert read(f'{{"a": {good}, "b": {bad}, "c": {good}}}') == [
        ("a", {"r": "good"}),
        ("b", Unreadable("unreadable record")),
        ("c", {"r": "good"}),
    ]


def test_a_record_of_ten_megabytes_is_passed_over_in_bounded_memory() -> None:
    huge = '"' + 'a\\"}{ ' * (10 * 2**20 // 7) + '"'
    fsspec.filesystem("memory").pipe(
        "/jsonstream/b.json", f'{{"a": {{"r": {huge}}}, "b": {huge}, "c": "x"}}'.encode()
    )
    tracemalloc.start()
    found = list(records("memory://jsonstream", "b.json", "b.json"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    too_large = Unreadable("record too large")
    assert found == [("a", too_large), ("b", too_large), ("c", "x")]
    assert peak < 6 * (MAX_RECORD + CHUNK)


def test_memory_does_not_grow_with_the_number_of_records() -> None:
    record = json.dumps({"Findings": "Made up. " * 1000})
    body = ", ".join(f'"{number}": {record}' for number in range(2500))
    fsspec.filesystem("memory").pipe("/jsonstream/c.json", f"{{{body}}}".encode())
    del body
    tracemalloc.start()
    assert sum(1 for _ in records("memory://jsonstream", "c.json", "c.json")) == 2500
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * CHUNK  # of a file of 22 MiB


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": 1',
        b'{"a": 1,}',
        b'{"a" 1}',
        b"{1: 2}",
        b'{"a": {"b": 1}',
        b'{"a": "never closed}',
        b'{"a": {"b": [}',
        b'{"a": 1} {"b": 2}',
        b'{"' + b"k" * (MAX_RECORD + 10) + b'": 1}',
        '{"a": 1}'.encode("utf-16"),
        b"\x1f\x8b\x08\x00",
    ],
    ids=lambda data: str(data[:16]),
)
def test_a_file_that_is_no_object_or_is_cut_off_is_an_error_that_shows_nothing_of_it(content: bytes) -> None:
    with pytest.raises(
        UserError, match=r"^a\.json: not one JSON object in UTF-8, or cut off after \d+ studies"
    ):
        read(content)


def test_bytes_that_are_no_utf_8_stay_recognisable_in_their_own_record() -> None:
    ((_, first), (_, second)) = read(b'{"a": "caf\xe9", "b": "caf\xc3\xa9"}')
    assert (first, second) == ("caf\udce9", "café")


def test_a_missing_file_is_for_the_caller_to_explain() -> None:
    with pytest.raises(FileNotFoundError):
        list(records("memory://jsonstream", "none.json", "none.json"))


def test_brackets_nested_too_deep_for_a_decoder_are_one_unreadable_record() -> None:
    assert read('{"a": ' + "[" * 200_000 + "]" * 200_000 + ', "b": "x"}') == [
        ("a", Unreadable("unreadable record")),
        ("b", "x"),
    ]
