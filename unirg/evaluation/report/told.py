"""What a reader is told first: a few sentences on who did best, and the alarms of all suites by gravity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from unirg.evaluation.report.shown import INVERSE, SPLITS, Cell, Data, Shown, formatted

SUITES = {
    "reports": "Report metrics",
    "errors": "Errors by category",
    "conditions": "Conditions",
    "longitudinal": "Longitudinal",
    "zero_shot": "Zero-shot",
    "subgroups": "Subgroups",
    "dynamics": "Training dynamics",
    "sanity": "Sanity of the texts",
}
"""Suites in the order of the page, and their headings."""
NAMED = 3
"""Systems that a line of the first screen names."""


class Meaning(NamedTuple):
    """What an alarm tells a reader."""

    words: str
    value: str = ""
    """How its value is said, of its largest; empty where the words say all."""


BEYOND = "{:.0%} beyond the radiologists' own"
STUDIES = "{:.0%} of the studies"
APART = "{:.1f} standard deviations"
GRAVE: Mapping[tuple[str, str], Meaning] = {
    ("sanity", "two_runs"): Meaning(
        "A prediction file holds more than one run: its numbers are of a mixture.", "{:.0f} studies twice"
    ),
    ("sanity", "mixed_up"): Meaning(
        "Reports do not fit their studies: they may be another patient's, or one for all."
    ),
    ("longitudinal", "mixed up"): Meaning(
        "A system is not what it is called: check which predictions are which."
    ),
    ("sanity", "top"): Meaning("One report is given to many patients: a sign of collapse.", BEYOND),
    ("sanity", "repeated"): Meaning("Many reports are word for word another patient's.", BEYOND),
    ("sanity", "near"): Meaning("Many reports are nearly one and the same.", BEYOND),
    ("dynamics", "entropy"): Meaning("Training has collapsed: one report for all."),
    ("subgroups", "regression"): Meaning(
        "The new model is worse for some patients than the one it would replace.", APART
    ),
}
"""(suite, alarm) -> what it means, from the gravest: numbers that mislead, models not to be used."""
FURTHER: Mapping[tuple[str, str], Meaning] = {
    ("subgroups", "gap"): Meaning("Some patients get worse reports than others.", APART),
    ("zero_shot", "large_drop"): Meaning(
        "The reports are much worse where the model has not been trained.", APART
    ),
    ("zero_shot", "unknown lineage"): Meaning(
        "A policy may have been trained on the places that are shown as unseen."
    ),
    ("reports", "baseline"): Meaning("A program that looks at no image ranks above the model."),
    ("errors", "baseline"): Meaning(
        "A program that looks at no image makes fewer clinical errors.", "{:.2f} more in a report"
    ),
    ("longitudinal", "below copy-prior"): Meaning("Repeating the last report does better: change is missed."),
    ("conditions", "never_stated"): Meaning(
        "A condition is never reported, however often it is there.", "not once in {:.0f} studies"
    ),
    ("reports", "coverage"): Meaning(
        "Reports are missing, so the means are over other studies than the rest.", "{:.0%} have one"
    ),
    ("sanity", "uneven"): Meaning("Systems are scored on different studies.", "{:.0%} lacking"),
    ("errors", "unanswered"): Meaning(
        "Errors are counted over a part of the reports; the others may be worse.", STUDIES
    ),
    ("sanity", "empty"): Meaning("Reports are empty.", STUDIES),
    ("sanity", "cut"): Meaning("Reports were cut off by the length limit.", STUDIES),
    ("sanity", "unfinished"): Meaning("Reports end within a sentence.", BEYOND),
    ("sanity", "section"): Meaning("Reports lack a section that was asked for.", STUDIES),
    ("sanity", "length"): Meaning(
        "Reports are much longer or shorter than the radiologists'.", "{:.1f} times"
    ),
    ("sanity", "prior"): Meaning("Reports repeat the patient's last one.", BEYOND),
    ("longitudinal", "priors hurt"): Meaning("Showing the earlier study makes the reports worse."),
    ("longitudinal", "priors ignored"): Meaning(
        "The earlier study changes nothing in the reports.", "{:.0%} the same"
    ),
    ("longitudinal", "labeller"): Meaning("The labels of change over time cannot be relied on."),
    ("longitudinal", "unlabelled"): Meaning("Many studies have no label of change over time."),
    ("dynamics", "duplicates"): Meaning("Training has narrowed: nearly the same report at every attempt."),
    ("dynamics", "length"): Meaning("Training has changed the length of the reports."),
    ("dynamics", "hacking"): Meaning("Training games one metric while the others fall."),
    ("dynamics", "not finite"): Meaning("Training has broken down numerically.", "{:.0f} steps"),
    ("dynamics", "past its best"): Meaning("An earlier checkpoint was better than the one at the end."),
    ("dynamics", "no progress"): Meaning("Training brought no improvement."),
    ("dynamics", "missing scores"): Meaning("The validation's curves are over a part of the studies."),
    ("dynamics", "not comparable"): Meaning("Curves are over different studies and cannot be compared."),
    ("dynamics", "ablation ahead"): Meaning("Leaving a part of the recipe out does better."),
}
"""The others, in the order that they are told."""
MEANINGS = {**GRAVE, **FURTHER}


class Told(NamedTuple):
    """The alarms of one kind."""

    suite: str
    name: str
    alarms: list[Data]

    @property
    def meaning(self) -> str:
        """One of another version is told by its name and sentences alone."""
        known = MEANINGS.get((self.suite, self.name))
        return known.words if known else self.name

    @property
    def grave(self) -> bool:
        return (self.suite, self.name) in GRAVE

    def systems(self) -> list[str]:
        """Whom they concern, each once."""
        return list(dict.fromkeys(str(alarm["system"] or "all systems") for alarm in self.alarms))

    def worst(self) -> str:
        """The value that is farthest beyond its limit, in words."""
        known = MEANINGS.get((self.suite, self.name))
        valued = [alarm for alarm in self.alarms if alarm["value"] is not None]
        if not known or not known.value or not valued:
            return ""
        far = max(valued, key=lambda alarm: abs(alarm["value"] - (alarm["limit"] or 0)))
        return ("at worst " if len(valued) > 1 else "") + known.value.format(far["value"])


def alarms(data: Data) -> list[Told]:
    """Every alarm, kind by kind, from the gravest; within a kind as its suite has them."""
    found: dict[tuple[str, str], list[Data]] = {}
    for suite in SUITES:
        for alarm in data["suites"].get(suite, {}).get("alarms", []):
            kind = found.setdefault((suite, alarm["alarm"]), [])
            if alarm not in kind:
                kind.append(alarm)
    order = list(MEANINGS)
    kinds = sorted(found, key=lambda kind: order.index(kind) if kind in order else len(order))
    return [Told(*kind, found[kind]) for kind in kinds]


def sentences(data: Data, raised: list[Told], shown: Shown) -> Iterator[str]:
    """Who did best on each test set, as far as that can be told, and what speaks against them.

    By 1/RadCliQ-v1 the order comes with paired tests, by the mean rank with none.
    """
    kinds = {system["name"]: system["kind"] for system in data["systems"]}
    groups = [
        group
        for group in data["suites"].get("reports", {}).get("groups", [])
        if group["setting"] == "report" and "too_small" not in group and group["split"] in SPLITS
    ]
    tested = INVERSE in data["suites"].get("reports", {}).get("metrics", {})
    best_of = "does best" if tested else "has the best mean rank"
    firsts: dict[str, Data] = {}
    for group in groups:
        firsts.setdefault(group["split"], group)  # a split as a whole comes before its corpora
    best: dict[str, None] = {}
    for split in (name for name in SPLITS if name in firsts):
        group = firsts[split]
        placed = [place for place in group["order"] if place["rank"]]
        policies = [place for place in placed if kinds.get(place["system"]) == "policy"]
        size = f"{shown.split(split)} ({group['studies']} studies of {group['patients']} patients)"
        if not policies:
            yield f"{size}: no policy could be ranked."
            continue
        first, words = policies[0], f"{size}: "
        best[first["system"]] = None
        words += f"{first['system']} {best_of} of the evaluated policies{_with(group, first, shown)}"
        if len(policies) > 1:
            words += f"; {_next(policies[1], first)}"
        baselines = [place for place in placed if kinds.get(place["system"]) == "baseline"]
        if baselines:
            better = "ahead of" if first["rank"] < baselines[0]["rank"] else "not ahead of"
            words += f". It is {better} {baselines[0]['system']}{_with(group, baselines[0], shown)}, "
            words += "which looks at no image"
        yield words + "."
    if not best:
        yield "No policy was ranked: see below what was not scored, and why."
    for name in best:
        against = [kind for kind in raised if name in kind.systems()]
        grave = sum(kind.grave for kind in against)
        kinds_of = f"{len(against)} kind{'s' if len(against) > 1 else ''} of alarm"
        if grave:
            yield f"Do not rely on {name} before you know why it raised {kinds_of}, {grave} of them grave."
        elif against:
            yield f"{name} raised {kinds_of}, none of them grave."


def _with(group: Data, place: Data, shown: Shown) -> str:
    """The first metric of the board, of one system."""
    values = group["values"][place["system"]]
    known = [name for name, record in values.items() if record and record["mean"] is not None]
    if not known:
        return ""
    metric = INVERSE if INVERSE in known else (shown.first(known, 1) or known)[0]
    cell = Cell(values[metric], metric)
    return f" ({shown.label(metric)} {interval(cell)})"


def interval(cell: Cell) -> str:
    """A mean with its interval, on one line."""
    number = cell.number
    if number is None or number["mean"] is None:
        return formatted(None, cell.metric)
    words = formatted(number["mean"], cell.metric)
    if number["low"] is not None:
        words += f", {formatted(number['low'], cell.metric)} to {formatted(number['high'], cell.metric)}"
    return words


def _next(second: Data, first: Data) -> str:
    behind = second.get("behind")
    if behind and behind["system"] == first["system"]:
        apart = "is told apart from it" if behind["excludes_zero"] else "cannot be told apart from it"
        return f"the next, {second['system']}, {apart}"
    return f"the next is {second['system']}"


def summary(suite: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The first group with numbers of each split, over whole reports: for a table of a few rows."""
    kept: dict[str, Mapping[str, Any]] = {}
    for group in suite.get("groups", []):
        if group["setting"] == "report" and "too_small" not in group:
            kept.setdefault(group["split"], group)
    return list(kept.values())
