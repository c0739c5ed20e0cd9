"""Means with bootstrap intervals, resampled by patient.

Studies of one patient resemble each other, so a resample draws patients with replacement and takes all
studies of each one drawn (a cluster bootstrap with percentile intervals). The mean is over studies: for a
resample it is (sum over studies drawn) / (number of studies drawn), which needs only each patient's sum and
count. So all resamples are one matrix product, (resamples x patients counts) @ (patients x metrics sums),
done in blocks that fit the cache.

A missing score is NaN: excluded, counted, never filled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
_BLOCK = 2_000_000
"""Entries of the (resamples x patients) matrix held at once: 16 MB."""


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


def bootstrap(
    values: Array, patients: Sequence[str], resamples: int, seed: int, level: float = LEVEL
) -> Intervals:
    """Mean over studies with its percentile interval, for each column of `values`.

    All columns share the resamples, so a column may as well be a difference of two others (`paired`).

    Args:
        values: (studies, columns), NaN where a study has no score.
        patients: (studies,), whose study each row is.
        seed: the same seed gives the same intervals, however many columns go along.

    Raises:
        ValueError: a value is infinite, or the number of patients is not that of the rows.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(patients) != len(values):
        raise ValueError(f"{len(values)} rows of values, {len(patients)} patients")
    if np.isinf(values).any():
        raise ValueError("an infinite score: a metric is broken")
    scored = ~np.isnan(values)
    n = scored.sum(axis=0)
    sums, counts = _per_patient(np.where(scored, values, 0.0), scored, patients)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no scored study
        mean = sums.sum(axis=0) / n
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    sure = (counts > 0).sum(axis=0) >= 2
    if sure.any():
        means = _resampled(sums[:, sure], counts[:, sure], resamples, seed)
        # A resample may draw only patients without a score; it has no mean and says nothing.
        low[sure], high[sure] = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Intervals(mean, low, high, n, len(values) - n)


def paired(a: Array, b: Array) -> Array:
    """Differences a - b study by study, NaN where either has no score: bootstrap them as a column."""
    return a - b


def excludes_zero(low: float, high: float) -> bool:
    """Whether an interval lies on one side of zero; a missing interval does not."""
    return bool(low > 0 or high < 0)


def _per_patient(filled: Array, scored: NDArray[np.bool_], patients: Sequence[str]) -> tuple[Array, Array]:
    """Sums and counts of scores, (patients, columns)."""
    names, row = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
    sums, counts = (np.zeros((len(names), filled.shape[1])) for _ in range(2))
    np.add.at(sums, row, filled)
    np.add.at(counts, row, scored)
    return sums, counts


def _resampled(sums: Array, counts: Array, resamples: int, seed: int) -> Array:
    """Means of the resamples, (resamples, columns)."""
    people = len(sums)
    # Most columns miss the same studies, mostly none: their denominators are computed once.
    sizes, which = np.unique(counts, axis=1, return_inverse=True)
    stacked = np.hstack([sums, sizes])
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, sums.shape[1]))
    block = max(1, _BLOCK // people)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, people, size=(rows, people))
        drawn += np.arange(rows)[:, None] * people
        times = np.bincount(drawn.ravel(), minlength=rows * people).reshape(rows, people)
        totals = times.astype(np.float64) @ stacked
        with np.errstate(invalid="ignore"):
            means[start : start + rows] = (
                totals[:, : sums.shape[1]] / totals[:, sums.shape[1] :][:, which.ravel()]
            )
    return means
