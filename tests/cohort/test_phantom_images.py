"""What phantom radiographs show: each finding, where it is, for whoever looks at a quarter of the size."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from unirg.cohort.corpora.phantom import Phantom
from unirg.cohort.corpora.phantom.anatomy import HEART_RATIOS, build_of
from unirg.cohort.corpora.phantom.drawing import draw
from unirg.cohort.corpora.phantom.findings import CATHETER, LEVELS, PACEMAKER, TUBE, Finding
from unirg.cohort.corpora.phantom.scanner import SCANNERS
from unirg.cohort.corpora.phantom.timeline import Encounter, Patient, timeline
from unirg.cohort.corpora.phantom.wording import WORDINGS

SIDED = [
    *(Finding(c, level=i, side="left") for c in ("Pneumothorax", "Pleural Effusion") for i in range(3)),
    *(
        Finding("Consolidation", level=i, side="left", zone=z)
        for i in (0, 1)
        for z in ("upper", "mid", "lower")
    ),
    *(
        Finding("Lung Lesion", kind=("nodule", "mass")[i], level=i, side="left", zone=z)
        for i in (0, 1)
        for z in ("upper", "mid", "lower")
    ),
    *(Finding("Atelectasis", level=i, side="left", zone="lower") for i in (0, 1)),
    Finding("Fracture", side="left"),
]
UNSIDED = [
    *(Finding(condition, level=i) for condition in ("Cardiomegaly", "Edema") for i in range(3)),
    Finding("Support Devices", kind=TUBE),
    *(
        Finding("Support Devices", kind=kind, side=s)
        for kind in (PACEMAKER, CATHETER)
        for s in ("left", "right")
    ),
]


def name(finding: Finding) -> str:
    parts = (finding.kind or finding.condition, finding.severity, finding.side, finding.zone)
    return " ".join(part for part in parts if part)


@cache
def someone(institution: str = "north") -> tuple[Patient, Encounter]:
    """A patient without findings, imaged upright."""
    for number in range(200):
        patient, encounters = timeline(0, number)
        if not encounters[0].findings:
            return replace(patient, institution=institution), replace(encounters[0], projection="PA")
    raise LookupError("no healthy patient among 200")


def film(*findings: Finding, institution: str = "north") -> np.ndarray:
    patient, encounter = someone(institution)
    return draw(0, patient, replace(encounter, findings=findings)).astype(np.float64)


def small(image: np.ndarray) -> np.ndarray:
    """(512, 512) -> (128, 128), area averages: what the toy policy sees."""
    return image.reshape(128, 4, 128, 4).mean(axis=(1, 3))


def trace(*findings: Finding, institution: str = "north") -> np.ndarray:
    """What the findings change at (128, 128). The noise is the same with and without them."""
    with_, without = film(*findings, institution=institution), film(institution=institution)
    return small(with_) - small(without)


def test_is_a_grey_film_that_uses_its_range() -> None:
    corpus = Phantom(12, seed=2)
    for study in corpus.records():
        image = corpus.read(study.images[0])
        assert image.shape == (512, 512)
        assert image.dtype == np.uint8
        assert image.std() > 30
        dark, bright = np.quantile(image, (0.02, 0.98))
        assert dark < 90
        assert bright > 180


def test_lungs_are_dark_beside_a_bright_middle_and_belly() -> None:
    image = film()
    right, left, middle, belly = (
        image[area].mean()
        for area in (
            np.s_[180:260, 90:170],
            np.s_[180:260, 340:420],
            np.s_[300:360, 240:280],
            np.s_[470:500, 100:200],
        )
    )
    assert max(right, left) + 60 < min(middle, belly)


@pytest.mark.parametrize("finding", SIDED, ids=name)
def test_a_sided_finding_is_seen_on_its_side(finding: Finding) -> None:
    left = np.abs(trace(finding))
    right = np.abs(trace(replace(finding, side="right")))
    # The patient's left is on the image's right.
    assert left[:, 64:].sum() > 0.93 * left.sum()
    assert right[:, :64].sum() > 0.93 * right.sum()


@pytest.mark.parametrize("institution", sorted(WORDINGS))
def test_every_finding_stands_out_at_a_quarter_of_the_size_on_every_scanner(institution: str) -> None:
    noise = SCANNERS[institution].noise / 4
    for finding in [*SIDED, *UNSIDED]:
        change = np.abs(trace(finding, institution=institution))
        # At least 15 pixels (of 16384) far above the noise and above what the eye separates.
        assert np.sort(change.ravel())[-15] > max(12, 5 * noise), name(finding)


def test_a_bilateral_effusion_is_the_sum_of_its_sides() -> None:
    left, right, both = (
        trace(Finding("Pleural Effusion", level=1, side=side)) for side in ("left", "right", "bilateral")
    )
    assert np.allclose(left + right, both, atol=2)


@pytest.mark.parametrize("condition", ["Consolidation", "Lung Lesion"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_zones_are_stacked_from_top_to_bottom(condition: str, side: str) -> None:
    heights = []
    for zone in ("upper", "mid", "lower"):
        change = np.abs(trace(Finding(condition, side=side, zone=zone, kind=None)))  # type: ignore[arg-type]
        heights.append(float((change.sum(axis=1) * np.arange(128)).sum() / change.sum()))
    upper, mid, lower = heights
    assert upper + 12 < mid
    assert mid + 12 < lower


@pytest.mark.parametrize("condition", [c for c, levels in LEVELS.items() if levels])
def test_a_more_severe_finding_changes_more_of_the_film(condition: str) -> None:
    side, zone = (None, None) if condition in ("Cardiomegaly", "Edema") else ("right", "lower")
    extents = [
        np.abs(trace(Finding(condition, level=level, side=side, zone=zone))).sum()  # type: ignore[arg-type]
        for level in range(len(LEVELS[condition]))
    ]
    assert all(more > 1.25 * less for less, more in pairwise(extents))


def test_free_air_is_darker_and_everything_else_brighter() -> None:
    assert trace(Finding("Pneumothorax", level=1, side="left")).sum() < -1000
    for finding in [*SIDED, *UNSIDED]:
        if finding.condition != "Pneumothorax":
            assert trace(finding).sum() > 0, name(finding)


def test_no_normal_heart_reaches_cardiomegaly_even_at_the_bedside() -> None:
    ratios = [build_of(0, timeline(0, number)[0], age).heart for number in range(120) for age in (18, 60, 95)]
    assert max(ratios) + 0.012 < 0.49 < HEART_RATIOS[0] < HEART_RATIOS[1] < HEART_RATIOS[2]


def test_a_finding_stays_where_it_is_between_encounters() -> None:
    patient, encounter = someone()
    nodule = Finding("Lung Lesion", kind="nodule", side="left", zone="upper")
    places = []
    for number in (1, 2, 3):
        later = replace(encounter, number=number)
        change = draw(0, patient, replace(later, findings=(nodule,))).astype(float) - draw(0, patient, later)
        rows, columns = np.nonzero(small(change) > 15)
        places.append((rows.mean(), columns.mean()))
    # The pose of the day moves it by a few pixels, no more.
    assert np.ptp(np.array(places), axis=0).max() < 8


def test_scanners_differ_and_people_differ() -> None:
    looks = [film(institution=institution) for institution in WORDINGS]
    people = [draw(0, *(timeline(0, n)[0], replace(someone()[1], number=1))) for n in range(5)]
    for group in (looks, people):
        for index, one in enumerate(group):
            for other in group[index + 1 :]:
                assert np.abs(small(one) - small(other)).mean() > 3
