"""What suites share: the groups of studies that they report on, and one mean as a record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from unirg.evaluation.candidates import SETTINGS, Setting
from unirg.evaluation.leaderboard import INVERSE
from unirg.evaluation.scores import ERRORS, Metric, Scores
from unirg.evaluation.statistics import Array, Intervals, excludes_zero
from unirg.metrics.catalog import CATALOG
from unirg.metrics.radcliq import board_value, radcliq_v1

Record = dict[str, Any]
RADCLIQ = "radcliq_v1"
MIN_PATIENTS = 10
"""A group of fewer patients has no numbers: the bootstrap has too little to draw from."""


def places(scores: Scores) -> Iterator[tuple[Record, np.ndarray]]:
    """Each split as a whole (corpus None) where it has several corpora, then each of its corpora."""
    split, corpus = (
        np.array([str(getattr(study, name)) for study in scores.studies], dtype=np.str_)
        for name in ("split", "corpus")
    )
    for name in np.unique(split).tolist():
        inside = split == name
        corpora = np.unique(corpus[inside]).tolist()
        if len(corpora) > 1:
            yield {"split": name, "corpus": None}, inside
        for each in corpora:
            yield {"split": name, "corpus": each}, inside & (corpus == each)


def patients(scores: Scores, rows: list[int]) -> list[str]:
    """Whose study each row is; patients of two corpora are two, even where their ids are the same."""
    return [f"{scores.studies[row].corpus}/{scores.studies[row].patient_id}" for row in rows]


def with_radcliq(scores: Scores) -> tuple[dict[tuple[str, Setting, str], Array], dict[str, Metric]]:
    """The scores and their metrics, with RadCliQ-v1 from its parts where they are there and it is not."""
    values, metrics = dict(scores.values), dict(scores.metrics)
    parts = CATALOG[RADCLIQ].parts
    if RADCLIQ not in metrics and all(part in metrics for part in parts):
        entry = CATALOG[RADCLIQ]
        metrics[RADCLIQ] = Metric(entry.label, entry.higher_is_better, judged=False, modelled=True)
        for system in scores.systems:
            for setting in SETTINGS:
                columns = [scores.values[system.name, setting, part] for part in parts]
                values[system.name, setting, RADCLIQ] = radcliq_v1(*columns)
    return values, metrics


def without_categories(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metrics but for errors by category, which have a suite of their own."""
    kept = (ERRORS[0], ERRORS[1])
    return {name: metric for name, metric in metrics.items() if name not in ERRORS or name in kept}


def about(metrics: Mapping[str, Metric]) -> Record:
    """Label and direction of each metric, of 1/RadCliQ-v1 too where RadCliQ-v1 is among them."""
    found = {n: {"label": m.label, "higher_is_better": m.higher_is_better} for n, m in metrics.items()}
    if RADCLIQ in found:
        found[INVERSE] = {"label": "1/RadCliQ-v1", "higher_is_better": True}
    return found


def number(value: float) -> float | None:
    """None where it is not finite; six decimals, as the last bits of a sum depend on the processor."""
    return round(value, 6) + 0.0 if math.isfinite(value) else None


def mean(found: Intervals, column: int) -> Record:
    """One column as mean, low, high, n, missing."""
    return {
        **{name: number(float(getattr(found, name)[column])) for name in ("mean", "low", "high")},
        **{"n": int(found.n[column]), "missing": int(found.missing[column])},
    }


def difference(found: Intervals, column: int) -> Record:
    """One column of paired differences: `mean`, and whether its interval excludes zero."""
    low, high = float(found.low[column]), float(found.high[column])
    return mean(found, column) | {"excludes_zero": excludes_zero(low, high)}


def inverse(found: Intervals, column: int) -> Record:
    """1/RadCliQ-v1 of a column of RadCliQ-v1. Of an interval that holds 0 the reciprocals are no interval."""
    middle, low, high = (float(each[column]) for each in (found.mean, found.low, found.high))
    ends = (1 / high, 1 / low) if low * high > 0 else (math.nan, math.nan)
    shown = board_value(middle)
    return mean(found, column) | {
        "mean": None if shown is None else number(shown),
        "low": number(ends[0]),
        "high": number(ends[1]),
    }


def better(record: Record, higher_is_better: bool) -> bool | None:
    """Whether a difference's whole interval lies on the better side, True, or the worse one, False."""
    if not record["excludes_zero"]:
        return None
    return bool((record["mean"] > 0) == higher_is_better)
