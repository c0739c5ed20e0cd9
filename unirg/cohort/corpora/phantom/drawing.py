"""Draw a phantom radiograph: add up what X-rays lose on their way through a body.

Everything is attenuation (0 is air, about 0.6 soft tissue); `scanner` turns it into a film. Disease mostly
acts on one thing, the air in the lungs: it is what makes them dark.
"""

from __future__ import annotations

import numpy as np

from unirg.cohort.corpora.phantom import anatomy, disease
from unirg.cohort.corpora.phantom.anatomy import Frame, Points, ellipse, smooth
from unirg.cohort.corpora.phantom.canvas import Layer, Stroke, enlarge, fill, mottle, strokes
from unirg.cohort.corpora.phantom.findings import Finding, Side
from unirg.cohort.corpora.phantom.scanner import expose
from unirg.cohort.corpora.phantom.timeline import TISSUE, Encounter, Patient, stream

SIDES: tuple[Side, ...] = ("right", "left")
AIR = np.float32(0.47)
"""What a full depth of air takes away from the attenuation of soft tissue."""


def draw(seed: int, patient: Patient, encounter: Encounter) -> np.ndarray:
    """One frontal radiograph, (512, 512) uint8, bright = dense, the patient's right on the image's left."""
    frame = anatomy.frame_of(seed, patient, encounter)
    rng = stream(seed, patient.number, 0, TISSUE)
    return expose(_attenuation(frame, encounter, rng), seed, patient, encounter)


def _attenuation(frame: Frame, encounter: Encounter, rng: np.random.Generator) -> Layer:
    """The whole body, (512, 512)."""
    findings = encounter.findings
    outlines: dict[str, Points] = {side: anatomy.lung(side, disease.raised(findings, side)) for side in SIDES}
    placed = [frame.place(side, outlines[side]) for side in SIDES]
    cavity, depth = fill(placed, soft=1.5), fill(placed, soft=26)
    coarse, fine = mottle(rng, 24), mottle(rng, 60)
    middle = _middle(frame, encounter)

    aerated = 1 - disease.opacity(frame, findings, coarse)
    water = disease.fluid(frame, findings)
    if water is not None:
        aerated *= 1 - water
    tissue = cavity * aerated * (1 - middle)
    air = cavity * aerated * (0.42 + 0.58 * depth) * (1 - 0.86 * middle)
    collapse = disease.collapse(frame, findings, outlines)
    if collapse is not None:
        tissue *= 1 - collapse.gap
        air *= 1 + 0.26 * collapse.gap

    soft = _body(frame) + 0.07 * middle - AIR * air + 0.07 * tissue * (fine - 0.5)
    film = enlarge(soft)
    edema = max((f.level + 1 for f in findings if f.condition == "Edema"), default=0)
    film += (0.14 + 0.04 * edema) * enlarge(tissue) * _vessels(frame, rng, swollen=edema > 0)
    film += (
        np.float32(0.40 * frame.build.bone)
        * enlarge(1 - 0.6 * np.maximum(middle, 1 - aerated))
        * _ribs(frame, findings)
    )
    if collapse is not None:
        film += 0.16 * enlarge(cavity * (1 - middle)) * collapse.film_edge
    metal = disease.hardware(frame, findings)
    if metal is not None:
        film += metal * (0.98 - film)
    return film


def _body(frame: Frame) -> Layer:
    """Soft tissue and large bones: trunk, breasts, shoulders, spine, and the dark windpipe and stomach."""
    build = frame.build
    wide = 4 + 10 * build.fat
    trunk = [(46, -60), (48, 20), (62, 50), (120, 66), (190, 80), (262, 120), (300, 200), (232 + wide, 226)]
    flank = [(208 + wide, 262), (204 + wide, 330), (206 + wide, 420), (212 + wide, 560)]
    body = fill([frame.both(smooth(trunk + flank))], soft=7)
    bulk = fill([frame.both(_BULK)], soft=60)
    total = 0.50 * body + 0.13 * bulk * body + 0.07 * fill([frame.both(_BELLY)], soft=30) * body
    if build.breast:
        chest = [frame.place(side, ellipse((106, 330), (88, 74))) for side in SIDES]
        total += np.float32(build.breast) * fill(chest, soft=9)
    total -= 0.11 * fill([frame.both(_WINDPIPE), *(frame.place(side, _BRONCHUS) for side in SIDES)], soft=3)
    total -= 0.10 * fill([frame.place("left", _STOMACH)], soft=6)
    vertebrae = 0.09 * fill([frame.both(block) for block in _VERTEBRAE], soft=3)
    large = [frame.place(side, shape) for side in SIDES for shape in (_SHOULDER, _SHOULDER_BLADE)]
    total += np.float32(build.bone) * (vertebrae + 0.06 * fill(large, soft=3))
    return total


def _middle(frame: Frame, encounter: Encounter) -> Layer:
    """Heart, great vessels and the roots of the lungs: what takes the air's place in the middle."""
    build = frame.build
    grown = [f.level for f in encounter.findings if f.condition == "Cardiomegaly"]
    bedside = 0.012 if encounter.projection == "AP" else 0.0
    right, left = anatomy.heart((anatomy.HEART_RATIOS[grown[0]] if grown else build.heart) + bedside)
    heart = np.concatenate([frame.place("left", left), frame.place("right", right)[::-1]])
    knob = frame.place("left", ellipse((34, 166), (build.aorta, build.aorta * 1.15)))
    trunk = frame.place("left", ellipse((38, 214), (20, 24)))
    solid = fill([heart, frame.both(_COLUMN), knob, trunk], soft=2.5)
    roots = [
        frame.place("right", ellipse((50, 250), (15, 30))),
        frame.place("left", ellipse((50, 238), (15, 30))),
    ]
    return np.maximum(solid, 0.5 * fill(roots, soft=9))


def _ribs(frame: Frame, findings: tuple[Finding, ...]) -> Layer:
    """Ribs and collarbones, (512, 512): a bright rim around a fainter core."""
    broken = {f.side: disease.broken_rib(frame, f) for f in findings if f.condition == "Fracture"}
    back: list[Stroke] = []
    front: list[Stroke] = []
    for side in SIDES:
        gone, pieces = broken.get(side, (-1, []))
        for index, rib in enumerate(frame.place(side, anatomy.POSTERIOR_RIBS)):
            if index != gone:
                back += [(rib, 13, 72), (rib, 9, 51)]
        back += pieces
        for index, rib in enumerate(frame.place(side, anatomy.ANTERIOR_RIBS), start=1):
            if index != gone:
                front += [(rib, 14, 40), (rib, 10, 29)]
        collar = frame.place(side, _COLLARBONE)
        front += [(collar, 15, 63), (collar, 10, 48)]
    return strokes(back, front, soft=1)


def _vessels(frame: Frame, rng: np.random.Generator, *, swollen: bool) -> Layer:
    """Vessels that fan out from the lungs' roots, branch, and thin towards the edge; (512, 512)."""
    lines: list[Stroke] = []
    thick = 1 if swollen else 0
    for side in SIDES:
        lift = 12.0 if side == "left" else 0.0
        turn = np.linspace(-1.4, 1.45, 11) + rng.uniform(-0.15, 0.15, 11)
        away = np.stack([np.cos(turn), 1.2 * np.sin(turn)], axis=-1)
        root = np.stack([40 + 6 * np.cos(turn), 248 - lift + 26 * np.sin(turn)], axis=-1)
        end = root + rng.uniform(80, 145, (11, 1)) * away
        # The lower ones sag towards the diaphragm.
        bend = (root + end) / 2 + rng.uniform(-9, 9, (11, 2)) - [[0.0, 4.0]]
        stems = np.stack([root, bend, end], axis=1)
        fork = turn[:, None] + rng.uniform(0.3, 0.9, (11, 4)) * np.array([1, -1, 1, -1])
        start = np.stack([bend, (bend + end) / 2, end, end], axis=1)
        tip = start + rng.uniform(28, 62, (11, 4, 1)) * np.stack([np.cos(fork), np.sin(fork)], axis=-1)
        twigs = np.stack([start, tip], axis=2).reshape(-1, 2, 2)
        lines += [(twig, 2 + thick, 105) for twig in frame.place(side, twigs)]
        lines += [(stem, 3 + thick, 150) for stem in frame.place(side, stems)]
        lines += [(stem, 5 + thick, 185) for stem in frame.place(side, stems[:, :2])]
    return strokes(lines, soft=1)


_BULK = np.array([(30.0, 60), (150, 120), (170, 300), (185, 560)])
_BELLY = np.array([(230.0, 395), (230, 600)])
_WINDPIPE = smooth([(9, -40), (9, 60), (9, 150), (12, 178), (4, 190)])
_BRONCHUS = smooth([(2, 174), (18, 194), (34, 212), (32, 219), (14, 203), (0, 188)])
_STOMACH = ellipse((92, 428), (34, 14))
_COLUMN = smooth([(34, 40), (30, 110), (37, 170), (40, 230), (30, 300), (30, 440), (27, 600)])
_SHOULDER = ellipse((216, 112), (27, 31))
_SHOULDER_BLADE = smooth([(172, 92), (212, 110), (206, 190), (190, 232), (177, 198)], closed=True)
_COLLARBONE = smooth([(18, 120), (52, 106), (104, 92), (160, 80), (206, 86)])
_VERTEBRAE = [np.array([(16.0, top), (15, top + 10), (16, top + 20)]) for top in range(-20, 540, 26)]
