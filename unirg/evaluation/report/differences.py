"""What a candidate says otherwise than its reference, finding by finding, as pieces of its text.

Both texts are read by rules (`metrics.findings_lexicon`) sentence by sentence. A sentence of the candidate is
marked where it states a finding that the reference does not have, or denies one that it has; a sentence of
the reference where it states a finding that the candidate does not. It is a help for the eye: the rules read
what they were written for, and no score rests on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from unirg.metrics.findings_lexicon import extract

Kind = Literal["", "added", "denied", "missed"]
_SENTENCE = re.compile(r"[^.;\n]*(?:\.(?=\d)[^.;\n]*)*[.;\n]*\s*")
SAID = {"added": "not in the reference", "denied": "contradicts the reference", "missed": "not in the report"}


class Piece(NamedTuple):
    """A part of a text; the pieces together are the text."""

    text: str
    kind: Kind = ""
    why: str = ""
    """The conditions that differ."""


def candidate(text: str, reference: str) -> list[Piece]:
    """A candidate's text with what the reference does not say."""
    known = _states(reference)

    def judge(condition: str, presence: str) -> Kind:
        if presence == "negative":
            return "denied" if known.get(condition) in ("positive", "uncertain") else ""
        if known.get(condition) in (None, "negative"):
            return "denied" if known.get(condition) else "added"
        return ""

    return _pieces(text, judge)


def reference(text: str, candidate: str) -> list[Piece]:
    """The reference's text with what the candidate leaves out."""
    said = _states(candidate)

    def judge(condition: str, presence: str) -> Kind:
        return "missed" if presence != "negative" and said.get(condition) in (None, "negative") else ""

    return _pieces(text, judge)


def _states(text: str) -> dict[str, str]:
    """Condition -> the gravest that is said of it."""
    order = ("negative", "uncertain", "positive")
    found: dict[str, str] = {}
    for finding in extract(text):
        before = found.get(finding.condition, "negative")
        found[finding.condition] = max(before, finding.presence, key=order.index)
    return found


def _pieces(text: str, judge: Callable[[str, str], Kind]) -> list[Piece]:
    pieces: list[Piece] = []
    for sentence in filter(None, _SENTENCE.findall(text)):
        kinds: dict[Kind, list[str]] = {}
        for finding in extract(sentence):
            kind = judge(finding.condition, finding.presence)
            if kind and finding.condition not in kinds.setdefault(kind, []):
                kinds[kind].append(finding.condition)
        if not kinds:
            pieces.append(Piece(sentence))
            continue
        first: Kind = "denied" if "denied" in kinds else next(iter(kinds))
        body = sentence.rstrip()
        pieces.append(Piece(body, first, f"{SAID[first]}: {', '.join(kinds[first])}"))
        if sentence[len(body) :]:
            pieces.append(Piece(sentence[len(body) :]))
    return pieces
