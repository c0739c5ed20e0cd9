"""An institution's own data: one table of studies, and images in the folder below it.

Nothing that identifies a patient leaves this module: study and patient ids become keyed hashes, the row's
own identifiers are removed from its texts, and errors name the institution, a row number, a keyed study id
or a field, never a value, a path or a column of the table's own.

The table is CSV (UTF-8, quoted) or Parquet. Columns, in any order, upper or lower case; others are ignored:

    study_id | accession | accession_number     required
    patient_id | mrn                            required
    images                                      required: paths relative to the table's folder, parted by `;`
    findings, impression                        at least one of them
    views                                       as many as images, parted by `;` (`views.view_of` reads them)
    acquired_at | study_date                    ISO 8601, or YYYYMMDD
    patient_name, age, sex, race, indication, comparison
"""

from __future__ import annotations

import hmac
import logging
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unirg import storage
from unirg.cohort import imaging
from unirg.cohort.corpora import Dropped, source
from unirg.cohort.views import view_of
from unirg.errors import UserError
from unirg.study import SAFE_ID, AcquiredBasis, Image, Study, StudyError, keyed_id

# At DEBUG they write down the path of every file that they open.
for _library in ("fsspec", "s3fs", "botocore", "aiobotocore"):
    logging.getLogger(_library).setLevel(logging.INFO)

SITE_KEY_VARIABLE = "UNIRG_SITE_KEY"
KEY_REMEDY = (
    f"create one with `openssl rand -hex 32`, keep it, and export it as {SITE_KEY_VARIABLE} "
    "(under another key every study gets another id)"
)
REMOVED = "[removed]"
SHORTEST_IDENTIFIER = 3
"""Characters. A shorter id, or part of a name, cannot be told from a report's own words and numbers."""

STUDY_COLUMNS = ("study_id", "accession", "accession_number")
PATIENT_COLUMNS = ("patient_id", "mrn")
DATE_COLUMNS = ("acquired_at", "study_date")
TEXT_COLUMNS = ("race", "indication", "comparison", "findings", "impression")
SEXES = {
    **{"f": "F", "female": "F", "m": "M", "male": "M", "o": "O", "other": "O"},
    **{"": None, "u": None, "unknown": None},
}

Row = dict[str, str]
"""A table's row by lower-case column name; every value a stripped text, '' where it is missing."""


class Institution:
    """The studies of one institution's table; `name` is its corpus and its institution, and is printed."""

    public = False

    def __init__(self, table: str, site_key: bytes, name: str = "institution") -> None:
        """`table` is a path or URI ending in .csv or .parquet; `site_key` has 16 bytes or more.

        Raises:
            UserError: no key, an unsafe name, or a table of another kind or on an unknown file system.
        """
        if not re.fullmatch(SAFE_ID, name):
            raise UserError("the institution's name may hold only letters, digits and _ . / -")
        if not table.lower().endswith((".csv", ".parquet")):
            raise UserError(f"institution {name}: its table must be a .csv or .parquet file")
        self.name = name
        self.removed = 0
        """Identifiers removed from texts by the latest pass of `records`."""
        if len(site_key) < 16:
            raise UserError(f"institution {name}: no site key of 16 bytes or more: {KEY_REMEDY}")
        self._site_key = site_key
        self._label = f"institution {name}"
        folder, slash, self._file = table.rpartition("/")
        self._folder = folder or slash or "."
        try:
            storage.open_fs(self._folder)
        except storage.StorageError:  # its text shows the path
            raise UserError(f"{self._label}: the scheme of its table's URI is not known here") from None

    @classmethod
    def from_environment(
        cls, table: str, name: str = "institution", environ: Mapping[str, str] = os.environ
    ) -> Institution:
        """Take the site key from `UNIRG_SITE_KEY`, so that it stands in no configuration and no log.

        Raises:
            UserError: as above, or the variable is not hexadecimal.
        """
        try:
            site_key = bytes.fromhex(environ.get(SITE_KEY_VARIABLE, ""))
        except ValueError:
            raise UserError(f"{SITE_KEY_VARIABLE} is not hexadecimal: {KEY_REMEDY}") from None
        return cls(table, site_key, name)

    def __repr__(self) -> str:
        return f"Institution({self.name})"

    def fingerprint(self) -> str:
        """Over the table and the images it names, keyed: it changes with the site key, as the ids do."""
        named = {self._file}
        for _, row in self._rows():
            named.update(_paths(row or {}))
        files = source.listing(self._folder, named.__contains__, self._label)
        digest = source.fingerprint(self._folder, files, self._label)
        return hmac.new(self._site_key, f"{self.name}\0{digest}".encode(), "sha256").hexdigest()

    def records(self) -> Iterator[Study | Dropped]:
        """Every row in the table's order; one that breaks a rule is dropped with the name of its field.

        Raises:
            UserError: the table is missing, cannot be read, or lacks a column.
        """
        self.removed = 0
        seen: set[str] = set()
        for number, row in self._rows():
            if row is None:
                yield Dropped(f"row-{number}", "wrong number of columns")
                continue
            study = self._study(number, row)
            if study.study_id in seen:
                study = Dropped(study.study_id, "duplicate study id")
            seen.add(study.study_id)
            yield study

    def read(self, image: Image) -> np.ndarray:
        return imaging.decode(source.read_image(self._folder, image.uri, self._label))

    def truth(self) -> pa.Table | None:
        return None

    def _study(self, number: int, row: Row) -> Study | Dropped:
        accession, patient = _first(row, STUDY_COLUMNS), _first(row, PATIENT_COLUMNS)
        if not accession:
            return Dropped(f"row-{number}", "missing study id")
        study_id = keyed_id(self._site_key, "study", accession)
        if not patient:
            return Dropped(study_id, "missing patient id")
        paths = _paths(row)
        if not all(source.is_safe(path) for path in paths):
            return Dropped(study_id, "unsafe image path")
        try:
            return Study.checked(
                corpus=self.name,
                study_id=study_id,
                patient_id=keyed_id(self._site_key, "patient", patient),
                institution=self.name,
                images=_images(paths, row.get("views", "")),
                age=_age(row.get("age", "")),
                sex=_sex(row.get("sex", "")),
                **_acquired(_first(row, DATE_COLUMNS)),
                **self._texts(row),
            )
        except _Invalid as error:
            return Dropped(study_id, f"invalid {error}")
        except StudyError as error:
            return Dropped(study_id, f"invalid {error.field.partition('.')[0]}")

    def _texts(self, row: Row) -> dict[str, str]:
        """The row's texts without the row's own identifiers, which are counted."""
        texts = {column: row.get(column, "") for column in TEXT_COLUMNS}
        if pattern := _identifiers(row):
            for column, text in texts.items():
                texts[column], count = pattern.subn(REMOVED, unicodedata.normalize("NFC", text))
                self.removed += count
        return texts

    def _rows(self) -> Iterator[tuple[int, Row | None]]:
        """(row number from 1, row) of the table; None for a row whose width differs from the header's."""
        checked = False
        try:
            for number, row in self._csv() if self._file.lower().endswith(".csv") else self._parquet():
                if row is not None and not checked:
                    self._check_columns(row)
                    checked = True
                yield number, row
        except FileNotFoundError:
            raise UserError(f"{self._label}: its table does not exist; check `table`") from None
        if not checked:
            raise UserError(f"{self._label}: its table has no row that fits its header; check the export")

    def _csv(self) -> Iterator[tuple[int, Row | None]]:
        for number, row in source.csv_rows(self._folder, self._file, f"{self._label}: its table"):
            yield number, row and {column: value.strip() for column, value in row.items()}

    def _parquet(self) -> Iterator[tuple[int, Row | None]]:
        number = 0
        try:
            with source.opened(self._folder, self._file, self._label) as file:
                for batch in pq.ParquetFile(file).iter_batches():
                    for row in batch.to_pylist():
                        number += 1
                        yield number, {column.strip().lower(): _text(value) for column, value in row.items()}
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError):
            raise UserError(f"{self._label}: its table is not Parquet, or damaged; export it again") from None

    def _check_columns(self, row: Row) -> None:
        needed = (STUDY_COLUMNS, PATIENT_COLUMNS, ("findings", "impression"), ("images",))
        missing = [" or ".join(names) for names in needed if not row.keys() & set(names)]
        if missing:
            raise UserError(f"{self._label}: its table has no column {', no column '.join(missing)}")


class _Invalid(Exception):
    """A value that a field cannot take; the text is the field's name."""


def _text(value: Any) -> str:
    """A Parquet value as a CSV would hold it: whole floats as integers, lists parted by `;`."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list):
        return ";".join(_text(item) for item in value)
    return str(value).strip()


def _first(row: Row, columns: tuple[str, ...]) -> str:
    return next((row[column] for column in columns if row.get(column)), "")


def _paths(row: Row) -> list[str]:
    """The row's image paths in one spelling (`a//./b.png` is `a/b.png`)."""
    paths = (path.strip() for path in row.get("images", "").split(";"))
    return [str(PurePosixPath(path)) for path in paths if path]


def _images(paths: list[str], names: str) -> tuple[Image, ...]:
    views = [view_of(name) for name in names.split(";")] if names else [view_of(None)] * len(paths)
    if len(views) != len(paths):
        raise _Invalid("views")
    return tuple(
        Image(view=view, projection=projection, uri=path)
        for path, (view, projection) in zip(paths, views, strict=True)
    )


def _age(text: str) -> int | None:
    """Whole years, of a number of years or a DICOM age string (`045Y`, `018M`)."""
    if not text:
        return None
    match = re.fullmatch(r"([0-9]{1,3})(?:\.[0-9]+)?([YMWD]?)", text, re.IGNORECASE)
    if match is None:
        raise _Invalid("age")
    return int(match[1]) // {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}[match[2].upper()]


def _sex(text: str) -> str | None:
    if text.lower() not in SEXES:
        raise _Invalid("sex")
    return SEXES[text.lower()]


def _acquired(text: str) -> dict[str, datetime | AcquiredBasis | None]:
    """`acquired_at` and its basis; an offset from UTC is applied and dropped, as the schema has none."""
    if not text:
        return {}
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise _Invalid("acquired_at") from None
    if when.tzinfo is not None:
        when = when.astimezone(UTC).replace(tzinfo=None)
    basis: AcquiredBasis = "timestamp" if len(text) > len("2026-01-31") else "date"
    return {"acquired_at": when, "acquired_basis": basis}


def _identifiers(row: Row) -> re.Pattern[str] | None:
    """What in a text names this row's patient: the name in both orders, ids, each part of the name."""
    name = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFC", row.get("patient_name", "")))
    numbers = [
        unicodedata.normalize("NFC", row.get(column, "")) for column in STUDY_COLUMNS + PATIENT_COLUMNS
    ]
    # Systems pad numbers with zeros or do not; below five digits the rest may be a measurement.
    bare = [number.lstrip("0") for number in numbers if number.isdecimal()]
    alone = {value: _alone(value) for value in numbers + name if len(value) >= SHORTEST_IDENTIFIER}
    alone |= {number: _alone(number, "0*") for number in bare if len(number) >= 5}
    # The first alternative that fits is taken, so the longer comes before what it may begin with.
    alternatives = [rf"\b{_GAP.join(order)}\b" for order in (name, name[::-1]) if len(name) > 1]
    alternatives += [alone[value] for value in sorted(alone, key=len, reverse=True)]
    return re.compile("|".join(alternatives), re.IGNORECASE) if alternatives else None


_GAP = r"[\W_]*"
"""Between the parts of an identifier: whatever separators a report spells it with, or none."""


def _alone(value: str, padding: str = "") -> str:
    """A pattern for `value` where it is no part of a longer word or number (`MRN0012345` holds one)."""
    digit, letter = "[0-9]", r"[^\W\d_]"
    before, after = (digit if edge.isdigit() else letter for edge in (value[0], value[-1]))
    parts = re.findall(r"[^\W\d_]+|\d+", value)
    return f"(?<!{before}){padding}{_GAP.join(parts) or re.escape(value)}(?!{after})"
