"""Suite `reports`: every report metric by corpus and section setting, ranks, and the public boards beside.

The paper's figures 1d and 2a. As on ReXrank, a metric is the mean over the studies of a corpus, and
1/RadCliQ-v1 is one over the mean RadCliQ-v1 (`leaderboard` says how that is known); the site orders models by
it. Where the mean is negative, beyond the reciprocal's pole, the order still follows the mean.

Unlike ReXrank: a study without a candidate or a score is missing and counted, and a missing section is left
out of the reference instead of standing there as "None" or "nan". A system that has a score for less than
`COVERAGE` of a group's studies is shown and not ranked, for it could have been spared the hard ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from unirg.evaluation import leaderboard, ranks
from unirg.evaluation.absent import absent
from unirg.evaluation.candidates import SETTINGS, Setting
from unirg.evaluation.leaderboard import INVERSE, Row
from unirg.evaluation.scores import Scores
from unirg.evaluation.statistics import Array, Intervals, bootstrap, excludes_zero, paired
from unirg.metrics.catalog import CATALOG
from unirg.metrics.pairs import FORMS
from unirg.metrics.radcliq import board_value, radcliq_v1

SUITE = "reports"
MIN_PATIENTS = 10
COVERAGE = 0.95
"""Share of a group's studies that a system needs a score for to be ranked in a metric."""
RADCLIQ = "radcliq_v1"
FALLBACK = ("bertscore", "sembscore", "radgraph", "ratescore", "bleu2", "rouge_l")
"""Metrics whose mean rank gives the overall order where RadCliQ-v1 was not measured."""

Record = dict[str, Any]


def reports(
    scores: Scores,
    board: Sequence[Row] = (),
    *,
    resamples: int = 10_000,
    seed: int = 0,
    min_group: int = 20,
) -> Record:
    """Means with intervals, ranks and an order for each split, corpus and setting; JSON types only.

    Keys of the result:
        suite, alarms
        metrics      name -> label, higher_is_better, rexrank (how ReXrank sets it, empty where it does not)
        references   setting -> the form of the reference
        order        what the order of the systems follows, in words
        groups       one record a (split, corpus, setting), corpus None for all of a split's several:
                     `too_small`, or `studies`, `patients`, `values` (system -> metric -> mean, low, high, n,
                     missing), `ranks` (metric -> system -> rank, tied; None where not ranked), `order` (from
                     the best: system, rank, tied, and `behind`: how far behind the one above); and `board`,
                     a key of `public`, where ReXrank has a board of this corpus
        public       {"label", "boards": key -> corpus, title, setting, studies, rows}
        absent       metrics without a number: label, why, how to get it (`absent.absent`)

    Args:
        board: public rows, `leaderboard.read`.
        min_group: a group with fewer studies, or fewer than `MIN_PATIENTS` patients, has no numbers.
    """
    values, measured = _with_radcliq(scores)
    groups: list[Record] = []
    alarms: list[Record] = []
    for place, rows in _groups(scores):
        for setting in SETTINGS:
            kept = np.flatnonzero(rows & scores.eligible(setting)).tolist()
            group = place | {"setting": setting}
            patients = [f"{scores.studies[i].corpus}/{scores.studies[i].patient_id}" for i in kept]
            if len(kept) < min_group or len(set(patients)) < MIN_PATIENTS:
                group |= {"too_small": True}
            else:
                columns = {key: column[kept] for key, column in values.items() if key[1] == setting}
                group |= _measure(scores, setting, measured, columns, patients, resamples, seed)
                if place["corpus"] and setting == "report":  # once a system and corpus
                    alarms += _alarms(scores, group, kept)
            beside = leaderboard.of_corpus(board, place["corpus"], setting)
            groups.append(group | {"board": _key(beside[0]) if beside else None})
    return {
        "suite": SUITE,
        "metrics": {name: _about(scores, name) for name in measured},
        "references": {"report": FORMS["report"], "findings": FORMS["findings"]},
        "order": f"by {_order_by(measured)[1]}",
        "groups": groups,
        "public": public(board),
        "absent": absent(scores, [name for name in measured if name not in scores.metrics]),
        "alarms": alarms,
    }


def public(rows: Sequence[Row]) -> Record:
    """The public boards as JSON types: ranks by 1/RadCliQ-v1, no intervals, as nobody published any."""
    boards: dict[str, list[Row]] = {}
    for row in rows:
        boards.setdefault(_key(row), []).append(row)
    about = {each.corpus: each for each in leaderboard.BOARDS.values()}
    return {
        "label": leaderboard.label(rows),
        "boards": {
            key: {
                "corpus": found[0].corpus,
                "title": about[found[0].corpus].title,
                "setting": found[0].setting,
                "studies": about[found[0].corpus].studies,
                "rows": [
                    {
                        **{"rank": rank, "model": row.model, "institution": row.institution},
                        **{"year": row.year, "metrics": dict(row.metrics), "agrees": row.agrees},
                    }
                    for rank, row in leaderboard.ranked(found)
                ],
            }
            for key, found in boards.items()
        },
    }


def _about(scores: Scores, name: str) -> Record:
    if name == INVERSE:
        return {"label": "1/RadCliQ-v1", "higher_is_better": True, "rexrank": CATALOG[RADCLIQ].rexrank}
    if name in scores.metrics:
        label, higher = scores.metrics[name].label, scores.metrics[name].higher_is_better
    else:
        label, higher = CATALOG[name].label, CATALOG[name].higher_is_better
    # The catalog says at radcliq_v1 how ReXrank shows it, which is the reciprocal.
    rexrank = CATALOG[name].rexrank if name in CATALOG and name != RADCLIQ else ""
    return {"label": label, "higher_is_better": higher, "rexrank": rexrank}


def _with_radcliq(scores: Scores) -> tuple[dict[tuple[str, Setting, str], Array], list[str]]:
    """The scores, and RadCliQ-v1 from its parts where they are there and it is not; the metrics' names."""
    values, measured = dict(scores.values), list(scores.metrics)
    parts = CATALOG[RADCLIQ].parts
    if RADCLIQ not in measured and all(part in measured for part in parts):
        measured.append(RADCLIQ)
        for system in scores.systems:
            for setting in SETTINGS:
                columns = [scores.values[system.name, setting, part] for part in parts]
                values[system.name, setting, RADCLIQ] = radcliq_v1(*columns)
    if RADCLIQ in measured:
        measured.insert(measured.index(RADCLIQ), INVERSE)
    return values, measured


def _groups(scores: Scores) -> Iterator[tuple[Record, np.ndarray]]:
    """Each split as a whole where it has several corpora, then each of its corpora."""
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


def _measure(
    scores: Scores,
    setting: Setting,
    measured: Sequence[str],
    columns: Mapping[tuple[str, Setting, str], Array],
    patients: Sequence[str],
    resamples: int,
    seed: int,
) -> Record:
    """The numbers of one group; `columns` hold its studies only."""
    names = [system.name for system in scores.systems]
    keys = [(name, setting, metric) for name in names for metric in measured if metric != INVERSE]
    found = bootstrap(np.column_stack([columns[key] for key in keys]), patients, resamples, seed)
    values: dict[str, dict[str, Record]] = {name: {} for name in names}
    means: dict[tuple[str, str], float] = {}
    for column, (name, _, metric) in enumerate(keys):
        values[name][metric] = _record(found, column)
        means[name, metric] = float(found.mean[column])
        if metric == RADCLIQ:
            values[name][INVERSE] = _inverse(found, column)
            means[name, INVERSE] = means[name, metric]  # the order follows the mean, through the pole too
    places = {metric: _ranks(scores, metric, means, values) for metric in measured}
    by = _order_by(measured)[0]
    order = ranks.order([places[metric] for metric in ([by] if by else FALLBACK) if metric in places], names)
    if by == INVERSE:
        _separate(order, setting, columns, patients, resamples, seed)
    return {
        "studies": len(patients),
        "patients": len(set(patients)),
        "values": values,
        "ranks": places,
        "order": order,
    }


def _record(found: Intervals, column: int) -> Record:
    return {
        **{name: _json(float(getattr(found, name)[column])) for name in ("mean", "low", "high")},
        **{"n": int(found.n[column]), "missing": int(found.missing[column])},
    }


def _inverse(found: Intervals, column: int) -> Record:
    """1/RadCliQ-v1. Of an interval that holds 0 the reciprocals are no interval."""
    mean, low, high = (float(each[column]) for each in (found.mean, found.low, found.high))
    ends = (1 / high, 1 / low) if low * high > 0 else (math.nan, math.nan)
    shown = board_value(mean)
    return _record(found, column) | {
        "mean": _json(math.nan if shown is None else shown),
        "low": _json(ends[0]),
        "high": _json(ends[1]),
    }


def _json(value: float) -> float | None:
    # Six decimals: the last bits of a sum depend on the processor, and these bytes are digested.
    return round(value, 6) + 0.0 if math.isfinite(value) else None


def _ranks(
    scores: Scores,
    metric: str,
    means: Mapping[tuple[str, str], float],
    values: Mapping[str, Mapping[str, Record]],
) -> dict[str, Record | None]:
    higher = _about(scores, metric)["higher_is_better"]
    keys = {}
    for system in scores.systems:
        mean, seen = means[system.name, metric], values[system.name][metric]
        if math.isfinite(mean) and seen["n"] >= COVERAGE * (seen["n"] + seen["missing"]):
            keys[system.name] = ranks.of_inverse(mean) if metric == INVERSE else ranks.of_mean(mean, higher)
    return ranks.ranks(keys, [system.name for system in scores.systems])


def _order_by(measured: Sequence[str]) -> tuple[str | None, str]:
    """What the overall order follows: a metric, or None for the mean rank; and in words."""
    if INVERSE in measured:
        return INVERSE, "1/RadCliQ-v1, as on ReXrank's site"
    labels = ", ".join(CATALOG[name].label for name in FALLBACK if name in measured)
    return None, f"mean rank over {labels or 'nothing'}: RadCliQ-v1 was not measured"


def _separate(
    order: Sequence[Record],
    setting: Setting,
    columns: Mapping[tuple[str, Setting, str], Array],
    patients: Sequence[str],
    resamples: int,
    seed: int,
) -> None:
    """Add to each place whether its RadCliQ-v1 is told apart from that of the place above, pair by pair."""
    placed = [place for place in order if place["rank"] is not None]
    if len(placed) < 2:
        return
    differences = [
        paired(columns[below["system"], setting, RADCLIQ], columns[above["system"], setting, RADCLIQ])
        for above, below in itertools.pairwise(placed)
    ]
    found = bootstrap(np.column_stack(differences), patients, resamples, seed)
    for column, (above, below) in enumerate(itertools.pairwise(placed)):
        record = _record(found, column)
        apart = excludes_zero(float(found.low[column]), float(found.high[column]))
        below["behind"] = {"system": above["system"], "metric": RADCLIQ, **record, "excludes_zero": apart}


def _alarms(scores: Scores, group: Record, kept: Sequence[int]) -> Iterator[Record]:
    """What a reader must see first."""
    where = f"{group['corpus']}, {group['split']}"
    for system in scores.systems:
        said = sum(scores.studies[i].study_id in system.texts["report"] for i in kept) / len(kept)
        if said < COVERAGE:
            yield {
                "suite": SUITE,
                "alarm": "coverage",
                "system": system.name,
                "value": round(said, 6),
                "limit": COVERAGE,
                "sentence": f"{system.name} has a report for {said:.1%} of the studies ({where}): its means "
                "are over those alone, and it is not ranked.",
            }
    places = {place["system"]: place["rank"] for place in group["order"] if place["rank"] is not None}
    baselines = [
        system.name for system in scores.systems if system.kind == "baseline" and system.name in places
    ]
    best = min(baselines, key=lambda name: places[name], default=None)
    for system in scores.systems:
        if best and system.kind == "policy" and places.get(system.name, 0) > places[best]:
            yield {
                "suite": SUITE,
                "alarm": "baseline",
                "system": system.name,
                "value": float(places[system.name]),
                "limit": float(places[best]),
                "sentence": f"{system.name} ranks below {best}, which looks at no image ({where}).",
            }


def _key(row: Row) -> str:
    return f"{row.corpus}/{row.setting}"
