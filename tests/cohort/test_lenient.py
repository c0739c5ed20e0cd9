"""Dates, ages and sexes in formats that nobody promised."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirg.cohort.corpora.lenient import acquired, age, sex, text, tried


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("45", 45),
        ("45.0", 45),
        ("045Y", 45),
        (" 45 years old ", 45),
        ("018M", 1),
        ("060W", 1),
        ("000D", 0),
        ("11 months", 0),
        ("90+", 90),
        (">=90", 90),
        ("50-60", 50),
        ("50 - 60Y", 50),
        (None, None),
        ("", None),
        ("nan", None),
        ("Unknown", None),
    ],
)
def test_an_age_is_read_in_whole_years_and_a_range_by_its_lower_bound(
    value: str, expected: int | None
) -> None:
    assert age(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("20150302", ("2015-03-02", "date")),
        ("20150302.0", ("2015-03-02", "date")),
        ("2015-03-02", ("2015-03-02", "date")),
        ("2015/3/2", ("2015-03-02", "date")),
        ("2015-03-02 00:00:00", ("2015-03-02", "date")),
        ("2015-03-02T00:00:00Z", ("2015-03-02", "date")),
        ("2015-03-02T14:05", ("2015-03-02T14:05", "timestamp")),
        ("20150302140506.25", ("2015-03-02T14:05:06.250", "timestamp")),
        ("2015-03-02T14:05:06+02:00", ("2015-03-02T12:05:06", "timestamp")),
        ("2180-12-31T23:30:00-0100", ("2181-01-01T00:30:00", "timestamp")),
    ],
)
def test_a_date_is_read_year_first_and_says_whether_it_has_a_time(
    value: str, expected: tuple[str, str]
) -> None:
    assert acquired(value) == (datetime.fromisoformat(expected[0]), expected[1])


@pytest.mark.parametrize(
    ("value", "expected"), [("F", "F"), ("male", "M"), ("O", "O"), ("U", None), (None, None)]
)
def test_a_sex_is_a_letter_or_a_word(value: str | None, expected: str | None) -> None:
    assert sex(value) == expected


@pytest.mark.parametrize(
    ("read", "value", "reason"),
    [
        (age, "forty", "age not understood"),
        (age, "45X", "age not understood"),
        (age, "-4", "age not understood"),
        (age, ["45"], "age not understood"),
        (age, "4" * 1000, "age not understood"),
        (age, "121", "age out of range"),
        (acquired, "03/02/2015", "date not understood"),
        (acquired, "2015", "date not understood"),
        (acquired, "20151302", "date not understood"),
        (acquired, "2015-02-30", "date not understood"),
        (acquired, "2015-03-02T25:00", "date not understood"),
        (acquired, "2015-03-02T14:05+99:99", "date not understood"),
        (acquired, "00010101", "date out of range"),
        (acquired, {"$date": 1}, "date not understood"),
        (sex, "X", "sex not understood"),
    ],
)
def test_what_is_not_understood_is_counted_and_never_guessed(read: Any, value: Any, reason: str) -> None:
    unread = Counter[str]()
    assert tried(read, value, unread) is None
    assert unread == {reason: 1}


def test_the_word_nan_is_a_missing_text_and_other_words_are_not() -> None:
    assert [text(value) for value in ("nan", " NaN", "None.", "", 4)] == [None, None, "None.", "", 4]


@given(st.text() | st.integers() | st.lists(st.text()), st.sampled_from([age, acquired, sex]))
def test_any_value_is_read_missing_or_not_understood(value: Any, read: Any) -> None:
    unread = Counter[str]()
    tried(read, value, unread)
    assert unread.keys() <= {
        f"{name} {what}" for name in ("age", "date", "sex") for what in ("not understood", "out of range")
    }
