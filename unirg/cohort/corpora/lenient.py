"""Values whose format a corpus does not promise: dates, ages and sexes, read in every unambiguous spelling.

A missing value is None. One that is there and cannot be read is `Unread`, whose text is a fixed phrase that
adapters count; the study is kept without it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from unirg.study import AcquiredBasis, Sex

T = TypeVar("T")

MISSING = frozenset({"", "nan", "none", "null", "n/a", "na", "nat", "unknown", "u"})
YEARS = range(1900, 2300)
"""De-identified corpora shift dates, MIMIC-CXR's up to 2211."""
OLDEST = 120

_SEXES: dict[str, Sex] = {"f": "F", "female": "F", "m": "M", "male": "M", "o": "O", "other": "O"}
_UNITS = {"": 1, "y": 1, "m": 12, "w": 52, "d": 365}
_AGE = re.compile(
    r">?=?\s*([0-9]{1,3})(?:\.[0-9]{1,9})?\s*(?:-\s*[0-9]{1,3}|\+)?\s*"
    r"(?:(y|m|w|d)|(y)(?:ea)?rs?(?: old)?|(m)o(?:nth)?s?|(w)eeks?|(d)ays?)?"
)
_DATE = re.compile(
    r"([0-9]{4})(?:([0-9]{2})([0-9]{2})|([-/.])([0-9]{1,2})\4([0-9]{1,2}))"
    r"(?:[T ]?([0-9]{2}):?([0-9]{2})(?::?([0-9]{2})(?:\.([0-9]{1,9}))?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?(?:\.0)?"
)


class Unread(ValueError):
    """A value that is there and was not understood; the text says of what kind, never which."""


def tried(read: Callable[[Any], T], value: Any, unread: Counter[str]) -> T | None:
    """What `read` makes of the value; None, counted in `unread`, where it is not understood."""
    try:
        return read(value)
    except Unread as reason:
        unread[str(reason)] += 1
        return None


def text(value: Any) -> Any:
    """A text, None where pandas spelt a missing one; what is no text passes, for `Study` to refuse."""
    return None if isinstance(value, str) and value.strip().lower() == "nan" else value


def age(value: Any) -> int | None:
    """Whole years of `45`, `45.0`, `045Y`, `018M`, `90+`; of a range (`50-60`) its lower bound.

    Public files give decades, and the lower bound is the one number that is in the decade it names.

    Raises:
        Unread: another spelling, or more than 120 years.
    """
    words = _words(value, "age not understood")
    if words in MISSING:
        return None
    match = _AGE.fullmatch(words)
    if match is None:
        raise Unread("age not understood")
    years = int(match[1]) // _UNITS[next(filter(None, match.groups()[1:]), "")]
    if years > OLDEST:
        raise Unread("age out of range")
    return years


def sex(value: Any) -> Sex | None:
    """F, M or O, of the letter or the word.

    Raises:
        Unread: another word.
    """
    words = _words(value, "sex not understood")
    if words in MISSING:
        return None
    if words not in _SEXES:
        raise Unread("sex not understood")
    return _SEXES[words]


def acquired(value: Any) -> tuple[datetime, AcquiredBasis] | None:
    """When, and whether that is a date or a time, of DICOM's and ISO 8601's spellings, year first.

    Midnight to the second is how tables spell a date. An offset from UTC is applied and dropped.

    Raises:
        Unread: another spelling (`03/02/2015` may be March or February), no day, or an unlikely year.
    """
    words = _words(value, "date not understood")
    if words in MISSING:
        return None
    match = _DATE.fullmatch(words.upper())
    if match is None:
        raise Unread("date not understood")
    year, month, day = (int(match[group] or match[other]) for group, other in ((1, 1), (2, 5), (3, 6)))
    hour, minute, second = (int(match[group] or 0) for group in (7, 8, 9))
    microsecond = int((match[10] or "").ljust(6, "0")[:6])
    try:
        when = datetime(year, month, day, hour, minute, second, microsecond)
    except ValueError:
        raise Unread("date not understood") from None
    if year not in YEARS:
        raise Unread("date out of range")
    midnight = not (hour or minute or second or microsecond)
    offset = match[11]
    if offset and offset != "Z" and not midnight:
        try:
            zone = datetime.fromisoformat(f"2000-01-01T00:00:00{offset}").tzinfo
        except ValueError:
            raise Unread("date not understood") from None
        when = when.replace(tzinfo=zone).astimezone(UTC).replace(tzinfo=None)
    return when, "date" if midnight else "timestamp"


def _words(value: Any, reason: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > 64:
        raise Unread(reason)
    return value.strip().lower()
