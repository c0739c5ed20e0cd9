"""Speed of the intervals and tests beside plain loops over NumPy resampling.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/intervals.py [--studies 10000] [--resamples 10000]

Both sides resample the same scores (studies x 8 metrics) by patient, in turns in one run. The loops draw
patients and average their studies, resample by resample: `studies` gathers the rows of the patients drawn,
`sums` adds up each patient's sum and count, computed once. They run a share of the resamples, and their time
is extrapolated to all of them; ours is measured whole, and gives studentised ends where the loops give
percentiles. Seconds are CPU seconds, which other work on the machine moves less; wall clock is beside them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from unirg.evaluation.statistics import Array, bootstrap, gaps, randomisation

METRICS = 8
SHARE = 0.02
"""Of the resamples that the loops run."""
BAR = 10.0
"""Seconds of the bootstrap, at most."""


def _by_studies(values: Array, row: np.ndarray, resamples: int) -> Array:
    rng = np.random.default_rng(1)
    people = int(row.max()) + 1
    order = np.argsort(row, kind="stable")
    studies = np.split(order, np.cumsum(np.bincount(row))[:-1])
    means = np.empty((resamples, values.shape[1]))
    for resample in range(resamples):
        drawn = rng.integers(0, people, size=people)
        means[resample] = values[np.concatenate([studies[patient] for patient in drawn])].mean(axis=0)
    return np.quantile(means, [0.025, 0.975], axis=0)


def _by_sums(values: Array, row: np.ndarray, resamples: int) -> Array:
    rng = np.random.default_rng(1)
    people = int(row.max()) + 1
    sums = np.column_stack([np.bincount(row, column) for column in values.T])
    counts = np.bincount(row)
    means = np.empty((resamples, values.shape[1]))
    for resample in range(resamples):
        drawn = rng.integers(0, people, size=people)
        means[resample] = sums[drawn].sum(axis=0) / counts[drawn].sum()
    return np.quantile(means, [0.025, 0.975], axis=0)


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - processor, time.perf_counter() - wall


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=10_000)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    few = max(1, round(SHARE * asked.resamples))
    slowest = 0.0
    print(f"{asked.studies} studies x {METRICS} metrics, {asked.resamples} resamples, NumPy {np.__version__}")
    print(f"loops: {few} resamples, extrapolated to {asked.resamples}\n")
    for people in (asked.studies, asked.studies * 2 // 5):
        row = np.arange(asked.studies) % people
        values = rng.beta(1.2, 4, size=(asked.studies, METRICS))
        patients = row.astype(str).tolist()
        groups = [f"group {one}" for one in rng.integers(0, 5, size=asked.studies)]
        ours = _seconds(lambda: bootstrap(values, patients, asked.resamples, 1))  # noqa: B023
        studies = _seconds(lambda: _by_studies(values, row, few))  # noqa: B023
        sums = _seconds(lambda: _by_sums(values, row, few))  # noqa: B023
        again = _seconds(lambda: bootstrap(values, patients, asked.resamples, 1))  # noqa: B023
        swaps = _seconds(lambda: randomisation(values - 0.2, patients, asked.resamples, 1))  # noqa: B023
        ways = [True] * METRICS
        five = _seconds(lambda: gaps(values, groups, patients, ways, asked.resamples, 1))  # noqa: B023
        fastest = min(ours[0], again[0])
        slowest = max(slowest, ours[0], again[0])
        print(f"{people} patients{'':24} CPU s  wall s  beside the bootstrap")
        for name, (processor, wall) in (("bootstrap", ours), ("bootstrap again", again)):
            print(f"  {name:32} {processor:7.2f} {wall:7.2f}")
        for name, (processor, wall) in (("loop over studies", studies), ("loop over sums", sums)):
            scale = asked.resamples / few
            ratio = processor * scale / fastest
            print(
                f"  {name + ', extrapolated':32} {processor * scale:7.2f} {wall * scale:7.2f}  {ratio:.1f} x"
            )
        for name, (processor, wall) in (("randomisation", swaps), ("gaps of 5 groups", five)):
            print(f"  {name:32} {processor:7.2f} {wall:7.2f}")
        print()
    print(f"bootstrap: {slowest:.2f} s at most, the bar is {BAR:.0f} s")
    return int(slowest > BAR)


if __name__ == "__main__":
    sys.exit(main())
