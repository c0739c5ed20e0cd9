"""Every score of every system on every study; a missing one is NaN and has its reason.

Scores come from the metric engine, which keeps what it computed (by digest, never with the texts), so that
an evaluation that was killed goes on where it was, and asks the judge once for each distinct pair of texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from unirg import telemetry
from unirg.evaluation.candidates import SETTINGS, Setting, System, reference
from unirg.evaluation.statistics import Array
from unirg.metrics import catalog
from unirg.metrics.catalog import CATALOG
from unirg.metrics.chexprompt import CATEGORIES
from unirg.metrics.engine import Engine, Scored
from unirg.metrics.reward import composite
from unirg.metrics.verdicts import NO_JUDGE
from unirg.study import Study

ERRORS = (
    *("errors", "errors_significant", *(f"errors_{name}" for name in CATEGORIES)),
    *(f"errors_{name}_significant" for name in CATEGORIES),
)
"""The judge's scores; they stand in every evaluation, missing where no judge was asked."""


@dataclass(frozen=True)
class Metric:
    """How a metric is read."""

    label: str
    higher_is_better: bool
    judged: bool
    """Whether the judge's numbers are in it, so that its label names the judge."""
    modelled: bool
    """Whether a scorer's model is in it, so that its label names the scorers."""


def metrics(scores: Sequence[str], weights: Mapping[str, float]) -> dict[str, Metric]:
    """What an evaluation measures: the composite of `weights`, `scores`, the parts of both, the errors."""
    names = dict.fromkeys([*scores, *(name for name in weights if name not in ERRORS), *ERRORS])
    parts = [name for name, weight in weights.items() if weight]
    return {"composite": Metric("Composite reward", True, *_origin(parts))} | {
        name: Metric(CATALOG[name].label, CATALOG[name].higher_is_better, *_origin([name])) for name in names
    }


def _origin(names: Sequence[str]) -> tuple[bool, bool]:
    """Whether any of the scores is the judge's, and whether any is of a scorer with a model."""
    return any(name in ERRORS for name in names), bool(catalog.with_weights(names))


@dataclass
class Scores:
    """(system, setting, metric) -> one value a study, in the order of `studies`."""

    studies: Sequence[Study]
    systems: Sequence[System]
    metrics: Mapping[str, Metric]
    references: Mapping[Setting, Sequence[str]]
    """What each study is compared with; empty where it has nothing in this setting."""
    values: dict[tuple[str, Setting, str], Array] = field(default_factory=dict)
    reasons: dict[tuple[str, Setting], list[str | None]] = field(default_factory=dict)

    def eligible(self, setting: Setting) -> np.ndarray:
        """(studies,) whether the reference has anything to compare with in this setting."""
        return np.array([bool(text) for text in self.references[setting]], dtype=bool)

    def table(self) -> pa.Table:
        """One row per (system, study): ids, `<setting>_<metric>`, `<setting>_reason`."""
        parts = []
        names = ("study_id", "corpus", "institution", "patient_id", "split")
        for system in self.systems:
            columns: dict[str, pa.Array] = {"system": pa.array([system.name] * len(self.studies))}
            for name in names:
                columns[name] = pa.array([getattr(study, name) for study in self.studies], pa.string())
            for setting in SETTINGS:
                for metric in self.metrics:
                    found = self.values[system.name, setting, metric]
                    columns[f"{setting}_{metric}"] = pa.array(found, mask=np.isnan(found))
                columns[f"{setting}_reason"] = pa.array(self.reasons[system.name, setting], pa.string())
            parts.append(pa.table(columns))
        return pa.concat_tables(parts)


def score(
    studies: Sequence[Study],
    systems: Sequence[System],
    measured: Mapping[str, Metric],
    weights: Mapping[str, float],
    engine: Engine,
) -> Scores:
    """Score all systems over the studies with `engine`, which gives what is `measured` but the composite.

    Raises:
        UserError: the judge cannot be reached, or refuses the key or the model.
    """
    references = {setting: [reference(study, setting) for study in studies] for setting in SETTINGS}
    pairs = {
        (system.name, setting, study.study_id): (candidate, expected)
        for system in systems
        for setting in SETTINGS
        for study, expected in zip(studies, references[setting], strict=True)
        if expected and (candidate := system.texts[setting].get(study.study_id)) is not None
    }
    distinct = list(dict.fromkeys(pairs.values()))
    told = telemetry.Progress("evaluate: scoring", len(distinct), "pairs of texts")
    scored = dict(zip(distinct, engine.score(distinct, told), strict=True))
    told.finish()
    scores = Scores(studies, systems, measured, references)
    for system in systems:
        for setting in SETTINGS:
            columns = {metric: np.full(len(studies), np.nan) for metric in measured}
            reasons: list[str | None] = []
            for row, study in enumerate(studies):
                pair = pairs.get((system.name, setting, study.study_id))
                if pair is None:
                    reasons.append(_why_no_pair(system, study, setting))
                    continue
                found = scored[pair]
                for metric, value in found.values.items():
                    columns[metric][row] = value
                total = composite(weights, found.values)
                if total is not None:
                    columns["composite"][row] = total
                reasons.append(_why_incomplete(found))
            scores.reasons[system.name, setting] = reasons
            scores.values.update({(system.name, setting, name): found for name, found in columns.items()})
    return scores


def _why_no_pair(system: System, study: Study, setting: Setting) -> str:
    if not reference(study, setting):
        return f"the reference has no {setting}"
    return system.reasons.get(study.study_id, "no candidate in this setting")


def _why_incomplete(scored: Scored) -> str | None:
    """Why some scores of a pair are missing, each reason once."""
    reasons = (f"{'judge' if name in ERRORS else name}: {why}" for name, why in scored.missing.items())
    return "; ".join(dict.fromkeys(reasons)) or (None if "errors" in scored.values else NO_JUDGE)
