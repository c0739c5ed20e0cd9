"""How often the intervals of condition F1 hold the truth, in simulated archives of 200 patients."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from unirg.evaluation.conditions import POSITIVE, _system
from unirg.metrics.conditions import BLANK, condition_f1
from unirg.metrics.findings_terms import CONDITIONS

PATIENTS, SETS = 200, 600
PREVALENCE = (0.05, 0.2, 0.3, 0.08, 0.25, 0.12, 0.1, 0.3, 0.06, 0.35, 0.04, 0.07, 0.4, 0.25)
Labels = NDArray[np.int64]


def archive(rng: np.random.Generator, patients: int) -> tuple[list[str], Labels, Labels]:
    """Patients of 1 to 4 studies whose illness persists, and who are read alike each time."""
    person = np.repeat(np.arange(patients), rng.choice([1, 1, 2, 4], patients))
    shape = len(person), len(PREVALENCE)
    illness, reading = (rng.normal(size=(patients, shape[1]))[person] for _ in range(2))
    ill = 0.8 * illness + 0.6 * rng.normal(size=shape)
    read = 0.75 * ill + 0.66 * (0.6 * reading + 0.8 * rng.normal(size=shape))
    cut = np.array([NormalDist().inv_cdf(1 - share) for share in PREVALENCE])
    truth, ours = (np.where(side > cut, POSITIVE, BLANK) for side in (ill, read))
    return [str(number) for number in person], truth, ours


@pytest.mark.soak
def test_the_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    _, truth, ours = archive(rng, 300_000)
    large = condition_f1(ours, truth)
    true = {"macro": large.macro.f1, "micro": large.micro.f1}
    true |= {name: large.conditions[name].f1 for name in ("Pleural Effusion", "Lung Lesion")}
    held: dict[str, list[bool]] = {name: [] for name in true}
    for number in range(SETS):
        people, truth, ours = archive(rng, PATIENTS)
        found = _system(truth, ours, people, 1000, number)["positive"]
        shown = {name: found["conditions"][name].get("f1") for name in CONDITIONS}
        shown |= {name: found["averages"]["14"][name]["f1"] for name in ("macro", "micro")}
        for name, value in true.items():
            if shown[name] is not None:  # a rare condition may be too small to be shown
                held[name].append(shown[name]["low"] <= value <= shown[name]["high"])
    print({name: (round(float(np.mean(times)), 4), len(times)) for name, times in held.items()})
    share = {name: float(np.mean(times)) for name, times in held.items()}
    assert min(map(len, held.values())) > SETS / 2
    # Of 600 sets a coverage of 95% shows as 93.2% to 96.8%; a rare condition's interval is the wider one.
    assert min(share["macro"], share["micro"], share["Pleural Effusion"]) >= 0.93
    assert max(share["macro"], share["micro"], share["Pleural Effusion"]) <= 0.975
    assert 0.94 <= share["Lung Lesion"] <= 0.995
