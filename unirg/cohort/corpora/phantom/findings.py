"""What a phantom patient can have: nine CheXbert conditions, how severe, and where.

A finding is what the picture shows and what the report says; drawing and wording both start here,
so that neither can know something the other does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["left", "right", "bilateral"]
Zone = Literal["upper", "mid", "lower"]
Change = Literal["new", "increased", "decreased", "unchanged", "resolved"]
TemporalCategory = Literal["first", "new", "none", "progression", "regression"]

PACEMAKER = "pacemaker"
CATHETER = "central venous catheter"
TUBE = "endotracheal tube"

LEVELS: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": ("mild", "moderate", "severe"),
    "Edema": ("mild", "moderate", "severe"),
    "Consolidation": ("small", "large"),
    "Atelectasis": ("mild", "moderate"),
    "Pneumothorax": ("small", "moderate", "large"),
    "Pleural Effusion": ("small", "moderate", "large"),
    "Lung Lesion": ("small", "large"),
    "Fracture": (),
    "Support Devices": (),
}
"""Conditions (CheXbert's names) and their severities, least first; () where there is only one."""

CONDITIONS = tuple(LEVELS)
NO_FINDING = "No Finding"


@dataclass(frozen=True)
class Finding:
    """One thing that is visible in one radiograph.

    `kind` tells devices apart (`pacemaker`, ...) and a `nodule` from a `mass`. `side` is the
    patient's: the patient's right is on the image's left. `change` is against the study before;
    None in a first study.
    """

    condition: str
    kind: str | None = None
    side: Side | None = None
    level: int = 0
    zone: Zone | None = None
    change: Change | None = None

    @property
    def severity(self) -> str | None:
        levels = LEVELS[self.condition]
        return levels[self.level] if levels else None

    @property
    def lungs(self) -> tuple[str, ...]:
        """The sides that it is on, one by one: () for the heart, edema and tubes."""
        if self.side is None:
            return ()
        return ("left", "right") if self.side == "bilateral" else (self.side,)


def temporal_category(findings: tuple[Finding, ...], resolved: tuple[Finding, ...]) -> TemporalCategory:
    """The paper's five categories for a study that has a prior; new before progression before regression.

    Devices do not count: a line that was placed or removed is not a development of disease.
    """
    changes = {f.change for f in (*findings, *resolved) if f.condition != "Support Devices"}
    if "new" in changes:
        return "new"
    if "increased" in changes:
        return "progression"
    if changes & {"decreased", "resolved"}:
        return "regression"
    return "none"
