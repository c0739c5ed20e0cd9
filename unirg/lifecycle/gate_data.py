"""What the gate judges, read from one evaluation: two systems' scores of the same studies, and the guards.

Scores and labels of conditions are the evaluation's own; who belongs to which subgroup, and what the
radiologist wrote, are the cohort's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from unirg import storage
from unirg.artifact import Artifact, open_artifact
from unirg.cohort.reader import Cohort
from unirg.config import canonical_json
from unirg.errors import UserError
from unirg.evaluation import aggregates, suites
from unirg.evaluation.candidates import BASELINES, reference
from unirg.evaluation.conditions import HEADLINE, UNREAD, influences, stated
from unirg.evaluation.evaluate import SCORES
from unirg.evaluation.groups import patient
from unirg.evaluation.statistics import Array
from unirg.evaluation.subgroups import ATTRIBUTES, UNKNOWN
from unirg.lifecycle.gate_rules import GateConfig, Guard
from unirg.metrics.findings_terms import CONDITIONS
from unirg.study import Study

FOUR = 4
"""Errors from which a report is of the last of the paper's divisions."""


@dataclass(frozen=True)
class StudySet:
    """Which studies with which references; a corrected reference makes another study of it."""

    studies: frozenset[str]
    """A digest each."""

    @classmethod
    def of(cls, studies: Sequence[Study], setting: Any) -> StudySet:
        parts = ([study.corpus, study.study_id, reference(study, setting)] for study in studies)
        return cls(frozenset(storage.sha256(canonical_json(part)) for part in parts))

    @property
    def digest(self) -> str:
        return storage.sha256(canonical_json(sorted(self.studies)))

    def shared(self, other: Collection[str]) -> float:
        """Share of these studies that are among others, too."""
        return len(self.studies.intersection(other)) / max(len(self.studies), 1)


class Judged:
    """Scores of some systems over the studies of a split that have a reference, aligned.

    Raises:
        UserError: the evaluation has no cohort, or lacks a system, a score or a suite that a rule needs.
    """

    def __init__(self, config: GateConfig, evaluation: Artifact) -> None:
        self.config, self.evaluation = config, evaluation
        self.data = aggregates.read(evaluation)
        self._scores: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
        ids = ["system", "corpus", "study_id", "split"]
        table = pq.read_table(evaluation.path(SCORES))
        if absent := [name for name in config.used if name not in self.data["metrics"]]:
            raise UserError(
                f"the evaluation {evaluation.uri} has no score {absent[0]}, which the gate's rules need: "
                "add it to `scores` of the evaluation, or name another one in the gate's recipe"
            )
        table = table.select([*ids, *(f"{config.setting}_{name}" for name in config.used)])
        for row in table.to_pylist():
            if row["split"] == config.split:
                self._scores.setdefault(row["system"], {})[row["corpus"], row["study_id"]] = row
        known = {(study.corpus, study.study_id) for study in self.cohort.studies(config.split)}
        asked = next(iter(self._scores.values()), {}).keys() & known
        self.studies = [
            study
            for study in self.cohort.studies(config.split)
            if (study.corpus, study.study_id) in asked and reference(study, config.setting)
        ]
        self.people = [patient(study) for study in self.studies]

    @cached_property
    def cohort(self) -> Cohort:
        found = self.evaluation.manifest.inputs.get("cohort")
        if found is None or found.uri is None:
            raise UserError(
                f"the evaluation {self.evaluation.uri} has no cohort, so nobody knows its patients and their "
                "subgroups: evaluate with --cohort"
            )
        made = open_artifact(found.uri, "cohort")
        if made.digest != found.digest:
            raise UserError(f"{found.uri} is another cohort now than was evaluated: evaluate again")
        return Cohort.open(made)

    @property
    def study_set(self) -> StudySet:
        return StudySet.of(self.studies, self.config.setting)

    @property
    def baselines(self) -> list[str]:
        """The baselines that were evaluated."""
        return [name for name in BASELINES if name in self._scores]

    def higher(self, metric: str) -> bool:
        return bool(self.data["metrics"][metric]["higher_is_better"])

    def need(self, system: str) -> None:
        """Raises: UserError where a system was not evaluated on the split."""
        if system not in self._scores:
            raise UserError(
                f"{system} was not evaluated on split {self.config.split} in {self.evaluation.uri}: "
                f"it has {', '.join(sorted(self._scores)) or 'none'}"
            )

    def column(self, system: str, metric: str) -> Array:
        """(studies,) scores; NaN where there is none."""
        rows, name = self._scores[system], f"{self.config.setting}_{metric}"
        found = (rows[study.corpus, study.study_id][name] for study in self.studies)
        return np.array([np.nan if value is None else value for value in found], dtype=np.float64)

    def gain(self, challenger: str, rival: str, metric: str) -> Array:
        """(studies,) by how much the challenger is better; NaN where either has no score."""
        difference = self.column(challenger, metric) - self.column(rival, metric)
        return difference if self.higher(metric) else -difference

    def spread(self, system: str, metric: str) -> float:
        """Standard deviation of a system's scores."""
        scored = self.column(system, metric)
        scored = scored[~np.isnan(scored)]
        return float(scored.std(ddof=1)) if len(scored) > 1 else 0.0

    def guards(self, challenger: str, champion: str) -> list[Guard]:
        """Every guard that there are enough studies for."""
        found = [
            *self._subgroups(challenger, champion),
            *self._conditions(challenger, champion),
            *self._errors(challenger, champion),
        ]
        return [guard for guard in found if self._enough(~np.isnan(guard.harm))]

    def _enough(self, kept: np.ndarray) -> bool:
        people = {self.people[row] for row in np.flatnonzero(kept).tolist()}
        needed = self.config.guards
        return int(kept.sum()) >= needed.min_studies and len(people) >= needed.min_patients

    def _subgroups(self, challenger: str, champion: str) -> Iterator[Guard]:
        settings = self.config.guards
        if settings.subgroup_margin is None:
            return
        for metric in settings.metrics:
            harm = -self.gain(challenger, champion, metric)
            sd = self.spread(champion, metric)
            for attribute in settings.attributes:
                levels = np.array([ATTRIBUTES[attribute](study) for study in self.studies], dtype=np.str_)
                for level in np.unique(levels).tolist():
                    if level != UNKNOWN:
                        inside = np.where(levels == level, harm, np.nan)
                        name = f"{attribute} {level}, {metric}"
                        yield Guard(name, inside, settings.subgroup_margin * sd, "points of the score")

    def _conditions(self, challenger: str, champion: str) -> Iterator[Guard]:
        settings = self.config.guards
        if settings.condition_margin is None:
            return
        expected, ours, theirs = (self._labels(name) for name in (None, challenger, champion))
        read = np.array([labels[:, 0] != UNREAD for labels in (expected, ours, theirs)]).all(axis=0)
        truth, *said = (stated(labels, HEADLINE) for labels in (expected, ours, theirs))
        for at, name in enumerate(CONDITIONS):
            if not self._enough(read & truth[:, at]):
                continue
            # F1 is a ratio of sums: these values of studies have it as their mean, and vary as it does.
            f1 = [_f1(own[read, at], truth[read, at]) for own in said]
            harm = np.full(len(self.studies), np.nan)
            harm[read] = f1[1] - f1[0]
            yield Guard(f"condition {name}", harm, settings.condition_margin, "of F1")

    def _labels(self, system: str | None) -> np.ndarray:
        """(studies, 14) classes of a system's reports; None: of the references."""
        if suites.LABELS not in self.evaluation.manifest.files:
            raise UserError(
                f"the evaluation {self.evaluation.uri} has no labels of conditions, which the guards need: "
                "evaluate with suite conditions, or set guards.condition_margin=null"
            )
        rows = {
            (row["corpus"], row["study_id"]): [row[name] for name in CONDITIONS]
            for row in pq.read_table(self.evaluation.path(suites.LABELS)).to_pylist()
            if row["system"] == system and row["setting"] == self.config.setting
        }
        return np.array([rows[study.corpus, study.study_id] for study in self.studies], dtype=np.int64)

    def _errors(self, challenger: str, champion: str) -> Iterator[Guard]:
        settings = self.config.guards
        if settings.significant_margin is not None:
            harm = -self.gain(challenger, champion, "errors_significant")
            yield Guard("significant errors", harm, settings.significant_margin, "errors per report")
        if settings.four_or_more_margin is not None:
            ours, theirs = (self.column(name, "errors") for name in (challenger, champion))
            harm = (ours >= FOUR).astype(np.float64) - (theirs >= FOUR)
            harm[np.isnan(ours) | np.isnan(theirs)] = np.nan
            yield Guard("four errors or more", harm, settings.four_or_more_margin, "of the reports")


def _f1(said: np.ndarray, truth: np.ndarray) -> Array:
    top, bottom = 2.0 * (said & truth), said.astype(np.float64) + truth
    return influences(top[:, None], bottom[:, None])
