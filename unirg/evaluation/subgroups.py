"""Suite `subgroups`: scores by sex, age, race, view and institution, the paper's figure 4d; and regressions.

The paper shows distributions by sex, age and race beside the second-best model. Here each group of an
attribute has its quartiles, its mean with interval, and its gap to the best group (`statistics.gaps`),
corrected for all pairs of groups of all attributes: any pair might have been the widest. Of two systems, a
challenger and the champion it would replace, each group has the paired difference, corrected over all groups
of all attributes: a system that is better on the whole may be worse for some. Metrics are not corrected over:
they mostly say the same of a study.

A study without the attribute is in the group "unknown", which is counted and not compared. Age groups and the
words for race are ours, the paper names none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from unirg.evaluation.candidates import Setting
from unirg.evaluation.groups import (
    ALPHA,
    MIN_GROUP,
    Record,
    Rows,
    alarm,
    groups,
    number,
    patients,
    record,
    too_small,
    warns,
    where,
)
from unirg.evaluation.scores import Scores
from unirg.evaluation.statistics import Array, bootstrap, excludes_zero, gaps, holm, paired, randomisation
from unirg.study import Study

SUITE = "subgroups"
UNKNOWN = "unknown"
AGES = ((18, "0-17"), (40, "18-39"), (65, "40-64"), (80, "65-79"), (121, "80 and over"))
"""First age beyond a group, and its name: children, then the groups that chest disease tells apart."""
SEXES = {"F": "female", "M": "male", "O": "other"}
RACES = {
    "hispanic": re.compile(r"\b(hispanic|latin[oa]|south american)"),
    "black": re.compile(r"\b(black|african)"),
    "asian": re.compile(r"\basian"),
    "white": re.compile(r"\b(white|caucasian|portuguese)"),
    "native american": re.compile(r"\b(american indian|alaska|native american)"),
    "pacific islander": re.compile(r"\b(pacific|hawaiian)"),
}
"""Group -> the words of corpora that are in it, the first that fits. MIMIC-IV names 33 races, most of them
too small alone; any other word is a group of its own name."""
NOT_HISPANIC = re.compile(r"\bno[nt][\s-]*(hispanic|latin[oa])(\s*(/|or)\s*latin[oa])?")
"""CheXpert Plus says of whoever is not: "White, non-Hispanic"."""
UNSTATED = re.compile(
    r"unknown|declin|refus|unable|unspecified|unavailable|"
    r"\bnot (specified|stated|reported|disclosed|available|applicable)|^(nan|none|null|n/?a|)$"
)
"""What corpora write where nobody said."""
MIN_EFFECT = 0.2
"""Standard deviations of a system's scores that a gap or a regression must reach to raise an alarm: a small
difference to Cohen (Statistical Power Analysis, 1988). Over thousands of studies less is told from zero."""


def _sex(study: Study) -> str:
    return SEXES.get(study.sex or "", UNKNOWN)


def _age(study: Study) -> str:
    if study.age is None:
        return UNKNOWN
    return next(name for beyond, name in AGES if study.age < beyond)


def _race(study: Study) -> str:
    words = NOT_HISPANIC.sub("", (study.race or "").casefold()).strip(" ,/-")
    named = next((name for name, terms in RACES.items() if terms.search(words)), None)
    return named or (UNKNOWN if UNSTATED.search(words) else words)


def _view(study: Study) -> str:
    """Of the image that the policy sees; a study of laterals alone shows none."""
    key = study.key_image
    if key is not None:
        return key.projection or UNKNOWN
    return "lateral" if any(image.view == "lateral" for image in study.images) else UNKNOWN


def _institution(study: Study) -> str:
    return study.institution


ATTRIBUTES: Mapping[str, Callable[[Study], str]] = {
    **{"sex": _sex, "age": _age, "race": _race, "view": _view, "institution": _institution},
}


def subgroups(
    scores: Scores,
    pairs: Sequence[tuple[str, str]] = (),
    metrics: Sequence[str] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    min_group: int = MIN_GROUP,
) -> Record:
    """Scores by subgroup, gaps to the best one, and paired differences of systems; JSON types only.

    Keys of the result:
        suite, alarms
        min_effect   `MIN_EFFECT`
        metrics      name -> label, higher_is_better
        groups       one record a (split, corpus, setting): `too_small`, or `studies`, `patients` and
                     overall      system -> metric -> mean, low, high, n, missing; of figure 4d's dashed line
                     attributes   sex, age, race, view, institution ->
                         unknown  studies that do not tell
                         levels   name -> `too_small` alone, or `studies`, `patients` and
                             values   system -> metric -> mean, low, high, n, missing; min, q1, median, q3,
                                      max of the scores; `best`, whether it is the best group; `gap`: gap,
                                      low, high, p, adjusted, in_sd to the best one, None for itself
                     regressions  "challenger - champion" -> metric -> {attribute: {level: difference (mean,
                                  low, high, n, missing), p, adjusted, in_sd, worse}}

    `in_sd` is in standard deviations of the system's (the champion's) scores over the whole group, below 0
    where worse.

    Args:
        pairs: (challenger, champion), names of systems.
        metrics: those to show; None: all.

    Raises:
        ValueError: a pair names no system.
    """
    names = list(scores.metrics if metrics is None else metrics)
    known = {system.name for system in scores.systems}
    if unknown := {name for pair in pairs for name in pair} - known:
        raise ValueError(f"{min(unknown)} is no system")
    found: Record = {
        **{"suite": SUITE, "alarms": [], "min_effect": MIN_EFFECT},
        "metrics": {
            name: {
                "label": scores.metrics[name].label,
                "higher_is_better": scores.metrics[name].higher_is_better,
            }
            for name in names
        },
        "groups": [],
    }
    for place, rows in groups(scores):
        people = patients(scores, rows)
        group = place | {"too_small": True}
        if not too_small(people, min_group):
            one = _Group(scores, place["setting"], names, rows, people, resamples, seed, min_group)
            group = place | {"studies": len(people), "patients": len(set(people))} | one.measured()
            group["regressions"] = {f"{a} - {b}": one.regression(a, b) for a, b in pairs}
            if warns(place):
                found["alarms"] += _gap_alarms(scores, group)
                found["alarms"] += _regression_alarms(scores, group, pairs)
        found["groups"].append(group)
    return found


class _Group:
    """The studies of one group, and who is in which subgroup of them."""

    def __init__(
        self,
        scores: Scores,
        setting: Setting,
        metrics: Sequence[str],
        rows: Rows,
        people: Sequence[str],
        resamples: int,
        seed: int,
        min_group: int,
    ) -> None:
        self._people, self._resamples, self._seed, self._metrics = people, resamples, seed, metrics
        self._keys = [(system.name, metric) for system in scores.systems for metric in metrics]
        self._columns = {(name, m): scores.values[name, setting, m][rows] for name, m in self._keys}
        self._higher = {metric: scores.metrics[metric].higher_is_better for metric in metrics}
        self._levels = {
            attribute: np.array([level(scores.studies[row]) for row in rows])
            for attribute, level in ATTRIBUTES.items()
        }
        self._large = {
            attribute: [
                name
                for name in np.unique(levels).tolist()
                if name != UNKNOWN and not too_small(self._of(levels == name), min_group)
            ]
            for attribute, levels in self._levels.items()
        }

    def _of(self, kept: np.ndarray) -> list[str]:
        return [self._people[at] for at in np.flatnonzero(kept).tolist()]

    def measured(self) -> Record:
        """`overall` and `attributes`."""
        values = np.column_stack([self._columns[key] for key in self._keys])
        found = bootstrap(values, self._people, self._resamples, self._seed)
        return {
            "overall": self._nested([record(found, column) for column in range(len(self._keys))]),
            "attributes": self._corrected(
                {attribute: self._attribute(attribute, values) for attribute in self._levels}
            ),
        }

    def _corrected(self, attributes: Record) -> Record:
        """Fill in the gaps' adjusted p-values."""
        # Of k groups with a score each pair might have been best and worst.
        for name, metric in self._keys:
            family, told = 0, []
            for found in attributes.values():
                shown = [
                    each["values"][name][metric] for each in found["levels"].values() if "values" in each
                ]
                able = sum(each["best"] or each["gap"]["p"] is not None for each in shown)
                family += able * (able - 1) // 2
                told += [each["gap"] for each in shown if each["gap"] and each["gap"]["p"] is not None]
            adjusted = holm(np.array([gap["p"] for gap in told], dtype=np.float64), family)
            for gap, value in zip(told, adjusted, strict=True):
                gap["adjusted"] = number(value)
        return attributes

    def _attribute(self, attribute: str, values: Array) -> Record:
        levels, large = self._levels[attribute], self._large[attribute]
        result: Record = {"unknown": int((levels == UNKNOWN).sum()), "levels": {}}
        within = [name if name in large else None for name in levels.tolist()]
        higher = [self._higher[metric] for _, metric in self._keys]
        found = gaps(values, within, self._people, higher, self._resamples, self._seed)
        for name in np.unique(levels).tolist():
            if name == UNKNOWN:
                continue
            if name not in large:
                result["levels"][name] = {"too_small": True}
                continue
            kept = levels == name
            own = self._of(kept)
            means = bootstrap(values[kept], own, self._resamples, self._seed)
            row = found.groups.index(name)
            records = []
            for column, (_, metric) in enumerate(self._keys):
                sd = _spread(values[:, column])
                gap = {key: number(getattr(found, key)[row, column]) for key in ("gap", "low", "high", "p")}
                gap["adjusted"] = None
                best = found.best[column] == name
                gap["in_sd"] = _in_sd(float(found.gap[row, column]), sd, self._higher[metric])
                records.append(
                    record(means, column)
                    | _quartiles(values[kept, column])
                    | {"best": best, "gap": None if best else gap}
                )
            result["levels"][name] = {
                **{"studies": len(own), "patients": len(set(own))},
                "values": self._nested(records),
            }
        return result

    def _nested(self, records: Sequence[Record]) -> Record:
        found: Record = {}
        for (name, metric), each in zip(self._keys, records, strict=True):
            found.setdefault(name, {})[metric] = each
        return found

    def regression(self, challenger: str, champion: str) -> Record:
        """metric -> attribute -> level -> the paired difference, corrected over all levels."""
        differences = np.column_stack(
            [paired(self._columns[challenger, m], self._columns[champion, m]) for m in self._metrics]
        )
        result: Record = {metric: {} for metric in self._metrics}
        family: list[list[Record]] = [[] for _ in self._metrics]
        for attribute, levels in self._levels.items():
            for name in self._large[attribute]:
                kept = levels == name
                own = self._of(kept)
                found = bootstrap(differences[kept], own, self._resamples, self._seed)
                p = randomisation(differences[kept], own, self._resamples, self._seed)
                for column, metric in enumerate(self._metrics):
                    mean = float(found.mean[column])
                    sd = _spread(self._columns[champion, metric])
                    each = record(found, column) | {
                        "p": number(p[column]),
                        "adjusted": None,
                        "in_sd": _in_sd(mean, sd, self._higher[metric]),
                        "worse": excludes_zero(float(found.low[column]), float(found.high[column]))
                        and (mean < 0) == self._higher[metric],
                    }
                    result[metric].setdefault(attribute, {})[name] = each
                    family[column].append(each)
        for members in family:
            adjusted = holm(np.array([np.nan if each["p"] is None else each["p"] for each in members]))
            for each, value in zip(members, adjusted, strict=True):
                each["adjusted"] = number(value)
        return result


def _quartiles(values: Array) -> Record:
    scored = values[np.isfinite(values)]
    names = ("min", "q1", "median", "q3", "max")
    if not len(scored):
        return dict.fromkeys(names)
    ends = np.quantile(scored, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {name: number(each) for name, each in zip(names, ends, strict=True)}


def _spread(values: Array) -> float:
    scored = values[np.isfinite(values)]
    return float(scored.std(ddof=1)) if len(scored) > 1 else 0.0


def _in_sd(difference: float, sd: float, higher: bool) -> float | None:
    """A difference in standard deviations, below 0 where it is for the worse."""
    return number((difference if higher else -difference) / sd) if sd > 0 else None


def told_worse(each: Record) -> bool:
    """Whether a gap or difference is told from chance, for the worse, and large enough to matter."""
    told = each["adjusted"] is not None and each["adjusted"] < ALPHA
    return told and each["in_sd"] is not None and each["in_sd"] <= -MIN_EFFECT


def _gap_alarms(scores: Scores, group: Record) -> Iterator[Record]:
    """One a policy and attribute: its widest gap."""
    for system in scores.systems:
        if system.kind == "baseline":
            continue
        for attribute, found in group["attributes"].items():
            wide = [
                (each["gap"]["in_sd"], level, metric)
                for level, shown in found["levels"].items()
                for metric, each in shown.get("values", {}).get(system.name, {}).items()
                if each["gap"] and told_worse(each["gap"])
            ]
            if wide:
                size, level, metric = min(wide)
                yield alarm(
                    SUITE,
                    "gap",
                    system.name,
                    -size,
                    MIN_EFFECT,
                    f"{system.name} is worse for {attribute} {level} than for the best group, by {-size:.1f} "
                    f"standard deviations in {scores.metrics[metric].label} ({where(group)}).",
                )


def _regression_alarms(scores: Scores, group: Record, pairs: Sequence[tuple[str, str]]) -> Iterator[Record]:
    """One a pair and attribute: the subgroup that loses most."""
    for challenger, champion in pairs:
        found = group["regressions"][f"{challenger} - {champion}"]
        for attribute in ATTRIBUTES:
            lost = [
                (each["in_sd"], level, metric)
                for metric, by_attribute in found.items()
                for level, each in by_attribute.get(attribute, {}).items()
                if each["worse"] and told_worse(each)
            ]
            if lost:
                size, level, metric = min(lost)
                yield alarm(
                    SUITE,
                    "regression",
                    challenger,
                    -size,
                    MIN_EFFECT,
                    f"{challenger} is worse than {champion} for {attribute} {level}, by {-size:.1f} standard "
                    f"deviations in {scores.metrics[metric].label} ({where(group)}).",
                )
