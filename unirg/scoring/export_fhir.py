"""Predictions as FHIR: NDJSON of DiagnosticReports, each a resource that stands alone.

The library's R4B (4.3.0) is used, in which DiagnosticReport, Observation and Device are as in R4 (4.0.1).
A DiagnosticReport has no element for a machine that wrote it, but an Observation has: so the model is a
contained Device, and the report's results are contained Observations made with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC
from pathlib import Path
from typing import Any

from unirg.scoring.archive import NOTICE
from unirg.scoring.export import Author, Report

LONGEST = 1_000_000
"""Characters of a text; FHIR allows 2^20 in a string."""
CUT = " [the rest of this text is left out, as FHIR allows no longer one]"
UNFINISHED = "The model did not end this report: it was cut off at the most tokens allowed."
SYSTEM = "urn:unirg:"
"""Of our own identifiers: what they mean is in `docs/scoring.md`."""
LOINC, HL7 = "http://loinc.org", "http://terminology.hl7.org/CodeSystem/"
_CODES = {
    "findings": ("18782-3", "Radiology Study observation (narrative)"),
    "impression": ("19005-8", "Radiology Imaging study [Impression] (narrative)"),
}


def write(reports: Iterable[Report], author: Author, digest: str, target: Path) -> int:
    """Write a line for each report; how many.

    Args:
        digest: of the predictions, which each report names as its source.

    Raises:
        ImportError: the library is not installed.
    """
    from fhir.resources.R4B.diagnosticreport import DiagnosticReport

    number = 0
    with target.open("w", encoding="ascii", newline="\n") as file:
        for report in reports:
            valid = DiagnosticReport.model_validate(_resource(report, author, digest))
            # Once more, as only ASCII is a line to every reader: U+2028 ends one to some.
            file.write(json.dumps(json.loads(valid.model_dump_json()), separators=(",", ":")) + "\n")
            number += 1
    return number


def _resource(report: Report, author: Author, digest: str) -> dict[str, Any]:
    sections = {name: _within(text) for name, text in report.sections.items()}
    notes = [{"text": NOTICE}] + ([] if report.complete else [{"text": UNFINISHED}])
    subject = {"type": "Patient", "identifier": _own("patient", f"{report.corpus}/{report.patient_id}")}
    observations = [
        {
            "resourceType": "Observation",
            "id": name,
            "status": "preliminary",
            "code": _coding(LOINC, *_CODES[name]),
            "subject": subject,
            "device": {"reference": "#model"},
            "valueString": text,
            "note": notes,
        }
        for name, text in sections.items()
    ]
    conclusion = [f"{NOTICE[0].upper()}{NOTICE[1:]}.", *([] if report.complete else [UNFINISHED])]
    conclusion.append(sections.get("impression") or sections["findings"])
    return {
        "resourceType": "DiagnosticReport",
        "id": report.key,
        "meta": {
            "source": f"{SYSTEM}predictions:{digest}",
            "security": [_code(f"{HL7}v3-ActReason", "HRESCH", "healthcare research")],
            "tag": [_code(f"{SYSTEM}notice", "research-use", NOTICE)],
        },
        "contained": [_device(author), *observations],
        "identifier": [_own("prediction", report.key)],
        "status": "preliminary",
        "category": [_coding(f"{HL7}v2-0074", "RAD", "Radiology")],
        "code": _coding(LOINC, "18748-4", "Diagnostic imaging study"),
        "subject": subject,
        "issued": author.finished.astimezone(UTC).isoformat(timespec="seconds"),
        "result": [{"reference": f"#{name}"} for name in sections],
        "imagingStudy": [
            {"type": "ImagingStudy", "identifier": _own("study", f"{report.corpus}/{report.study_id}")}
        ],
        "conclusion": " ".join(conclusion),
    }


def _device(author: Author) -> dict[str, Any]:
    return {
        "resourceType": "Device",
        "id": "model",
        "identifier": [_own("model-digest", author.digest)],
        "deviceName": [{"name": author.name, "type": "model-name"}],
        "type": {"text": "model that writes radiology reports"},
        "note": [{"text": NOTICE}, {"text": f"The digest is: {author.basis}"}],
    }


def _within(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + CUT


def _own(kind: str, value: str) -> dict[str, str]:
    return {"system": f"{SYSTEM}{kind}", "value": value}


def _code(system: str, code: str, display: str) -> dict[str, str]:
    return {"system": system, "code": code, "display": display}


def _coding(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [_code(system, code, display)]}
