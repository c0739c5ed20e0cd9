"""Evaluations of chosen scores for the gate: all of the stage's output that it reads, and no engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tests.evaluation.tables import scored
from tests.evaluation.worlds import World
from unirg import artifact, storage
from unirg.artifact import Artifact
from unirg.config import Config
from unirg.evaluation import aggregates, conditions, suites
from unirg.evaluation.candidates import SETTINGS
from unirg.evaluation.evaluate import SCORES, STAGE, VERSION, EvaluateConfig
from unirg.lifecycle import gate as gates
from unirg.lifecycle.gate import Side
from unirg.lifecycle.gate_data import Judged
from unirg.lifecycle.gate_rules import GateConfig, GuardsConfig
from unirg.metrics.conditions import BLANK, POSITIVE
from unirg.metrics.findings_terms import CONDITIONS

METRICS = ("bleu2", "rouge_l", "radgraph")
GUARDS = GuardsConfig(metrics=("bleu2",), min_studies=30, min_patients=15)
CONFIG = GateConfig(
    metric="bleu2", looks=5, warn_looks=1, min_studies=80, min_patients=40, resamples=2000, guards=GUARDS
)
Columns = Mapping[str, Any]


class Asked(Config):
    """How a system was asked, of `ScoreConfig` what a test sets."""

    name: str = ""
    """Whatever tells two of them apart."""
    temperature: float = 0.0
    """0 is greedy."""


@dataclass
class GateWorld:
    """Patients with two studies each, half of them of each sex, and evaluations of them."""

    store: Path
    patients: int = 60
    world: World = field(init=False)

    def __post_init__(self) -> None:
        self.world = World(self.store)
        self.grow(self.patients)

    def grow(self, patients: int) -> None:
        """More patients."""
        there = len(self.world.studies) // 2
        for number in range(there, there + patients):
            sex = "FM"[number % 2]
            self.world.add(f"p{number:03d}", "test", "normal", "effusion", sex=sex, age=30 + number % 60)

    @property
    def size(self) -> int:
        """Studies."""
        return len(self.world.studies)

    @property
    def women(self) -> np.ndarray:
        """(studies,) whether the patient is one."""
        return np.array([study.sex == "F" for study in self.ordered])

    @property
    def ordered(self) -> list[Any]:
        return sorted(self.world.studies, key=lambda study: study.study_id)

    def noise(self, seed: int, scale: float = 0.1) -> np.ndarray:
        return np.random.default_rng(seed).normal(scale=scale, size=self.size)

    def columns(self, bleu: Any, **more: Any) -> Columns:
        """Scores of one system; what is not named is the same for all."""
        same = {"rouge_l": 0.5, "radgraph": 0.5, "errors": 1.0, "errors_significant": 0.5}
        return {**same, "bleu2": bleu, **more}

    def side(self, name: str) -> Side:
        return Side(name, self.world.checkpoint(name))

    def evaluation(
        self,
        systems: Mapping[str, Columns],
        *,
        alarms: Sequence[Mapping[str, Any]] = (),
        not_run: Sequence[Mapping[str, Any]] = (),
        judge: str | None = "gpt-4",
        scorers: str = "public weights",
        labels: Mapping[str, np.ndarray] | None = None,
        files: Sequence[str] = (),
        sampled: Sequence[str] = (),
    ) -> Artifact:
        """An evaluation in which the systems have these scores.

        Args:
            labels: system, or "" for the references -> (studies, 14) classes; blank where not named, and no
                labels at all for None.
            files: systems that come as prediction files.
            sampled: systems that were asked to sample.
        """
        cohort, studies = self.world.cohort(), self.ordered
        scores = scored(studies, systems, METRICS)
        scores.reasons.update({(name, each): [None] * len(studies) for name in systems for each in SETTINGS})
        read = {name: found.tolist() for name, found in (labels or {}).items()}
        numbers = {
            name: [np.asarray(each).tolist() for each in own.values()] for name, own in systems.items()
        }
        told = repr((numbers, alarms, not_run, judge, scorers, read, files))
        inputs: dict[str, Artifact | str] = {"cohort": cohort, "made": storage.sha256(told.encode())}
        for name in systems:
            if name in files:
                inputs[f"predictions:{name}"] = "0" * 64
            elif not name.startswith(("copy", "most")):
                inputs[f"predictions:{name}"] = self.predictions(name, cohort, sampled=name in sampled)
        with artifact.draft(str(self.store), STAGE, VERSION, EvaluateConfig(), inputs) as draft:
            if draft.committed:
                return draft.committed
            pq.write_table(scores.table(), draft.out / SCORES)
            if labels is not None:
                blank = np.full((len(studies), len(CONDITIONS)), BLANK)
                references = {each: labels.get("", blank) for each in SETTINGS}
                candidates = {(name, each): labels.get(name, blank) for name in systems for each in SETTINGS}
                table = conditions.table(scores, references, candidates)
                pq.write_table(table, draft.out / suites.LABELS)
            data = {
                "metrics": {name: vars(metric) for name, metric in scores.metrics.items()},
                "identity": dict.fromkeys(scores.metrics, "0" * 64),
                **{"scorers": scorers, "judge": judge},
            }
            raised = {"sanity": {"alarms": list(alarms)}, "not_run": list(not_run)}
            (draft.out / aggregates.FILE).write_text(json.dumps(data))
            (draft.out / suites.FILE).write_text(json.dumps(raised))
            return draft.commit({"studies": len(studies)})

    def predictions(self, name: str, cohort: Artifact, sampled: bool = False) -> Artifact:
        """What a system's checkpoint wrote; the gate reads its manifest alone."""
        asked = Asked(name=name, temperature=float(sampled))
        model = self.side(name).checkpoint.digest
        with artifact.draft(str(self.store), "score", 1, asked, {"cohort": cohort, "model": model}) as draft:
            return draft.committed or draft.commit()

    def judge(
        self, evaluation: Artifact, config: GateConfig = CONFIG, champion: str | None = "old", **sides: Side
    ) -> Artifact:
        """The verdict on `new`, after the store's earlier ones."""
        studies = Judged(config, evaluation).study_set
        looks = gates.earlier(str(self.store), studies, config.overlap)
        now = self.side(champion) if champion else None
        challenger = sides.get("challenger", self.side("new"))
        return gates.gate(config, evaluation, challenger, now, looks, str(self.store))

    def verdict(self, evaluation: Artifact, config: GateConfig = CONFIG, **more: Any) -> dict[str, Any]:
        return gates.read(self.judge(evaluation, config, **more))

    def states(self, condition: str, share: float) -> np.ndarray:
        """Labels that state one condition of the first studies."""
        found = np.full((self.size, len(CONDITIONS)), BLANK)
        found[: int(share * self.size), CONDITIONS.index(condition)] = POSITIVE
        return found


def failed(verdict: Mapping[str, Any]) -> list[str]:
    """Names of the rules that failed."""
    return [rule["name"] for rule in verdict["rules"] if rule["passed"] is False]


def rule(verdict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The one rule whose name begins so."""
    (found,) = [each for each in verdict["rules"] if each["name"].startswith(name)]
    return dict(found)
