"""Every metric of every system on every study; a missing score is NaN and has its reason.

The judge is asked once for each distinct pair of texts, and its verdicts are kept as they come (by digest,
never with the texts), so that an evaluation that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from unirg import telemetry
from unirg.evaluation.candidates import SETTINGS, Setting, System, reference
from unirg.evaluation.statistics import Array
from unirg.metrics.bleu import bleu
from unirg.metrics.chexprompt import CATEGORIES, Errors, Judge, Verdict
from unirg.metrics.rouge import rouge_l
from unirg.study import Study

Pair = tuple[str, str]
"""(candidate, reference)"""

NO_JUDGE = "no judge configured"
_CHUNK = 256
"""Pairs between two writes to the verdicts kept: what a kill can cost."""


Weights = Mapping[Literal["bleu2", "rouge_l", "errors"], float]
"""Of the composite reward, under the names that training uses: `errors` weighs 1 / (errors + 1)."""


@dataclass(frozen=True)
class Metric:
    """How a metric is read."""

    label: str
    higher_is_better: bool
    judged: bool
    """Whether the judge's numbers are in it, so that its label names the judge."""


_JUDGED = {
    "errors": Metric("Errors per report", False, True),
    "errors_significant": Metric("Significant errors per report", False, True),
    **{f"errors_{name}": Metric(name.replace("_", " ").capitalize(), False, True) for name in CATEGORIES},
}
METRICS: Mapping[str, Metric] = {
    "composite": Metric("Composite reward", True, True),
    "bleu2": Metric("BLEU-2", True, False),
    "rouge_l": Metric("ROUGE-L", True, False),
    **_JUDGED,
}


@dataclass
class Scores:
    """(system, setting, metric) -> one value a study, in the order of `studies`."""

    studies: Sequence[Study]
    systems: Sequence[System]
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
                for metric in METRICS:
                    found = self.values[system.name, setting, metric]
                    columns[f"{setting}_{metric}"] = pa.array(found, mask=np.isnan(found))
                columns[f"{setting}_reason"] = pa.array(self.reasons[system.name, setting], pa.string())
            parts.append(pa.table(columns))
        return pa.concat_tables(parts)


def score(
    studies: Sequence[Study],
    systems: Sequence[System],
    weights: Weights,
    judge: Judge | None,
    kept: Path,
) -> Scores:
    """Score all systems over the studies; `kept` is the file where the judge's verdicts survive a crash.

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
    verdicts = _verdicts(judge, list(dict.fromkeys(pairs.values())), kept) if judge else {}
    scores = Scores(studies, systems, references)
    for system in systems:
        for setting in SETTINGS:
            columns = {metric: np.full(len(studies), np.nan) for metric in METRICS}
            reasons: list[str | None] = []
            for row, study in enumerate(studies):
                pair = pairs.get((system.name, setting, study.study_id))
                if pair is None:
                    reasons.append(_why_no_pair(system, study, setting))
                    continue
                verdict = verdicts.get(pair, Verdict(None, NO_JUDGE))
                for metric, value in _metrics(pair, verdict, weights).items():
                    columns[metric][row] = value
                reasons.append(None if verdict.errors else _why_no_verdict(verdict))
            scores.reasons[system.name, setting] = reasons
            scores.values.update({(system.name, setting, name): found for name, found in columns.items()})
    return scores


def _why_no_pair(system: System, study: Study, setting: Setting) -> str:
    if not reference(study, setting):
        return f"the reference has no {setting}"
    return system.reasons.get(study.study_id, "no candidate in this setting")


def _why_no_verdict(verdict: Verdict) -> str:
    return NO_JUDGE if verdict.reason == NO_JUDGE else f"judge: {verdict.reason}"


def _metrics(pair: Pair, verdict: Verdict, weights: Weights) -> dict[str, float]:
    """The metrics of one pair; those that lack their input are left out."""
    found = {"bleu2": bleu(*pair), "rouge_l": rouge_l(*pair)}
    parts = dict(found)
    if verdict.errors is not None and verdict.total is not None and verdict.significant is not None:
        found["errors"] = verdict.total
        found["errors_significant"] = verdict.significant
        for category in CATEGORIES:
            count = getattr(verdict.errors, category)
            found[f"errors_{category}"] = count.significant + count.insignificant
        parts["errors"] = 1 / (verdict.total + 1)
    used = [name for name, weight in weights.items() if weight]
    if all(name in parts for name in used):
        found["composite"] = sum(weights[name] * parts[name] for name in used)
    return found


def _verdicts(judge: Judge, pairs: Sequence[Pair], kept: Path) -> dict[Pair, Verdict]:
    """A verdict on each pair, from `kept` or from the judge."""
    known = _read(kept)
    found = {pair: known[key] for pair in pairs if (key := _key(pair)) in known}
    waiting = [pair for pair in pairs if pair not in found]
    told = telemetry.Progress("evaluate: judging", len(pairs), "pairs of texts", done=len(found))
    with kept.open("a") as file:
        for start in range(0, len(waiting), _CHUNK):
            chunk = waiting[start : start + _CHUNK]
            for pair, verdict in zip(chunk, judge.score(chunk), strict=True):
                found[pair] = verdict
                # A missing verdict is not kept: a rerun asks again.
                if verdict.errors:
                    line = json.dumps({"pair": _key(pair), "errors": verdict.errors.model_dump()})
                    # The newline comes first, so that a line cut by a kill spoils itself alone.
                    file.write("\n" + line)
            file.flush()
            telemetry.count("unirg.judged", len(chunk))
            told.advance(len(chunk))
    told.finish()
    return found


def _key(pair: Pair) -> str:
    return hashlib.sha256(json.dumps(pair).encode()).hexdigest()


def _read(kept: Path) -> dict[str, Verdict]:
    known = {}
    for line in kept.read_text().splitlines() if kept.exists() else ():
        try:
            record = json.loads(line)
            known[record["pair"]] = Verdict(Errors.model_validate(record["errors"]))
        except ValueError:  # empty, or cut by a kill
            continue
    return known
