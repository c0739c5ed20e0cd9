"""Scores -> means with intervals, paired comparisons, and the list of what was not scored.

The result is plain data, written as `aggregates.json`:
    metrics      name -> label, direction, whether the judge's or a scorer's numbers are in it
    systems      in the order shown: name, kind, note
    groups       split x corpus x institution (null = all): studies and patients
    values       one record per (system, group, setting, metric): mean, low, high, n, missing
    comparisons  one record per (pair, split, setting, metric): paired difference, with a sentence
    headline     system -> split -> metric, over all corpora, in the report setting
    unscored     counts by (system, setting, split, reason)
    uneven       studies that some systems have a score for and others not
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from unirg.artifact import Artifact
from unirg.evaluation.candidates import SETTINGS
from unirg.evaluation.scores import Metric, Scores
from unirg.evaluation.statistics import Intervals, bootstrap, excludes_zero, paired
from unirg.metrics.verdicts import NO_JUDGE

FILE = "aggregates.json"
HEADLINE_SPLITS = ("test", "zero_shot")
_LISTED = 200
"""Uneven studies named in the JSON; all of them are in scores.parquet."""


def aggregate(
    scores: Scores, comparisons: Sequence[tuple[str, str]], resamples: int, seed: int
) -> dict[str, Any]:
    """Everything that the report and the metrics store show, as JSON types."""
    groups: list[dict[str, Any]] = []
    values: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    for group, rows in _groups(scores):
        chosen = [study for study, kept in zip(scores.studies, rows, strict=True) if kept]
        patients = len({(study.corpus, study.patient_id) for study in chosen})
        groups.append(group | {"studies": len(chosen), "patients": patients})
        pairs = comparisons if group["corpus"] is None and group["institution"] is None else ()
        for record in _estimates(scores, rows, pairs, resamples, seed):
            target = compared if "difference" in record else values
            target.append(group | record)
    return {
        "metrics": {name: asdict(metric) for name, metric in scores.metrics.items()},
        "systems": [{"name": s.name, "kind": s.kind, "note": s.note} for s in scores.systems],
        "groups": groups,
        "values": values,
        "comparisons": compared,
        "headline": _headline(scores, values),
        "unscored": _unscored(scores),
        "uneven": _uneven(scores),
    }


def read(evaluation: Artifact) -> dict[str, Any]:
    """The aggregates of an evaluation."""
    return dict(json.loads(evaluation.path(FILE).read_bytes()))


def shown_first(measured: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics of the headline: the paper's rewards where a model scores, else those without a model."""
    clinical = [name for name in ("bertscore", "sembscore", "radgraph") if name in measured]
    plain = [name for name in ("bleu2", "rouge_l") if name in measured]
    return ("composite", *(clinical or plain), "errors")


def _groups(scores: Scores) -> Iterator[tuple[dict[str, str | None], np.ndarray]]:
    """Each split as a whole, then by corpus where it has several, then by institution (None = all)."""
    split, corpus, institution = (
        np.array([getattr(study, name) for study in scores.studies], dtype=np.str_)
        for name in ("split", "corpus", "institution")
    )
    for name in np.unique(split).tolist():
        inside = split == name
        yield {"split": name, "corpus": None, "institution": None}, inside
        corpora = np.unique(corpus[inside]).tolist()
        for each in corpora:
            of_corpus = inside & (corpus == each)
            if len(corpora) > 1:
                yield {"split": name, "corpus": each, "institution": None}, of_corpus
            for place in np.unique(institution[of_corpus]).tolist():
                group = {"split": name, "corpus": each, "institution": place}
                yield group, of_corpus & (institution == place)


def _estimates(
    scores: Scores, rows: np.ndarray, pairs: Sequence[tuple[str, str]], resamples: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Records of one group: means of every system and metric, and differences of the pairs."""
    names = [system.name for system in scores.systems]
    for setting in SETTINGS:
        kept = np.flatnonzero(rows & scores.eligible(setting)).tolist()
        patients = [f"{scores.studies[i].corpus}/{scores.studies[i].patient_id}" for i in kept]
        single = [(name, metric) for name in names for metric in scores.metrics]
        double = [(a, b, metric) for a, b in pairs for metric in scores.metrics]
        columns = [scores.values[name, setting, metric][kept] for name, metric in single]
        columns += [
            paired(scores.values[a, setting, metric][kept], scores.values[b, setting, metric][kept])
            for a, b, metric in double
        ]
        found = bootstrap(np.column_stack(columns), patients, resamples, seed)
        for column, (name, metric) in enumerate(single):
            yield {"system": name, "setting": setting, "metric": metric, **_numbers(found, column, "mean")}
        for column, (a, b, metric) in enumerate(double, start=len(single)):
            numbers = _numbers(found, column, "difference")
            yield {
                **{"a": a, "b": b, "setting": setting, "metric": metric},
                **numbers,
                "excludes_zero": excludes_zero(float(found.low[column]), float(found.high[column])),
                "sentence": _sentence(a, b, scores.metrics[metric], numbers),
            }


def _numbers(found: Intervals, column: int, name: str) -> dict[str, float | int | None]:
    return {
        name: _json(found.mean[column]),
        "low": _json(found.low[column]),
        "high": _json(found.high[column]),
        "n": int(found.n[column]),
        "missing": int(found.missing[column]),
    }


def _json(value: float) -> float | None:
    # Six decimals: the last bits of a sum depend on the processor, and these bytes are digested.
    return round(float(value), 6) + 0.0 if math.isfinite(value) else None


def _sentence(a: str, b: str, metric: Metric, numbers: dict[str, float | int | None]) -> str:
    """The comparison in plain words."""
    difference, low, high = numbers["difference"], numbers["low"], numbers["high"]
    if difference is None:
        return f"{a} and {b} share no scored study."
    if low is None or high is None:
        return f"{a} and {b} share scored studies of one patient only: no interval."
    if not excludes_zero(low, high):
        return f"No difference shown between {a} and {b}: the interval includes zero."
    better = (difference > 0) == metric.higher_is_better
    return f"{a} is {'better' if better else 'worse'} than {b}: the interval excludes zero."


def _headline(scores: Scores, values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    headline: dict[str, Any] = {
        system.name: {split: None for split in HEADLINE_SPLITS} for system in scores.systems
    }
    for record in values:
        whole = record["corpus"] is None and record["institution"] is None
        shown = record["split"] in HEADLINE_SPLITS and record["metric"] in shown_first(scores.metrics)
        if whole and shown and record["setting"] == "report":
            by_split = headline[record["system"]]
            numbers = {name: record[name] for name in ("mean", "low", "high", "n", "missing")}
            by_split[record["split"]] = (by_split[record["split"]] or {}) | {record["metric"]: numbers}
    return headline


def _unscored(scores: Scores) -> list[dict[str, Any]]:
    """Counts of missing scores by reason; a judge that nobody asked for is told once, not per study."""
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for system in scores.systems:
        for setting in SETTINGS:
            reasons = scores.reasons[system.name, setting]
            for study, reason, fits in zip(scores.studies, reasons, scores.eligible(setting), strict=True):
                if reason and fits and reason != NO_JUDGE:
                    counts[system.name, setting, str(study.split), reason] += 1
    return [
        {"system": system, "setting": setting, "split": split, "reason": reason, "studies": count}
        for (system, setting, split, reason), count in sorted(counts.items())
    ]


def _uneven(scores: Scores) -> dict[str, Any]:
    """Studies with a candidate from some systems and not from others, in the report setting."""
    names = [system.name for system in scores.systems]
    texts = [system.texts["report"] for system in scores.systems]
    studies = [study.study_id for study in scores.studies]
    missing = np.array([[study not in text for study in studies] for text in texts])
    rows = np.flatnonzero(missing.any(axis=0) & ~missing.all(axis=0))
    listed = [
        {
            "study_id": scores.studies[row].study_id,
            "corpus": scores.studies[row].corpus,
            "split": scores.studies[row].split,
            "missing_in": [name for name, absent in zip(names, missing[:, row], strict=True) if absent],
        }
        for row in rows[:_LISTED]
    ]
    return {"studies": len(rows), "listed": listed}
