"""CheXpert Plus: 187,711 studies of Stanford, one table with a row per image, and a tree of images.

Source: https://stanfordaimi.azurewebsites.net (research licence). The table lies at the root; images are
found anywhere below it by the end of their path, `patientN/studyM/view1_frontal`, as .png, else .jpg, else
the .dcm that `path_to_dcm` names.

A study's rows need not be adjacent and may disagree: texts, demographics, split and time are those of its
first row in the file, its images those of all. The table is therefore read twice: first for an index of
images and dates (0.9 kB a study, no texts; while it is made, the listing of the images takes 0.6 kB for each,
1.7 kB on object storage), then for the studies.

* Findings and impression are the owner's sections; `indication` is the clinical history, else the history,
  as there is no such section. `section_narrative` and `report` hold the whole report, hence the answer: no
  text comes from them.
* There is no test split. ReXrank tests on `valid`, so that is `test` here, and validation studies are drawn
  from `train` by whoever trains.
* Time is the date that the head of `report` gives the exam (`exam_date`). `patient_report_date_order`
  contradicts those dates in about half of the pairs, so it speaks only for a patient of whom one study or
  more has no date, and then for all of that patient's studies: the two are never mixed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import NamedTuple

import pyarrow as pa

from unirg.cohort.corpora import Dropped, source
from unirg.cohort.corpora.source import SourceFile
from unirg.cohort.views import view_of
from unirg.errors import UserError
from unirg.study import AcquiredBasis, Image, Projection, Sex, Split, Study, StudyError, View

TABLE = "df_chexpert_plus_240401.csv"
COLUMNS = (
    *("path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "patient_report_date_order", "report"),
    *("section_clinical_history", "section_history", "section_comparison"),
    *("section_findings", "section_impression", "age", "sex", "race", "split"),
)
SPLITS: dict[str, Split] = {"train": "train", "valid": "test"}
SEXES: dict[str, Sex] = {"female": "F", "male": "M"}
UNSTATED = frozenset({"unknown", "patient refused", "declined to state", "not specified", "nan", ""})
"""Values of `race` that say nothing, in lower case."""
FIRST_DAY = datetime(1970, 1, 1)
"""Day 0 of ordinals: as a date it means nothing."""

_FILE = re.compile(r"(?:.*/)?(patient[0-9]{1,9}/study[0-9]{1,9}/[\w-]{1,64})\.(png|jpg|dcm)", re.ASCII)
_HEADING = re.compile(
    r"\b(?:CLINICAL|HISTORY|INDICATION|COMPARISON|TECHNIQUE|PROCEDURE|FINDINGS|IMPRESSION|SUMMARY)\b",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?<![\d/-])(?:(?P<month>\d{1,2})(?P<by>[/-])(?P<day>\d{1,2})(?P=by)(?P<year>\d{4}|\d{2})"
    r"|(?P<iso>\d{4}-\d{2}-\d{2}))(?![\d/-])",
    re.ASCII,
)
HEAD = 400
"""Characters of a report in which the exam and its date stand."""

Row = dict[str, str]


class _Film(NamedTuple):
    """An image of the table; its order is the key image's."""

    rank: int
    stem: str
    """`patientN/studyM/view1_frontal`."""
    view: View
    projection: Projection | None
    uri: str | None
    """None where the file is missing."""


class _Entry(NamedTuple):
    """What the first pass keeps of a study."""

    day: int | None
    """The exam's date as a proleptic ordinal."""
    order: int | None
    films: list[_Film]


class CheXpertPlus(source.ImageFiles):
    """The corpus below `root`, a directory or a URI that fsspec opens; its ids are the owner's pseudonyms."""

    name = "chexpert_plus"
    public = True

    def __init__(self, root: str) -> None:
        self.root = root

    def fingerprint(self) -> str:
        return source.fingerprint(self.root, self._listing())

    def records(self) -> Iterator[Study | Dropped]:
        """Every study, in the order of its first row; rows that name no image are dropped by number.

        Raises:
            UserError: the table is missing, lacks a column, or has a quote that is never closed.
        """
        entries, undated = self._index()
        for number, row in self._rows():
            key = None if isinstance(row, str) else _key(row["path_to_image"])
            if isinstance(row, str):
                yield Dropped(f"row-{number}", row)
            elif key is None:
                yield Dropped(f"row-{number}", "unsafe or unknown image path")
            elif entry := entries.pop(_study(key), None):  # None behind the study's first row
                yield self._record(key, row, entry, key.partition("/")[0] in undated)

    def fetch(self, image: Image) -> bytes:
        return source.read_image(self.root, image.uri)

    def account(self) -> dict[str, int]:
        return {}

    def truth(self) -> pa.Table | None:
        return None

    def _listing(self) -> list[SourceFile]:
        return source.listing(self.root, lambda path: path == TABLE or bool(_FILE.fullmatch(path)))

    def _index(self) -> tuple[dict[str, _Entry], set[str]]:
        """Images and dates by study, and the patients of whom a study has no date."""
        present: dict[str, str] = {}
        for file in self._listing():
            if match := _FILE.fullmatch(file.path):
                present.setdefault(f"{match[1]}.{match[2]}", file.path)
        entries: dict[str, _Entry] = {}
        undated: set[str] = set()
        for _, row in self._rows():
            if isinstance(row, str) or (key := _key(row["path_to_image"])) is None:
                continue
            entry = entries.get(_study(key))
            if entry is None:
                day = exam_date(row["report"])
                entry = _Entry(day.toordinal() if day else None, _ordinal(row), [])
                entries[_study(key)] = entry
                if day is None:
                    undated.add(key.partition("/")[0])
            film = _film(key, row, present)
            if all(other.stem != film.stem for other in entry.films):
                entry.films.append(film)
        return entries, undated

    def _record(self, key: str, row: Row, entry: _Entry, by_ordinal: bool) -> Study | Dropped:
        study_id = _study(key).replace("/", "_")
        split = SPLITS.get(row["split"].strip().lower())
        if split is None:
            return Dropped(study_id, "unknown split")
        films = sorted(entry.films)
        frontal = [film.uri for film in films if film.view == "frontal"]
        if frontal and not any(frontal):
            return Dropped(study_id, "missing image")
        at, basis = _acquired(entry, by_ordinal)
        try:
            return Study.checked(
                corpus=self.name,
                study_id=study_id,
                patient_id=key.partition("/")[0],
                institution="stanford",
                split=split,
                acquired_at=at,
                acquired_basis=basis,
                age=_age(row["age"]),
                sex=SEXES.get(row["sex"].strip().lower()),
                race=None if row["race"].strip().lower() in UNSTATED else row["race"],
                images=tuple(
                    Image(view=film.view, projection=film.projection, uri=film.uri)
                    for film in films
                    if film.uri
                ),
                indication=row["section_clinical_history"].strip() or row["section_history"],
                comparison=row["section_comparison"],
                findings=row["section_findings"],
                impression=row["section_impression"],
            )
        except StudyError as error:
            return Dropped(study_id, f"invalid {error.field.partition('.')[0]}")

    def _rows(self) -> Iterator[tuple[int, Row | str]]:
        """(row number from 1, the row's `COLUMNS`, or why it cannot be read)."""
        label = f"{self.root}: {TABLE}"
        try:
            with source.opened(self.root, TABLE, label) as file:
                rows = source.csv_fields(file)
                header = next(rows, [])
                names = [name.strip().lower() for name in header] if isinstance(header, list) else []
                if absent := [column for column in COLUMNS if names.count(column) != 1]:
                    raise UserError(
                        f"{label}: no column, or more than one, named {', '.join(absent)}; "
                        "fetch the original file again"
                    )
                places = {column: names.index(column) for column in COLUMNS}
                for number, fields in enumerate(rows, 1):
                    if isinstance(fields, str):
                        yield number, fields
                    elif len(fields) != len(names):
                        yield number, "wrong number of columns"
                    else:
                        yield number, {column: fields[place] for column, place in places.items()}
        except FileNotFoundError:
            raise UserError(f"{self.root}: no {TABLE}; check data=URI or fetch the corpus") from None
        except csv.Error:
            raise UserError(f"{label}: a quote is never closed; fetch it again") from None


def exam_date(report: str) -> date | None:
    """The exam's date: the only date in the report's head, before any section.

    The head is `NARRATIVE:`, the exam's name and its date, month first (`EXAMINATION OF THE CHEST: 2/8/2010`)
    or ISO. Of two different dates neither is believed, nor is one behind a heading such as COMPARISON, which
    is another exam's.
    """
    head = report[:HEAD]
    if heading := _HEADING.search(head):
        head = head[: heading.start()]
    found = set()
    for match in _DATE.finditer(head):
        try:
            if match["iso"]:
                found.add(date.fromisoformat(match["iso"]))
            else:
                year = int(match["year"])
                # The films are of 2002 to 2017.
                found.add(date(year + 2000 if year < 100 else year, int(match["month"]), int(match["day"])))
        except ValueError:  # no such day
            return None
    return found.pop() if len(found) == 1 else None


def _key(path: str) -> str | None:
    """`patientN/studyM/view1_frontal` of an image's path; None of a path that is not one, or not safe."""
    match = _FILE.fullmatch(path.strip()) if source.is_safe(path.strip()) else None
    return match[1] if match else None


def _study(key: str) -> str:
    return key.rpartition("/")[0]


def _film(key: str, row: Row, present: dict[str, str]) -> _Film:
    dicom = _key(row["path_to_dcm"])
    names = (f"{key}.png", f"{key}.jpg", f"{dicom}.dcm" if dicom and _study(dicom) == _study(key) else "")
    uri = next((present[name] for name in names if name in present), None)
    view = view_of(row["frontal_lateral"])[0]
    named, projection = view_of(row["ap_pa"])
    if view == "unknown":
        view = named
    elif view != "frontal":
        projection = None
    rank = {"PA": 0, "AP": 1}.get(projection or "", 2)
    return _Film(rank, key, view, projection, uri)


def _acquired(entry: _Entry, by_ordinal: bool) -> tuple[datetime | None, AcquiredBasis | None]:
    if not by_ordinal and entry.day is not None:
        return datetime.fromordinal(entry.day), "report_date"
    if entry.order is not None:
        return FIRST_DAY + timedelta(days=entry.order), "ordinal"
    return None, None


def _ordinal(row: Row) -> int | None:
    match = re.fullmatch(r"([0-9]{1,4})(?:\.0*)?", row["patient_report_date_order"].strip())
    return int(match[1]) if match else None


def _age(text: str) -> int | None:
    """Whole years; None for what is no age, as one odd value is no reason to lose a study."""
    match = re.fullmatch(r"([0-9]{1,3})(?:\.[0-9]+)?", text.strip())
    return int(match[1]) if match and int(match[1]) <= 120 else None
