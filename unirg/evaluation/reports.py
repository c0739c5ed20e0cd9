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
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from unirg.evaluation import leaderboard, ranks
from unirg.evaluation.absent import absent
from unirg.evaluation.candidates import Setting
from unirg.evaluation.groups import (
    MIN_ALARM,
    MIN_GROUP,
    MIN_PATIENTS,
    RADCLIQ,
    Record,
    Rows,
    alarm,
    difference,
    groups,
    inverse,
    patients,
    record,
    too_small,
    warns,
    where,
    with_radcliq,
)
from unirg.evaluation.leaderboard import INVERSE, Row
from unirg.evaluation.scores import Metric, Scores
from unirg.evaluation.statistics import Array, bootstrap, paired
from unirg.metrics.catalog import CATALOG
from unirg.metrics.pairs import FORMS

SUITE = "reports"
COVERAGE = 0.95
"""Share of a group's studies that a system needs a score for to be ranked in a metric."""
FALLBACK = ("bertscore", "sembscore", "radgraph", "ratescore", "bleu2", "rouge_l")
"""Metrics whose mean rank gives the overall order where RadCliQ-v1 was not measured."""


def reports(
    scores: Scores,
    board: Sequence[Row] = (),
    *,
    resamples: int = 10_000,
    seed: int = 0,
    min_group: int = MIN_GROUP,
) -> Record:
    """Means with intervals, ranks and an order for each split, corpus and setting; JSON types only.

    Keys of the result:
        suite, alarms
        limits       studies and patients that a group needs to have numbers
        largest      studies and patients of the largest group
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
    values, metrics = with_radcliq(scores)
    about = _about(metrics)
    found: list[Record] = []
    alarms: list[Record] = []
    sizes = [(0, 0)]
    for place, rows in groups(scores):
        people = patients(scores, rows)
        sizes.append((len(people), len(set(people))))
        group = place | {"too_small": True}
        if warns(place) and len(rows) >= MIN_ALARM:
            alarms += _uncovered(scores, place, rows)
        if not too_small(people, min_group):
            columns = {key: column[rows] for key, column in values.items() if key[1] == place["setting"]}
            group = place | _measure(scores, place["setting"], about, columns, people, resamples, seed)
            if warns(place):
                alarms += _below(scores, group)
        beside = leaderboard.of_corpus(board, place["corpus"], place["setting"])
        found.append(group | {"board": _key(beside[0]) if beside else None})
    return {
        "suite": SUITE,
        "limits": {"studies": min_group, "patients": MIN_PATIENTS},
        "largest": dict(zip(("studies", "patients"), max(sizes), strict=True)),
        "metrics": about,
        "references": {"report": FORMS["report"], "findings": FORMS["findings"]},
        "order": f"by {_order_by(about)[1]}",
        "groups": found,
        "public": public(board),
        "absent": absent(scores, [name for name in about if name not in scores.metrics]),
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


def _about(metrics: Mapping[str, Metric]) -> dict[str, Record]:
    """Label, direction and ReXrank's setting of each metric; 1/RadCliQ-v1 stands before RadCliQ-v1."""
    found: dict[str, Record] = {}
    for name, metric in metrics.items():
        rexrank = CATALOG[name].rexrank if name in CATALOG else ""
        if name == RADCLIQ:  # the catalog says there how ReXrank shows it, which is the reciprocal
            found[INVERSE] = {"label": "1/RadCliQ-v1", "higher_is_better": True, "rexrank": rexrank}
            rexrank = ""
        about = {"label": metric.label, "higher_is_better": metric.higher_is_better}
        found[name] = {**about, "rexrank": rexrank}
    return found


def _measure(
    scores: Scores,
    setting: Setting,
    about: Mapping[str, Record],
    columns: Mapping[tuple[str, Setting, str], Array],
    people: Sequence[str],
    resamples: int,
    seed: int,
) -> Record:
    """The numbers of one group; `columns` hold its studies only."""
    names = [system.name for system in scores.systems]
    keys = [(name, setting, metric) for name in names for metric in about if metric != INVERSE]
    found = bootstrap(np.column_stack([columns[key] for key in keys]), people, resamples, seed)
    values: dict[str, dict[str, Record]] = {name: {} for name in names}
    means: dict[tuple[str, str], float] = {}
    for column, (name, _, metric) in enumerate(keys):
        values[name][metric] = record(found, column)
        means[name, metric] = float(found.mean[column])
        if metric == RADCLIQ:
            values[name][INVERSE] = inverse(found, column)
            means[name, INVERSE] = means[name, metric]  # the order follows the mean, through the pole too
    places = {
        metric: _ranks(scores, metric, each["higher_is_better"], means, values)
        for metric, each in about.items()
    }
    by = _order_by(about)[0]
    order = ranks.order([places[metric] for metric in ([by] if by else FALLBACK) if metric in places], names)
    if by == INVERSE:
        _separate(order, setting, columns, people, resamples, seed)
    return {
        "studies": len(people),
        "patients": len(set(people)),
        "values": values,
        "ranks": places,
        "order": order,
    }


def _ranks(
    scores: Scores,
    metric: str,
    higher: bool,
    means: Mapping[tuple[str, str], float],
    values: Mapping[str, Mapping[str, Record]],
) -> dict[str, Record | None]:
    keys = {}
    for system in scores.systems:
        mean, seen = means[system.name, metric], values[system.name][metric]
        if math.isfinite(mean) and seen["n"] >= COVERAGE * (seen["n"] + seen["missing"]):
            keys[system.name] = ranks.of_inverse(mean) if metric == INVERSE else ranks.of_mean(mean, higher)
    return ranks.ranks(keys, [system.name for system in scores.systems])


def _order_by(measured: Collection[str]) -> tuple[str | None, str]:
    """What the overall order follows: a metric, or None for the mean rank; and in words."""
    if INVERSE in measured:
        return INVERSE, "1/RadCliQ-v1, as on ReXrank's site"
    labels = ", ".join(CATALOG[name].label for name in FALLBACK if name in measured)
    return None, f"mean rank over {labels or 'nothing'}: RadCliQ-v1 was not measured"


def _separate(
    order: Sequence[Record],
    setting: Setting,
    columns: Mapping[tuple[str, Setting, str], Array],
    people: Sequence[str],
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
    found = bootstrap(np.column_stack(differences), people, resamples, seed)
    for column, (above, below) in enumerate(itertools.pairwise(placed)):
        below["behind"] = {"system": above["system"], "metric": RADCLIQ, **difference(found, column)}


def _uncovered(scores: Scores, place: Record, rows: Rows) -> Iterator[Record]:
    """Systems that left out studies of a group that they were asked about."""
    studies = [scores.studies[row] for row in rows]
    for system in scores.systems:
        said = sum(study.study_id in system.texts["report"] for study in studies) / len(rows)
        if said < COVERAGE and system.attempts(studies):
            means = "its means are over those alone, and it is not ranked" if said else "it has no means"
            yield alarm(
                SUITE,
                "coverage",
                system.name,
                said,
                COVERAGE,
                f"{system.name} has a report for {said:.1%} of the studies ({where(place)}): {means}.",
            )


def _below(scores: Scores, group: Record) -> Iterator[Record]:
    """Policies that rank below a baseline."""
    places = {place["system"]: place["rank"] for place in group["order"] if place["rank"] is not None}
    baselines = [
        system.name for system in scores.systems if system.kind == "baseline" and system.name in places
    ]
    best = min(baselines, key=lambda name: places[name], default=None)
    for system in scores.systems:
        if best and system.kind == "policy" and places.get(system.name, 0) > places[best]:
            yield alarm(
                SUITE,
                "baseline",
                system.name,
                places[system.name],
                places[best],
                f"{system.name} ranks below {best}, which looks at no image ({where(group)}).",
            )


def _key(row: Row) -> str:
    return f"{row.corpus}/{row.setting}"
