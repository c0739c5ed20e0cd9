"""How often the 95% intervals of conditions' F1 cover the truth; the numbers are in docs/statistics.md.

    make soak TESTS="tests/evaluation/test_conditions_coverage.py -s"

Every data set is an archive of 200 patients with 1 to 4 studies each; the truth is the F1 of 300,000.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from unirg.evaluation.conditions import (
    _SINGLE,
    HEADLINE,
    POSITIVE,
    _columns,
    _conditions,
    _macros,
    _ratios,
    stated,
)
from unirg.metrics.conditions import BLANK, condition_f1
from unirg.metrics.findings_terms import CONDITIONS

PATIENTS, SETS = 200, 2000
RESAMPLES = 1000
COVERED = (0.935, 0.965)
PREVALENCE = (0.05, 0.2, 0.3, 0.08, 0.25, 0.12, 0.1, 0.3, 0.06, 0.35, 0.04, 0.07, 0.4, 0.25)
AVERAGES = ("micro", "macro")
NAMES = (*CONDITIONS, *AVERAGES)
RARE = 30
"""Below so many references that state a condition, on average, the interval is known to be too wide."""
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


def table(support: list[float], shown: list[float], above: list[float], below: list[float]) -> str:
    """Markdown."""
    rows = [f"{PATIENTS} patients, {SETS} data sets, {RESAMPLES} resamples", ""]
    rows += [
        "| F1 of | references that state it | data sets | covers the truth | lies above it | lies below it |"
    ]
    rows += ["|---|---|---|---|---|---|"]
    for name, *found in zip(NAMES, support, shown, above, below, strict=True):
        size, sets, over, under = found
        shares = (100 * count / sets for count in (sets - over - under, over, under))
        rows.append(f"| {name} | {size:.0f} | {sets:.0f} | " + " | ".join(f"{s:.1f}%" for s in shares) + " |")
    return "\n".join(rows)


@pytest.mark.soak
def test_the_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    _, truth, ours = archive(rng, 300_000)
    large = condition_f1(ours, truth)
    true = [large.conditions[name].f1 for name in CONDITIONS] + [large.micro.f1, large.macro.f1]
    support, shown, above, below = (np.zeros(len(NAMES)) for _ in range(4))
    for number in range(SETS):
        people, truth, ours = archive(rng, PATIENTS)
        side = stated(ours, HEADLINE), stated(truth, HEADLINE)
        found = _ratios([*_columns(side, _SINGLE), side], people, RESAMPLES, number)
        singles = list(_conditions(side, found, people).values())
        averages = [found[-1], *_macros([side], people, RESAMPLES, number)]
        counts = [each["support"] for each in singles]
        support += [*counts, sum(counts), sum(counts)]
        for at, (each, value) in enumerate(zip([*singles, *averages], true, strict=True)):
            if "f1" in each:  # a rare condition may be too small to be shown
                shown[at] += 1
                above[at] += each["f1"]["low"] > value
                below[at] += each["f1"]["high"] < value
    text = table(*(counts.tolist() for counts in (support / SETS, shown, above, below)))
    print(f"\n{text}")
    assert shown.min() > SETS / 2, text
    covered = 1 - (above + below) / shown
    often = support / SETS >= RARE
    assert covered.min() >= COVERED[0], text
    assert covered[often].max() <= COVERED[1], text
    assert covered[~often].max() <= 0.985, text
