"""Laws of the bootstrap, and its agreement with SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unirg.evaluation.statistics import bootstrap, excludes_zero, paired


def test_one_study_a_patient_gives_scipys_interval() -> None:
    values = np.random.default_rng(0).normal(size=40)
    ours = bootstrap(values[:, None], [f"p{i}" for i in range(40)], resamples=20_000, seed=1)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2)
    assert ours.mean[0] == pytest.approx(values.mean())
    assert ours.low[0] == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert ours.high[0] == pytest.approx(theirs.confidence_interval.high, abs=0.01)


def test_studies_of_a_patient_are_resampled_together_as_in_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(3)
    studies = rng.integers(1, 6, size=30)
    patients = np.repeat([f"p{i}" for i in range(30)], studies)
    values = np.repeat(rng.normal(size=30), studies) + rng.normal(scale=0.1, size=studies.sum())
    sums = np.array([values[patients == f"p{i}"].sum() for i in range(30)])

    def mean(total: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
        return total.sum(axis=axis) / count.sum(axis=axis)

    ours = bootstrap(values[:, None], patients.tolist(), resamples=20_000, seed=1)
    theirs = stats.bootstrap(
        (sums, studies), mean, n_resamples=20_000, method="percentile", paired=True, vectorized=True, rng=2
    )
    assert ours.low[0] == pytest.approx(theirs.confidence_interval.low, abs=0.015)
    assert ours.high[0] == pytest.approx(theirs.confidence_interval.high, abs=0.015)
    # Ignoring the patients would make the interval far too narrow.
    naive = bootstrap(values[:, None], [str(i) for i in range(len(values))], resamples=20_000, seed=1)
    assert ours.high[0] - ours.low[0] > 1.3 * (naive.high[0] - naive.low[0])


def test_a_missing_score_is_excluded_and_counted_never_zero() -> None:
    values = np.array([[1.0], [np.nan], [3.0], [np.nan]])
    found = bootstrap(values, ["a", "a", "b", "c"], resamples=500, seed=0)
    assert found.mean[0] == 2
    assert (found.n[0], found.missing[0]) == (2, 2)
    assert found.low[0] >= 1


def test_nothing_scored_and_one_patient_have_no_interval() -> None:
    values = np.array([[np.nan, 1.0], [np.nan, 2.0]])
    found = bootstrap(values, ["a", "a"], resamples=100, seed=0)
    assert np.isnan(found.mean[0])
    assert found.mean[1] == 1.5
    assert np.isnan([found.low, found.high]).all()
    empty = bootstrap(np.empty((0, 2)), [], resamples=100, seed=0)
    assert empty.n.tolist() == [0, 0]
    assert np.isnan(empty.mean).all()


def test_an_infinite_score_is_refused() -> None:
    with pytest.raises(ValueError, match="infinite"):
        bootstrap(np.array([[np.inf]]), ["a"], resamples=100, seed=0)


def test_the_interval_of_a_paired_difference_is_narrower_than_those_of_its_parts() -> None:
    rng = np.random.default_rng(5)
    hard = rng.normal(size=200)
    a, b = hard + 0.1 + rng.normal(scale=0.05, size=200), hard
    patients = [f"p{i}" for i in range(200)]
    found = bootstrap(np.column_stack([a, b, paired(a, b)]), patients, resamples=2000, seed=0)
    assert found.low[0] < found.high[1]  # apart, the systems' intervals overlap
    assert excludes_zero(found.low[2], found.high[2])
    assert not excludes_zero(np.nan, np.nan)


@settings(max_examples=40)
@given(
    values=st.lists(st.floats(-5, 5) | st.just(float("nan")), min_size=2, max_size=40),
    people=st.integers(1, 8),
    seed=st.integers(0, 2**32),
    shift=st.floats(-3, 3),
)
def test_intervals_hold_the_range_follow_a_shift_and_repeat(
    values: list[float], people: int, seed: int, shift: float
) -> None:
    column = np.array(values)[:, None]
    patients = [f"p{i % people}" for i in range(len(values))]
    found = bootstrap(column, patients, resamples=200, seed=seed)
    again = bootstrap(np.hstack([column + shift, column]), patients, resamples=200, seed=seed)
    np.testing.assert_array_equal(found.low, again.low[1:])
    np.testing.assert_allclose(found.low + shift, again.low[:1], atol=1e-9)
    if not np.isnan(found.low[0]):
        assert np.nanmin(column) - 1e-9 <= found.low[0] <= found.high[0] <= np.nanmax(column) + 1e-9


def test_the_number_of_resamples_in_a_block_does_not_change_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(0).random((50, 3))
    patients = [f"p{i % 20}" for i in range(50)]
    whole = bootstrap(values, patients, resamples=300, seed=7)
    monkeypatch.setattr("unirg.evaluation.statistics._BLOCK", 70)
    np.testing.assert_allclose(bootstrap(values, patients, resamples=300, seed=7).low, whole.low)
