"""Cells of an institution's table, and what in its texts names the row's own patient."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import PurePosixPath
from typing import Any

from unirg.cohort.views import view_of
from unirg.study import AcquiredBasis, Image

SHORTEST_IDENTIFIER = 3
"""Characters. A shorter id, or part of a name, cannot be told from a report's own words and numbers."""
LONGEST_IDENTIFIER = 256
"""Characters; what is longer is no identifier, and would make a pattern as long."""

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
    """`acquired_at` and its basis; an offset from UTC is applied and dropped, as the schema has none."""
    if not words:
        return {}
    try:
        when = datetime.fromisoformat(words)
    except ValueError:
        raise Refused("invalid acquired_at") from None
    if when.tzinfo is not None:
        when = when.astimezone(UTC).replace(tzinfo=None)
    basis: AcquiredBasis = "timestamp" if len(words) > len("2026-01-31") else "date"
    return {"acquired_at": when, "acquired_basis": basis}


def own_identifiers(
    text: str, names: Iterable[str], numbers: Iterable[str], others: Iterable[str] = ()
) -> re.Pattern[str] | None:
    """What in a text names this study's patient: a name in both orders, each part of it, every number.

    `others` are people whose name counts whole only (a physician called `Ward` would cost the word).
    """
    whole: dict[str, None] = {}
    alone: dict[str, str] = {}
    for name, in_parts in [*((name, True) for name in names), *((name, False) for name in others)]:
        parts = re.findall(r"[^\W\d_]+", _composed(name))
        whole |= dict.fromkeys(" ".join(order) for order in (parts, parts[::-1]) if len(parts) > 1)
        alone |= {part: "" for part in parts if in_parts and len(part) >= SHORTEST_IDENTIFIER}
    for number in map(_composed, numbers):
        if len(number) >= SHORTEST_IDENTIFIER:
            alone.setdefault(number, "")
        # Systems pad numbers with zeros or do not; below five digits the rest may be a measurement.
        if number.isdecimal() and len(bare := number.lstrip("0")) >= 5:
            alone[bare] = "0*"
    lower = text.lower()
    # The first alternative that fits is taken, so the longer comes before what it may begin with.
    alternatives = [rf"\b{_GAP.join(name.split())}\b" for name in whole if _may_hold(lower, name)]
    longest_first = sorted(alone, key=len, reverse=True)
    alternatives += [_alone(value, alone[value]) for value in longest_first if _may_hold(lower, value)]
    return re.compile("|".join(alternatives), re.IGNORECASE) if alternatives else None


def _may_hold(lower: str, value: str) -> bool:
    """Whether every part of an identifier stands in a text: most hold none, and a pattern takes 2 ms to make.

    Beyond ASCII a pattern's idea of case is wider than `lower`, so it decides.
    """
    if not (lower.isascii() and value.isascii()):
        return True
    return all(part in lower for part in re.findall(r"[^\W\d_]+|\d+", value.lower()))


def _composed(value: str) -> str:
    return unicodedata.normalize("NFC", value[:LONGEST_IDENTIFIER])


_GAP = r"[\W_]{0,8}"
"""Between the parts of an identifier: whatever separators a report spells it with, or none."""


def _alone(value: str, padding: str = "") -> str:
    """A pattern for `value` where it is no part of a longer word or number (`MRN0012345` holds one)."""
    digit, letter = "[0-9]", r"[^\W\d_]"
    before, after = (digit if edge.isdigit() else letter for edge in (value[0], value[-1]))
    parts = re.findall(r"[^\W\d_]+|\d+", value)
    return f"(?<!{before}){padding}{_GAP.join(parts) or re.escape(value)}(?!{after})"
