"""Candidates and references out of a file: CSV, JSONL, JSON, or a ReXrank submission.

A record is a study: `study_id`; `candidate` (ReXrank: `model_prediction`); the reference, either as one text
in `reference` (ReXrank: `report`) or as its sections in `findings` and `impression` (ReXrank:
`section_findings`, `section_impression`); `patient_id` where it is known. References may lie in a file of
their own, joined by `study_id`. JSON is a list of records, or ReXrank's mapping of study_id to record.

How a reference's sections become one text decides every score, and ReXrank's own scripts differ in it: so it
is named (`FORMS`) and goes with the numbers. A candidate is taken as it stands.

A text that is absent, empty, only white space or a NaN is missing: the study is listed with the reason and
never scored (`File.given` tells an empty text from none). An error names a file, a row and a column, never
what is there.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from unirg import storage
from unirg.errors import UserError
from unirg.metrics.scorer import Pair
from unirg.prompts import join_sections
from unirg.study import SECTIONS

Form = Literal["report", "findings", "bare_findings", "given"]
FORMS: dict[Form, str] = {
    "report": "Findings: X Impression: Y, a missing part left out",
    "findings": "Findings: X",
    "bare_findings": "X, the findings without their heading",
    "given": "the reference as it stands",
}
_COLUMNS = {
    "candidate": ("candidate", "model_prediction"),
    "reference": ("reference", "report"),
    "findings": ("findings", "section_findings"),
    "impression": ("impression", "section_impression"),
}
_MISSING = ("", "nan")
"""What missing looks like as a text: pandas writes either."""

Record = tuple[str, dict[str, Any]]
"""Where it is in its file, such as "row 7", and its columns."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A study of the file: a pair to score, or the reason why there is none."""

    study_id: str
    patient_id: str
    """Empty where the file names no patient."""
    pair: Pair | None
    reason: str = ""


def read(predictions: str, references: str = "", form: Form | None = None) -> tuple[list[Compared], Form]:
    """The studies of a file in its order, then those that only `references` has; and the form of reference.

    Args:
        predictions: path or URI that ends in .csv, .jsonl or .json.
        references: a second file with the references; empty: they are in the first.
        form: None: `report` where the file has sections, else `given`.

    Raises:
        UserError: a file cannot be read, lacks a column, or names a study twice.
    """
    said = File(predictions)
    expected = File(references) if references else said
    said.need("candidate")
    if form is None:
        expected.need("reference", *SECTIONS)
        form = "report" if any(map(expected.has, SECTIONS)) else "given"
    expected.need(*{"report": SECTIONS, "given": ("reference",)}.get(form, ("findings",)))
    found = []
    for study_id in dict.fromkeys([*said.records, *expected.records]):
        candidate = said.text(study_id, "candidate")
        reference = _reference(expected, study_id, form)
        reason = "" if candidate else "no candidate"
        if candidate and not reference:
            reason = "no reference" if form in ("report", "given") else "the reference has no findings"
        patient = expected.text(study_id, "patient_id") or said.text(study_id, "patient_id")
        found.append(Compared(study_id, patient, None if reason else (candidate, reference), reason))
    return found, form


def _reference(file: File, study_id: str, form: Form) -> str:
    if form == "given":
        return file.text(study_id, "reference")
    findings = file.text(study_id, "findings")
    if form == "bare_findings":
        return " ".join(findings.split())
    return join_sections(findings, file.text(study_id, "impression") if form == "report" else None)


class File:
    """A file's records by study_id.

    The outputs of two runs put together name every study twice. Where `repeats` are let in, the first row of
    a study counts and the others are counted; so the same headings halfway down a CSV, two JSON documents one
    after the other and a key twice in ReXrank's mapping are no errors then.
    """

    def __init__(self, uri: str, repeats: bool = False) -> None:
        """
        Raises:
            UserError: the file cannot be read, has no studies, or names one twice against `repeats`.
        """
        self.uri = uri
        self.records: dict[str, Record] = {}
        self._columns: set[str] = set()
        others: dict[str, set[str]] = {}
        for place, columns in _records(uri, repeats):
            study_id = _text(uri, place, "study_id", columns.get("study_id"))
            if not study_id:
                raise UserError(f"{uri}: {place} has no study_id: give every study one, in a column study_id")
            if study_id not in self.records:
                self.records[study_id] = place, columns
                self._columns.update(columns)
            elif repeats:
                others.setdefault(study_id, set()).add(self._cell((place, columns), "candidate"))
            else:
                raise UserError(
                    f"{uri}: {place} has the study_id of {self.records[study_id][0]}: keep one of the two"
                )
        if not self.records:
            raise UserError(f"{uri} has no studies: name the file with the reports")
        self.doubled = len(others)
        """Studies with more than one row."""
        self.differing = sum(found != {self.text(key, "candidate")} for key, found in others.items())
        """Of those, the ones whose rows hold different candidates."""

    def has(self, column: str) -> bool:
        return any(name in self._columns for name in _COLUMNS[column])

    def need(self, *columns: str) -> None:
        """Refuse a file that has none of the columns."""
        if not any(map(self.has, columns)):
            names = " or ".join(name for column in columns for name in _COLUMNS[column])
            raise UserError(f"{self.uri} has no column {names}: name one of its columns so")

    def text(self, study_id: str, column: str) -> str:
        """The study's text in a column; empty where it is missing."""
        return self._cell(self.records.get(study_id, ("", {})), column)

    def given(self, study_id: str, column: str) -> bool:
        """Whether the study has a text in a column, an empty one too; null, NaN and no such key are none."""
        _, columns = self.records.get(study_id, ("", {}))
        name = _name(columns, column)
        return name is not None and not _is_none(columns[name])

    def _cell(self, record: Record, column: str) -> str:
        place, columns = record
        name = _name(columns, column)
        return _text(self.uri, place, name, columns[name]) if name else ""


def _name(columns: Mapping[str, Any], column: str) -> str | None:
    """What a record calls a column; None where it has none."""
    return next((name for name in _COLUMNS.get(column, (column,)) if name in columns), None)


def _text(uri: str, place: str, column: str, value: Any) -> str:
    """The text of a cell, empty where it is missing. An id may be a whole number, and must be Unicode."""
    if _is_none(value):
        return ""
    is_id = column.endswith("_id")
    if is_id and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{uri}: {place}: column {column} holds no text: write it as a string")
    if is_id:
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON may hold half a surrogate pair, Parquet may not
            raise UserError(f"{uri}: {place}: column {column} is no valid Unicode: mend it") from None
    return "" if value.strip().lower() in _MISSING else value


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _records(uri: str, repeats: bool) -> Iterator[Record]:
    """A file's records, by the ending of its name."""
    readers = {".csv": _from_csv, ".jsonl": _from_jsonl, ".ndjson": _from_jsonl, ".json": _from_json}
    ending = PurePosixPath(uri).suffix.lower()
    if ending not in readers:
        raise UserError(f"{uri}: the file's kind shows in its name: .csv, .jsonl or .json")
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no file at {uri}: correct the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{uri} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    return readers[ending](uri, text, repeats)


def _from_csv(uri: str, text: str, repeats: bool) -> Iterator[Record]:
    # For the whole process, so never below what others rely on.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    number = 0  # as a spreadsheet counts: the header is row 1
    try:
        for number, row in enumerate(rows, 1):
            if number == 1:
                header = [name.strip() for name in row]
                if len(set(header)) < len(header):
                    raise UserError(f"{uri}: two columns have one name: rename one of them")
            elif repeats and [name.strip("\ufeff ") for name in row] == header:
                continue
            elif len(row) == len(header):
                yield f"row {number}", dict(zip(header, row, strict=True))
            elif row:
                raise UserError(
                    f"{uri}: row {number} has {len(row)} columns, the header {len(header)}: "
                    "quote texts that hold commas"
                )
    except csv.Error:
        raise UserError(f"{uri}: row {number + 1} is no CSV: mend its quotes") from None


def _from_jsonl(uri: str, text: str, repeats: bool) -> Iterator[Record]:
    # Not `splitlines`: JSON leaves other separators of lines (U+2028) unescaped inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removeprefix("\ufeff") if repeats else line
        if line.strip():
            yield f"line {number}", _object(uri, f"line {number}", _parsed(uri, f"line {number}", line))


def _from_json(uri: str, text: str, repeats: bool) -> Iterator[Record]:
    number = 0
    for whole in _documents(uri, text) if repeats else [_parsed(uri, "the file", text)]:
        if isinstance(whole, dict):
            entries: Iterable[tuple[str | None, Any]] = whole.items()
        elif isinstance(whole, _Repeated):
            entries = whole.pairs
        elif isinstance(whole, list):
            entries = ((None, record) for record in whole)
        else:
            raise UserError(f"{uri} holds neither a list nor a mapping of studies")
        for study_id, record in entries:
            number += 1
            columns = _object(uri, f"record {number}", record)
            yield f"record {number}", columns if study_id is None else {**columns, "study_id": study_id}


@dataclass(frozen=True)
class _Repeated:
    """A JSON object that has a key twice, as its pairs."""

    pairs: Sequence[tuple[str, Any]]


def _parsed(uri: str, place: str, text: str) -> Any:
    """The JSON document, in which no object has a key twice."""

    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # json would keep the last without a word
            raise _twice(uri, place)
        return found

    with _explained(uri, place):
        return json.loads(text, object_pairs_hook=once)


def _documents(uri: str, text: str) -> Iterator[Any]:
    """The JSON documents of a text, one after the other; each may be `_Repeated`, nothing in it may."""

    def kept(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any] | _Repeated:
        found = dict(pairs)
        if any(isinstance(value, _Repeated) for _, value in pairs):
            raise _twice(uri, "the file")
        return found if len(found) == len(pairs) else _Repeated(pairs)

    decoder, blank = json.JSONDecoder(object_pairs_hook=kept), re.compile("[ \t\n\r\ufeff]*")
    position = blank.match(text).end()  # type: ignore[union-attr]  # it matches nothing, too
    while position < len(text):
        with _explained(uri, "the file"):
            whole, position = decoder.raw_decode(text, position)
        yield whole
        position = blank.match(text, position).end()  # type: ignore[union-attr]


def _twice(uri: str, place: str) -> UserError:
    return UserError(f"{uri}: {place} has the same key twice: keep one of them")


@contextmanager
def _explained(uri: str, place: str) -> Iterator[None]:
    """Turn what the JSON decoder raises into the place and the remedy."""
    try:
        yield
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}" if place == "the file" else place
        raise UserError(f"{uri}: {where} is no JSON (column {error.colno}): mend it") from None
    except RecursionError:
        raise UserError(f"{uri}: {place} is nested too deep: give a record for each study") from None


def _object(uri: str, place: str, value: Any) -> dict[str, Any]:
    if isinstance(value, _Repeated):
        raise _twice(uri, place)
    if not isinstance(value, Mapping):
        raise UserError(f"{uri}: {place} is no object with columns: write one for each study")
    return dict(value)
