"""What suites share: the groups of studies that they report on, numbers as JSON types, alarms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirg.evaluation.candidates import SETTINGS, Setting
from unirg.evaluation.leaderboard import INVERSE
from unirg.evaluation.scores import ERRORS, Metric, Scores
from unirg.evaluation.statistics import Array, Intervals, excludes_zero
from unirg.metrics.catalog import CATALOG
from unirg.metrics.radcliq import board_value, radcliq_v1
from unirg.study import Study

MIN_GROUP = 20
"""Studies that a group needs to be shown as numbers."""
MIN_PATIENTS = 10
"""Patients that it needs: of fewer one could be recognised, and the bootstrap has too little to draw from."""
MIN_ALARM = 10
"""Studies from which a share of them raises an alarm, whether or not the group is shown as numbers: a model
that says one report to ten patients has collapsed, and of fewer a single one would be a large share."""
ALPHA = 0.05
"""Adjusted p-value below which a difference is told."""
RADCLIQ = "radcliq_v1"

Record = dict[str, Any]
Rows = NDArray[np.intp]
"""Indices of studies."""


def groups(scores: Scores) -> Iterator[tuple[Record, Rows]]:
    """Split x corpus x setting: the rows of the studies with a reference in that setting.

    Each split as a whole comes first where it has several corpora (corpus None), then each of its corpora.
    """
    split, corpus = (
        np.array([str(getattr(study, name)) for study in scores.studies], dtype=np.str_)
        for name in ("split", "corpus")
    )
    for name in np.unique(split).tolist():
        corpora = np.unique(corpus[split == name]).tolist()
        for each in [None, *corpora] if len(corpora) > 1 else corpora:
            inside = (split == name) & ((corpus == each) if each else True)
            for setting in SETTINGS:
                place = {"split": name, "corpus": each, "setting": setting}
                yield place, np.flatnonzero(inside & scores.eligible(setting))


def warns(place: Record) -> bool:
    """Whether alarms are raised for this group: once a split and corpus, over whole reports."""
    return place["corpus"] is not None and place["setting"] == "report"


def where(place: Record) -> str:
    """The group in words, for a sentence."""
    return f"{place['corpus'] or 'all corpora'}, {place['split']}"


def patient(study: Study) -> str:
    """Whose study it is; two corpora may give the same id to two patients."""
    return f"{study.corpus}/{study.patient_id}"


def patients(scores: Scores, rows: Rows | Sequence[int]) -> list[str]:
    """Whose study each row is."""
    return [patient(scores.studies[row]) for row in rows]


def too_small(people: Sequence[str], min_group: int = MIN_GROUP) -> bool:
    """Whether studies, each given by its patient, are too few to be shown as numbers."""
    return len(people) < min_group or len(set(people)) < MIN_PATIENTS


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
    """A number as JSON has it: None for NaN and the infinite."""
    # Six decimals: the last bits of a sum depend on the processor, and these bytes are digested.
    return round(float(value), 6) + 0.0 if math.isfinite(value) else None


def record(found: Intervals, column: int) -> Record:
    """mean, low, high, n, missing of one column."""
    return {
        **{name: number(getattr(found, name)[column]) for name in ("mean", "low", "high")},
        **{"n": int(found.n[column]), "missing": int(found.missing[column])},
    }


def difference(found: Intervals, column: int) -> Record:
    """One column of paired differences: its record, and whether the interval excludes zero."""
    low, high = float(found.low[column]), float(found.high[column])
    return record(found, column) | {"excludes_zero": excludes_zero(low, high)}


def inverse(found: Intervals, column: int) -> Record:
    """1/RadCliQ-v1 of a column of RadCliQ-v1. Of an interval that holds 0 the reciprocals are no interval."""
    middle, low, high = (float(each[column]) for each in (found.mean, found.low, found.high))
    ends = (1 / high, 1 / low) if low * high > 0 else (math.nan, math.nan)
    shown = board_value(middle)
    return record(found, column) | {
        "mean": None if shown is None else number(shown),
        "low": number(ends[0]),
        "high": number(ends[1]),
    }


def better(found: Record, higher_is_better: bool) -> bool | None:
    """Whether a difference's whole interval lies on the better side, True, or the worse one, False."""
    if not found["excludes_zero"]:
        return None
    return bool((found["mean"] > 0) == higher_is_better)


def alarm(
    suite: str, name: str, system: str | None, value: float | None, limit: float | None, sentence: str
) -> Record:
    """What a reader must see first, of one system or, None, of all. The sentence holds no text and no id."""
    value, limit = (None if each is None else number(each) for each in (value, limit))
    return {
        **{"suite": suite, "alarm": name, "system": system},
        **{"value": value, "limit": limit, "sentence": sentence},
    }
