"""Laws of the bootstrap, and its agreement with SciPy's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unirg.evaluation.statistics import (
    _Around,
    bootstrap,
    excludes_zero,
    gaps,
    holm,
    paired,
    randomisation,
)


def studentised(total: np.ndarray, count: np.ndarray, mean: float, axis: int = -1) -> np.ndarray:
    """t of a resample, from its patients' sums and counts: apart from ours, for SciPy to resample."""
    found = total.sum(axis=axis) / count.sum(axis=axis)
    residuals = total - np.expand_dims(found, axis) * count
    return (found - mean) * count.sum(axis=axis) / np.sqrt((residuals**2).sum(axis=axis))


def scipys_bootstrap_t(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The symmetric bootstrap-t interval from the quantile of |t| that `scipy.stats.bootstrap` finds."""
    mean = sums.sum() / counts.sum()
    error = np.sqrt(((sums - mean * counts) ** 2).sum()) / counts.sum()
    worth = counts.sum() ** 2 / (counts**2).sum()
    beyond = stats.t.ppf(0.975, worth - 1) * np.sqrt(worth / (worth - 1))
    size = stats.bootstrap(
        (sums, counts),
        lambda total, count, axis=-1: np.abs(studentised(total, count, mean, axis)),
        n_resamples=20_000,
        method="percentile",
        paired=True,
        vectorized=True,
        alternative="less",
        confidence_level=2 * stats.norm.cdf(beyond) - 1,
        rng=2,
    ).confidence_interval.high
    return mean - error * size, mean + error * size


def test_one_study_a_patient_gives_scipys_interval() -> None:
    values = np.random.default_rng(0).gamma(4, size=40)
    ours = bootstrap(values[:, None], [f"p{i}" for i in range(40)], resamples=20_000, seed=1)
    assert ours.mean[0] == pytest.approx(values.mean())
    low, high = scipys_bootstrap_t(values, np.ones(40))
    assert ours.low[0] == pytest.approx(low, abs=0.03)
    assert ours.high[0] == pytest.approx(high, abs=0.03)
    # SciPy's own methods agree with it where there are many.
    values = np.random.default_rng(0).gamma(0.7, size=2000)
    ours = bootstrap(values[:, None], [f"p{i}" for i in range(2000)], resamples=10_000, seed=1)
    theirs = stats.bootstrap((values,), np.mean, method="BCa", rng=2).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low[0] == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high[0] == pytest.approx(theirs.high, abs=0.03 * width)


def test_the_resampled_means_are_scipys() -> None:
    values = np.random.default_rng(0).normal(size=40)
    deviation, _ = _Around(values[:, None], np.ones((40, 1))).resampled(20_000, 1)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2)
    low, high = values.mean() + np.quantile(deviation[:, 0], [0.025, 0.975])
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.01)


def test_studies_of_a_patient_are_resampled_together_as_in_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(3)
    studies = rng.integers(1, 6, size=30)
    patients = np.repeat([f"p{i}" for i in range(30)], studies)
    values = np.repeat(rng.normal(size=30), studies) + rng.normal(scale=0.1, size=studies.sum())
    sums = np.array([values[patients == f"p{i}"].sum() for i in range(30)])
    ours = bootstrap(values[:, None], patients.tolist(), resamples=20_000, seed=1)
    low, high = scipys_bootstrap_t(sums, studies.astype(float))
    assert ours.low[0] == pytest.approx(low, abs=0.02)
    assert ours.high[0] == pytest.approx(high, abs=0.02)
    # Ignoring the patients would make the interval far too narrow.
    naive = bootstrap(values[:, None], [str(i) for i in range(len(values))], resamples=20_000, seed=1)
    assert ours.high[0] - ours.low[0] > 1.3 * (naive.high[0] - naive.low[0])


def test_a_rare_score_has_an_interval_like_the_exact_one_not_the_whole_range() -> None:
    for events in (1, 2, 3, 5, 10):
        values = np.zeros((200, 1))
        values[:events] = 1
        found = bootstrap(values, [f"p{i}" for i in range(200)], resamples=10_000, seed=0)
        exact = stats.binomtest(events, 200).proportion_ci(method="exact")
        assert exact.low - 0.012 < found.low[0] < events / 200
        assert 0.8 * exact.high < found.high[0] < 1.4 * exact.high


def test_a_difference_that_one_patient_carries_has_an_interval_that_ends_at_zero() -> None:
    for n in range(60, 400, 7):
        values = np.zeros((n, 2))
        values[0] = 1, -1
        found = bootstrap(values, [f"p{i}" for i in range(n)], resamples=1000, seed=0)
        assert (found.low[0], found.high[1]) == (0, 0)
        assert not any(map(excludes_zero, found.low.tolist(), found.high.tolist()))


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
    np.testing.assert_allclose(found.low, again.low[1:], rtol=0, atol=1e-9)
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


def test_randomisation_gives_the_exact_p_value_of_all_swaps() -> None:
    rng = np.random.default_rng(1)
    row = np.repeat(np.arange(9), rng.integers(1, 4, size=9))
    differences = rng.normal(0.4, 1, size=len(row)) + rng.normal(size=9)[row]
    sums = np.bincount(row, differences)
    swaps = np.array(list(itertools.product([-1, 1], repeat=9)))
    exact = (np.abs(swaps @ sums) >= abs(sums.sum()) - 1e-12).mean()
    p = randomisation(differences[:, None], row.astype(str).tolist(), resamples=50_000, seed=0)
    assert p[0] == pytest.approx(exact, abs=0.01)
    theirs = stats.permutation_test(
        (sums, np.zeros(9)), lambda a, b, axis: (a - b).sum(axis=axis), permutation_type="samples"
    )
    assert p[0] == pytest.approx(theirs.pvalue, abs=0.01)


def test_p_values_of_randomisation_are_uniform_under_the_null_and_small_under_an_effect() -> None:
    rng = np.random.default_rng(0)
    row = np.repeat(np.arange(40), rng.integers(1, 5, size=40))
    patients = [f"p{i}" for i in row]
    # Each column is a data set of its own: systems alike, scores correlated within a patient.
    alike = rng.normal(size=(40, 600))[row] + rng.normal(size=(len(row), 600))
    p = randomisation(alike, patients, resamples=1000, seed=1)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert 0.03 < (p <= 0.05).mean() < 0.07
    # Swapping study by study would find differences where there are none.
    naive = randomisation(alike, [str(i) for i in range(len(row))], resamples=1000, seed=1)
    assert (naive <= 0.05).mean() > 0.12
    assert (randomisation(alike + 1, patients, resamples=1000, seed=1) <= 0.05).mean() > 0.9


def test_randomisation_leaves_missing_pairs_out_and_says_nothing_of_none() -> None:
    differences = np.array(
        [[1.0, np.nan, 0.0], [2.0, np.nan, 0.0], [np.nan, np.nan, 0.0], [4.0, np.nan, 0.0]]
    )
    p = randomisation(differences, ["a", "b", "c", "d"], resamples=4000, seed=0)
    assert p[0] == pytest.approx(0.25, abs=0.03)  # of three patients: two of eight ways are as far
    assert np.isnan(p[1])
    assert p[2] == 1
    same = randomisation(differences[[0, 1, 3]], ["a", "b", "d"], resamples=4000, seed=0)
    assert same[0] == pytest.approx(0.25, abs=0.03)
    assert np.isnan(randomisation(np.empty((0, 2)), [], resamples=10, seed=0)).all()


def test_holm_gives_the_values_of_the_method_by_hand() -> None:
    found = holm(np.array([[0.01, 0.04], [0.03, np.nan]]))
    np.testing.assert_allclose(found, [[0.03, 0.06], [0.06, np.nan]])
    np.testing.assert_allclose(holm(np.array([0.01, 0.04]), family=6), [0.06, 0.2])
    assert holm(np.array([np.nan])).shape == (1,)
    with pytest.raises(ValueError, match="family of 1"):
        holm(np.array([0.1, 0.2]), family=1)
    with pytest.raises(ValueError, match="outside"):
        holm(np.array([1.2]))


@given(p=st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=30), more=st.integers(0, 5))
def test_holm_keeps_the_order_and_lies_between_the_raw_and_bonferronis(p: list[float], more: int) -> None:
    raw = np.array(p, dtype=np.float64)
    adjusted = holm(raw)
    tested = ~np.isnan(raw)
    size = int(tested.sum())
    np.testing.assert_array_equal(np.isnan(adjusted), ~tested)
    assert (adjusted[tested] >= raw[tested]).all()
    assert (adjusted[tested] <= np.minimum(size * raw[tested], 1)).all()
    assert (np.diff(adjusted[tested][np.argsort(raw[tested])]) >= 0).all()
    assert (holm(raw, size + more)[tested] >= adjusted[tested]).all()
    # A part of a family gets no less than in the family as a whole.
    part = np.where(np.arange(len(raw)) % 2 == 0, raw, np.nan)
    inside = ~np.isnan(part)
    assert (holm(part, size)[inside] >= adjusted[inside]).all()


def test_a_planted_drop_in_one_group_is_found_and_equal_groups_are_not() -> None:
    rng = np.random.default_rng(0)
    row = np.repeat(np.arange(300), rng.integers(1, 5, size=300))
    # A patient is seen at more than one site, so the groups share patients.
    site = rng.choice(["a", "b", "c", "d"], size=len(row))
    scores = 0.3 + 0.1 * rng.normal(size=300)[row] + 0.1 * rng.normal(size=len(row))
    errors = rng.poisson(2, size=len(row)).astype(float)
    values = np.column_stack([scores - 0.1 * (site == "c"), errors + (site == "b"), scores])
    found = gaps(values, site.tolist(), row.astype(str).tolist(), [True, False, True], 4000, 0)
    assert found.groups == ("a", "b", "c", "d")
    for column, worst, sign in ((0, "c", -1), (1, "b", 1)):
        at = found.groups.index(worst)
        assert found.adjusted[at, column] < 0.01
        assert sign * found.gap[at, column] > 0
        assert excludes_zero(found.low[at, column], found.high[at, column])
        others = np.delete(found.adjusted[:, column], at)
        assert np.nanmin(others) > 0.05
    assert np.nanmin(found.adjusted[:, 2]) > 0.05
    for column, name in enumerate(found.best):
        assert name is not None
        best = found.groups.index(name)
        assert found.gap[best, column] == 0
        assert np.isnan(found.low[best, column])
        assert np.isnan(found.p[best, column])
    np.testing.assert_allclose(found.mean[0, 0], values[site == "a", 0].mean())


def test_gaps_of_disjoint_patients_have_the_error_of_the_two_means() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(400, 1))
    groups = ["one"] * 200 + ["two"] * 200
    found = gaps(values, groups, [str(i) for i in range(400)], [True], 20_000, 0)
    welch = stats.ttest_ind(values[:200, 0], values[200:, 0], equal_var=False)
    at = int(np.nanargmax(np.abs(found.gap[:, 0])))
    sign = 1 if found.groups[at] == "one" else -1
    interval = welch.confidence_interval()
    low, high = sorted((sign * interval.low, sign * interval.high))
    assert found.low[at, 0] == pytest.approx(low, abs=0.01)
    assert found.high[at, 0] == pytest.approx(high, abs=0.01)
    assert found.p[at, 0] == pytest.approx(welch.pvalue, abs=0.02)
    assert found.adjusted[at, 0] == found.p[at, 0]  # one pair: a family of one


def test_the_same_patients_in_both_groups_narrow_the_gap_as_pairs_do() -> None:
    rng = np.random.default_rng(5)
    hard = rng.normal(size=200)
    values = np.concatenate([hard, hard - 0.1 + rng.normal(scale=0.05, size=200)])[:, None]
    groups = ["before"] * 200 + ["after"] * 200
    patients = [str(i) for i in range(200)] * 2
    found = gaps(values, groups, patients, [True], 4000, 0)
    pairs = bootstrap(paired(values[200:], values[:200]), patients[:200], 4000, 0)
    assert found.best == ("before",)
    np.testing.assert_allclose(found.gap[0], pairs.mean)
    np.testing.assert_allclose([found.low[0], found.high[0]], [pairs.low, pairs.high], atol=1e-4)


def test_a_group_of_one_patient_has_a_mean_and_no_interval_and_is_never_the_best() -> None:
    values = np.array([[0.1], [0.2], [0.3], [9.0], [9.0], [np.nan], [5.0]])
    groups = ["many", "many", "many", "one", "one", "none", None]
    found = gaps(values, groups, ["a", "b", "c", "d", "d", "e", "f"], [True], 200, 0)
    assert found.groups == ("many", "none", "one")
    assert found.best == ("many",)
    assert found.mean[2, 0] == 9
    assert (found.n[:, 0].tolist(), found.missing[:, 0].tolist()) == ([3, 0, 2], [0, 1, 0])
    assert np.isnan(found.low).all()
    assert np.isnan(found.adjusted).all()
    nothing = gaps(values[3:5], ["one", "one"], ["d", "d"], [True], 200, 0)
    assert nothing.best == (None,)
    assert np.isnan(nothing.gap).all()
    assert gaps(np.empty((0, 2)), [], [], [True, True], 200, 0).best == (None, None)
    with pytest.raises(ValueError, match="match"):
        gaps(values, groups[1:], ["a"] * 7, [True], 200, 0)


def test_scores_without_spread_have_no_gap_by_rounding_and_an_interval_of_no_width_for_a_real_one() -> None:
    values = np.full((60, 2), 0.1)
    values[:20, 1] = 0.3
    found = gaps(values, ["a"] * 20 + ["b"] * 40, [str(i % 29) for i in range(60)], [True, True], 500, 0)
    assert found.gap[:, 0].tolist() == [0, 0]
    assert np.nanmin(found.p[:, 0]) == 1
    assert found.best[1] == "a"
    assert found.low[1, 1] == found.high[1, 1] == pytest.approx(-0.2)
    assert found.p[1, 1] == pytest.approx(0.003, abs=0.002)


def test_of_equal_groups_the_adjusted_p_values_find_a_gap_in_at_most_one_data_set_of_twenty() -> None:
    rng = np.random.default_rng(0)
    row = np.repeat(np.arange(120), rng.integers(1, 4, size=120))
    groups = [f"g{i}" for i in row % 5]
    values = rng.normal(size=(120, 400))[row] + rng.normal(size=(len(row), 400))
    found = gaps(values, groups, row.astype(str).tolist(), [True] * 400, 1000, 1)
    assert (np.nanmin(found.adjusted, axis=0) <= 0.05).mean() <= 0.07
    # Picking the best group first and not correcting for it would find one in far more.
    assert (np.nanmin(found.p, axis=0) <= 0.05).mean() > 0.15
