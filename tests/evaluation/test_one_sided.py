"""One-sided tests: bound and p-value agree, patients count and not studies, skew is followed."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from unirg.evaluation.one_sided import Mean, student_point, student_tail

RESAMPLES = 4000


def people(patients: int, times: int = 1) -> np.ndarray:
    return np.repeat(np.arange(patients), times)


@pytest.mark.parametrize("freedom", [10, 30, 200])
@pytest.mark.parametrize("level", [0.05, 1e-3, 1e-5])
def test_students_tail_is_never_below_the_exact_one_and_close_to_it(freedom: float, level: float) -> None:
    point = float(stats.t.isf(level, freedom))
    assert level * (1 - 1e-4) <= student_tail(point, freedom) <= level * 1.07
    assert student_tail(-point, freedom) == pytest.approx(1 - student_tail(point, freedom))
    assert student_tail(student_point(level, freedom), freedom) == pytest.approx(level)


@pytest.mark.parametrize("level", [0.05, 0.01, 0.001])
@pytest.mark.parametrize("seed", range(4))
def test_the_bound_is_above_a_limit_where_p_is_at_most_the_level(level: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean = Mean(rng.exponential(size=120) - 0.6, people(60, 2))
    bound = mean.bound(level, RESAMPLES, 1)
    assert mean.p(bound - 1e-9, level, RESAMPLES, 1) <= level
    assert mean.p(bound + 1e-9, level, RESAMPLES, 1) > level


def test_one_study_a_patient_with_many_patients_is_the_normal_test() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=4000)
    mean = Mean(values, people(4000))
    normal = values.mean() - NormalDist().inv_cdf(0.95) * values.std(ddof=1) / np.sqrt(4000)
    assert mean.bound(0.05, RESAMPLES, 1) == pytest.approx(normal, abs=0.05 * mean.error)
    assert mean.error == pytest.approx(values.std(ddof=1) / np.sqrt(4000))


def test_the_same_studies_told_twice_are_no_more_patients() -> None:
    values = np.random.default_rng(0).normal(size=80)
    once, twice = Mean(values, people(80)), Mean(np.repeat(values, 2), people(80, 2))
    assert twice.error == pytest.approx(once.error)
    assert twice.freedom == pytest.approx(once.freedom) == pytest.approx(79)
    assert twice.bound(0.01, RESAMPLES, 1) == pytest.approx(once.bound(0.01, RESAMPLES, 1))
    assert (twice.studies, twice.patients) == (160, 80)


def test_one_patient_with_most_of_the_studies_counts_for_few() -> None:
    values = np.random.default_rng(0).normal(size=150)
    uneven = np.concatenate([np.zeros(100, dtype=np.int64), np.arange(1, 51)])
    assert Mean(values, uneven).freedom == pytest.approx(150**2 / (100**2 + 50) - 1)


def test_a_skew_that_an_ordinary_test_falls_for_is_followed() -> None:
    # A small gain in most studies and a great loss in few: the mean gain is 0.
    loss, share = 3.0, 0.03
    rng = np.random.default_rng(0)
    level, sets, fooled, passed = 0.01, 400, 0, 0
    for seed in range(sets):
        lost = rng.random(150) < share
        values = np.where(lost, -loss, loss * share / (1 - share)) + rng.normal(scale=0.2, size=150)
        mean = Mean(values, people(150))
        fooled += student_tail(mean.estimate / mean.error, mean.freedom) <= level
        passed += mean.p(0.0, level, RESAMPLES, seed) <= level
    assert fooled > 4 * level * sets
    assert passed < fooled / 2


def test_the_bootstrap_makes_the_test_stricter_and_never_easier() -> None:
    for seed in range(8):
        values = np.random.default_rng(seed).exponential(size=60) - 0.5
        mean = Mean(values, people(60))
        assert mean.bound(0.01, RESAMPLES, seed) <= mean.student_bound(0.01)
        assert mean.p(0.0, 1.0, RESAMPLES, seed) >= student_tail(mean.estimate / mean.error, mean.freedom)


def test_the_same_seed_gives_the_same_and_another_nearly() -> None:
    values = 2 - np.random.default_rng(0).exponential(size=60)
    first, again, other = (Mean(values, people(60)).bound(0.01, RESAMPLES, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first == pytest.approx(other, rel=0.1)


def test_missing_scores_are_left_out() -> None:
    values = np.array([1.0, np.nan, 2.0, 3.0])
    mean = Mean(values, ["a", "b", "c", "c"])
    assert (mean.estimate, mean.studies, mean.patients) == (2.0, 3, 2)


def test_without_spread_the_mean_is_its_bound() -> None:
    mean = Mean(np.full(20, 0.5), people(20))
    assert mean.bound(0.01, RESAMPLES, 1) == 0.5
    assert mean.p(0.5, 0.05, RESAMPLES, 1) == 1
    assert mean.p(0.4, 0.05, RESAMPLES, 1) == 1 / (RESAMPLES + 1)


def test_what_cannot_be_tested_raises() -> None:
    with pytest.raises(ValueError, match="1 patients with a score"):
        Mean(np.array([1.0, 2.0, np.nan]), ["a", "a", "b"])
    with pytest.raises(ValueError, match="infinite"):
        Mean(np.array([1.0, np.inf]), ["a", "b"])
    with pytest.raises(ValueError, match=r"100 resamples cannot tell a level of 0\.001"):
        Mean(np.arange(20.0), people(20)).bound(0.001, 100, 1)
