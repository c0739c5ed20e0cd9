"""Means with intervals, paired tests and corrections, all by patient. What was measured: docs/statistics.md.

**Intervals.** Studies of one patient resemble each other, so a resample draws patients with replacement and
takes all studies of each one drawn (cluster bootstrap: Field & Welsh, J. R. Stat. Soc. B 69:369, 2007). The
mean is over studies, a ratio: (sum over the studies drawn) / (number of studies drawn). The interval is the
symmetric bootstrap-t (Hall, J. R. Stat. Soc. B 50:35, 1988; Davison & Hinkley, Bootstrap Methods and their
Application, 1997, 5.2): mean -+ a quantile of |t| x standard error, where a resample's t is its deviation
from the mean over its own standard error, that of the linearised ratio, with one residual a patient (sum of
scores - mean x number of studies). Percentile and BCa ends (Efron, J. Am. Stat. Assoc. 82:171, 1987) covered
too little: scores and errors are skewed, and a few patients have many studies. For the latter the level is
moved as far as Student's t lies beyond the normal (Hesterberg, Am. Stat. 69:371, 2015), with as many patients
as would be worth the same had they equal numbers of studies (Kish, Survey Sampling, 1965). Where very few
patients carry a rare score, the t of resamples without them has no bound: the ends are held within the range
of the resampled means, so of the scores too.

All that a resample needs are weighted sums over patients of a residual, a count and their products, so all
resamples of all columns are one matrix product, (resamples x patients) @ (patients x sums), in blocks.

**Tests.** Of two systems: approximate randomisation (Noreen, Computer-Intensive Methods for Testing
Hypotheses, 1989; Riezler & Maxwell, ACL workshop on evaluation measures, 2005), all pairs of a patient
swapped together. Of groups of studies: the interval turned round. Many tests: Holm (Scand. J. Stat. 6:65,
1979).

A missing score is NaN: excluded, counted, never filled in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
_BLOCK = 2_000_000
"""Entries of the (resamples x patients) matrix held at once: 16 MB."""
_FLAT = 1e-6
"""A resample's standard error counts as at least this share of the data's: below it is rounding."""
_ROUNDING = 1e-12
"""Sums in another order differ by about this share: less than it is no difference."""


@dataclass(frozen=True)
class Intervals:
    """One entry a column of the values; NaN where there is nothing to estimate from.

    `low` and `high` need at least two patients: of one patient every resample is the same.
    """

    mean: Array
    low: Array
    high: Array
    n: NDArray[np.int64]
    """Studies with a score."""
    missing: NDArray[np.int64]
    """Studies without one."""


@dataclass(frozen=True)
class Gaps:
    """Groups against the best of them; every array but `best` is (groups, columns).

    `low`, `high` and the p-values are NaN for the best group itself, and for one with scores of fewer than
    two patients, which is never the best either.
    """

    groups: tuple[str, ...]
    """Sorted."""
    best: tuple[str | None, ...]
    """One a column; None where no group can be it."""
    mean: Array
    gap: Array
    """Mean of the group - mean of the best one; 0 for the best one."""
    low: Array
    high: Array
    p: Array
    """Two-sided, of no gap: the level left over when the interval ends at zero. Above 1 / (resamples + 1)."""
    adjusted: Array
    """`p` after Holm over all pairs of groups of a column: any of them might have been the best one."""
    n: NDArray[np.int64]
    """Studies with a score."""
    missing: NDArray[np.int64]
    """Studies without one."""


def bootstrap(
    values: Array, patients: Sequence[str], resamples: int, seed: int, level: float = LEVEL
) -> Intervals:
    """Mean over studies with its interval, for each column of `values`.

    All columns share the resamples, so a column may as well be a difference of two others (`paired`).

    Args:
        values: (studies, columns), NaN where a study has no score.
        patients: (studies,), whose study each row is.
        seed: the same seed gives the same intervals but for rounding, however many columns go along.

    Raises:
        ValueError: a value is infinite, or the number of patients is not that of the rows.
    """
    values, row, people = _checked(values, patients)
    sums, counts = _per_patient(values, row, people)
    n = counts.sum(axis=0).astype(np.int64)
    mean = _divided(sums.sum(axis=0), n)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    sure = (counts > 0).sum(axis=0) >= 2
    if sure.any():
        around = _Around(sums[:, sure], counts[:, sure])
        deviation, t = around.resampled(resamples, seed)
        low[sure], high[sure] = around.ends(mean[sure], deviation, t, level)
    return Intervals(mean, low, high, n, len(values) - n)


def paired(a: Array, b: Array) -> Array:
    """Differences a - b study by study, NaN where either has no score: bootstrap them as a column."""
    return a - b


def excludes_zero(low: float, high: float) -> bool:
    """Whether an interval lies on one side of zero; a missing interval does not."""
    return bool(low > 0 or high < 0)


def randomisation(differences: Array, patients: Sequence[str], resamples: int, seed: int) -> Array:
    """p-values of a paired approximate randomisation test, one a column; NaN where no pair has both scores.

    If two systems are alike, each patient's pairs might as well be the other way round. Swapping them turns
    the sign of the patient's sum of differences; the statistic is the mean difference, and p is
    (1 + randomisations with at least its size) / (1 + randomisations). Of k patients with a difference,
    p is not below about 2 / 2^k.

    Args:
        differences: (studies, columns), `paired`.
        patients: (studies,), whose study each row is.

    Raises:
        ValueError: as `bootstrap`.
    """
    differences, row, people = _checked(differences, patients)
    sums, counts = _per_patient(differences, row, people)
    observed = np.abs(sums.sum(axis=0))
    observed -= _ROUNDING * np.abs(sums).sum(axis=0)  # a randomisation that ties with the data counts
    rng = np.random.default_rng(seed)
    reached = np.zeros(sums.shape[1])
    block = max(1, _BLOCK // max(1, people))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        bits = rng.integers(0, 256, size=(rows, (people + 7) // 8), dtype=np.uint8)
        signs = np.unpackbits(bits, axis=1, count=people) * 2.0 - 1.0
        reached += (np.abs(signs @ sums) >= observed).sum(axis=0)
    return np.where(counts.sum(axis=0) > 0, (1 + reached) / (1 + resamples), np.nan)


def holm(p: Array, family: int | None = None) -> Array:
    """p-values adjusted by Holm's method, in the shape of `p`; a NaN stays one and is no test.

    Args:
        family: tests of the family, where `p` holds only some of them. Their adjusted values are then at
            least those that Holm gives them among all (a test ranks later there, so has a smaller factor).

    Raises:
        ValueError: a p-value outside [0, 1], or more of them than the family has.
    """
    p = np.asarray(p, dtype=np.float64)
    tested = ~np.isnan(p)
    raw = p[tested]
    size = len(raw) if family is None else family
    if size < len(raw):
        raise ValueError(f"{len(raw)} p-values of a family of {size}")
    if ((raw < 0) | (raw > 1)).any():
        raise ValueError("a p-value outside [0, 1]")
    order = np.argsort(raw, kind="stable")
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(np.maximum.accumulate(raw[order] * (size - np.arange(len(raw)))), 1)
    found = np.full_like(p, np.nan)
    found[tested] = adjusted
    return found


def gaps(
    values: Array,
    groups: Sequence[str | None],
    patients: Sequence[str],
    higher_is_better: Sequence[bool],
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> Gaps:
    """Each group of studies against the best group, column by column.

    Patients are resampled over all groups at once, so one with studies in two groups (at two ages, at two
    institutions) ties them. The best group is picked from the data, so even equal groups show gaps. Intervals
    are those of the two groups as named and know nothing of the picking; the adjusted p-values allow for it.

    Args:
        values: (studies, columns), NaN where a study has no score.
        groups: (studies,), None where a study is in none (one too small, an unknown age).
        patients: (studies,), whose study each row is.
        higher_is_better: (columns,).

    Raises:
        ValueError: as `bootstrap`, or the lengths differ.
    """
    values, row, people = _checked(values, patients)
    columns = values.shape[1]
    if len(groups) != len(values) or len(higher_is_better) != columns:
        raise ValueError("groups or directions do not match the values")
    names = tuple(sorted({group for group in groups if group is not None}))
    inside = np.array([[group == name for group in groups] for name in names], dtype=np.bool_)
    inside = inside.reshape(len(names), len(values))
    parts = [_per_patient(np.where(kept[:, None], values, np.nan), row, people) for kept in inside]
    shape = (len(names), people, columns)
    sums, counts = (np.array([part[i] for part in parts]).reshape(shape) for i in (0, 1))
    n = counts.sum(axis=1).astype(np.int64)
    mean = _divided(sums.sum(axis=1), n)
    sure = (counts > 0).sum(axis=1) >= 2
    merit = np.where(sure, np.where(higher_is_better, mean, -mean), -np.inf)
    best = merit.argmax(axis=0) if names else np.zeros(columns, dtype=np.int64)
    found = sure.any(axis=0)
    gap = np.full_like(mean, np.nan)
    gap[:, found] = mean[:, found] - mean[best[found], np.flatnonzero(found)]
    gap[np.abs(gap) <= _ROUNDING * np.abs(mean)] = 0
    low, high, p, adjusted = (np.full_like(mean, np.nan) for _ in range(4))
    place = np.cumsum(sure).reshape(sure.shape) - 1  # of a group's mean among those with an interval
    other, column = np.nonzero(sure & (np.arange(len(names))[:, None] != best))
    if len(other):
        around = _Around(
            np.moveaxis(sums, 1, 0)[:, sure],
            np.moveaxis(counts, 1, 0)[:, sure],
            (place[other, column], place[best[column], column]),
        )
        deviation, t = around.resampled(resamples, seed)
        compared = gap[other, column]
        low[other, column], high[other, column] = around.ends(compared, deviation, t, level)
        p[other, column] = around.p_values(compared, t)
    for one, able in enumerate(sure.sum(axis=0).tolist()):
        adjusted[:, one] = holm(p[:, one], able * (able - 1) // 2)
    chosen = tuple(names[at] if any_ else None for at, any_ in zip(best, found, strict=True))
    missing = inside.sum(axis=1)[:, None] - n
    return Gaps(names, chosen, mean, gap, low, high, p, adjusted, n, missing)


def _checked(values: Array, patients: Sequence[str]) -> tuple[Array, NDArray[np.intp], int]:
    """The values, each row's patient as a number, and how many patients there are."""
    values = np.asarray(values, dtype=np.float64)
    if len(patients) != len(values):
        raise ValueError(f"{len(values)} rows of values, {len(patients)} patients")
    if np.isinf(values).any():
        raise ValueError("an infinite score: a metric is broken")
    names, row = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
    return values, row, len(names)


def _per_patient(values: Array, row: NDArray[np.intp], people: int) -> tuple[Array, Array]:
    """Sums and counts of scores, (patients, columns)."""
    scored = ~np.isnan(values)
    sums, counts = (np.zeros((people, values.shape[1])) for _ in range(2))
    np.add.at(sums, row, np.where(scored, values, 0.0))
    np.add.at(counts, row, scored)
    return sums, counts


def _divided(sums: Array, n: NDArray[np.int64]) -> Array:
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no scored study
        return sums / n


class _Around:
    """Deviations of resampled means, or of differences of two means, from the data's.

    Args:
        sums, counts: (patients, columns); every column has a count.
        pairs: columns of the first and the second mean of each difference; None for the means themselves.
    """

    def __init__(
        self, sums: Array, counts: Array, pairs: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None
    ) -> None:
        self._pairs = pairs
        residual = sums - sums.sum(axis=0) / counts.sum(axis=0) * counts
        residual[np.abs(residual) <= _ROUNDING * np.abs(sums)] = 0
        # Most columns miss the same studies, mostly none: their sums of counts are needed once.
        sizes, self._which = np.unique(counts, axis=1, return_inverse=True)
        blocks = [residual, residual**2, residual * counts, sizes, sizes**2]
        if pairs is not None:
            first, second = pairs
            for left in (residual, counts):
                blocks += [left[:, first] * residual[:, second], left[:, first] * counts[:, second]]
        self._edges = np.cumsum([block.shape[1] for block in blocks])[:-1]
        self._stacked = np.hstack(blocks)
        variance = self._deviation(self._stacked.sum(axis=0)[None], pairs=False)[1][0]
        freedom = counts.sum(axis=0) ** 2 / (counts**2).sum(axis=0) - 1
        if pairs is not None:
            freedom = _welch(variance[first], variance[second], freedom[first], freedom[second])
            variance = self._deviation(self._stacked.sum(axis=0)[None])[1][0]
        self.error = np.sqrt(variance)
        """Standard error of each mean or difference, but for a factor that is the same in all resamples."""
        self._beyond = _student(freedom)

    def resampled(self, resamples: int, seed: int) -> tuple[Array, Array]:
        """Deviations and their t, (resamples, columns or pairs); NaN where one draws no score."""
        deviation, t = (np.empty((resamples, len(self.error))) for _ in range(2))
        least = np.maximum(_FLAT * self.error, np.finfo(np.float64).tiny)
        for rows, times in _drawn(len(self._stacked), resamples, seed):
            deviation[rows], variance = self._deviation(times @ self._stacked)
            t[rows] = deviation[rows] / np.maximum(np.sqrt(variance), least)
        return deviation, t

    def ends(self, estimate: Array, deviation: Array, t: Array, level: float) -> tuple[Array, Array]:
        """Ends of the intervals around `estimate`, one a column or pair."""
        normal = NormalDist()
        shares = [2 * normal.cdf(normal.inv_cdf((1 + level) / 2) * by) - 1 for by in self._beyond.tolist()]
        # A resample may draw only patients without a score; it has no mean and says nothing.
        sizes = [np.nanquantile(column, share) for column, share in zip(np.abs(t).T, shares, strict=True)]
        half = self.error * np.array(sizes)
        low = estimate + np.maximum(-half, np.nanmin(deviation, axis=0))
        high = estimate + np.minimum(half, np.nanmax(deviation, axis=0))
        # A resample without the only differing patient has the mean 0, which sums reach but for rounding.
        for end in (low, high):
            end[np.abs(end) <= _ROUNDING * (np.abs(estimate) + half)] = 0
        return low, high

    def p_values(self, estimate: Array, t: Array) -> Array:
        """Two-sided p-values of zero: at which level the interval would end there."""
        # Without any spread the least gap is beyond all resamples, as the interval has it; no gap is none.
        found = np.divide(
            np.abs(estimate), self.error, out=np.full_like(estimate, np.inf), where=self.error > 0
        )
        found[estimate == 0] = 0
        share = (1 + (np.abs(t) >= found).sum(axis=0)) / (1 + (~np.isnan(t)).sum(axis=0))
        normal = NormalDist()
        sizes = [normal.inv_cdf(half) for half in (share / 2).tolist()]
        return np.array([2 * normal.cdf(z / by) for z, by in zip(sizes, self._beyond.tolist(), strict=True)])

    def _deviation(self, totals: Array, pairs: bool = True) -> tuple[Array, Array]:
        """Deviations and their variances, from the sums over the patients drawn."""
        residual, square, product, size, size_square, *cross = np.split(totals, self._edges, axis=1)
        size, size_square = size[:, self._which.ravel()], size_square[:, self._which.ravel()]
        with np.errstate(invalid="ignore", divide="ignore"):
            # Residuals around the resample's own mean are `residual - shift * count`.
            shift = residual / size
            variance = (square - 2 * shift * product + shift**2 * size_square) / size**2
            if pairs and self._pairs is not None:
                (first, second), (ee, ec, ce, cc) = self._pairs, cross
                a, b = shift[:, first], shift[:, second]
                shared = (ee - b * ec - a * ce + a * b * cc) / (size[:, first] * size[:, second])
                variance = variance[:, first] + variance[:, second] - 2 * shared
                shift = a - b
        return shift, np.maximum(variance, 0)


def _drawn(people: int, resamples: int, seed: int) -> Iterator[tuple[slice, Array]]:
    """How many times each patient is drawn, (resamples, patients), in blocks of resamples."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // people)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, people, size=(rows, people))
        drawn += np.arange(rows)[:, None] * people
        times = np.bincount(drawn.ravel(), minlength=rows * people).reshape(rows, people)
        yield slice(start, start + rows), times.astype(np.float64)


def _student(freedom: Array) -> Array:
    """How many times farther than the normal's Student's 97.5% point lies, and its standard error is wider.

    By the first terms of the expansion at infinity (Abramowitz & Stegun 26.7.5): 2% short at 4 degrees.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    farther = 1 + (z**2 + 1) / (4 * freedom) + (5 * z**4 + 16 * z**2 + 3) / (96 * freedom**2)
    return farther * np.sqrt((freedom + 1) / freedom)


def _welch(first: Array, second: Array, of_first: Array, of_second: Array) -> Array:
    """Degrees of freedom of a difference, from the variances of two means and theirs (Welch 1947)."""
    with np.errstate(invalid="ignore"):  # 0 / 0: neither has spread
        found = (first + second) ** 2 / (first**2 / of_first + second**2 / of_second)
    return np.where(np.isnan(found), np.minimum(of_first, of_second), found)
