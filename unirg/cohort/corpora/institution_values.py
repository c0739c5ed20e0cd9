"""Cells of an institution's table, and what in its texts names the row's own patient."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, time
from itertools import permutations
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from unirg.cohort.views import view_of
from unirg.study import AcquiredBasis, Image

SHORTEST_IDENTIFIER = 3
"""Characters. A shorter id, or part of a name, cannot be told from a report's own words and numbers."""
LONGEST_IDENTIFIER = 256
"""Characters; what is longer is no identifier, and would make a pattern as long."""

OUT_OF_RANGE = "out of range"
"""No date, so that its row is refused."""

SEXES = {
    **{"f": "F", "female": "F", "m": "M", "male": "M", "o": "O", "other": "O"},
    **{"": None, "u": None, "unknown": None},
}

Row = dict[str, str]
"""A table's row by lower-case column name; every value a stripped text, '' where it is missing."""


class Refused(Exception):
    """A row that becomes no study; the text is the reason, a fixed phrase."""


def text(value: Any) -> str:
    """A Parquet value as a CSV would hold it: whole floats as integers, lists parted by `;`."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list):
        return ";".join(text(item) for item in value)
    return str(value).strip()


def texts(column: pa.Array) -> list[str]:
    """The values of a Parquet column; a date or time that Python has none of is OUT_OF_RANGE."""
    try:
        return [text(value) for value in column.to_pylist()]
    except (OverflowError, ValueError):
        if not pa.types.is_temporal(column.type):
            raise
        return [_moment(value) for value in column]


def _moment(value: pa.Scalar) -> str:
    try:
        return text(value.as_py())
    except (OverflowError, ValueError):
        return OUT_OF_RANGE


def first(row: Row, columns: tuple[str, ...]) -> str:
    return next((row[column] for column in columns if row.get(column)), "")


def paths(row: Row) -> list[str]:
    """The row's image paths in one spelling (`a//./b.png` is `a/b.png`)."""
    parts = (path.strip() for path in row.get("images", "").split(";"))
    return [str(PurePosixPath(path)) for path in parts if path]


def images(files: list[str], names: str) -> tuple[Image, ...]:
    views = [view_of(name) for name in names.split(";")] if names else [view_of(None)] * len(files)
    if len(views) != len(files):
        raise Refused("invalid views")
    return tuple(
        Image(view=view, projection=projection, uri=path)
        for path, (view, projection) in zip(files, views, strict=True)
    )


def age(words: str) -> int | None:
    """Whole years, of a number of years or a DICOM age string (`045Y`, `018M`)."""
    if not words:
        return None
    match = re.fullmatch(r"([0-9]{1,3})(?:\.[0-9]+)?([YMWD]?)", words, re.IGNORECASE)
    if match is None:
        raise Refused("invalid age")
    return int(match[1]) // {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}[match[2].upper()]


def sex(words: str) -> str | None:
    if words.lower() not in SEXES:
        raise Refused("invalid sex")
    return SEXES[words.lower()]


def acquired(words: str) -> dict[str, datetime | AcquiredBasis | None]:
    """`acquired_at` and its basis; an offset from UTC is applied and dropped, as the schema has none.

    Midnight is how tables spell a date, as `lenient.acquired` has it: no offset moves it to another day.
    """
    if not words:
        return {}
    try:
        when = datetime.fromisoformat(words)
        moved = when if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Refused("invalid acquired_at") from None
    basis: AcquiredBasis = "date" if when.time() == time.min else "timestamp"
    when = when if basis == "date" else moved
    return {"acquired_at": when.replace(tzinfo=None), "acquired_basis": basis}


def own_identifiers(
    text: str, names: Iterable[str], numbers: Iterable[str], others: Iterable[str] = ()
) -> re.Pattern[str] | None:
    """What in a text names this study's patient: a name in any order, each part of it, every number.

    `others` are people whose name counts whole only (a physician called `Ward` would cost the word).
    """
    may_hold = _finder(text)
    whole: dict[str, None] = {}
    alone: dict[str, str] = {}
    for name, in_parts in [*((name, True) for name in names), *((name, False) for name in others)]:
        # DICOM writes the same name in several scripts, with `=` between.
        for script in _composed(name).split("="):
            parts = re.findall(r"[^\W\d_]+", script)
            held = [part for part in parts if may_hold(part)]
            if len(held) == len(parts) > 1:
                whole |= {rf"\b{_GAP.join(map(_spelt, order))}\b": None for order in _orders(parts)}
            if in_parts:
                long = [part for part in held if len(part) >= SHORTEST_IDENTIFIER]
                alone |= {part: _alone(part, _spelt(part)) for part in long}
    for number in map(_composed, numbers):
        if len(number) >= SHORTEST_IDENTIFIER and may_hold(number):
            alone.setdefault(number, _alone(number, _grouped(number)))
        # Systems pad numbers with zeros or do not; below five digits the rest may be a measurement.
        if number.isdecimal() and len(bare := number.lstrip("0")) >= 5 and may_hold(bare):
            alone[bare] = _alone(bare, rf"(?:0{_BETWEEN}){{0,20}}{_grouped(bare)}")
    # The first alternative that fits is taken, so the longer comes before what it may begin with.
    alternatives = [*whole, *(alone[value] for value in sorted(alone, key=len, reverse=True))]
    return re.compile("|".join(alternatives), re.IGNORECASE) if alternatives else None


def _finder(text: str) -> Callable[[str], bool]:
    """Tells whether an identifier may stand in a text: most hold none, and a pattern takes 2 ms to make.

    Of letters beyond ASCII a pattern's idea of case is wider than that of `lower`, so it decides.
    """
    folded = _folded(text)
    foreign = _FOREIGN.search(folded) is not None
    seen = folded, re.sub(r"[\W_]", "", folded), _WRITTEN_OUT.sub(r"\1", folded)

    def may_hold(value: str) -> bool:
        value = _folded(value)
        if foreign or not value.isascii():
            return True
        spelt = value, re.sub(r"[\W_]", "", value), _WRITTEN_OUT.sub(r"\1", value)
        return any(form and form in text for form, text in zip(spelt, seen, strict=True))

    return may_hold


def _composed(value: str) -> str:
    return unicodedata.normalize("NFC", value[:LONGEST_IDENTIFIER])


def _orders(parts: list[str]) -> Iterable[Sequence[str]]:
    """Every order of a name of four parts, which makes 24; of a longer one its turns and its reverse."""
    if len(parts) <= 4:
        return permutations(parts)
    return [parts[::-1], *(parts[turn:] + parts[:turn] for turn in range(min(len(parts), 8)))]


_UNMARKED = str.maketrans({"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "\u0131": "i"})
_FOREIGN = re.compile(r"[^\W\x00-\x7f]")
_WRITTEN_OUT = re.compile("([aou])e")
"""`ae` is how `ä` is written where there is no key for it."""


def _folded(text: str) -> str:
    """In lower case and without the marks of letters."""
    if text.isascii():
        return text.lower()
    parted = unicodedata.normalize("NFKD", text.lower().translate(_UNMARKED))
    return "".join(letter for letter in parted if not unicodedata.combining(letter))


_MARKED: dict[str, str] = defaultdict(str)
"""By a letter of ASCII, those that are it with a mark."""
for _letter in map(chr, (*range(0xDF, 0x180), *range(0x1E00, 0x1F00))):
    if _letter.islower():
        _MARKED[_WRITTEN_OUT.sub(r"\1", _folded(_letter))] += _letter
_LONG_NAME = 5
"""Letters of a name that an `e` more or less makes no other word; `Rae` would be the right atrium's `RA`."""


def _spelt(name: str) -> str:
    """A pattern for one part of a name with its marks and without, its umlauts also written out."""
    pieces = []
    for token in re.findall("[aou]e|ss|.", name.lower()):
        plain = _folded(token)
        letters = f"[{plain[:1]}{_MARKED[plain[:1]]}]"
        if not plain.isalpha() or not plain.isascii():
            pieces.append(re.escape(token))
        elif plain == "ss":
            pieces.append("(?:ss|ß)")
        elif plain[0] not in "aou" or (token == plain and len(plain) == 1 and len(name) < _LONG_NAME):
            pieces.append(letters)
        elif token == plain and len(name) < _LONG_NAME:
            pieces.append(f"(?:{plain}|[{_MARKED[plain[0]]}])")
        else:
            pieces.append(f"{letters}e?")
    return "".join(pieces)


_GAP = r"[\W_]{0,8}"
"""Between the parts of an identifier: whatever separators a report spells it with, or none."""
_BETWEEN = "[ ./-]?"


def _grouped(value: str) -> str:
    """A pattern for a number, whose digits stand in any groups where there are six or more."""
    between = _BETWEEN if len(re.findall(r"\d", value)) >= 6 else ""
    parts = [between.join(part) if part.isdecimal() else part for part in re.findall(r"[^\W\d_]+|\d+", value)]
    return _GAP.join(parts) or re.escape(value)


def _alone(value: str, pattern: str) -> str:
    """`pattern` where `value` is no part of a longer word or number (`MRN0012345` holds one)."""
    digit, letter = "[0-9]", r"[^\W\d_]"
    before, after = (digit if edge.isdigit() else letter for edge in (value[0], value[-1]))
    return f"(?<!{before}){pattern}(?!{after})"
