"""How often the 95% intervals cover the truth, on simulated data sets; the numbers are in docs/statistics.md.

    make soak TESTS="tests/evaluation/test_statistics_coverage.py -s"

Every data set has 200 patients or more with unequal numbers of studies (most 1 to 4, three in a hundred up to
50) and scores shaped as ours are: correlated within a patient, skewed, bounded, with many zeros. The truth is
the mean over studies of the population, from 2 million patients.
"""

from __future__ import annotations

import numpy as np
import pytest

from unirg.evaluation.statistics import Array, _Around, _per_patient, bootstrap, gaps, paired

Counts = tuple[Array, Array]

SETS = 2000
RESAMPLES = 10_000
COVERED = (0.935, 0.965)
SHAPES = (
    "BLEU",
    "RadGraph-F1, a fifth zero",
    "errors per report",
    "errors per report, 15% missing",
    "BLEU, paired difference",
    "errors, paired difference",
    "small score, nine in ten zero",
    "share of reports, about 0.12",
    "score falls with the patient's number of studies",
    "normal",
)


def _logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _population(rng: np.random.Generator, people: int) -> tuple[Array, np.ndarray]:
    """Scores, (studies, shapes), and each study's patient."""
    studies = np.minimum(rng.geometric(0.45, size=people), 30)
    studies += np.where(rng.random(people) < 0.03, rng.integers(5, 20, size=people), 0)
    patient = np.repeat(np.arange(people), studies)
    size = len(patient)

    def noise() -> Array:
        return rng.normal(size=size)

    hard = rng.normal(size=people)[patient]
    report = noise()
    bleu, other_bleu = (
        _logistic(level + 0.7 * hard + 0.6 * report + 0.5 * noise()) for level in (-1.9, -2.0)
    )
    f1 = np.clip(1.3 * _logistic(-1.2 + 0.8 * hard + noise()), 0, 1) * (rng.random(size) > 0.2)
    prone = rng.gamma(1.0, size=people)[patient]
    errors, other_errors = (
        rng.poisson(rate * prone * rng.gamma(1.5, 1 / 1.5, size=size)).astype(np.float64)
        for rate in (1.5, 1.3)
    )
    small = 0.05 * rng.beta(1, 4, size=size) * (rng.random(size) < 0.1 * (0.3 + 0.7 * prone))
    share = (_logistic(-2.5 + hard + noise()) > rng.random(size)).astype(np.float64)
    falling = _logistic(-1 + 0.5 * hard - 0.1 * (studies[patient] - 3) + 0.5 * noise())
    some = np.where(rng.random(size) < 0.15, np.nan, errors)
    columns = [bleu, f1, errors, some, paired(bleu, other_bleu), paired(errors, other_errors)]
    return np.column_stack([*columns, small, share, falling, noise()]), patient


def _truth(rng: np.random.Generator) -> Array:
    total, count = (np.zeros(len(SHAPES)) for _ in range(2))
    for _ in range(40):
        values, _ = _population(rng, 50_000)
        total += np.nansum(values, axis=0)
        count += (~np.isnan(values)).sum(axis=0)
    return total / count


def _means(patients: int, rng: np.random.Generator, sets: int) -> Counts:
    """Data sets whose interval of the mean lies above the truth, and below it; (shapes,)."""
    truth = _truth(rng)
    above, below = (np.zeros(len(SHAPES)) for _ in range(2))
    for number in range(sets):
        values, patient = _population(rng, patients)
        found = bootstrap(values, patient.astype(str).tolist(), RESAMPLES, number)
        above += found.low > truth
        below += found.high < truth
    return above, below


def _percentiles(patients: int, rng: np.random.Generator, sets: int) -> Counts:
    """The same of the percentile interval, from the same data sets and resamples as `_means`."""
    truth = _truth(rng)
    above, below = (np.zeros(len(SHAPES)) for _ in range(2))
    for number in range(sets):
        values, patient = _population(rng, patients)
        deviation, _ = _Around(*_per_patient(values, patient, patients)).resampled(RESAMPLES, number)
        low, high = np.nanmean(values, axis=0) + np.quantile(deviation, [0.025, 0.975], axis=0)
        above += low > truth
        below += high < truth
    return above, below


def _gaps(patients: int, rng: np.random.Generator, sets: int) -> Counts:
    """The same of the gap between two groups that share patients; which is the better is beyond doubt."""
    ahead = 1000.0
    above, below = (np.zeros(len(SHAPES)) for _ in range(2))
    for number in range(sets):
        values, patient = _population(rng, patients)
        # A tenth of the studies are of the other group than most of their patient's.
        second = (patient % 2 == 1) ^ (rng.random(len(patient)) < 0.1)
        values[~second] += ahead
        groups = np.where(second, "b", "a").tolist()
        ways = [True] * len(SHAPES)
        found = gaps(values, groups, patient.astype(str).tolist(), ways, RESAMPLES, number)
        above += found.low[1] > -ahead
        below += found.high[1] < -ahead
    return above, below


def table(patients: int, counts: Counts, sets: int) -> str:
    """Markdown."""
    rows = [f"{patients} patients, {sets} data sets, {RESAMPLES} resamples", ""]
    rows += ["| score | covers the truth | lies above it | lies below it |", "|---|---|---|---|"]
    for shape, above, below in zip(SHAPES, *(100 * count / sets for count in counts), strict=True):
        rows.append(f"| {shape} | {100 - above - below:.1f}% | {above:.1f}% | {below:.1f}% |")
    return "\n".join(rows)


@pytest.mark.soak
@pytest.mark.parametrize("patients", [200, 500])
def test_the_interval_of_a_mean_covers_the_truth_in_as_many_data_sets_as_it_says(patients: int) -> None:
    counts = _means(patients, np.random.default_rng(0), SETS)
    _assert_covered(patients, counts)


@pytest.mark.soak
def test_percentile_ends_would_cover_too_little() -> None:
    counts = _percentiles(200, np.random.default_rng(0), SETS)
    text = table(200, counts, SETS)
    print(f"\n{text}")
    assert (1 - (counts[0] + counts[1]) / SETS).min() < COVERED[0], text


@pytest.mark.soak
def test_the_interval_of_a_gap_between_groups_covers_the_truth_as_often() -> None:
    _assert_covered(400, _gaps(400, np.random.default_rng(0), SETS))


def _assert_covered(patients: int, counts: Counts) -> None:
    text = table(patients, counts, SETS)
    print(f"\n{text}")
    covered = 1 - (counts[0] + counts[1]) / SETS
    assert covered.min() >= COVERED[0], text
    assert covered.max() <= COVERED[1], text
