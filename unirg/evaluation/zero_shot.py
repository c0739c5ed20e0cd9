"""Suite `zero_shot`: places held out of all training beside those that a policy learned from, figure 4a.

The paper leaves two sources out of training and tests on them. Here each such place stands beside the test
set of the places that were seen, with the drop from there to it: how much worse its mean is. The two are
groups of different patients, so the drop's interval is that of a difference of independent means, and its
p-values are corrected over the places.

A drop says nothing of a policy that has seen the place. `unseen.check_unseen` refuses one whose lineage shows
that; a policy without lineage, by a prediction file, is shown and raises an alarm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from unirg.evaluation.candidates import SETTINGS, Setting
from unirg.evaluation.groups import (
    ALPHA,
    MIN_GROUP,
    Record,
    Rows,
    alarm,
    number,
    patients,
    record,
    too_small,
    with_radcliq,
    without_categories,
)
from unirg.evaluation.scores import Scores
from unirg.evaluation.statistics import Array, bootstrap, excludes_zero, gaps, holm
from unirg.evaluation.unseen import Unseen

SUITE = "zero_shot"
SEEN, AWAY = "test", "zero_shot"
LARGE_DROP = 0.5
"""Standard deviations of the seen studies' scores by which a mean on an unseen place must be worse to raise
an alarm: a medium difference to Cohen (Statistical Power Analysis, 1988). Some drop is to be expected."""
UNKNOWN = "lineage unknown: its predictions name no checkpoint that can be followed"
BASELINE = "no lineage: a baseline that was not trained"


def zero_shot(
    scores: Scores,
    places: Collection[str],
    lineage: Mapping[str, Unseen],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    min_group: int = MIN_GROUP,
) -> Record:
    """Means on unseen and seen places, and the drop between them; JSON types only.

    Keys of the result:
        suite, alarms
        held_out     names of the corpora and institutions that are unseen
        lineage      system -> {status: checked, claimed (checked, of a checkpoint that the predictions do not
                     name themselves), unknown or baseline; sentence}
        large_drop   `LARGE_DROP`, in standard deviations
        groups       one record a (split, corpus, institution, setting), of splits test and zero_shot, corpus
                     and institution None for all: `too_small`, or `studies`, `patients` and
                     values   system -> metric -> mean, low, high, n, missing
                     drops    of zero_shot only, system -> metric -> `drop` from the test set as a whole,
                              above 0 where the place is worse, with low, high, p, adjusted (Holm over the
                              places), `in_sd` (in standard deviations of the test set's scores) and
                              excludes_zero

    RadCliQ-v1 is among the metrics where its parts are, and errors by category are not: they have a suite of
    their own, and an alarm takes the worst of what is compared here.

    Args:
        places: `unseen.held_out`.
        lineage: system -> what `check_unseen` found of its checkpoint; policies without one raise an alarm.

    Raises:
        ValueError: a lineage was checked for other places than are unseen here.
    """
    for name, found in lineage.items():
        if unchecked := set(places) - set(found.places):
            raise ValueError(f"the lineage of {name} was not checked for {min(unchecked)}")
    values, metrics = with_radcliq(scores)
    scores = replace(scores, values=values, metrics=without_categories(metrics))
    result: Record = {
        **{"suite": SUITE, "alarms": [], "held_out": sorted(places), "large_drop": LARGE_DROP},
        "lineage": {
            system.name: _lineage(system.kind, lineage.get(system.name)) for system in scores.systems
        },
        "groups": [],
    }
    for setting in SETTINGS:
        result["groups"] += _setting(scores, setting, resamples, seed, min_group)
    result["alarms"] += _unknown(scores, result["lineage"])
    result["alarms"] += _alarms(scores, result["groups"])
    return result


def _lineage(kind: str, found: Unseen | None) -> Record:
    if found is None:
        baseline = kind == "baseline"
        return {
            "status": "baseline" if baseline else "unknown",
            "sentence": BASELINE if baseline else UNKNOWN,
        }
    status = "unknown" if found.unknown else "claimed" if found.claimed else "checked"
    return {"status": status, "sentence": found.sentence}


def _places(scores: Scores, setting: Setting) -> Iterator[tuple[Record, Rows]]:
    """Each of the two splits as a whole, its corpora, and their institutions."""
    fits = scores.eligible(setting)
    split, corpus, institution = (
        np.array([str(getattr(study, name)) for study in scores.studies], dtype=np.str_)
        for name in ("split", "corpus", "institution")
    )
    for name in (SEEN, AWAY):
        inside = fits & (split == name)
        if not inside.any():
            continue
        about = {"split": name, "setting": setting}
        yield about | {"corpus": None, "institution": None}, np.flatnonzero(inside)
        for each in np.unique(corpus[inside]).tolist():
            own = inside & (corpus == each)
            yield about | {"corpus": each, "institution": None}, np.flatnonzero(own)
            for site in np.unique(institution[own]).tolist():
                yield (
                    about | {"corpus": each, "institution": site},
                    np.flatnonzero(own & (institution == site)),
                )


def _setting(scores: Scores, setting: Setting, resamples: int, seed: int, min_group: int) -> list[Record]:
    """The groups of one setting."""
    keys = [(system.name, metric) for system in scores.systems for metric in scores.metrics]
    values = np.column_stack([scores.values[name, setting, metric] for name, metric in keys])
    higher = [scores.metrics[metric].higher_is_better for _, metric in keys]
    groups: list[Record] = []
    compared: list[Record] = []
    seen: Rows | None = None
    for place, rows in _places(scores, setting):
        people = patients(scores, rows)
        group = place | {"too_small": True}
        if not too_small(people, min_group):
            group = place | {"studies": len(people), "patients": len(set(people))}
            found = bootstrap(values[rows], people, resamples, seed)
            group["values"] = _nested(keys, [record(found, column) for column in range(len(keys))])
            if place["split"] == SEEN and place["corpus"] is None:
                seen = rows
            if place["split"] == AWAY and seen is not None:
                drops = _drops(scores, values, seen, rows, higher, resamples, seed)
                group["drops"] = _nested(keys, drops)
                compared.append(group)
        groups.append(group)
    for name, metric in keys:
        family = [group["drops"][name][metric] for group in compared]
        found_p = np.array([np.nan if each["p"] is None else each["p"] for each in family])
        for each, adjusted in zip(family, holm(found_p), strict=True):
            each["adjusted"] = number(adjusted)
    return groups


def _nested(keys: Sequence[tuple[str, str]], records: Sequence[Record]) -> Record:
    found: Record = {}
    for (name, metric), each in zip(keys, records, strict=True):
        found.setdefault(name, {})[metric] = each
    return found


def _drops(
    scores: Scores,
    values: Array,
    seen: Rows,
    away: Rows,
    higher: Sequence[bool],
    resamples: int,
    seed: int,
) -> list[Record]:
    """How much worse each column is over the unseen rows than over the seen ones."""
    rows = np.concatenate([seen, away])
    labels = [SEEN] * len(seen) + [AWAY] * len(away)
    found = gaps(values[rows], labels, patients(scores, rows), higher, resamples, seed)
    at = {name: found.groups.index(name) for name in (SEEN, AWAY)}
    # `gaps` compares with the better of the two, whichever that is.
    records = []
    for column, upward in enumerate(higher):
        best = found.best[column]
        worse = AWAY if best == SEEN else SEEN
        gap, low, high, p = (
            float(getattr(found, name)[at[worse], column]) for name in ("gap", "low", "high", "p")
        )
        # gap = worse - best: turned so that above 0 the unseen is the worse one.
        if (best == SEEN) == upward:
            gap, low, high = -gap, -high, -low
        scored = values[seen, column]
        scored = scored[np.isfinite(scored)]
        spread = float(scored.std(ddof=1)) if len(scored) > 1 else 0.0
        records.append(
            {
                **{"drop": number(gap), "low": number(low), "high": number(high), "p": number(p)},
                **{"adjusted": None, "in_sd": number(gap / spread) if spread > 0 else None},
                "excludes_zero": excludes_zero(low, high),
            }
        )
    return records


def _unknown(scores: Scores, lineage: Mapping[str, Record]) -> Iterator[Record]:
    """Policies of which nobody can say that they have not seen the places."""
    for system in scores.systems:
        found = lineage[system.name]
        if system.kind == "policy" and found["status"] == "unknown":
            yield alarm(
                SUITE,
                "unknown lineage",
                system.name,
                None,
                None,
                f"{system.name} may have been trained on the places that are shown as unseen: "
                f"{found['sentence']}.",
            )


def _alarms(scores: Scores, groups: Sequence[Record]) -> Iterator[Record]:
    """A policy's largest drop of each place, over whole reports."""
    for group in groups:
        if group["setting"] != "report" or group["corpus"] is None or "drops" not in group:
            continue
        inner = [g for g in groups if g["split"] == AWAY and g["corpus"] == group["corpus"]]
        if group["institution"] is None and sum(g["setting"] == "report" for g in inner) == 2:
            continue  # the corpus has one institution, which tells the same
        for system in scores.systems:
            large = {
                metric: drop
                for metric, drop in group["drops"][system.name].items()
                if drop["adjusted"] is not None and drop["adjusted"] < ALPHA
                if (drop["in_sd"] or 0) >= LARGE_DROP
            }
            if system.kind == "baseline" or not large:
                continue
            worst = max(large, key=lambda metric: large[metric]["in_sd"])
            place = f"{group['corpus']}, {group['institution'] or 'all institutions'}"
            yield alarm(
                SUITE,
                "large_drop",
                system.name,
                large[worst]["in_sd"],
                LARGE_DROP,
                f"{system.name} is much worse on the unseen place {place} than on those it learned from: by "
                f"{large[worst]['in_sd']:.1f} standard deviations in {scores.metrics[worst].label}.",
            )
