"""One-sided tests of a mean over studies, by patient, at levels far out in the tail.

A gate that looks at one test set 52 times spends a thousandth at each look. There, what `statistics` does for
95% intervals no longer holds: its interval is symmetric, so of skewed differences (a model that gains a
little on most studies and loses much on a few) one end may be passed twice as often as it should. Here

- the bootstrap-t is taken on the one side that is tested (equal-tailed; Davison & Hinkley, Bootstrap Methods
  and their Application, 1997, 5.2), which follows the skew of the data, and
- it can only make the test stricter than Student's t with as many patients as would be worth the same had
  they equal numbers of studies (Kish, Survey Sampling, 1965). A tail of ten thousand resamples is noisy, and
  where few patients carry a difference it is too short.

So p is the larger of two, and where Student's is too large already nobody needs to resample. What was
measured: docs/gate.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from unirg.evaluation.statistics import Array

_NORMAL = NormalDist()
_BLOCK = 2_000_000
"""Entries of the (resamples x patients) matrix held at once: 16 MB."""


class Mean:
    """The mean of a column over studies, patients being what is drawn; a study that is NaN is none.

    Raises:
        ValueError: a value is infinite, or fewer than two patients have one.
    """

    def __init__(self, values: Array, patients: Sequence[str] | NDArray[np.int64]) -> None:
        scored = ~np.isnan(values)
        kept = values[scored]
        if np.isinf(kept).any():
            raise ValueError("an infinite score: a metric is broken")
        names, row = np.unique(np.asarray(patients)[scored], return_inverse=True)
        if len(names) < 2:
            raise ValueError(f"{len(names)} patients with a score: there is nothing to draw from")
        sums = np.bincount(row, kept)
        counts = np.bincount(row).astype(np.float64)
        self.studies, self.patients = len(kept), len(names)
        self.estimate = float(kept.mean())
        residual = sums - self.estimate * counts
        residual[np.abs(residual) <= 1e-12 * np.abs(sums)] = 0  # rounding is no spread
        self._stacked = np.column_stack([residual, counts, residual**2, residual * counts, counts**2])
        self._raw = math.sqrt(float((residual**2).sum())) / self.studies
        self.freedom = max(self.studies**2 / float((counts**2).sum()) - 1, 1.0)
        """Degrees of freedom, by Kish's number of patients."""
        self._kept: dict[tuple[int, int], Array] = {}

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self._raw * math.sqrt((self.freedom + 1) / self.freedom)

    def p(self, limit: float, level: float, resamples: int, seed: int) -> float:
        """p-value of "the mean is not above `limit`"; one above `level` may be Student's alone."""
        found = self.student_p(limit)
        if found > level:
            return found
        if self._raw == 0:
            return 1 / (resamples + 1)
        reached = int((self.resampled(resamples, seed) >= (self.estimate - limit) / self._raw).sum())
        return max(found, (1 + reached) / (1 + resamples))

    def student_p(self, limit: float) -> float:
        """The same by Student's t alone, which `p` is never below."""
        if self._raw == 0:
            return float(self.estimate <= limit)
        return student_tail((self.estimate - limit) / self.error, self.freedom)

    def bound(self, level: float, resamples: int, seed: int) -> float:
        """Lower bound of the mean: above a limit where and only where `p` of that limit is at most `level`.

        Raises:
            ValueError: a level that so few resamples do not reach.
        """
        beyond = math.floor(level * (resamples + 1) * (1 + 1e-12))
        if beyond < 1:
            raise ValueError(f"{resamples} resamples cannot tell a level of {level:.2g}")
        if self._raw == 0:
            return self.estimate
        drawn = np.partition(self.resampled(resamples, seed), resamples - beyond)[resamples - beyond]
        return min(self.estimate - float(drawn) * self._raw, self.student_bound(level))

    def student_bound(self, level: float) -> float:
        """Lower bound by Student's t alone: enough where its p-value is above every level in question."""
        return self.estimate - student_point(level, self.freedom) * self.error

    def resampled(self, resamples: int, seed: int) -> Array:
        """(resamples,) deviations of resampled means, each over its own standard error."""
        if (resamples, seed) not in self._kept:
            self._kept[resamples, seed] = self._draw(resamples, seed)
        return self._kept[resamples, seed]

    def _draw(self, resamples: int, seed: int) -> Array:
        rng = np.random.default_rng(seed)
        found = np.empty(resamples)
        block = max(1, _BLOCK // self.patients)
        for start in range(0, resamples, block):
            rows = min(block, resamples - start)
            drawn = rng.integers(0, self.patients, size=(rows, self.patients))
            drawn += np.arange(rows)[:, None] * self.patients
            times = np.bincount(drawn.ravel(), minlength=rows * self.patients)
            totals = times.reshape(rows, self.patients).astype(np.float64) @ self._stacked
            residual, size, square, product, size_square = totals.T
            shift = residual / size
            # Residuals around the resample's own mean are `residual - shift * count`.
            variance = np.maximum(square - 2 * shift * product + shift**2 * size_square, 0)
            least = 1e-6 * self._raw  # below it is rounding
            found[start : start + rows] = shift / np.maximum(np.sqrt(variance) / size, least)
        return found


def student_tail(t: float, freedom: float) -> float:
    """Probability that Student's t is beyond `t` (Wallace, Ann. Math. Stat. 30:1124, 1959).

    It is not below the exact one; of ten degrees 2% above at 1e-3 and 7% at 1e-5, of a hundred 0.1%.
    """
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return _NORMAL.cdf(-math.copysign(z, t))


def student_point(level: float, freedom: float) -> float:
    """The t beyond which Student's lies with probability `level`: `student_tail` turned round."""
    z = -_NORMAL.inv_cdf(level) * (8 * freedom + 3) / (8 * freedom + 1)
    return math.copysign(math.sqrt(freedom * math.expm1(z * z / freedom)), z)
