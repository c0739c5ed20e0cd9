"""The alarms of all suites for the first screen: what each kind means to a reader, what raised it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from unirg.evaluation.report.shown import Data

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
MEANINGS: Mapping[tuple[str, str], str] = {
    ("reports", "coverage"): "Reports are missing, so the means are over other studies than the rest.",
    ("reports", "baseline"): "A program that looks at no image does better: the model adds nothing here.",
    ("errors", "unanswered"): "Errors are counted over a part of the reports; the others may be worse.",
    ("errors", "baseline"): "A program that looks at no image makes fewer clinical errors.",
    ("conditions", "never_stated"): "A condition is never reported, however often it is there.",
    (
        "longitudinal",
        "below copy-prior",
    ): "Repeating the last report does better: change is missed.",
    ("longitudinal", "priors hurt"): "Showing the earlier study makes the reports worse.",
    ("longitudinal", "priors ignored"): "The earlier study changes nothing in the reports.",
    ("longitudinal", "mixed up"): "A system is not what it is called: check which predictions are which.",
    ("longitudinal", "labeller"): "The labels of change over time cannot be relied on.",
    ("longitudinal", "unlabelled"): "Many studies have no label of change over time.",
    ("zero_shot", "large_drop"): "The reports are much worse where the model has not been trained.",
    ("subgroups", "gap"): "Some patients get worse reports than others.",
    ("subgroups", "regression"): "The new model is worse for some patients than the one it would replace.",
    ("dynamics", "entropy"): "Training has collapsed: one report for all.",
    ("dynamics", "duplicates"): "Training has narrowed: nearly the same report at every attempt.",
    ("dynamics", "length"): "Training has changed the length of the reports.",
    ("dynamics", "hacking"): "Training games one metric while the others fall.",
    ("dynamics", "not finite"): "Training has broken down numerically.",
    ("dynamics", "past its best"): "An earlier checkpoint was better than the one at the end.",
    ("dynamics", "no progress"): "Training brought no improvement.",
    ("dynamics", "missing scores"): "The validation's curves are over a part of the studies.",
    ("dynamics", "not comparable"): "Curves are over different studies and cannot be compared.",
    ("dynamics", "ablation ahead"): "Leaving a part of the recipe out does better.",
    ("sanity", "two_runs"): "A prediction file holds more than one run: its numbers are of a mixture.",
    ("sanity", "uneven"): "Systems are scored on different studies.",
    ("sanity", "top"): "One report is given to many patients: a sign of collapse.",
    ("sanity", "repeated"): "Many reports are word for word another patient's.",
    ("sanity", "near"): "Many reports are nearly one and the same.",
    ("sanity", "unfinished"): "Reports end within a sentence.",
    ("sanity", "empty"): "Reports are empty.",
    ("sanity", "cut"): "Reports were cut off by the length limit.",
    ("sanity", "length"): "Reports are much longer or shorter than the radiologists'.",
    ("sanity", "section"): "Reports lack a section that was asked for.",
    ("sanity", "prior"): "Reports repeat the patient's last one.",
    ("sanity", "mixed_up"): "Reports do not fit their studies: they may be assigned to the wrong patients.",
}
"""(suite, alarm) -> what it means; one of another version is told by its sentences alone."""


class Told(NamedTuple):
    """The alarms of one kind."""

    suite: str
    name: str
    meaning: str
    alarms: list[Data]

    def systems(self) -> list[str]:
        """Whom they concern, each once."""
        return list(dict.fromkeys(str(alarm["system"] or "all systems") for alarm in self.alarms))


def alarms(data: Data) -> list[Told]:
    """Every alarm, kind by kind; those that concern whole files and mixed-up texts come first."""
    found: dict[tuple[str, str], list[Data]] = {}
    for suite in ("sanity", *SUITES):
        for alarm in data["suites"].get(suite, {}).get("alarms", []):
            kind = found.setdefault((suite, alarm["alarm"]), [])
            if alarm not in kind:
                kind.append(alarm)
    return [Told(suite, name, MEANINGS.get((suite, name), ""), each) for (suite, name), each in found.items()]


def summary(suite: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The first group with numbers of each split, over whole reports: for a table of a few rows."""
    kept: dict[str, Mapping[str, Any]] = {}
    for group in suite.get("groups", []):
        if group["setting"] == "report" and "too_small" not in group:
            kept.setdefault(group["split"], group)
    return list(kept.values())
