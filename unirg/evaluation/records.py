"""What suites share: groups of studies, records of numbers as JSON types, alarms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirg.evaluation.candidates import SETTINGS
from unirg.evaluation.scores import Scores
from unirg.evaluation.statistics import Intervals
from unirg.study import Study

MIN_GROUP = 20
"""Studies that a group needs to be shown as numbers."""
MIN_PATIENTS = 10
"""Patients that it needs: below ten one could be recognised, and an interval means little."""
ALPHA = 0.05
"""Adjusted p-value below which a difference is told."""

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


def patients(scores: Scores, rows: Rows) -> list[str]:
    """Whose study each row is."""
    return [patient(scores.studies[row]) for row in rows]


def too_small(people: Sequence[str], min_group: int = MIN_GROUP) -> bool:
    """Whether studies, each given by its patient, are too few to be shown as numbers."""
    return len(people) < min_group or len(set(people)) < MIN_PATIENTS


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


def alarm(
    suite: str, name: str, system: str, value: float | None, limit: float | None, sentence: str
) -> Record:
    """What a reader must see first. The sentence holds no text of a report and no id."""
    shown = (None if each is None else number(each) for each in (value, limit))
    value, limit = shown
    return {
        **{"suite": suite, "alarm": name, "system": system},
        **{"value": value, "limit": limit, "sentence": sentence},
    }
