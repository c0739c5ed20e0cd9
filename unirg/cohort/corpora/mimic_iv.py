"""Demographics of MIMIC-CXR's patients, out of MIMIC-IV's tables `patients` and `admissions`.

Source: https://physionet.org/content/mimiciv (credentialed). The tables lie in the folder or in its `hosp/`.

* Age is anchor_age + the study's year - anchor_year. The owner codes every age over 89 as 91, so ages counted
  from an anchor of 91 are approximate. A result outside 0 to 120 is None; nothing is clamped.
* Race stands in each admission, and admissions may contradict each other. The latest one up to the study that
  states a race speaks, else the first one after it, as patients are imaged in the emergency department before
  they are admitted. Where admissions of that same time disagree, or the study has no time and any disagree,
  race is None.
* A patient who is missing here has null demographics.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterator
from datetime import datetime
from typing import NamedTuple

from unirg.cohort.corpora import source
from unirg.cohort.corpora.source import SourceFile
from unirg.errors import UserError
from unirg.study import Sex

SEXES: dict[str, Sex] = {"F": "F", "M": "M"}
UNSTATED = frozenset({"", "UNKNOWN", "UNABLE TO OBTAIN", "PATIENT DECLINED TO ANSWER"})
"""Values of `race` that state none."""
COLUMNS = {
    "patients": ("subject_id", "gender", "anchor_age", "anchor_year"),
    "admissions": ("subject_id", "admittime", "race"),
}


class Demographics(NamedTuple):
    age: int | None = None
    sex: Sex | None = None
    race: str | None = None


class _Patient(NamedTuple):
    sex: Sex | None
    born: int | None
    """anchor_year - anchor_age."""


class MimicIV:
    """The demographics of `subjects`, held in memory (about 0.5 kB for each)."""

    def __init__(self, folder: str, subjects: Container[int]) -> None:
        """Raises: UserError: a table is missing, damaged, or lacks a column."""
        self._folder = folder
        self._patients: dict[int, _Patient] = {}
        self._races: dict[int, list[tuple[datetime, str]]] = defaultdict(list)
        for row in self._rows("patients"):
            subject = _number(row["subject_id"])
            if subject in subjects and subject is not None:
                age, year = _number(row["anchor_age"]), _number(row["anchor_year"])
                born = None if age is None or year is None else year - age
                self._patients.setdefault(subject, _Patient(SEXES.get(row["gender"].strip().upper()), born))
        for row in self._rows("admissions"):
            subject = _number(row["subject_id"])
            race = row["race"].strip().upper()
            when = _time(row["admittime"])
            if subject in subjects and subject is not None and race not in UNSTATED and when is not None:
                self._races[subject].append((when, race))

    def of(self, subject: int, at: datetime | None) -> Demographics:
        """A patient's demographics at the time of a study."""
        patient = self._patients.get(subject, _Patient(None, None))
        age = None if patient.born is None or at is None else at.year - patient.born
        race = _race(self._races.get(subject, []), at)
        return Demographics(age if age is not None and 0 <= age <= 120 else None, patient.sex, race)

    def _rows(self, table: str) -> Iterator[dict[str, str]]:
        file = _tables(self._folder)[table]
        label = f"{self._folder}: {file.name}"
        number = 0
        for number, row in source.csv_rows(self._folder, file.path, label):
            if row is None:
                raise UserError(f"{label}: row {number} is not as wide as the header; fetch it again")
            if absent := [column for column in COLUMNS[table] if column not in row]:
                raise UserError(f"{label}: no column {', '.join(absent)}; fetch the original file again")
            yield row
        if not number:
            raise UserError(f"{label}: no row; fetch the original file again")


def fingerprint(folder: str) -> str:
    """SHA-256 (hex) over the two tables."""
    return source.fingerprint(folder, sorted(_tables(folder).values(), key=lambda file: file.path))


def _tables(folder: str) -> dict[str, SourceFile]:
    """The tables by name, the first by path of each."""
    pattern = re.compile(r"(?:hosp/)?(patients|admissions)\.csv(?:\.gz)?")
    found: dict[str, SourceFile] = {}
    for file in source.listing(folder, lambda path: bool(pattern.fullmatch(path)), maxdepth=2):
        found.setdefault(file.name.partition(".")[0], file)
    if absent := [f"{table}.csv.gz" for table in COLUMNS if table not in found]:
        raise UserError(f"{folder}: no {', no '.join(absent)}; fetch MIMIC-IV's hosp/ tables")
    return found


def _race(races: list[tuple[datetime, str]], at: datetime | None) -> str | None:
    if at is None:
        speaking = {race for _, race in races}
    else:
        earlier = [when for when, _ in races if when <= at]
        later = [when for when, _ in races if when > at]
        chosen = max(earlier) if earlier else min(later, default=None)
        speaking = {race for when, race in races if when == chosen}
    return speaking.pop() if len(speaking) == 1 else None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,9}", text.strip()) else None


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.strip()).replace(tzinfo=None)
    except ValueError:
        return None
