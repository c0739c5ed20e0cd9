"""Findings read out of a report by rules: which condition, present or not, where, how severe, what changed.

This is what the offline judge knows of radiology. A text is cut into clauses, a clause into the terms of
`TERM`, and the terms are read from left to right: a negation or a doubt holds for the conditions after it,
a side, zone, severity or change for the conditions of its own phrase (between commas, "and", "or", "with"),
and a phrase with no condition of its own refines its neighbour. It covers CheXbert's 14 conditions with the
words of chest radiographs. It is no substitute for CheXbert: it reads what it was written for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from unirg.metrics.findings_terms import (
    ANATOMY_OF,
    ATTRIBUTES_OF,
    CHANGES,
    CLAUSE_END,
    CONDITION_OF,
    LUNG_OPACITY,
    NO_FINDING,
    STATED_BY,
    STATES,
    TERM,
    Presence,
)

_CLAUSE_LIMIT = 1000
"""Characters. No radiologist writes a longer clause; a policy that repeats itself does, without end."""
_WITHOUT_SIDE = {"Enlarged Cardiomediastinum", "Cardiomegaly", "Edema", NO_FINDING}
_WITH_ZONE = {LUNG_OPACITY, "Lung Lesion", "Consolidation", "Pneumonia", "Atelectasis", "Pleural Other"}


class Finding(NamedTuple):
    """One statement of a report about one condition.

    `kind` tells devices apart, which share a condition. "No Finding" is positive where the text calls the
    study normal, and uncertain where it only compares the study as a whole.
    """

    condition: str
    presence: Presence
    kind: str | None = None
    side: str | None = None
    """left, right or bilateral."""
    zone: str | None = None
    """upper, mid or lower."""
    severity: str | None = None
    """mild (also small, trace), moderate or severe (also large)."""
    change: str | None = None
    """new, increased, decreased, unchanged or resolved, against an earlier study."""


@lru_cache(maxsize=8192)
def extract(text: str) -> tuple[Finding, ...]:
    """The statements of a report in reading order, each once.

    Kept for the last 8192 texts: in a GRPO group the reference is the same for every rollout.
    """
    found: dict[Finding, None] = {}
    for clause in CLAUSE_END.split(text.lower()):
        words = " ".join(clause.split())
        for start in range(0, len(words), _CLAUSE_LIMIT):
            found.update(dict.fromkeys(_read(words[start : start + _CLAUSE_LIMIT])))
    return tuple(found)


@dataclass(slots=True)
class _Mention:
    condition: str
    kind: str | None
    presence: Presence
    comparable: bool = False
    """Anatomy without a state: it says something only where the phrase compares it."""


@dataclass(slots=True)
class _Phrase:
    mentions: list[_Mention] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    leads: bool = False
    """It opens the clause or follows "with": without a condition of its own it belongs to the next one."""

    def add(self, name: str, value: str) -> None:
        if name == "side" and self.attributes.get("side", value) != value:
            value = "bilateral"
        self.attributes[name] = value


@lru_cache(maxsize=32768)
def _read(clause: str) -> tuple[Finding, ...]:
    """The findings of one clause (lower case, single spaces)."""
    tokens = [(str(match.lastgroup), match.group()) for match in TERM.finditer(clause)]
    found = tuple(f for phrase in _refined(_phrases(tokens)) for f in _findings(phrase))
    if not found and any(name == "same" for name, _ in tokens):  # "No interval change."
        return (Finding(NO_FINDING, "uncertain", change="unchanged"),)
    return found


def _phrases(tokens: list[tuple[str, str]]) -> list[_Phrase]:
    """Read the terms from left to right, carrying negation, doubt and an opacity that may be explained."""
    phrases = [_Phrase(leads=True)]
    negated = doubtful = False
    unexplained: _Phrase | None = None
    for index, (name, words) in enumerate(tokens):
        phrase = phrases[-1]
        if name in CONDITION_OF or name in ANATOMY_OF:
            mentions = _mentions(tokens, index, negated, doubtful)
            if unexplained and any(m.presence == "positive" for m in mentions):
                _explain(unexplained, phrase)
                unexplained = None
            phrase.mentions += mentions
        elif name in ATTRIBUTES_OF:
            for attribute, value in ATTRIBUTES_OF[name]:
                phrase.add(attribute, value)
        elif name in CHANGES:
            phrase.add("change", CHANGES[name])
        elif name in ("comma", "and", "with", "negation", "stop"):
            phrases.append(_Phrase(leads=name == "with"))
            doubtful = doubtful and words == "or"
            negated = name == "negation" or (negated and name != "stop")
        elif name == "doubt":
            doubtful = True
        elif name == "link" and not doubtful:
            unexplained = next((p for p in reversed(phrases) if p.mentions), None)
        elif name in ("doubted", "versus"):
            doubtful = name == "versus"
            for mention in phrase.mentions:
                mention.presence = "negative" if mention.presence == "negative" else "uncertain"
        elif name == "refuted":
            for mention in (m for p in phrases for m in p.mentions if m.condition != NO_FINDING):
                mention.presence = "negative"
    return phrases


def _explain(opacity: _Phrase, cause: _Phrase) -> None:
    """An opacity that "represents atelectasis" is no finding of its own: the cause takes its place."""
    others = [m for m in opacity.mentions if m.condition != LUNG_OPACITY]
    if len(others) == len(opacity.mentions):
        return
    opacity.mentions = others
    cause.attributes = opacity.attributes | cause.attributes
    if not others and opacity is not cause:
        opacity.attributes = {}


def _mentions(tokens: list[tuple[str, str]], index: int, negated: bool, doubtful: bool) -> list[_Mention]:
    """What the condition or the anatomy at `index` states."""
    name = tokens[index][0]
    if name in ANATOMY_OF:
        anatomy = ANATOMY_OF[name]
        presence = _state(tokens, index, anatomy)
        if presence is None:
            return [_Mention(NO_FINDING, None, "uncertain", comparable=True)]
        return [_Mention(condition, None, presence) for condition in STATED_BY[anatomy]]
    condition, kind = CONDITION_OF[name]
    if condition == NO_FINDING:  # "acute disease" calls a study normal only where it is denied
        return [_Mention(condition, None, "positive")] if negated else []
    return [_Mention(condition, kind, "negative" if negated else "uncertain" if doubtful else "positive")]


def _state(tokens: list[tuple[str, str]], index: int, anatomy: str) -> Presence | None:
    """What the state of an anatomy says: its own phrase's, or a list's ("heart and lungs are normal")."""
    states = STATES[anatomy]
    after, before = tokens[index + 1 :], tokens[:index][::-1]
    for own_phrase in (True, False):
        for direction in (after, before):
            negated = False
            for name, _ in direction:
                if own_phrase and name in ("comma", "and", "with"):
                    break
                if name in states and (own_phrase or name in ("normal", "clear")):
                    return states[name] if not negated else "negative" if name == "enlarged" else None
                negated = negated or name == "negation"
    return None


def _refined(phrases: list[_Phrase]) -> list[_Phrase]:
    """Give phrases without a condition to a neighbour, so that every phrase left has one."""
    whole: list[_Phrase] = []
    leading: list[_Phrase] = []
    for phrase in phrases:
        if phrase.mentions:
            whole.append(phrase)
            for earlier in leading:
                _refine(whole, earlier.attributes)
            leading = []
        elif phrase.attributes and whole and not phrase.leads:
            _refine(whole, phrase.attributes)
        elif phrase.attributes:
            leading.append(phrase)
    for phrase in leading:
        if whole:
            _refine(whole, phrase.attributes)
    return whole


def _refine(whole: list[_Phrase], attributes: dict[str, str]) -> None:
    """Add attributes to the last phrase; a second side, zone or severity is a second finding of the kind."""
    last = whole[-1]
    if last.attributes.keys() & attributes.keys() - {"change"}:
        whole.append(_Phrase(last.mentions, dict(attributes)))
    else:
        last.attributes = attributes | last.attributes


def _findings(phrase: _Phrase) -> list[Finding]:
    found = []
    side, zone = phrase.attributes.get("side"), phrase.attributes.get("zone")
    severity, change = phrase.attributes.get("severity"), phrase.attributes.get("change")
    for mention in phrase.mentions:
        condition, presence = mention.condition, mention.presence
        if mention.comparable and (change is None or len(phrase.mentions) > 1):
            continue
        if change == "resolved" and condition != NO_FINDING:
            presence = "negative"
        absent = presence == "negative"
        found.append(
            Finding(
                condition,
                presence,
                mention.kind,
                side=None if condition in _WITHOUT_SIDE else side,
                zone=zone if condition in _WITH_ZONE else None,
                severity=None if absent or condition == NO_FINDING else severity,
                change=None if absent and change != "resolved" else change,
            )
        )
    return found
