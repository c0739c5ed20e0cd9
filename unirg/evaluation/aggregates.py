"""Scores -> means with intervals, paired comparisons, and the list of what was not scored.

The result is plain data, written as `aggregates.json`:
    metrics      name -> label, direction, whether the judge's or a scorer's numbers are in it
    systems      in the order shown: name, kind, note
    groups       split x corpus x institution (null = all): studies and patients, `too_small` where so
    values       one record per (system, group, setting, metric): mean, low, high, n, missing; of a part that
                 is too small mean, low and high are null: a whole split is what was asked for, and has them
    comparisons  one record per (pair, split, setting, metric): paired difference, with a sentence
    headline     system -> split -> metric, over all corpora, in the report setting
    unscored     counts by (system, setting, split, reason)
    uneven       studies that some systems have a score for and others not
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from unirg.artifact import Artifact
from unirg.evaluation.candidates import SETTINGS
from unirg.evaluation.groups import MIN_GROUP, Record, better, difference, patients, record, too_small
from unirg.evaluation.sanity import lacking
from unirg.evaluation.scores import Metric, Scores
from unirg.evaluation.statistics import bootstrap, paired
from unirg.metrics.verdicts import NO_JUDGE

FILE = "aggregates.json"
HEADLINE_SPLITS = ("test", "zero_shot")
_LISTED = 200
"""Uneven studies named in the JSON; all of them are in scores.parquet."""


def aggregate(
    scores: Scores,
    comparisons: Sequence[tuple[str, str]],
    resamples: int,
    seed: int,
    min_group: int = MIN_GROUP,
) -> dict[str, Any]:
    """Everything that the report and the metrics store show, as JSON types.

    Args:
        min_group: a part of a split with fewer studies, or of fewer than ten patients, has no numbers.
    """
    groups: list[dict[str, Any]] = []
    values: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    for group, rows in _groups(scores):
        people = patients(scores, np.flatnonzero(rows))
        about = group | {"studies": len(people), "patients": len(set(people))}
        whole = _whole(group)
        groups.append(about | ({"too_small": True} if not whole and too_small(people, min_group) else {}))
        pairs = comparisons if whole else ()
        for estimate in _estimates(scores, rows, pairs, resamples, seed, None if whole else min_group):
            target = compared if "difference" in estimate else values
            target.append(group | estimate)
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


def notes(data: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the studies and of each system, a line each; no text of a report, no id."""
    of_systems = (f"{each['name']}: {each['note']}" for each in data["systems"] if each["note"])
    return [*data["notes"], *of_systems]


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
    scores: Scores,
    rows: np.ndarray,
    pairs: Sequence[tuple[str, str]],
    resamples: int,
    seed: int,
    min_group: int | None,
) -> Iterator[dict[str, Any]]:
    """Records of one group: means of every system and metric, and differences of the pairs.

    Args:
        min_group: None: the group has numbers whatever its size.
    """
    names = [system.name for system in scores.systems]
    for setting in SETTINGS:
        kept = np.flatnonzero(rows & scores.eligible(setting))
        people = patients(scores, kept)
        few = min_group is not None and too_small(people, min_group)
        none = dict.fromkeys(("mean", "low", "high")) if few else {}
        single = [(name, metric) for name in names for metric in scores.metrics]
        double = [(a, b, metric) for a, b in pairs for metric in scores.metrics]
        columns = [scores.values[name, setting, metric][kept] for name, metric in single]
        columns += [
            paired(scores.values[a, setting, metric][kept], scores.values[b, setting, metric][kept])
            for a, b, metric in double
        ]
        found = bootstrap(np.column_stack(columns), people, resamples, seed)
        for column, (name, metric) in enumerate(single):
            yield {"system": name, "setting": setting, "metric": metric, **record(found, column), **none}
        for column, (a, b, metric) in enumerate(double, start=len(single)):
            numbers = difference(found, column)
            sentence = _sentence(a, b, scores.metrics[metric], numbers)
            yield {
                **{"a": a, "b": b, "setting": setting, "metric": metric, "sentence": sentence},
                **{"difference" if name == "mean" else name: each for name, each in numbers.items()},
            }


def _sentence(a: str, b: str, metric: Metric, numbers: Record) -> str:
    """The comparison in plain words."""
    if numbers["mean"] is None:
        return f"{a} and {b} share no scored study."
    if numbers["low"] is None or numbers["high"] is None:
        return f"{a} and {b} share scored studies of one patient only: no interval."
    side = better(numbers, metric.higher_is_better)
    if side is None:
        return f"No difference shown between {a} and {b}: the interval includes zero."
    return f"{a} is {'better' if side else 'worse'} than {b}: the interval excludes zero."


def _whole(group: Record) -> bool:
    """Whether a group or a value is of a split as a whole."""
    return group["corpus"] is None and group["institution"] is None


def _headline(scores: Scores, values: Sequence[Record]) -> Record:
    headline: dict[str, Any] = {
        system.name: {split: None for split in HEADLINE_SPLITS} for system in scores.systems
    }
    for value in values:
        shown = value["split"] in HEADLINE_SPLITS and value["metric"] in shown_first(scores.metrics)
        if _whole(value) and shown and value["setting"] == "report":
            by_split = headline[value["system"]]
            numbers = {name: value[name] for name in ("mean", "low", "high", "n", "missing")}
            by_split[value["split"]] = (by_split[value["split"]] or {}) | {value["metric"]: numbers}
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
    """Studies that some system lacks a candidate for, as `sanity` counts them, in the report setting."""
    missing = {name: lacks for name, (lacks, _) in lacking(scores).items()}
    rows = np.flatnonzero(np.logical_or.reduce(list(missing.values()))).tolist() if missing else []
    listed = [
        {
            "study_id": scores.studies[row].study_id,
            "corpus": scores.studies[row].corpus,
            "split": scores.studies[row].split,
            "missing_in": [name for name, lacks in missing.items() if lacks[row]],
        }
        for row in rows[:_LISTED]
    ]
    return {"studies": len(rows), "listed": listed}
