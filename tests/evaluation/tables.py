"""Scores as given, for suites that only read them: no engine, no texts but those that a test is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unirg.evaluation import scores as scoring
from unirg.evaluation.candidates import BASELINES, SETTINGS, System
from unirg.evaluation.scores import Scores
from unirg.study import Study

Columns = Mapping[str, Any]
"""Metric -> a number, or one a study; NaN where there is none."""


def visits(patients: int, times: int, corpus: str = "phantom", **fields: Any) -> list[Study]:
    """Patients with so many studies each, patient by patient, in order of time."""
    found = []
    for patient in range(patients):
        prior = None
        for number in range(1, times + 1):
            values: dict[str, Any] = {
                **{"corpus": corpus, "study_id": f"{corpus}-{patient}-{number}", "split": "test"},
                **{"patient_id": f"p{patient}", "institution": "north", "findings": "F", "impression": "I"},
                **{"encounter": number, "prior_study_id": prior},
            }
            study = Study(**values | fields)
            prior = study.study_id
            found.append(study)
    return found


def scored(studies: Sequence[Study], systems: Mapping[str, Columns], metrics: Sequence[str]) -> Scores:
    """Scores of the systems; each writes its own name for every study, the baselines are known by theirs."""
    known = []
    for name in systems:
        said = {study.study_id: name for study in studies}
        kind = "baseline" if name in BASELINES else "policy"
        known.append(System(name, kind, {setting: said for setting in SETTINGS}, {}, ""))  # type: ignore[arg-type]
    references = {
        "report": [study.findings or study.impression or "" for study in studies],
        "findings": [study.findings or "" for study in studies],
    }
    found = Scores(studies, known, scoring.metrics(metrics, {}), references)  # type: ignore[arg-type]
    for name, columns in systems.items():
        for setting in SETTINGS:
            for metric in found.metrics:
                value = np.broadcast_to(columns.get(metric, np.nan), len(studies)).astype(float)
                found.values[name, setting, metric] = value
    return found


def spread(mean: float, seed: int, size: int, scale: float = 0.1) -> np.ndarray:
    """Values around a mean that they have exactly."""
    noise = np.random.default_rng(seed).normal(scale=scale, size=size)
    return mean + noise - noise.mean()
