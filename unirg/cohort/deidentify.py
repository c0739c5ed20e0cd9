"""The gate between an institution's own data and a cohort: direct identifiers are refused or scrubbed.

Texts are searched by pattern for what HIPAA's Safe Harbor (45 CFR 164.514(b)(2)) lists and a report can
hold: names after a title, a label or before a degree; record, phone and social security numbers; dates;
addresses; ages over 89. DICOM headers are judged by the attributes that the Basic Profile of DICOM PS3.15
(Table E.1-1) removes; staging keeps pixels alone, so a header never enters a cohort. What is found is
counted by kind; its value goes nowhere. Patterns find the usual forms and no more: a name in the middle of
a sentence is found only where the corpus knows it (`corpora.institution_values.own_identifiers`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from unirg.config import Config

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

REMOVED = "[removed]"
IN_REPORT, IN_HEADER, BURNED_IN = (
    "direct identifier in the report",
    "direct identifier in the DICOM header",
    "burned-in text possible",
)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MAX_TEXT = 100_000
"""Characters: 25 times the longest real report here. To search so many takes a quarter of a second."""
OLDEST = 89
"""Safe Harbor puts all older patients into one category, 90 or older."""


class Gate(Config):
    """What happens to direct identifiers in an institution's data. Public corpora pass untouched."""

    mode: Literal["refuse", "scrub"] = "scrub"
    """`scrub` replaces what is found in a text by `[removed]` and counts it; `refuse` drops the study, also
    for a person's name, an address or a phone number in its DICOM headers."""
    burned_in: Literal["flag", "refuse"] = "flag"
    """Images whose header says that text may stand in the pixels: counted, or not used."""


class Found(NamedTuple):
    """Where an identifier stands in a text, and of what kind it is."""

    kind: str
    start: int
    end: int


def identifiers(text: str) -> list[Found]:
    """Direct identifiers in a text, in order and without overlap."""
    found = []
    digits = re.search(r"\d", text) is not None
    for kind, pattern in PATTERNS:
        if kind in _WITH_DIGITS and not digits:
            continue
        for match in pattern.finditer(text):
            start, end = match.span("value")
            if not (kind == "date" and _are_ribs(match["value"])):
                found.append(Found(kind, start, end))
    kept: list[Found] = []
    for item in sorted(found, key=lambda item: (item.start, -item.end)):
        if kept and item.start < kept[-1].end:
            kept[-1] = kept[-1]._replace(end=max(item.end, kept[-1].end))
        else:
            kept.append(item)
    return kept


def scrub(text: str) -> tuple[str, Counter[str]]:
    """The text with `[removed]` for each identifier, and how many there were of each kind."""
    found = identifiers(text)
    pieces, end = [], 0
    for item in found:
        pieces += [text[end : item.start], REMOVED]
        end = item.end
    return "".join([*pieces, text[end:]]), Counter(item.kind for item in found)


# Every quantifier is bounded, so that no text takes more than a time linear in its length.
_MONTH = (
    r"(?:[Jj]an(?:uary)?|[Ff]eb(?:ruary)?|[Mm]ar(?:ch)?|[Aa]pr(?:il)?|[Jj]une?|[Jj]uly?|[Aa]ug(?:ust)?|"
    r"[Ss]ept?(?:ember)?|[Oo]ct(?:ober)?|[Nn]ov(?:ember)?|[Dd]ec(?:ember)?|May|MAY|JAN(?:UARY)?|FEB(?:RUARY)?|"
    r"MAR(?:CH)?|APR(?:IL)?|JUNE?|JULY?|AUG(?:UST)?|SEPT?(?:EMBER)?|OCT(?:OBER)?|NOV(?:EMBER)?|DEC(?:EMBER)?)"
)
_M, _D, _Y = r"(?:0?[1-9]|1[0-2])", r"(?:0?[1-9]|[12]\d|3[01])", r"(?:19|20)\d\d"
_ALONE, _ENDED = r"(?<![\w/.,-])", r"(?![\w/-]|[.,]\d)"
_DATES = (
    # With a year of four digits nothing else looks so, whatever is beside it.
    rf"(?<!\d)(?<!\d[/.-])(?P<value>(?:{_M}/{_D}|{_D}/{_M})/{_Y})(?!\d)",
    rf"(?<!\d)(?<!\d[/.-])(?P<value>(?:{_M}-{_D}|{_D}-{_M})-{_Y})(?!\d)",
    rf"(?<!\d)(?<!\d[/.-])(?P<value>{_Y}([-/.]){_M}\2{_D})(?:T\d\d:\d\d[\d:.]{{0,12}})?(?!\d)",
    rf"{_ALONE}(?P<value>(?:{_D}\.{_M}|{_M}\.{_D})\.(?:{_Y}|\d\d(?!\s{{0,2}}(?:mm|cm)\b))){_ENDED}",
    rf"{_ALONE}(?P<value>(?:{_M}/{_D}|{_D}/{_M})/\d\d){_ENDED}",
    rf"{_ALONE}(?P<value>(?:{_M}-{_D}|{_D}-{_M})-\d\d){_ENDED}",
    rf"{_ALONE}(?P<value>{_M}/{_Y}){_ENDED}",
    # A month and day alone look like a fraction, so they need a word before and none of counting behind, or
    # a time of day.
    rf"\b(?:[Dd]ated|DATED)\s{{1,4}}(?P<value>{_M}/{_D}){_ENDED}(?!\s{{1,4}}of\b)",
    rf"{_ALONE}(?P<value>{_M}/{_D}|{_D}/{_M})(?=\s{{1,4}}at\s{{1,4}}(?:\d\d?:?\d\d\b|\d\d?\s?[aApP]\.?[mM]\b))",
    rf"\b(?P<value>{_MONTH}\.?\s{{1,4}}{_D}(?:st|nd|rd|th)?(?:,?\s{{1,4}}{_Y})?)\b(?!\s{{0,2}}(?:mm|cm|x)\b)",
    rf"\b(?P<value>{_D}(?:st|nd|rd|th)?\s{{1,4}}(?:of\s{{1,4}})?{_MONTH}\.?,?\s{{1,4}}(?:{_Y}|['\u2019]?\d\d))\b",
    # In capitals a segment or lobe 2 MAY be anything.
    rf"\b(?P<value>{_D}(?:st|nd|rd|th)?\s{{1,4}}(?:of\s{{1,4}})?(?!MAY\b){_MONTH})\b",
    rf"\b(?P<value>{_D}-{_MONTH}-(?:{_Y}|\d\d))\b",
    rf"\b(?P<value>{_MONTH}\.?,?\s{{1,4}}(?:of\s{{1,4}})?{_Y})\b",
)

# De-identified corpora write XXXX or ___ for a name; words that follow a title in a sentence are no names.
_WORD = r"(?!XXXX|_)(?:[A-Z][a-z]{0,2}['\u2019])?[A-ZÀ-Þ][\w\u2019'-]{1,30}"
_INITIAL = r"(?:\s{1,2}[A-Z]\.?(?=\s))?"
_INITIALS = r"(?:[A-Z](?:\.[ \t]{0,2}|[ \t]{1,2}))"
_PARTICLES = (
    r"(?:(?:van|von|vom|zu[mr]?|der|den|de[lr]?|dela|della|di|da|dos?|das|du|la|le|el|al|bin|ibn|ter?|ten)"
    r"[ \t]{1,2}){0,3}"
)
_SURNAME = rf"{_PARTICLES}{_WORD}"
_NAME = rf"{_INITIALS}{{0,3}}{_SURNAME}{_INITIAL}(?:[ \t]{{1,2}}{_SURNAME}){{0,2}}"
_FULL_NAME = (
    rf"(?:{_INITIALS}{{1,3}}{_SURNAME}|"
    rf"{_SURNAME}(?:,\s{{1,2}}|{_INITIAL}[ \t]{{1,2}}){_SURNAME}(?:[ \t]{{1,2}}[A-Z]\b\.?)?)"
)
_LABEL = (
    r"(?i:(?:patient(?:['\u2019]s)?|pt\.?)\s{1,2}name|name|(?:referring |attending |ordering )?physician|"
    r"radiologist|attending|resident|technologist|technician)"
)
_SIGNED = r"(?i:signed|dictated|read|reviewed|interpreted|transcribed|approved|verified|attested)"
_NAMES = (
    # "MR" is magnetic resonance, "DR" digital radiography and "MS" multiple sclerosis: capitals need the full
    # stop, or are left alone.
    rf"\b(?:(?:Dr|Drs|Mr|Mrs|Ms|Prof|DRS|MRS|DR)\.[ \t]{{0,3}}|"
    rf"(?:Dr|Drs|Mr|Mrs|Ms|Prof|DRS|MRS|Doctor|Professor)[ \t]{{1,3}})(?P<value>{_NAME})",
    rf"\b{_LABEL}\s{{0,2}}:\s{{0,4}}(?P<value>{_FULL_NAME}|{_WORD})",
    rf"\b(?i:patient|pt)\s{{0,2}}:\s{{0,4}}(?P<value>{_FULL_NAME})",
    rf"\b{_SIGNED}\s{{1,2}}(?i:by):?\s{{1,4}}(?P<value>{_FULL_NAME})",
    rf"\b(?P<value>{_FULL_NAME}),?\s{{1,2}}(?:M\.?D\.|MD\b|D\.O\.|DO\b|Ph\.?D\b|R\.?N\.|RN\b|PA-C\b)",
)

_NUMBER = r"[A-Za-z]{0,4}[-#]?\d[\d-]{3,20}[A-Za-z]?"
_RECORDS = (
    r"\b(?i:mrn|medical record|patient id|accession|acc\.|account|case|chart|hospital|encounter|visit|nhs)"
    rf"(?:\s{{1,2}}(?i:number|num|no|id)\b)?\.?\s{{0,2}}[:#]?\s{{0,3}}#?(?P<value>{_NUMBER})\b",
    r"(?<![\w.,/+-])(?P<value>\d{7,20})(?![\w/-]|[.,]\d)",
    r"(?<![\w.-])(?P<value>[A-Z]{1,4}-?\d{6,20})\b",
)
_PHONES = (
    r"(?<![\w.-])(?P<value>(?:\+?1[ .-]?)?(?:\(\d{3}\)[ .-]?|\d{3}[ .-])\d{3}[ .-]\d{4})(?![\w-])",
    r"(?<![\w+])(?P<value>\+[1-9]\d{0,2}(?:[ .()/-]{0,2}\d){7,13})(?![\w-])",
    r"\b(?i:pager|beeper|phone|telephone|tel|ext|extension|fax|cell|mobile)\b\.?"
    r"(?:\s{1,2}(?i:number|no)\b\.?)?\s{0,2}[:#]?\s{0,3}(?P<value>[\d(][\d() .-]{2,18}\d)(?![\w-])",
    # Without a word before it, so short a number may be a range of images.
    r"\b(?i:call(?:ed)?|paged?|contact(?:ed)?|reached|dial)(?:\s{1,2}(?i:at|on|back))?:?\s{1,3}"
    r"(?P<value>\d{3}[ .-]\d{4})(?![\w-])",
)
_STREET = r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Highway|Hwy|Parkway|Pkwy)"
_CAPITAL_STREET = r"(?:STREET|AVENUE|ROAD|BOULEVARD|LANE|DRIVE|HIGHWAY|PARKWAY)"
_ADDRESSES = (
    rf"(?<![\w.,/-])(?P<value>\d{{1,5}}[ \t](?:[A-Z][\w'\u2019.-]{{0,20}}[ \t]){{1,3}}{_STREET})\b",
    rf"(?<![\w.,/-])(?P<value>\d{{1,5}}[ \t](?:[A-Z][A-Z'\u2019.-]{{0,20}}[ \t]){{1,3}}{_CAPITAL_STREET})\b",
    r"\b(?P<value>[Pp]\.?[Oo]\.?[ \t][Bb]ox[ \t]\d{1,6})\b",
)
_OLD = r"(?:9\d|1[0-2]\d)"
_AGES = (
    rf"(?<![\w.,/-])(?P<value>{_OLD})[ -]{{0,2}}(?i:(?:years?|yrs?)[ -]{{0,2}}(?:old|of age)|y\.?/?o\b)",
    rf"\b(?i:aged?)[: ]{{1,3}}(?P<value>{_OLD})(?![\w/%-]|[.,]\d)",
)

PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, patterns in (
        (
            "e-mail address",
            (r"(?<![\w.+-])(?P<value>[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,5})",),
        ),
        ("web address", (r"\b(?P<value>(?:https?://|www\.)[^\s<>\"]{1,200})",)),
        ("social security number", (r"(?<![\w-])(?P<value>\d{3}-\d{2}-\d{4})(?![\w-])",)),
        ("phone number", _PHONES),
        ("date", _DATES),
        ("record number", _RECORDS),
        ("name", _NAMES),
        ("address", _ADDRESSES),
        ("age over 89", _AGES),
    )
    for pattern in patterns
)

_WITH_DIGITS = frozenset(
    {"social security number", "phone number", "date", "record number", "address", "age over 89"}
)

_COUNTED_OFF = re.compile(r"\d{1,2}-\d{1,2}-\d{2}")


def _are_ribs(value: str) -> bool:
    """Whether a date-like text rather counts ribs off (`7-8-10`): three numbers that rise to 12 at most."""
    if not _COUNTED_OFF.fullmatch(value):
        return False
    first, second, third = map(int, value.split("-"))
    return first < second < third <= 12


# DICOM headers: a rule over pydicom's data dictionary (value representation, keyword) stands for the table.

DIRECT = frozenset(
    {"person's name", "address or phone number", "other patient id", "identifier in free text"}
)
"""What names a person by itself; the other kinds do so only together, or hold the ids that are hashed."""

_CONTACT = re.compile("Address|Telephone|CountryOfResidence|RegionOfResidence|EMail|^GPS")
_OTHER_ID = re.compile("OtherPatientI|MilitaryRank|InsurancePlan|MedicalRecordLocator")
_SITE = re.compile("Institution|StationName|Department|Facility|CurrentPatientLocation|Organization")
_RECORD = re.compile(
    "PatientID|AccessionNumber|AdmissionID|IssuerOf|PlacerOrder|FillerOrder|StudyID$|VisitID|ServiceEpisode|"
    "RequestedProcedureID|ProcedureStepID|ClinicalTrial|Specimen|Barcode"
)
_DEVICE = re.compile("SerialNumber|DeviceUID|DetectorID|PlateID|CassetteID|GantryID|DeviceID|UDI|NetworkID")
_PLACEHOLDER = re.compile(
    r"(?i)x*|anon(?:ym[a-z]*)?|removed|redacted|deident[a-z]*|de|identified|unknown|none|withheld|not|given|"
    r"patient|name"
)
"""Of each word of a name: `Unknown^Maria` is somebody."""
_MAX_NESTING = 8


def header_findings(dataset: Dataset) -> Counter[str]:
    """What the Basic Profile would remove from a header: filled attributes by kind, never a value.

    A person's name that is a placeholder, or repeats the patient id as research archives have it, is none.
    """
    return Counter(_header_kinds(dataset, str(dataset.get("PatientID", "")), 0))


def _header_kinds(dataset: Dataset, patient_id: str, depth: int) -> Iterator[str]:
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            value = element.value
        except Exception:  # what a hostile value raises when it is converted is open-ended
            yield "unreadable value"
            continue
        if element.VR == "SQ":
            for item in value if depth < _MAX_NESTING else ():
                yield from _header_kinds(item, patient_id, depth + 1)
        elif value not in (None, "", b"") and (kind := _kind(element, patient_id)):
            yield kind


def _kind(element: object, patient_id: str) -> str | None:
    """The kind of identifier that one filled attribute is, by its place in the dictionary."""
    tag, vr, keyword = element.tag, element.VR, element.keyword  # type: ignore[attr-defined]
    text = str(element.value)  # type: ignore[attr-defined]
    if tag.is_private:
        return "private element"
    if vr == "PN":
        placeholder = all(map(_PLACEHOLDER.fullmatch, re.split(r"[\W\d_]+", text)))
        return None if placeholder or text == patient_id else "person's name"
    if vr == "AE":
        return "device"
    if _CONTACT.search(keyword):
        return "institution" if "Institution" in keyword else "address or phone number"
    for kind, pattern in (("other patient id", _OTHER_ID), ("record number", _RECORD), ("device", _DEVICE)):
        if pattern.search(keyword):
            return kind
    if _SITE.search(keyword):
        return "institution"
    if vr in ("DA", "DT", "TM"):
        return "date"
    if vr in ("LO", "LT", "SH", "ST", "UC", "UT"):
        named = {found.kind for found in identifiers(text[:10_000])} - {"date", "record number"}
        return "identifier in free text" if named else None
    return None


def burned_in(dataset: Dataset) -> bool:
    """Whether a header says that text may stand in the pixels, or is of a kind that has it."""
    return (
        str(dataset.get("BurnedInAnnotation", "")).upper() == "YES"
        or str(dataset.get("Modality", "")).upper() == "SC"
        or str(dataset.get("SOPClassUID", "")).startswith(SECONDARY_CAPTURE)
    )
