"""The phantom corpus: drawn chest radiographs whose content decides their reports.

It stands in for real patients where none may be used, so it is honest in what matters to the pipeline: a
report can be known from the picture (and the prior), never from the indication; institutions differ in
scanner, wording and habits; patients come back, and their findings change.

    findings   what a patient can have
    timeline   who they are and how it goes     anatomy, disease, drawing, scanner   the picture
    wording    how institutions dictate         markup, reporting                    the report, annotated

Images are drawn when they are read, so drawing runs in as many processes as reading does. Nothing depends
on how many studies are asked for but where the corpus ends: the first studies are always the same.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from unirg.cohort.corpora import UnreadableImage
from unirg.cohort.corpora.phantom.drawing import draw
from unirg.cohort.corpora.phantom.findings import NO_FINDING, Finding
from unirg.cohort.corpora.phantom.markup import Passage
from unirg.cohort.corpora.phantom.reporting import Report, write
from unirg.cohort.corpora.phantom.timeline import Encounter, Patient, timeline
from unirg.cohort.corpora.phantom.wording import TRAINED, WORDINGS, ZERO_SHOT
from unirg.errors import UserError
from unirg.study import Image, Study

__all__ = ["TRAINED", "TRUTH_SCHEMA", "ZERO_SHOT", "Phantom"]

VERSION = 1
"""Raised whenever a study's text or pixels change for the same seed."""

BATCH = 1000
"""Studies whose truth is written at once."""

_URI = re.compile(r"phantom:s([0-9]{5,9})-([1-9])")

_FINDING = pa.struct(
    {name: pa.string() for name in ("condition", "kind", "side", "severity", "zone", "change")}.items()
)
_ENTITY = pa.struct(
    {
        "text": pa.string(),
        "section": pa.string(),
        "start": pa.int32(),
        "end": pa.int32(),
        "label": pa.string(),
    }.items()
)
_RELATION = pa.struct({"source": pa.int32(), "target": pa.int32(), "type": pa.string()}.items())
TRUTH_SCHEMA = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("findings", pa.list_(_FINDING), nullable=False),
        pa.field("resolved", pa.list_(_FINDING), nullable=False),
        pa.field("entities", pa.list_(_ENTITY), nullable=False),
        pa.field("relations", pa.list_(_RELATION), nullable=False),
        pa.field("temporal_category", pa.string(), nullable=False),
    ]
)
"""`findings` is what the image shows (`No Finding`, as CheXbert has it, beside devices at most), `resolved`
what the study before showed and this one does not. Entities carry character offsets into their section;
relations name entities by position. Both cover the sections that the report has."""


@dataclass(frozen=True)
class Phantom:
    """The first `studies` studies of the phantom corpus with this seed.

    Raises:
        UserError: `studies` is below 1, or `seed` below 0.
    """

    # Without annotations, so the same for every instance and not fields of the dataclass.
    name = "phantom"
    public = True

    studies: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.studies < 1:
            raise UserError(f"phantom: studies is {self.studies}; ask for at least 1")
        if self.seed < 0:
            raise UserError(f"phantom: seed is {self.seed}; choose one that is not negative")

    def fingerprint(self) -> str:
        """SHA-256 (hex) over what decides the content: the generator's version, the seed, the count."""
        return hashlib.sha256(f"phantom {VERSION} {self.studies} {self.seed}".encode()).hexdigest()

    def records(self) -> Iterator[Study]:
        """Exactly `studies` studies, patient by patient, each patient's in order of time."""
        for patient, encounter in self._encounters():
            report = _report(patient, encounter)
            wording = WORDINGS[patient.institution]
            study_id = _study_id(patient, encounter)
            yield Study.checked(
                corpus=self.name,
                study_id=study_id,
                patient_id=f"p{patient.number:05d}",
                institution=patient.institution,
                acquired_at=encounter.acquired_at,
                acquired_basis="timestamp",
                age=encounter.age,
                sex=patient.sex,
                race=patient.race,
                images=(Image(view="frontal", projection=encounter.projection, uri=f"phantom:{study_id}"),),
                indication=wording.indication.format(reason=encounter.reason),
                comparison=wording.prior if encounter.number > 1 else wording.no_prior,
                findings=report.findings.text if report.findings else None,
                impression=report.impression.text if report.impression else None,
            )

    def read(
        self, image: Image, size: int | None = None, fetched: Callable[[], None] = lambda: None
    ) -> np.ndarray:
        """Draw one image: (512, 512) uint8, bright = dense.

        Raises:
            UnreadableImage: its URI names no study of this corpus.
        """
        fetched()
        match = _URI.fullmatch(image.uri or "")
        # A patient has at least one study, so no patient's number reaches the number of studies.
        if match and int(match[1]) < self.studies:
            patient, encounters = _timeline(self.seed, int(match[1]))
            if int(match[2]) <= len(encounters):
                return draw(self.seed, patient, encounters[int(match[2]) - 1])
        raise UnreadableImage("not an image of this phantom corpus")

    def account(self) -> dict[str, int]:
        return {}

    def truth(self) -> pa.Table:
        """What each study shows, how its report is annotated, and how it stands to the one before."""
        rows = (_truth(patient, encounter) for patient, encounter in self._encounters())
        # As Python objects they take seven times as much memory, so never all at once.
        parts = iter(lambda: list(itertools.islice(rows, BATCH)), [])
        return pa.concat_tables([pa.Table.from_pylist(part, TRUTH_SCHEMA) for part in parts])

    def _encounters(self) -> Iterator[tuple[Patient, Encounter]]:
        number, left = 0, self.studies
        while left > 0:
            patient, encounters = _timeline(self.seed, number)
            for encounter in encounters[:left]:
                yield patient, encounter
            number, left = number + 1, left - len(encounters)


# A patient's images are mostly read one after the other.
_timeline = lru_cache(maxsize=64)(timeline)


def _study_id(patient: Patient, encounter: Encounter) -> str:
    return f"s{patient.number:05d}-{encounter.number}"


def _report(patient: Patient, encounter: Encounter) -> Report:
    return write(
        patient.institution,
        encounter.findings,
        encounter.resolved,
        has_prior=encounter.number > 1,
        habit=encounter.habit,
    )


def _truth(patient: Patient, encounter: Encounter) -> dict[str, Any]:
    report = _report(patient, encounter)
    entities: list[dict[str, Any]] = []
    relations: list[dict[str, Any]] = []
    for section, passage in (("findings", report.findings), ("impression", report.impression)):
        base = len(entities)
        passage = passage or Passage()
        entities += [asdict(entity) | {"section": section} for entity in passage.entities]
        relations += [
            {"source": base + r.source, "target": base + r.target, "type": r.type} for r in passage.relations
        ]
    findings = [_row(finding) for finding in encounter.findings]
    if all(finding.condition == "Support Devices" for finding in encounter.findings):
        findings.insert(0, {"condition": NO_FINDING})
    return {
        "study_id": _study_id(patient, encounter),
        "findings": findings,
        "resolved": [_row(finding) for finding in encounter.resolved],
        "entities": entities,
        "relations": relations,
        "temporal_category": encounter.temporal_category,
    }


def _row(finding: Finding) -> dict[str, Any]:
    return {name: getattr(finding, name) for name in _FINDING.names}
