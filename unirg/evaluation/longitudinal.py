"""Suite `longitudinal`: what a prior study brings, by encounter and by temporal category (Figure 3a to 3c).

3a: systems with priors against the same systems without, study by study. 3b: by the patient's encounter. 3c:
by temporal category (`temporal`). In every cell stands copy-prior, which repeats the previous report: who
does not exceed it has learnt to copy. Of a study without a prior it writes the most frequent report instead,
so each cell tells how many of its studies have one.

Intervals and paired differences are by patient and not corrected for the number of cells. An alarm needs a
difference on the wrong side of zero in the metric that the suite leads with, or in errors per report, told by
approximate randomisation after Holm over the cells where a prior is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unirg.errors import UserError
from unirg.evaluation import groups
from unirg.evaluation.candidates import COPY_PRIOR, Setting
from unirg.evaluation.groups import RADCLIQ, Record
from unirg.evaluation.leaderboard import INVERSE
from unirg.evaluation.scores import Metric, Scores
from unirg.evaluation.statistics import Array, bootstrap, holm, paired, randomisation
from unirg.evaluation.temporal import CATEGORIES, NO_LABELLER, NO_ORDER, NO_TEXT, Temporal
from unirg.study import Study

SUITE = "longitudinal"
ENCOUNTERS = ("1", "2", "3", "4", "5+")
LEADS = (RADCLIQ, "composite", "bertscore", "radgraph", "bleu2")
"""The first one measured leads: its differences raise alarms. The paper's figure shows 1/RadCliQ-v1."""
AGREEMENT = 0.95
"""Share of studies with a ground truth that the labeller must name as it is."""
LABELLED = 0.95
"""Share of later studies that need a category."""
SAME = 0.95
"""Share of studies with a prior whose text may stay the same when the prior is shown, at most."""
Pair = tuple[str, str]
Values = Mapping[tuple[str, Setting, str], Array]


@dataclass(frozen=True)
class _Asked:
    """What is measured in every cell."""

    scores: Scores
    values: Values
    metrics: Mapping[str, Metric]
    pairs: Sequence[Pair]
    resamples: int
    seed: int
    min_group: int

    @property
    def copies(self) -> bool:
        return any(system.name == COPY_PRIOR for system in self.scores.systems)


def longitudinal(
    scores: Scores,
    temporal: Temporal,
    pairs: Sequence[Pair] = (),
    shown: Mapping[str, Mapping[str, bool]] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    min_group: int = groups.MIN_GROUP,
) -> Record:
    """Means with intervals by encounter and category, against copy-prior and without priors; JSON types only.

    Keys of the result:
        suite, alarms
        metrics   name -> label, higher_is_better: the scores' but for errors by category, 1/RadCliQ-v1 too
        lead      the metric whose differences raise alarms beside `errors`; None where none is measured
        pairs     with, without: names of systems; shown: of each how many of its studies saw a prior, None
                  where it is not known
        labels    where the temporal categories come from, `Temporal.record`
        groups    one record a (split, corpus, setting): `unordered` (studies whose encounter is not known)
                  and `cells`, one record each
        cell      by ("all", "prior", "encounter", "category"), cell (a name); studies, patients, priors (how
                  many have one); and `too_small`, or
                  values              system -> metric -> mean, low, high, n, missing
                  against_copy_prior  system -> metric -> system - copy-prior: the same, excludes_zero, p, and
                                      adjusted (None in cells without a prior)
                  priors_bring        one record a pair: with, without, metrics -> with - without, likewise

    Args:
        pairs: (system with priors, system without), for Figure 3a.
        shown: system -> study_id -> whether its prompt held a prior, column `with_prior` of predictions.
        min_group: a cell with fewer studies, or fewer than `groups.MIN_PATIENTS` patients, has no numbers.

    Raises:
        UserError: a pair names no system of the scores, or one system twice.
    """
    _check(scores, pairs)
    values, metrics = groups.with_radcliq(scores)
    metrics = groups.without_categories(metrics)
    asked = _Asked(scores, values, metrics, pairs, resamples, seed, min_group)
    lead = next((name for name in LEADS if name in metrics and _has(asked, name)), None)
    found: list[Record] = []
    alarms: list[Record] = []
    for place, rows in groups.groups(scores):
        kept = rows.tolist()
        known: dict[tuple[int, ...], Record] = {}  # encounter 1 and first studies are the same studies
        cells = [
            {"by": by, "cell": name} | _cell(asked, place["setting"], chosen, known)
            for by, name, chosen in _cells(scores.studies, temporal, kept)
        ]
        _adjust(asked, cells)
        unordered = sum(scores.studies[row].encounter is None for row in kept)
        found.append(place | {"unordered": unordered, "cells": cells})
        if groups.warns(place):
            alarms += _alarms(asked, place, cells, [m for m in (lead, "errors") if m in metrics])
            alarms += _copied(asked, place, kept)
    seen = {name: _seen(scores, name, shown or {}) for pair in pairs for name in pair}
    priors = sum(study.prior_study_id is not None for study in scores.studies)
    return {
        "suite": SUITE,
        "alarms": [*alarms, *_of_pairs(pairs, seen, priors), *_of_labels(temporal)],
        "metrics": groups.about(metrics),
        "lead": lead,
        "pairs": [{"with": a, "without": b, "shown": {n: seen[n] for n in (a, b)}} for a, b in pairs],
        "labels": temporal.record(),
        "groups": found,
    }


def _check(scores: Scores, pairs: Sequence[Pair]) -> None:
    names = [system.name for system in scores.systems]
    for pair in pairs:
        for name in pair:
            if name not in names:
                raise UserError(f"priors are compared of {name}, which is no system: {', '.join(names)}")
        if pair[0] == pair[1]:
            raise UserError(
                f"priors are compared of {pair[0]} with itself: name one system with, one without"
            )


def _has(asked: _Asked, metric: str) -> bool:
    """Whether any system has a score."""
    columns = (asked.values[system.name, "report", metric] for system in asked.scores.systems)
    return any(not np.isnan(column).all() for column in columns)


def _cells(
    studies: Sequence[Study], temporal: Temporal, kept: Sequence[int]
) -> Iterator[tuple[str, str, list[int]]]:
    """(by, name, rows) of each cell: all studies, those with a prior, each encounter, each category."""
    yield "all", "all", list(kept)
    yield "prior", "with a prior", [row for row in kept if studies[row].prior_study_id]
    for name in ENCOUNTERS:
        yield "encounter", name, [row for row in kept if encounter(studies[row]) == name]
    for category in CATEGORIES:
        chosen = [row for row in kept if temporal.categories.get(studies[row].study_id) == category]
        yield "category", category, chosen


def encounter(study: Study) -> str | None:
    """The bin of Figure 3b: how many times the patient has come, from the fifth on together."""
    if study.encounter is None:
        return None
    return ENCOUNTERS[min(study.encounter, len(ENCOUNTERS)) - 1]


def _cell(asked: _Asked, setting: Setting, rows: list[int], known: dict[tuple[int, ...], Record]) -> Record:
    """Size and numbers of one cell; a cell of the same studies is measured once."""
    if tuple(rows) not in known:
        people = groups.patients(asked.scores, rows)
        size = {
            "studies": len(rows),
            "patients": len(set(people)),
            "priors": sum(asked.scores.studies[row].prior_study_id is not None for row in rows),
        }
        small = groups.too_small(people, asked.min_group)
        known[tuple(rows)] = size | ({"too_small": True} if small else _measure(asked, setting, rows, people))
    return copy.deepcopy(known[tuple(rows)])  # its p-values are corrected among other cells


def _measure(asked: _Asked, setting: Setting, rows: list[int], people: list[str]) -> Record:
    """The numbers of one cell, all from the same resamples."""
    names, metrics = [system.name for system in asked.scores.systems], list(asked.metrics)
    columns = {
        (name, metric): asked.values[name, setting, metric][rows] for name in names for metric in metrics
    }
    others = [(name, COPY_PRIOR) for name in names if name != COPY_PRIOR] if asked.copies else []
    compared = list(dict.fromkeys([*others, *asked.pairs]))
    differences = {
        (a, b, metric): paired(columns[a, metric], columns[b, metric])
        for a, b in compared
        for metric in metrics
    }
    stacked = np.column_stack([*columns.values(), *differences.values()])
    found = bootstrap(stacked, people, asked.resamples, asked.seed)
    p = randomisation(stacked[:, len(columns) :], people, asked.resamples, asked.seed)
    values: dict[str, Record] = {name: {} for name in names}
    for at, (name, metric) in enumerate(columns):
        values[name][metric] = groups.record(found, at)
        if metric == RADCLIQ:
            values[name][INVERSE] = groups.inverse(found, at)
    against: dict[Pair, Record] = {pair: {} for pair in compared}
    for at, (a, b, metric) in enumerate(differences):
        numbers = groups.difference(found, len(columns) + at)
        against[a, b][metric] = numbers | {"p": groups.number(p[at]), "adjusted": None}
    return {
        "values": values,
        "against_copy_prior": {a: against[a, b] for a, b in others},
        "priors_bring": [{"with": a, "without": b, "metrics": against[a, b]} for a, b in asked.pairs],
    }


def _adjust(asked: _Asked, cells: Sequence[Record]) -> None:
    """Fill in the adjusted p-values of each difference over the cells where a prior is."""
    large = [cell for cell in cells if _has_prior(cell) and "too_small" not in cell]
    for metric in asked.metrics:
        families = [
            [cell["against_copy_prior"][system.name][metric] for cell in large]
            for system in asked.scores.systems
            if asked.copies and system.name != COPY_PRIOR
        ]
        families += [
            [cell["priors_bring"][index]["metrics"][metric] for cell in large]
            for index in range(len(asked.pairs))
        ]
        for family in families:
            p = np.array([np.nan if each["p"] is None else each["p"] for each in family])
            for each, adjusted in zip(family, holm(p), strict=True):
                each["adjusted"] = groups.number(adjusted)


def _alarms(asked: _Asked, place: Record, cells: Sequence[Record], told: Sequence[str]) -> Iterator[Record]:
    """Policies below copy-prior, and priors that do harm, where a prior is: once a metric, its worst cell."""
    where = groups.where(place)
    large = [cell for cell in cells if _has_prior(cell) and "too_small" not in cell]
    for metric in told:
        higher, label = asked.metrics[metric].higher_is_better, asked.metrics[metric].label
        for system in asked.scores.systems:
            if system.kind != "policy":
                continue
            found = [(cell, cell["against_copy_prior"].get(system.name, {}).get(metric)) for cell in large]
            worse = _worse(found, higher)
            if worse:
                yield groups.alarm(
                    SUITE,
                    "below copy-prior",
                    system.name,
                    worse[0],
                    0.0,
                    f"{system.name} is worse than repeating the previous report in {label} ({where}; "
                    f"{worse[1]}).",
                )
        for index, (shown, hidden) in enumerate(asked.pairs):
            found = [(cell, cell["priors_bring"][index]["metrics"][metric]) for cell in large]
            worse = _worse(found, higher)
            if worse:
                yield groups.alarm(
                    SUITE,
                    "priors hurt",
                    shown,
                    worse[0],
                    0.0,
                    f"{shown}, which is shown priors, is worse than {hidden}, which is not, in {label} "
                    f"({where}; {worse[1]}).",
                )


def _has_prior(cell: Record) -> bool:
    """Whether the cell is one of Figure 3c's later categories, or of all studies with a prior."""
    return bool(cell["by"] == "prior" or (cell["by"] == "category" and cell["cell"] != "first_study"))


def _worse(found: Sequence[tuple[Record, Record | None]], higher: bool) -> tuple[float, str] | None:
    """The largest difference on the worse side that is told from chance, and the names of the cells."""
    bad = [
        (cell, record)
        for cell, record in found
        if record and record["adjusted"] is not None and record["adjusted"] < groups.ALPHA
        if (record["mean"] < 0) == higher
    ]
    if not bad:
        return None
    worst = max((record["mean"] for _, record in bad), key=abs)
    cells = (
        "all studies with a prior" if c["by"] == "prior" else c["cell"].replace("_", " ") for c, _ in bad
    )
    return worst, ", ".join(cells)


def _copied(asked: _Asked, place: Record, kept: Sequence[int]) -> Iterator[Record]:
    """Pairs whose texts are nearly all the same with and without priors."""
    studies = [asked.scores.studies[row] for row in kept]
    texts = {system.name: system.texts["report"] for system in asked.scores.systems}
    for shown, hidden in asked.pairs:
        both = [
            texts[shown][study.study_id] == texts[hidden][study.study_id]
            for study in studies
            if study.prior_study_id and study.study_id in texts[shown] and study.study_id in texts[hidden]
        ]
        same = sum(both) / len(both) if both else 0.0
        if len(both) >= asked.min_group and same > SAME:
            yield groups.alarm(
                SUITE,
                "priors ignored",
                shown,
                same,
                SAME,
                f"{shown} writes the same as {hidden}, which is shown no prior, for {same:.1%} of the "
                f"studies with a prior ({groups.where(place)}): it ignores priors, or both "
                "are the same predictions.",
            )


def _seen(scores: Scores, name: str, shown: Mapping[str, Mapping[str, bool]]) -> int | None:
    """How many of the studies evaluated a system saw with a prior."""
    if name not in shown:
        return None
    return sum(bool(shown[name].get(study.study_id)) for study in scores.studies)


def _of_pairs(pairs: Sequence[Pair], seen: Mapping[str, int | None], priors: int) -> Iterator[Record]:
    """Pairs that are not what they are called.

    Args:
        priors: studies that have one.
    """
    for shown, hidden in pairs:
        if seen[shown] == 0 and priors:
            sentence = f"{shown} was shown no prior at all, though it stands for the system with priors."
            yield groups.alarm(SUITE, "mixed up", shown, 0.0, float(priors), sentence)
        if count := seen[hidden]:
            sentence = f"{hidden} was shown {count} priors, though it stands for the system without priors."
            yield groups.alarm(SUITE, "mixed up", hidden, float(count), 0.0, sentence)


def _of_labels(temporal: Temporal) -> Iterator[Record]:
    """A labeller that cannot be relied on, or that left too much without a category."""
    agreement = temporal.record()["agreement"]
    if agreement and agreement["studies"]:
        share = agreement["agree"] / agreement["studies"]
        if share < AGREEMENT:
            yield groups.alarm(
                SUITE,
                "labeller",
                temporal.labeller,
                share,
                AGREEMENT,
                f"{temporal.labeller} names the known temporal category for {share:.1%} of the studies only: "
                "where no truth is known, its categories cannot be relied on.",
            )
    # Where no labeller was asked, or no order is known, nothing has failed: it is listed as not scored.
    failed = sum(why not in (NO_LABELLER, NO_ORDER, NO_TEXT) for why in temporal.missing.values())
    later = sum(temporal.sources.get(source, 0) for source in ("truth", "labeller"))
    share = later / (later + failed) if failed else 1.0
    if share < LABELLED:
        yield groups.alarm(
            SUITE,
            "unlabelled",
            None,
            share,
            LABELLED,
            f"{share:.1%} of the later studies have a temporal category: of the others the labeller gave no "
            "answer, and they are in no cell of that figure.",
        )
