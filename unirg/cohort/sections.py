"""Findings, impression and their context out of a report's free text.

The rules follow MIMIC-CXR's public parser (MIT-LCP/mimic-code, `section_parser.py`) where that has one, and
add what other institutions' layouts need:

Headings. A known name with a colon at a line's start, or alone on its line, with a capital first letter.
    Headings in upper case at a line's start make an upper-case report: `History: ___F with cough` is text
    there, and a Title Case heading counts only for findings or impression that has no upper-case one.
One line. Where the headings of at most one section start a line, those within it count too, except one
    repeated at once (`INDICATION: INDICATION: PAIN` is the indication `INDICATION: PAIN`); after findings or
    impression, context (`COMPARISON:`) needs the end of a sentence before it. In other reports a heading
    within a line counts if no line starts with its name and a sentence ends before it; within findings or
    impression only one that names the other of the two.
Other styles. Where no line starts with the heading of a section so, one in lower case (`findings: clear`) or
    with a dash for the colon (`FINDINGS - Clear`) counts, if findings or impression have one.
Ends. Every known heading ends the section before it, and so do a title (`FINAL REPORT`), a signature and a
    full line of underscores. Any other upper-case heading (`LUNGS:`) is part of findings and impression, and
    ends a different section. `CHEST, TWO VIEWS:` heads findings where no other heading does.
Repeats. The last section of a name that is not blank wins, so an addendum on top never replaces the report's
    own. "FINDINGS AND IMPRESSION" is the impression.
Addenda. What stands above a full line of underscores counts only under headings of its own.
No heading. Without a heading for findings, the paragraphs that follow the first paragraph of the last section
    before the impression (or of none) are the findings, less titles: they describe the image, and left in the
    comparison they would show the model its target. The public parser calls them `last_paragraph`, and
    trims the comparison likewise, where the impression is missing too; its labeller reads them as the
    report. With an impression, only sentences qualify.

Text is given as written but for its outer whitespace and for line ends, which become `\\n`. Every pattern is
bounded or possessive: the time is linear in the length.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from typing import Literal, NamedTuple

Kind = Literal[
    "findings",
    "impression",
    "indication",
    "comparison",
    "history",
    "technique",
    "view",  # a title of views, which heads findings where nothing else does
    "examination",
    "open",  # under no heading
    "other",
]


class Sections(NamedTuple):
    """A report's sections; None where one is absent or blank."""

    findings: str | None = None
    impression: str | None = None
    indication: str | None = None
    comparison: str | None = None
    history: str | None = None
    technique: str | None = None


MAX_HEADINGS = 10_000
"""Possible headings that are looked at; a hostile text may have millions, and what follows is text."""
NEAR = 9
"""Characters before a heading that tell whether a sentence ends there."""

_NAMED = frozenset(Sections._fields)
_MAIN = frozenset({"findings", "impression"})

# Names by kind, `|` between them. The misspellings are those of MIMIC-CXR.
_NAMES: dict[Kind, str] = {
    "findings": "findings|finding|findins|findindgs|findgings|findngs|findnings|finidngs",
    "impression": "impression|impressions|conclusion|conclusions|opinion|final impression"
    "|findings and impression|findings and impressions|findings & impression|findings/impression"
    "|findings/ impression|findings / impression|impression and findings|impression/findings"
    "|impresson|imprression|imoression|impressoin|imprssion|impresion|imperssion|mpression|impession",
    "indication": "indication|indications|clinical indication|clinical indications|reason for examination"
    "|reason for exam|reason for study|reason for the exam|reason for this examination|idication|ndication",
    "comparison": "comparison|comparisons|comparison exam|comparison examination|comparison film"
    "|comparison films|comparison study|comparison studies|reference exam|comparision|comparisions"
    "|comparsion|comparrison",
    "history": "history|clinical history|patient history|medical history|clinical information|clinical data",
    "technique": "technique|techniques",
    "examination": "examination|exam|examinations|type of examination|type of exam|exam type|procedure"
    "|procedures|study|procedure comments",
    "other": "recommendation|recommendations|recommendation(s)|notification|notifications|wet read|wetread"
    "|addendum|addenda|signature|signed by|electronically signed by|dictated by|interpreted by|reviewed by"
    "|transcribed by|end of impression|accession number|pfi",
    "open": "narrative",
}
# Words that sentences begin with too: headings at a line's start and in upper case only.
_NAMES_OF_LINES: dict[Kind, str] = {
    "other": "comment|comments|note|date|summary|signed|attending|radiologist|attestation|critical results",
    "open": "report",
}


def _kinds(table: dict[Kind, str]) -> dict[str, Kind]:
    return {name: kind for kind, names in table.items() for name in names.split("|")}


_KIND = _kinds(_NAMES)
_KIND_OF_LINE = _KIND | _kinds(_NAMES_OF_LINES)


def _any_of(names: dict[str, Kind]) -> str:
    """A pattern for any of the names, the longest first, with a capital in front.

    The capitals are the branches, so that a letter that begins no name costs next to nothing.
    """
    by_capital: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names, key=len, reverse=True):
        by_capital[name[0].upper()].append(re.escape(name[1:]).replace(r"\ ", "[ \t]{1,3}"))
    branches = (f"{capital}(?ai:{'|'.join(rests)})" for capital, rests in by_capital.items())
    return f"(?:{'|'.join(branches)})"


_LINE = re.compile(
    r"^[^\S\n]*+(?=[A-Za-z_])(?:"
    # The de-identification token is three underscores; MIMIC's line has 78.
    r"(?P<rule>_{10,}+)[^\S\n]*+$"
    r"|(?P<title>(?:FINAL|PRELIMINARY|PROVISIONAL)[ ]REPORT)[^\S\n]*+$"
    r"|(?P<end>(?:FINAL[ ])?ADDENDUM[^\S\n]*+$|WET[ ]READ[ ]VERSION\b|(?ai:electronically[ ]signed\b))"
    rf"|(?P<name>{_any_of(_KIND_OF_LINE)})[^\S\n]{{0,9}}(?::|$)"
    r"|(?P<unknown>[A-Z][A-Z0-9 ()/,&'-]{1,60}):(?=\s|$)"
    r")",
    re.MULTILINE,
)
_OTHER_STYLES = re.compile(
    rf"^[^\S\n]*+(?=[A-Za-z])(?P<name>(?ai:{_any_of(_KIND)}))[^\S\n]{{0,9}}(?::|[-\u2013\u2014]{{1,2}}(?=\s))",
    re.MULTILINE,
)
_WITHIN = re.compile(f"{_any_of(_KIND)}:")
_MIDDLE = re.compile(r"[A-Za-z0-9/'-]")
_VIEWS = re.compile(r"\b(?:CHEST|PORTABLE|FRONTAL|RADIOGRAPHS?|(?:PA|AP) AND LAT|(?:ONE|TWO) VIEWS?)\b")
_TITLE_LINES = re.compile(r"\A(?:[^a-z\n]*+(?<![.!?])\n)++")
_PARAGRAPHS = re.compile(r"\n(?:[^\S\n]*+\n)++")


class _Heading(NamedTuple):
    """A possible heading: where it stands, and where the text under it starts."""

    start: int
    end: int
    kind: Kind
    upper: bool
    place: Literal["line", "within", "unknown", "rule", "fixed"]
    """`unknown` and `fixed` begin a line too: a name in no list, and a title or signature."""


class _Part(NamedTuple):
    """The text under one heading, and how many lines of underscores stand above it."""

    kind: Kind
    text: str
    block: int


def sections(report: str) -> Sections:
    """The sections of one report, by the rules above."""
    text = report.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    parts = list(_parts(text))
    named: dict[str, str] = {part.kind: part.text for part in parts if part.kind in _NAMED}
    if "findings" not in named:
        views = [part.text for part in parts if part.kind == "view" and _is_prose(part.text)]
        named |= {"findings": _untitled(views[-1])} if views else _unheaded(parts, named)
    return Sections(**named)


def _parts(text: str) -> Iterator[_Part]:
    """Every part that is not blank, in order."""
    kind: Kind = "open"
    start = block = 0
    for heading in _headings(text):
        if body := text[start : heading.start].strip():
            yield _Part(kind, body, block)
        kind, start = heading.kind, heading.end
        block += heading.place == "rule"
    if body := text[start:].strip():
        yield _Part(kind, body, block)


def _headings(text: str) -> Iterator[_Heading]:
    """Those of the possible headings that count."""
    lines = _possible_at_lines(text)
    if not any(heading.place == "line" and heading.kind in _NAMED for heading in lines):
        # In front, as of two that start together (`FINDINGS - A:` is a name in no list) the first counts.
        lines = _in_other_styles(text) + lines
    within = _possible_within(text, {heading.end for heading in lines})
    named = [heading for heading in lines if heading.place == "line" and heading.kind in _NAMED]
    main = [heading for heading in named if heading.kind in _MAIN]
    upper = any(h.upper for h in main or named or [h for h in within if h.kind in _MAIN])
    upper_main = {heading.kind for heading in main if heading.upper}
    one_line = len(named) <= 1 and len({h.kind for h in (*named, *within) if h.kind in _NAMED}) > 1
    headed = {heading.kind for heading in named if heading.upper or not upper}
    kind: Kind = "open"
    end = 0
    for heading in sorted(lines + within, key=attrgetter("start")):
        styled = heading.upper or not upper
        before = text[max(end, heading.start - NEAR) : heading.start]
        if heading.start < end:
            counts = False  # within a name in no list
        elif heading.place == "line":
            counts = styled or heading.kind in _MAIN - upper_main
        elif heading.place == "unknown":
            counts = kind not in _MAIN
            end = heading.end
        elif heading.place != "within":
            counts = True
        elif one_line:
            repeated = heading.kind == kind and heading.start - end < NEAR and not before.strip()
            late = kind in _MAIN and heading.kind in _NAMED - _MAIN
            counts = styled and not repeated and (not late or _ends_sentence(before))
        else:
            wanted = (_MAIN if kind in _MAIN else _NAMED) - headed
            counts = styled and heading.kind in wanted and _ends_sentence(before)
        if counts:
            kind, end = heading.kind, heading.end
            yield heading


def _possible_at_lines(text: str) -> list[_Heading]:
    found = []
    for match in islice(_LINE.finditer(text), MAX_HEADINGS):
        start, end = match.span()
        if name := match["name"]:
            kind, upper, everywhere = _known(name)
            # Alone on its line, such a word as "Examination" is more likely text than a heading.
            if upper or (everywhere and (kind in _NAMED or match[0].endswith(":"))):
                found.append(_Heading(start, end, kind, upper, "line"))
        elif name := match["unknown"]:
            found.append(_Heading(start, end, _kind_of_unknown(name), True, "unknown"))
        elif match["rule"]:
            found.append(_Heading(start, end, "open", True, "rule"))
        else:
            found.append(_Heading(start, end, "open" if match["title"] else "other", True, "fixed"))
    return found


def _in_other_styles(text: str) -> list[_Heading]:
    found = []
    for match in islice(_OTHER_STYLES.finditer(text), MAX_HEADINGS):
        kind, upper, _ = _known(match["name"])
        found.append(_Heading(*match.span(), kind, upper, "line"))
    return found if any(heading.kind in _MAIN for heading in found) else []


def _possible_within(text: str, taken: set[int]) -> list[_Heading]:
    """Headings anywhere in a line, but those whose end is taken: they begin it."""
    found = []
    for match in islice(_WITHIN.finditer(text), MAX_HEADINGS):
        start, end = match.span()
        # Not a look-behind: in front of the pattern it would cost a step per letter of the text.
        if end not in taken and not _MIDDLE.match(text[start - 1 : start]):
            kind, upper, _ = _known(match[0][:-1])
            found.append(_Heading(start, end, kind, upper, "within"))
    return found


@lru_cache(maxsize=1024)
def _known(name: str) -> tuple[Kind, bool, bool]:
    """The kind of a known name, and whether it is in upper case, and a heading in any place and case."""
    plain = " ".join(name.lower().split())
    return _KIND_OF_LINE[plain], name.isupper(), plain in _KIND


def _kind_of_unknown(name: str) -> Kind:
    """`PRIOR COMPARISON` is a comparison, and `PORTABLE CHEST` a title of views."""
    last = _KIND.get(re.split("[ ,/]", name.rstrip())[-1].lower(), "other")
    if last in _NAMED:
        return last
    return "view" if _VIEWS.search(name) else "other"


def _ends_sentence(before: str) -> bool:
    """Whether nothing, or the end of a sentence or list, stands before."""
    return before.rstrip()[-1:] in tuple(".:;!?)") or not before.strip()


def _is_prose(text: str) -> bool:
    return text.endswith((".", "!", "?"))


def _unheaded(parts: Sequence[_Part], named: dict[str, str]) -> dict[str, str]:
    """Findings that stand under no heading of their own, and what is left of the section they stood in."""
    body = max((part.block for part in parts if part.kind != "other"), default=0)
    leading: _Part | None = None
    for part in parts:
        if part.kind == "impression" and part.block == body:
            break
        if part.kind != "other" and part.block == body:
            leading = part
    concluded = "impression" in named
    if leading is None:
        return {}
    first, rest = "", leading.text
    if leading.kind != "open":
        first, *others = _PARAGRAPHS.split(leading.text, maxsplit=1)
        rest = "".join(others)
    findings = _untitled(rest)
    if not findings or (concluded and not _is_prose(findings)):
        return {}
    return {"findings": findings} | ({leading.kind: first} if named.get(leading.kind) == leading.text else {})


def _untitled(text: str) -> str:
    """The text from its first sentences on: a title ends in no full stop, or is a line in upper case."""
    start = 0
    for gap in _PARAGRAPHS.finditer(text):
        if _is_prose(text[start : gap.start()]):
            break
        start = gap.end()
    else:
        start = start if _is_prose(text) else 0
    text = text[start:]
    if text.isupper():
        return text if _is_prose(text) else ""
    return _TITLE_LINES.sub("", text).strip()
