"""What each institution's scanner makes of an attenuation: contrast, blur, noise, borders, a side marker."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from unirg.cohort.corpora.phantom.anatomy import SIZE
from unirg.cohort.corpora.phantom.canvas import Layer
from unirg.cohort.corpora.phantom.timeline import EXPOSURE, Encounter, Patient, stream

LUT_SIZE = 2048


@dataclass(frozen=True)
class Scanner:
    """How one institution's films look."""

    low: float
    high: float
    """Attenuation shown as black and as white."""
    gamma: float
    toe: float
    """Strength of the S-shape of the contrast curve, in [0, 1]."""
    blur: float
    """Radius of the detector's blur in pixels; negative sharpens."""
    noise: float
    """Standard deviation of the noise in grey levels."""
    border: int
    """Width in pixels of the collimated border at the sides and below; it varies a little."""
    marker: str
    """The side marker: L on the image's right or R on its left."""
    marker_height: int
    plate: bool
    """Whether the marker stands on a darker plate."""


SCANNERS = {
    "north": Scanner(0.02, 0.92, 0.92, 0.55, 0.5, 3.0, 0, "L", 34, False),
    "harbor": Scanner(-0.02, 0.98, 0.75, 0.2, 1.3, 6.0, 14, "R", 60, True),
    "valley": Scanner(0.05, 0.84, 0.85, 0.3, 0.8, 4.5, 0, "R", 40, False),
    "summit": Scanner(0.02, 0.95, 0.95, 0.7, -1.0, 3.0, 9, "L", 70, True),
    "island": Scanner(-0.02, 1.0, 0.68, 0.1, 1.0, 7.5, 22, "L", 48, False),
}

_LETTERS = {
    "L": [[(0.0, 0.0), (0.0, 1.0), (0.65, 1.0)]],
    "R": [
        [(0.0, 1.0), (0.0, 0.0), (0.4, 0.0), (0.62, 0.12), (0.62, 0.38), (0.4, 0.5), (0.0, 0.5)],
        [(0.3, 0.5), (0.68, 1.0)],
    ],
}


def expose(layer: Layer, seed: int, patient: Patient, encounter: Encounter) -> np.ndarray:
    """Attenuation -> film, (512, 512) uint8."""
    scanner = SCANNERS[patient.institution]
    rng = stream(seed, patient.number, encounter.number, EXPOSURE)
    offset, gain = 0.03 * rng.uniform(-1, 1), 1 + 0.05 * rng.uniform(-1, 1)
    film = Image.fromarray(_curve(scanner, offset, gain)[_index(layer)])
    if scanner.blur < 0:
        film = film.filter(ImageFilter.SHARPEN)
    elif scanner.blur > 0:
        film = film.filter(ImageFilter.BoxBlur(scanner.blur))
    grain = np.frombuffer(rng.bytes(2 * SIZE * SIZE), dtype=np.uint8).reshape(2, SIZE, SIZE)
    # The sum of two uniform bytes has a standard deviation of 104.5.
    noise = (grain[0].astype(np.float32) + grain[1] - np.float32(255)) * np.float32(scanner.noise / 104.5)
    pixels = np.clip(np.asarray(film, dtype=np.float32) + noise + np.float32(0.5), 0, 255).astype(np.uint8)
    film = Image.fromarray(pixels)
    _decorate(film, scanner, rng)
    return np.array(film)


def _index(layer: Layer) -> np.ndarray:
    return np.clip(layer * np.float32(LUT_SIZE), 0, LUT_SIZE - 1).astype(np.uint16)


def _curve(scanner: Scanner, offset: float, gain: float) -> np.ndarray:
    """Grey level for each attenuation in [0, 1)."""
    x = np.arange(LUT_SIZE) / LUT_SIZE
    t = np.clip((x * gain + offset - scanner.low) / (scanner.high - scanner.low), 0, 1)
    t = (1 - scanner.toe) * t + scanner.toe * t * t * (3 - 2 * t)
    return (8 + 240 * t**scanner.gamma).round().astype(np.uint8)


def _decorate(film: Image.Image, scanner: Scanner, rng: np.random.Generator) -> None:
    pen = ImageDraw.Draw(film)
    if scanner.border:
        left, right, low = (scanner.border + int(rng.integers(-4, 8)) for _ in range(3))
        pen.rectangle((0, 0, left, SIZE), fill=3)
        pen.rectangle((SIZE - right, 0, SIZE, SIZE), fill=3)
        pen.rectangle((0, SIZE - low, SIZE, SIZE), fill=3)
    height = 26
    x = 40 if scanner.marker == "R" else SIZE - 58
    y = scanner.marker_height + int(rng.integers(-6, 7))
    if scanner.plate:
        pen.rectangle((x - 9, y - 9, x + 25, y + height + 9), fill=70)
    for line in _LETTERS[scanner.marker]:
        pen.line([(x + height * u, y + height * v) for u, v in line], fill=245, width=4)
