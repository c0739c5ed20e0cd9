"""Phantom patients through time: who they are, when they are imaged, and how their disease goes.

A patient's encounters form a chain: each finding grows or shrinks by one level, stays, or goes, and new
ones appear. Every random number comes from a stream named by (seed, patient, encounter, purpose), so any
study can be had without the others, in any process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import get_args

import numpy as np

from unirg.cohort.corpora.phantom.findings import (
    CATHETER,
    LEVELS,
    PACEMAKER,
    TUBE,
    Change,
    Finding,
    Side,
    TemporalCategory,
    Zone,
    temporal_category,
)
from unirg.cohort.corpora.phantom.wording import REASONS
from unirg.study import Projection, Sex

WHO, COURSE, WORDS, BODY, TISSUE, POSE, EXPOSURE = range(7)
"""Purposes of the random streams."""

INSTITUTION_SHARES = {"north": 0.28, "harbor": 0.26, "valley": 0.26, "summit": 0.1, "island": 0.1}
BEDSIDE_SHARES = {"north": 0.2, "harbor": 0.6, "valley": 0.25, "summit": 0.2, "island": 0.35}
"""Share of studies taken AP (at the bedside) by institution."""
ENCOUNTER_SHARES = (0.40, 0.25, 0.17, 0.10, 0.08)
"""Share of patients with one to five encounters."""
RACE_SHARES = {"White": 0.58, "Black": 0.18, "Asian": 0.12, "Other": 0.12}
FIRST_FINDINGS = (0.33, 0.36, 0.22, 0.09)
"""Share of first studies with none to three findings (fewer where what was drawn finds no room)."""
NEW_FINDING = 0.32
"""Chance that something new appears at a later encounter."""

WEIGHTS = {
    "Cardiomegaly": 0.13,
    "Edema": 0.11,
    "Consolidation": 0.14,
    "Atelectasis": 0.13,
    "Pneumothorax": 0.13,
    "Pleural Effusion": 0.16,
    "Lung Lesion": 0.09,
    "Fracture": 0.06,
    "Support Devices": 0.12,
}
"""How often each condition is the one that appears (those that last are given less)."""

COURSES = {
    "Cardiomegaly": (0.35, 0.12),
    "Lung Lesion": (0.45, 0.10),
    "Fracture": (0.0, 0.0),
    "Edema": (0.38, 0.38),
    "Consolidation": (0.38, 0.38),
    "Atelectasis": (0.38, 0.38),
    "Pneumothorax": (0.35, 0.40),
    "Pleural Effusion": (0.38, 0.35),
}
"""Chance of one level up and of one level down (from the lowest: gone) at the next encounter."""
REMOVAL = {PACEMAKER: 0.0, CATHETER: 0.35, TUBE: 0.5}
"""Chance that a device is out at the next encounter."""


@dataclass(frozen=True)
class Patient:
    number: int
    institution: str
    sex: Sex
    race: str


@dataclass(frozen=True)
class Encounter:
    """One study of a patient. `resolved` is what the study before showed and this one does not."""

    number: int
    acquired_at: datetime
    age: int
    projection: Projection
    findings: tuple[Finding, ...]
    resolved: tuple[Finding, ...]
    reason: str
    habit: float
    """In [0, 1): decides which sections the report has."""

    @property
    def temporal_category(self) -> TemporalCategory:
        return "first" if self.number == 1 else temporal_category(self.findings, self.resolved)


def stream(seed: int, patient: int, encounter: int, purpose: int) -> np.random.Generator:
    """The random stream for one purpose. Encounter 0 is what lasts for the patient's whole life."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(patient, encounter, purpose)))


def timeline(seed: int, number: int) -> tuple[Patient, tuple[Encounter, ...]]:
    """A patient and all of their encounters, first to last."""
    rng = stream(seed, number, 0, WHO)
    sexes: tuple[Sex, ...] = ("F", "M")
    patient = Patient(
        number=number,
        institution=_pick(rng, INSTITUTION_SHARES),
        sex=sexes[int(rng.integers(2))],
        race=_pick(rng, RACE_SHARES),
    )
    count = 1 + _index(rng, ENCOUNTER_SHARES)
    age = float(np.clip(rng.normal(58, 17), 18, 92))
    first = datetime(2015, 1, 1) + timedelta(minutes=int(rng.integers(7 * 365 * 24 * 60)))
    acquired = first
    findings: tuple[Finding, ...] = ()
    encounters: list[Encounter] = []
    for encounter in range(1, count + 1):
        course, words = (stream(seed, number, encounter, purpose) for purpose in (COURSE, WORDS))
        findings, resolved = _first(course) if encounter == 1 else _next(course, findings)
        encounters.append(
            Encounter(
                number=encounter,
                acquired_at=acquired,
                age=int(age + (acquired - first).days / 365.25),
                projection="AP" if course.random() < BEDSIDE_SHARES[patient.institution] else "PA",
                findings=findings,
                resolved=resolved,
                reason=REASONS[int(words.integers(len(REASONS)))],
                habit=float(words.random()),
            )
        )
        # Mostly days or weeks, sometimes a year.
        acquired += timedelta(minutes=int(60 * 6 + 24 * 60 * course.exponential(60)))
    return patient, tuple(encounters)


def claims(finding: Finding) -> set[str]:
    """The places that a finding needs for itself, at any severity, to be seen for what it is."""
    zone = f"{finding.side} {finding.zone}"
    # Fluid collects where the lung's base is; a large heart hides the left one but not the fluid beside it.
    spot = {zone, f"{finding.side} base"} if finding.zone == "lower" else {zone}
    match finding.condition:
        case "Cardiomegaly":
            return {"heart", "left lower"}
        case "Edema":
            return {"edema", "hazy lungs"}
        case "Consolidation":
            return {"consolidation", "hazy lungs"} | spot
        case "Lung Lesion":
            return {"lesion", "hazy lungs"} | spot if finding.zone == "mid" else {"lesion"} | spot
        case "Atelectasis":
            return {"atelectasis"} | spot
        case "Pneumothorax":
            places = (*get_args(Zone), "base")
            return {"pneumothorax", "hazy lungs"} | {f"{finding.side} {place}" for place in places}
        case "Pleural Effusion":
            return {"effusion"} | {f"{side} {place}" for side in finding.lungs for place in ("mid", "base")}
        case "Fracture":
            return {"fracture", f"{finding.side} mid"}
        case "Support Devices" if finding.kind == PACEMAKER:
            return {PACEMAKER, f"{finding.side} upper", f"{finding.side} access"}
        case "Support Devices" if finding.kind == CATHETER:
            return {CATHETER, f"{finding.side} access"}
        case _:
            return {finding.kind or finding.condition}


def _first(rng: np.random.Generator) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    findings: tuple[Finding, ...] = ()
    for _ in range(_index(rng, FIRST_FINDINGS)):
        findings = _with_new(rng, findings, change=None)
    return findings, ()


def _next(
    rng: np.random.Generator, before: tuple[Finding, ...]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    present: tuple[Finding, ...] = ()
    resolved: tuple[Finding, ...] = ()
    for finding in before:
        after = _evolve(rng, finding)
        if after.change == "resolved":
            resolved += (after,)
        else:
            present += (after,)
    if rng.random() < NEW_FINDING:
        # What has just gone is not found anew in the same film.
        gone = {f.kind or f.condition for f in resolved}
        grown = _with_new(rng, present, change="new")
        if not {f.kind or f.condition for f in grown if f.change == "new"} & gone:
            present = grown
    return present, resolved


def _evolve(rng: np.random.Generator, finding: Finding) -> Finding:
    """The same finding at the next encounter."""
    chance = rng.random()
    if finding.condition == "Support Devices":
        out = chance < REMOVAL[str(finding.kind)]
        return replace(finding, change="resolved" if out else "unchanged")
    up, down = COURSES[finding.condition]
    if chance < up and finding.level + 1 < len(LEVELS[finding.condition]):
        return _at(finding, finding.level + 1, "increased")
    if chance > 1 - down:
        return _at(finding, finding.level - 1, "decreased") if finding.level else _at(finding, 0, "resolved")
    return replace(finding, change="unchanged")


def _at(finding: Finding, level: int, change: Change) -> Finding:
    kind = ("nodule", "mass")[level] if finding.condition == "Lung Lesion" else finding.kind
    return replace(finding, level=level, change=change, kind=kind)


def _with_new(
    rng: np.random.Generator, findings: tuple[Finding, ...], change: Change | None
) -> tuple[Finding, ...]:
    """The findings and one more, unless three drawn in turn find no room beside them."""
    taken = {claim for present in findings for claim in claims(present)}
    for _ in range(3):
        finding = _any_finding(rng, change)
        if not taken & claims(finding):
            return (*findings, finding)
    return findings


def _any_finding(rng: np.random.Generator, change: Change | None) -> Finding:
    condition = _pick(rng, WEIGHTS)
    sides: tuple[Side, ...] = ("left", "right")
    side, zone = sides[int(rng.integers(2))], get_args(Zone)[int(rng.integers(3))]
    level = int(rng.integers(max(1, len(LEVELS[condition]))))
    finding = Finding(condition, level=level, change=change)
    match condition:
        case "Consolidation":
            return replace(finding, side=side, zone=zone)
        case "Lung Lesion":
            return replace(finding, side=side, zone=zone, kind=("nodule", "mass")[level])
        case "Atelectasis":
            return replace(finding, side=side, zone="lower")
        case "Pneumothorax" | "Fracture":
            return replace(finding, side=side)
        case "Pleural Effusion":
            return replace(finding, side="bilateral" if rng.random() < 0.3 else side)
        case "Support Devices":
            device = _pick(rng, {PACEMAKER: 0.3, CATHETER: 0.35, TUBE: 0.35})
            return replace(finding, kind=device, side=None if device == TUBE else side)
        case _:
            return finding


def _index(rng: np.random.Generator, shares: tuple[float, ...]) -> int:
    return int(np.searchsorted(np.cumsum(shares), rng.random() * sum(shares), side="right"))


def _pick(rng: np.random.Generator, shares: dict[str, float]) -> str:
    return tuple(shares)[_index(rng, tuple(shares.values()))]
