"""The geometry of a phantom chest: outlines as points, before anything is drawn.

Points are (lateral, height): `lateral` is the distance from the midline towards a side, `height` runs down
the film, both in pixels of a 512x512 film of an average chest. `Frame.place` takes them to the film, through
the patient's build and the pose of the day. The patient's right is on the image's left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from unirg.cohort.corpora.phantom.timeline import BODY, POSE, Encounter, Patient, stream

SIZE = 512
MIDLINE = SIZE / 2
APEX = 78.0
"""Height of the lungs' tops."""
HALF_CHEST = 186.0
"""Half the inner width of the chest, at its widest."""

HEART_RATIOS = (0.53, 0.595, 0.66)
"""Heart over chest width in mild, moderate and severe cardiomegaly; normal hearts stay below 0.48."""
COLLAPSE = ((0.82, 0.88), (0.66, 0.76), (0.46, 0.56))
"""Width and height of a lung under a small, moderate and large pneumothorax, over those of a whole lung."""
ZONES = {"upper": (104.0, 158.0), "mid": (116.0, 242.0), "lower": (132.0, 330.0)}
"""Centre of each lung zone; the lower one lies beside the heart."""

Points = np.ndarray
"""(..., 2) float64: lateral and height, or x and y once placed."""
PointsLike = Points | Sequence[tuple[float, float]]

_LUNG = (
    ((38, 128), (46, 92), (66, 78), (96, 88), (127, 122), (153, 176), (171, 240), (181, 305), (186, 370)),
    ((186, 424),),
    ((172, 400), (144, 376), (108, 366), (72, 374)),
    ((36, 402),),
    ((30, 340), (32, 260), (34, 190)),
)
"""A lung's outline from its top inwards: five smooth runs that meet at the angles of the diaphragm."""

_RIB_REACH = (66, 100, 128, 150, 166, 176, 183, 188, 190)
"""How far out each posterior rib goes."""


@dataclass(frozen=True)
class Build:
    """What lasts of a patient's looks. Sex, race and age shift the means by less than people vary."""

    width: float
    length: float
    heart: float
    """Heart over chest width, before disease."""
    bone: float
    """Density of the bones; 1 is average."""
    breast: float
    """Density of the breasts' shadows; 0 for none."""
    aorta: float
    """Radius of the aortic knob in pixels: it widens with age."""
    fat: float
    """How much soft tissue covers the flanks, in [0, 1]."""
    sites: np.ndarray
    """(9, 4) in [0, 1): where exactly each condition sits in this patient."""


@dataclass(frozen=True)
class Frame:
    """A build in the pose of one encounter: places points of the chest on the film."""

    build: Build
    scale: float
    angle: float
    shift: tuple[float, float]
    breath: float
    """Length of the lungs over that of a full breath."""

    def place(self, side: str, points: Points) -> Points:
        """(lateral, height) -> (x, y) on the film; `points` is (..., 2)."""
        lateral, below = points[..., 0], points[..., 1] - APEX
        x = lateral * (-self.build.width if side == "right" else self.build.width)
        y = APEX - MIDLINE + below * np.where(below > 0, self.breath * self.build.length, 1.0)
        cos, sin = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        placed = np.empty(points.shape)
        placed[..., 0] = MIDLINE + self.shift[0] + cos * x - sin * y
        placed[..., 1] = MIDLINE + self.shift[1] + sin * x + cos * y
        return placed

    def both(self, points: Points) -> Points:
        """A shape across the midline from its left half, listed from top to bottom."""
        return np.concatenate([self.place("left", points), self.place("right", points)[::-1]])


def build_of(seed: int, patient: Patient, age: int) -> Build:
    """The patient's build; age (years) is that of the encounter."""
    rng = stream(seed, patient.number, 0, BODY)
    woman = patient.sex == "F"
    jitter = rng.uniform(-1, 1, size=7)
    bone = 1.04 if patient.race == "Black" else 1.0
    slight = 0.985 if patient.race == "Asian" else 1.0
    return Build(
        width=(0.97 if woman else 1.01) * slight + 0.04 * jitter[0],
        length=(0.98 if woman else 1.02) + 0.03 * jitter[1],
        heart=0.42 + 0.0004 * (age - 55) + 0.02 * jitter[2],
        bone=bone * (1 - 0.004 * max(0, age - 45) * (1.4 if woman else 1.0)) + 0.08 * jitter[3],
        breast=(0.07 + 0.025 * jitter[4]) if woman else 0.0,
        aorta=15 + 0.12 * max(0, age - 40) + 2 * jitter[5],
        fat=0.5 + 0.5 * jitter[6],
        sites=rng.random((9, 4)),
    )


def frame_of(seed: int, patient: Patient, encounter: Encounter) -> Frame:
    """The pose of the day: a small rotation and shift; a shallower breath at the bedside."""
    rng = stream(seed, patient.number, encounter.number, POSE)
    jitter = rng.uniform(-1, 1, size=5)
    bedside = encounter.projection == "AP"
    return Frame(
        build=build_of(seed, patient, encounter.age),
        scale=1.13 + 0.03 * jitter[0] + (0.02 if bedside else 0.0),
        angle=math.radians((2.5 if bedside else 1.5) * jitter[1]),
        shift=(9 * jitter[2], 7 * jitter[3] + 4),
        breath=(0.95 if bedside else 1.0) + 0.02 * jitter[4],
    )


def smooth(points: PointsLike, *, closed: bool = False, steps: int = 6) -> Points:
    """A Catmull-Rom curve through the points: `steps` points for each stretch between two."""
    points = np.asarray(points, dtype=np.float64)
    around = (points[-1:], points, points[:2]) if closed else (points[:1], points, points[-1:])
    padded = np.concatenate(around)
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    a, b, c, d = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    curve = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t * t + (3 * b - a - 3 * c + d) * t * t * t
    )
    runs = curve.transpose(1, 0, 2).reshape(-1, 2)
    return runs if closed else np.concatenate([runs, points[-1:]])


def ellipse(
    centre: tuple[float, float], radii: tuple[float, float], ripple: np.ndarray | None = None
) -> Points:
    """An ellipse; `ripple` scales the radius of evenly spaced points along it."""
    count = 24 if ripple is None else len(ripple)
    turn = np.arange(count) * (2 * math.pi / count)
    radius = np.ones(count) if ripple is None else ripple
    ring = np.stack([np.cos(turn) * radius * radii[0], np.sin(turn) * radius * radii[1]], axis=1)
    return smooth(ring + np.asarray(centre), closed=True, steps=3)


@cache
def lung(side: str, raised: float = 0.0) -> Points:
    """A lung's outline; `raised` lifts its half of the diaphragm, in pixels."""
    runs = []
    for index, run in enumerate(_LUNG):
        points = np.asarray(run, dtype=np.float64)
        if index in (1, 2, 3):
            points[:, 1] += (12.0 if side == "left" else 0.0) - raised
        runs.append(points)
    outer, angle, dome, inner_angle, inner = runs
    # Shared end points make the curves meet in a corner.
    return np.concatenate(
        [
            smooth(np.concatenate([outer, angle])),
            smooth(np.concatenate([angle, dome, inner_angle])),
            smooth(np.concatenate([inner_angle, inner, outer[:1]])),
        ]
    )


def collapsed(outline: Points, level: int) -> Points:
    """What is left of a lung under a pneumothorax: drawn towards its root and its base."""
    width, height = COLLAPSE[level]
    root, base = 34.0, 412.0
    inner = np.minimum(outline[:, 0], root)
    return np.stack(
        [
            inner + (np.maximum(outline[:, 0], root) - root) * width,
            base - np.maximum(base - outline[:, 1], 0) * height + np.maximum(outline[:, 1] - base, 0),
        ],
        axis=1,
    )


def heart(ratio: float) -> tuple[Points, Points]:
    """The heart's halves (right, left) for a heart over chest width of `ratio`."""
    span = 2 * HALF_CHEST * ratio
    right, left = 0.38 * span, 0.62 * span
    return (
        smooth([(0, 190), (30, 222), (right * 0.8, 264), (right, 318), (right * 0.93, 368), (8, 424)]),
        smooth(
            [
                (0, 190),
                (40, 206),
                (left * 0.6, 250),
                (left * 0.88, 306),
                (left, 360),
                (left * 0.86, 398),
                (8, 428),
            ]
        ),
    )


def _posterior_ribs() -> Points:
    index = np.arange(9)[:, None]
    reach = np.array(_RIB_REACH)[:, None]
    t = np.linspace(0, 1, 15)
    lateral = 16 + (reach - 16) * np.sin(t * math.pi / 2) ** 0.9
    drop = 18 + 5.5 * np.minimum(index, 6)
    return np.stack([lateral, 86 + 32.0 * index - 11 * np.sin(t * math.pi * 0.75) + drop * t**2.4], axis=-1)


def _anterior_ribs() -> Points:
    index = np.arange(9)[:, None]
    outer, inner = POSTERIOR_RIBS[:, -1:, 0], 62 + 7.0 * index
    t = np.linspace(0, 1, 11)
    lateral = outer + (inner - outer) * t**1.25
    height = POSTERIOR_RIBS[:, -1:, 1] + (34 + 4.0 * index) * (1 - (1 - t) ** 1.8)
    return np.stack([lateral, height], axis=-1)[1:7]


POSTERIOR_RIBS = _posterior_ribs()
"""(9, 15, 2): the back part of each rib, from the spine outwards and down to the chest wall."""
ANTERIOR_RIBS = _anterior_ribs()
"""(6, 11, 2): the front part of ribs 1 to 6 (from 0): on downwards and inwards, ending in cartilage."""
