"""What each finding does to the film: to the air in the lungs, the bones, and what doctors put in.

Sizes are in pixels of the 512x512 film and chosen to stay visible at 128x128.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unirg.cohort.corpora.phantom.anatomy import (
    POSTERIOR_RIBS,
    ZONES,
    Frame,
    Points,
    collapsed,
    ellipse,
    smooth,
)
from unirg.cohort.corpora.phantom.canvas import Layer, Stroke, enlarge, fill, strokes
from unirg.cohort.corpora.phantom.findings import CATHETER, CONDITIONS, PACEMAKER, TUBE, Finding

FLUID_TOPS = ((306.0, 396.0), (252.0, 310.0), (164.0, 206.0))
"""Height of a small, moderate and large effusion, at the chest wall and at the midline."""
HAZE = ((0.40, 0.85), (0.62, 1.15), (0.86, 1.5))
"""Opacity and extent of mild, moderate and severe edema."""
CONSOLIDATION_RADII = (34.0, 66.0)
LESION_RADII = (17.0, 37.0)
RAISED = (10.0, 26.0)
"""How far atelectasis lifts the diaphragm."""


def raised(findings: tuple[Finding, ...], side: str) -> float:
    """How far one half of the diaphragm is lifted, in pixels."""
    return max(
        (RAISED[f.level] for f in findings if f.condition == "Atelectasis" and f.side == side), default=0
    )


def opacity(frame: Frame, findings: tuple[Finding, ...], texture: Layer) -> Layer:
    """The share of air that disease has driven out of the lungs, pixel by pixel, in [0, 1]."""
    total = np.zeros_like(texture)
    for finding in findings:
        site = frame.build.sites[CONDITIONS.index(finding.condition)]
        match finding.condition:
            case "Edema":
                shade = _haze(frame, finding.level) * (0.7 + 0.6 * texture)
            case "Consolidation":
                shade = 0.92 * _patch(frame, finding, site) * (0.7 + 0.5 * texture)
            case "Lung Lesion":
                shade = 0.88 * _ball(frame, finding, site)
            case "Atelectasis":
                shade = 0.85 * _bands(frame, finding, site)
            case _:
                continue
        total = np.maximum(total, shade.astype(np.float32))
    return np.minimum(total, np.float32(1))


def fluid(frame: Frame, findings: tuple[Finding, ...]) -> Layer | None:
    """Where pleural fluid lies: up to a curve that climbs towards the chest wall; None without any."""
    shapes = []
    for finding in findings:
        if finding.condition == "Pleural Effusion":
            wall, middle = FLUID_TOPS[finding.level]
            lateral = np.linspace(196, 14, 16)
            climb = ((lateral - 14) / 182) ** 2.2
            surface = np.stack([lateral, middle + (wall - middle) * climb], axis=1)
            for side in finding.lungs:
                shapes.append(frame.place(side, np.concatenate([surface, [(14, 480), (196, 480)]])))
    return fill(shapes, soft=5) if shapes else None


@dataclass(frozen=True)
class Collapse:
    """A pneumothorax: where free air lies, (256, 256), and the lung's thin bright edge, (512, 512)."""

    gap: Layer
    film_edge: Layer


def collapse(frame: Frame, findings: tuple[Finding, ...], outlines: dict[str, Points]) -> Collapse | None:
    """The pneumothorax among the findings, given each lung's outline; None without one."""
    for finding in findings:
        if finding.condition == "Pneumothorax":
            side = str(finding.side)
            shrunk = frame.place(side, collapsed(outlines[side], finding.level))
            beside = fill([frame.place(side, _HALF_CHEST)], soft=1)
            return Collapse(beside * (1 - fill([shrunk], soft=1.5)), strokes([(shrunk, 3, 255)], soft=1))
    return None


def broken_rib(frame: Frame, finding: Finding) -> tuple[int, list[Stroke]]:
    """Which posterior rib is broken, and its two pieces: the outer one has dropped and slid inwards."""
    site = frame.build.sites[CONDITIONS.index("Fracture")]
    index = 4 + int(site[0] * 2)
    rib = POSTERIOR_RIBS[index]
    inner, outer = rib[:9], rib[7:] + np.array([-4.0, 30.0])
    side = str(finding.side)
    pieces: list[Stroke] = []
    for piece, end in ((inner, inner[-3:]), (outer, outer[:3])):
        pieces += [(frame.place(side, piece), 13, 165), (frame.place(side, end), 17, 250)]
    return index, pieces


def hardware(frame: Frame, findings: tuple[Finding, ...]) -> Layer | None:
    """Metal and plastic: pacemaker with its lead, central venous catheter, endotracheal tube."""
    lines: list[Stroke] = []
    boxes: list[Points] = []
    for finding in findings:
        side = str(finding.side)
        # Veins end in the heart's right half whatever side they come from.
        toward = -1.0 if side == "left" else 1.0
        if finding.kind == PACEMAKER:
            boxes.append(frame.place(side, ellipse((124, 132), (27, 23), _SQUARISH)))
            lead = [(104, 122), (70, 104), (24, 118), (toward * 22, 150), (toward * 30, 260)]
            tip = [(toward * 8, 345), (-toward * 62, 372)]
            lines.append((frame.place(side, smooth(lead + tip)), 4, 190))
        elif finding.kind == CATHETER:
            entry = [(84, -20), (62, 60), (40, 118)] if side == "right" else [(190, 84), (120, 96), (40, 118)]
            path = [*entry, (toward * 20, 148), (toward * 28, 200), (toward * 28, 268)]
            lines.append((frame.place(side, smooth(path)), 5, 170))
        elif finding.kind == TUBE:
            wall = frame.place("left", smooth([(3, -40), (1, 40), (0, 110), (0, 172)]))
            lines += [(wall, 10, 80), (wall, 4, 210)]
    if not lines:
        return None
    film = strokes(lines, soft=0.7)
    return np.maximum(film, enlarge(fill(boxes, soft=1.5))) if boxes else film


_HALF_CHEST = np.array([(24.0, 0), (240, 0), (240, 520), (24, 520)])
_SQUARISH = 1 + 0.14 * np.array([0, 0.6, 1, 0.6] * 4)
"""A ripple that makes an ellipse a box with round corners."""


def _haze(frame: Frame, level: int) -> Layer:
    strength, extent = HAZE[level]
    wings = [frame.place(side, ellipse((80, 262), (56 * extent, 96 * extent))) for side in ("right", "left")]
    return np.float32(strength) * fill(wings, soft=30)


def _patch(frame: Frame, finding: Finding, site: np.ndarray) -> Layer:
    radius = CONSOLIDATION_RADII[finding.level]
    turn = np.arange(12) * (np.pi / 6)
    ripple = 1 + 0.14 * np.sin(2 * turn + 6 * site[2]) + 0.12 * np.sin(3 * turn + 6 * site[3])
    return fill(
        [frame.place(str(finding.side), ellipse(_centre(finding, site, 9), (radius, radius * 0.9), ripple))],
        soft=9,
    )


def _ball(frame: Frame, finding: Finding, site: np.ndarray) -> Layer:
    radius = LESION_RADII[finding.level]
    ripple = 1 + 0.05 * np.sin(np.arange(12) * 1.5708 + 6 * site[2])
    centre = _centre(finding, site, 14)
    return fill([frame.place(str(finding.side), ellipse(centre, (radius, radius), ripple))], soft=2.5)


def _bands(frame: Frame, finding: Finding, site: np.ndarray) -> Layer:
    """Plates of collapsed lung above the diaphragm, thickest in the middle: one if mild, else three."""
    plates = []
    for index in range(3 if finding.level else 1):
        height, tilt = 338 - 25 * index + 6 * site[1], 10 * (site[2] - 0.5) + (9 if index % 2 else -9)
        reach = 82 + 22 * (index % 2)
        top = smooth([(reach, height + tilt), (128, height - 9), (176, height - tilt - 3)])
        low = smooth([(176, height - tilt + 5), (134, height + 8), (reach, height + tilt + 3)])
        plates.append(frame.place(str(finding.side), np.concatenate([top, low])))
    return fill(plates, soft=3)


def _centre(finding: Finding, site: np.ndarray, spread: float) -> tuple[float, float]:
    lateral, height = ZONES[str(finding.zone)]
    return lateral + spread * (site[0] - 0.5) * 2, height + spread * (site[1] - 0.5) * 2
