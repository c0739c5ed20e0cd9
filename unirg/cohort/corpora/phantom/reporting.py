"""From what is visible to what is written: the sections of one phantom report, annotated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from unirg.cohort.corpora.phantom.findings import Finding
from unirg.cohort.corpora.phantom.markup import Passage, join, render
from unirg.cohort.corpora.phantom.wording import ABSENT, BRIEF, BRIEF_CHANGE, GONE, WORDINGS, Wording

TOPICS = {
    "heart": ("Cardiomegaly",),
    "lungs": ("Consolidation", "Edema", "Atelectasis", "Lung Lesion"),
    "pleura": ("Pleural Effusion", "Pneumothorax"),
    "bones": ("Fracture",),
    "devices": ("Support Devices",),
}
"""The conditions of each topic that a findings section goes through, in the order of their sentences."""

IMPRESSION_ITEMS = 3
"""An impression names at most so many things, the most urgent first."""

URGENCY = (
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Pleural Effusion",
    "Lung Lesion",
    "Cardiomegaly",
    "Fracture",
    "Atelectasis",
    "Support Devices",
)


@dataclass(frozen=True)
class Report:
    """A section that the institution leaves out in this study is None."""

    findings: Passage | None
    impression: Passage | None


def write(
    institution: str,
    findings: tuple[Finding, ...],
    resolved: tuple[Finding, ...],
    *,
    has_prior: bool,
    habit: float,
) -> Report:
    """Dictate a study the way its institution does.

    Everything follows from the findings but the choice of sections, which is `habit` in [0, 1).
    """
    wording = WORDINGS[institution]
    both, findings_alone, _ = wording.habits
    section = "both" if habit < both else "findings" if habit < both + findings_alone else "impression"
    return Report(
        findings=None if section == "impression" else _findings(wording, findings, resolved),
        impression=None if section == "findings" else _impression(wording, findings, resolved, has_prior),
    )


def _findings(wording: Wording, findings: tuple[Finding, ...], resolved: tuple[Finding, ...]) -> Passage:
    sentences = [render(wording.opening)] if wording.opening else []
    for topic in wording.topics:
        sentences += _topic(wording, topic, findings, resolved)
    if wording.closing:
        sentences.append(render(wording.closing))
    return join(sentence.capitalised() for sentence in sentences)


def _topic(
    wording: Wording, topic: str, findings: tuple[Finding, ...], resolved: tuple[Finding, ...]
) -> Iterator[Passage]:
    """What is there, what has gone, and what is not there, for one part of the chest."""
    conditions = TOPICS[topic]
    present = [f for f in _ordered(findings, conditions)]
    if topic == "lungs" and not present:
        yield render(wording.clear_lungs)
    for finding in present:
        change = wording.change[finding.change] if finding.change else ""
        yield render(_template(wording.present, finding), _slots(finding, change))
    for finding in _ordered(resolved, conditions):
        yield _gone(wording, finding)
    if topic == "heart" and not present:
        yield render(wording.normal_heart)
    seen = {f.condition for f in present}
    for group in wording.denials.get(topic, ()):
        absent = [condition for condition in group if condition not in seen]
        if absent:
            yield _denial(wording, absent)


def _impression(
    wording: Wording, findings: tuple[Finding, ...], resolved: tuple[Finding, ...], has_prior: bool
) -> Passage:
    items = [
        render(_template(BRIEF, f), _slots(f, BRIEF_CHANGE[f.change] if f.change else ""))
        for f in _ordered(findings, URGENCY)
    ]
    items += [_gone(wording, f) for f in _ordered(resolved, URGENCY)]
    if not items:
        change = BRIEF_CHANGE["unchanged"] if has_prior else ""
        items = [render(wording.normal_impression, {"change": change})]
    items = [item.capitalised() for item in items[:IMPRESSION_ITEMS]]
    if wording.numbered:
        items = [Passage(f"{number}. ") + item for number, item in enumerate(items, start=1)]
    return join(items)


def _denial(wording: Wording, conditions: list[str]) -> Passage:
    """One negative sentence over one or more conditions: "No a, b or c."."""
    before, after = wording.denial.split("{items}")
    sentence = Passage(before)
    for index, condition in enumerate(conditions):
        if index:
            sentence = sentence + Passage(" or " if index == len(conditions) - 1 else ", ")
        sentence = sentence + render(ABSENT[condition])
    return sentence + Passage(after)


def _gone(wording: Wording, finding: Finding) -> Passage:
    device = finding.condition == "Support Devices"
    frame = wording.removed if device else wording.resolved
    template = frame.replace("{gone}", GONE[str(finding.kind) if device else finding.condition])
    return render(template, _slots(finding, ""))


def _template(templates: dict[str, str], finding: Finding) -> str:
    key = finding.kind or finding.condition
    return templates.get(f"{key} {finding.side}", templates[key])


def _slots(finding: Finding, change: str) -> dict[str, str]:
    return {
        "severity": finding.severity or "",
        "side": finding.side or "",
        "zone": finding.zone or "",
        "change": change,
    }


def _ordered(findings: Iterable[Finding], order: tuple[str, ...]) -> list[Finding]:
    """The findings whose condition is in `order`, in that order, ties by kind and side."""
    chosen = [f for f in findings if f.condition in order]
    return sorted(chosen, key=lambda f: (order.index(f.condition), f.kind or "", f.side or "", f.zone or ""))
