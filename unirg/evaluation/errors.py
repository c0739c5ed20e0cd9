"""Suite `errors`: clinical errors per report under CheXprompt, by category and significance.

The paper's figure 2f divides the reports into those with at most 1, with 2, with 3, and with 4 or more errors
of any kind; `shares` is that division, so it sums to 1, and `at_most` adds it up. Counts are a language
model's, so the judge is named with them. A report that the judge gave no verdict on is missing, and counted.

The judge counts each of the six categories as significant and insignificant. Where the scores hold the
significant ones of a category (`errors_<category>_significant`), the insignificant ones are the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from unirg.evaluation.candidates import Setting
from unirg.evaluation.groups import (
    MIN_GROUP,
    Record,
    Rows,
    alarm,
    groups,
    patients,
    record,
    too_small,
    warns,
    where,
)
from unirg.evaluation.scores import Scores
from unirg.evaluation.statistics import Array, bootstrap, excludes_zero, paired
from unirg.metrics.catalog import CATALOG
from unirg.metrics.chexprompt import CATEGORIES

SUITE = "errors"
SHARES = ("at_most_1", "2", "3", "4_or_more")
"""The paper's division of the reports by their number of errors."""
UNANSWERED = 0.05
"""Share of a system's candidates without a verdict from which its counts are in doubt: those that a judge
leaves out (too long, refused) are not like the others, and a twentieth can carry a small difference."""


def errors(
    scores: Scores,
    judge: str,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    min_group: int = MIN_GROUP,
) -> Record:
    """Errors per report and shares of reports by their number, with intervals; JSON types only.

    Keys of the result:
        suite, alarms
        judge        the model that counted
        categories   name -> label, of the six
        groups       one record a (split, corpus, setting): `too_small`, or `studies`, `patients` and
                     systems      system ->
                         errors, significant, insignificant   mean per report (mean, low, high, n, missing)
                         categories   name -> {all, significant, insignificant}, a mean each; None where the
                                      judge's counts were not kept apart
                         shares, shares_significant   `SHARES` -> share of reports, the same record
                         at_most      "1", "2", "3" -> share of reports with at most so many errors
                     differences  system -> baseline -> {errors, significant}: paired, system - baseline, with
                                  `excludes_zero`; below 0 the system makes fewer errors

    Args:
        judge: the model's name at its endpoint, `offline-judge` for the one of rules.
    """
    found: Record = {
        **{"suite": SUITE, "alarms": [], "judge": judge, "groups": []},
        "categories": {name: CATALOG[f"errors_{name}"].label for name in CATEGORIES},
    }
    for place, rows in groups(scores):
        people = patients(scores, rows)
        group = place | {"too_small": True}
        if not too_small(people, min_group):
            group = place | _measure(scores, place["setting"], rows, people, resamples, seed)
            if warns(place):
                found["alarms"] += _alarms(scores, group, rows)
        found["groups"].append(group)
    return found


def shares(counts: Array) -> Array:
    """(studies,) numbers of errors -> (studies, 4) members of `SHARES`; NaN where there is no count."""
    member = np.column_stack([counts <= 1, counts == 2, counts == 3, counts >= 4]).astype(np.float64)
    return np.where(np.isnan(counts)[:, None], np.nan, member)


def _columns(scores: Scores, system: str, setting: Setting, rows: Rows) -> dict[tuple[str, ...], Array]:
    """Everything of a system that is averaged, by its place in the result."""

    def values(name: str) -> Array | None:
        column = scores.values.get((system, setting, name))
        return None if column is None else column[rows]

    missing = np.full(len(rows), np.nan)
    total, significant = (
        missing if (column := values(name)) is None else column for name in ("errors", "errors_significant")
    )
    found: dict[tuple[str, ...], Array] = {
        ("errors",): total,
        ("significant",): significant,
        ("insignificant",): total - significant,
    }
    for name in CATEGORIES:
        every, some = values(f"errors_{name}"), values(f"errors_{name}_significant")
        found["categories", name, "all"] = missing if every is None else every
        if every is not None and some is not None and np.isfinite(some).any():
            found["categories", name, "significant"] = some
            found["categories", name, "insignificant"] = every - some
    for key, counts in (("shares", total), ("shares_significant", significant)):
        found |= {(key, name): column for name, column in zip(SHARES, shares(counts).T, strict=True)}
    for most in (1, 2, 3):
        found["at_most", str(most)] = np.where(np.isnan(total), np.nan, total <= most)
    return found


def _measure(
    scores: Scores, setting: Setting, rows: Rows, people: Sequence[str], resamples: int, seed: int
) -> Record:
    keys: list[tuple[str, ...]] = []
    columns: list[Array] = []
    by_system = {each.name: _columns(scores, each.name, setting, rows) for each in scores.systems}
    for name, own in by_system.items():
        keys += [("systems", name, *key) for key in own]
        columns += own.values()
    baselines = [each.name for each in scores.systems if each.kind == "baseline"]
    for name, own in by_system.items():
        for base in baselines:
            for kind in ("errors", "significant") if base != name else ():
                keys.append(("differences", name, base, kind))
                columns.append(paired(own[kind,], by_system[base][kind,]))
    found = bootstrap(np.column_stack(columns), people, resamples, seed)
    result: Record = {"studies": len(people), "patients": len(set(people)), "systems": {}, "differences": {}}
    for column, key in enumerate(keys):
        numbers = record(found, column)
        if key[0] == "differences":
            numbers["excludes_zero"] = excludes_zero(float(found.low[column]), float(found.high[column]))
        inner = result
        for part in key[:-1]:
            inner = inner.setdefault(part, {})
        inner[key[-1]] = numbers
    for own in result["systems"].values():
        for kinds in own["categories"].values():
            kinds.setdefault("significant", None)
            kinds.setdefault("insignificant", None)
    return result


def _alarms(scores: Scores, group: Record, rows: Rows) -> Iterator[Record]:
    for system in scores.systems:
        said = np.array([scores.studies[row].study_id in system.texts["report"] for row in rows])
        judged = group["systems"][system.name]["errors"]["n"]
        if said.any() and (without := 1 - judged / said.sum()) > UNANSWERED:
            yield alarm(
                SUITE,
                "unanswered",
                system.name,
                without,
                UNANSWERED,
                f"The judge gave no verdict on {without:.1%} of the reports of {system.name} "
                f"({where(group)}): its errors are counted over the others alone.",
            )
        if system.kind == "baseline":
            continue
        for base, kinds in group["differences"].get(system.name, {}).items():
            more = kinds["errors"]
            if more["excludes_zero"] and more["mean"] > 0:
                yield alarm(
                    SUITE,
                    "baseline",
                    system.name,
                    more["mean"],
                    0.0,
                    f"{system.name} makes {more['mean']:.2f} errors more per report than {base}, which looks "
                    f"at no image ({where(group)}).",
                )
