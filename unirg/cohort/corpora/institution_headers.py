"""What one DICOM header says of a radiograph, read without trust: no value gets into an error or a log."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, MutableSequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from unirg.cohort.corpora import institution_values as values
from unirg.cohort.views import UNKNOWN, view_of
from unirg.study import AcquiredBasis, Projection, View

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

LONGEST_VALUE = 256
MOST_VALUES = 64
"""Of one attribute that are read; a hostile header may have thousands."""
RADIOGRAPHY = frozenset({"CR", "DX", "DR", "RG"})
SCANS = frozenset({"", "SC", "OT", "HC"})
"""Modalities of digitised or exported films, which count where the header says chest."""
CHEST = re.compile(r"(?i)chest|thora|torax|lung|pulm")

Time = tuple[datetime, AcquiredBasis]


def parsed(head: bytes, whole: bool) -> Dataset | None:
    """The attributes before the pixels; None where the bytes end before them, or are not DICOM."""
    import pydicom

    stream = io.BytesIO(head)
    try:
        dataset = pydicom.dcmread(stream, stop_before_pixels=True)
    except Exception:  # what pydicom raises on a hostile header is open-ended
        return None
    # pydicom stops in front of the pixels, or wherever the bytes end.
    return dataset if whole or stream.tell() < len(head) else None


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom's messages and warnings quote header values: they go nowhere."""
    logger = logging.getLogger("pydicom")
    logger.disabled, logger.propagate = True, False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def unusable(header: Dataset) -> str | None:
    """Why a file is no greyscale radiograph of the chest to look at; None where it is one."""
    body = " ".join(filter(None, (value(header, "BodyPartExamined"), meaning(header, "AnatomicRegion"))))
    modality = value(header, "Modality").upper()
    if not (value(header, "Rows") and value(header, "Columns")):
        return "no image"
    if value(header, "NumberOfFrames") not in ("", "0", "1"):
        return "more than one frame"
    if modality not in RADIOGRAPHY and not (modality in SCANS and CHEST.search(body)):
        return "no radiograph"
    if body and not CHEST.search(body):
        return "not of the chest"
    if value(header, "PresentationIntentType").upper() == "FOR PROCESSING":
        return "for processing only"
    photometric = value(header, "PhotometricInterpretation")
    return None if photometric in ("MONOCHROME1", "MONOCHROME2") else "not greyscale"


def view_in(header: Dataset) -> tuple[View, Projection | None]:
    """The view by ViewPosition, else by its code's meaning, else by the words of a description."""
    told = view_of(value(header, "ViewPosition"))
    if told == UNKNOWN:
        told = view_of(meaning(header, "View"))
    for keyword in ("SeriesDescription", "AcquisitionDeviceProcessingDescription", "ProtocolName"):
        if told == UNKNOWN:
            told = _view_in_words(value(header, keyword))
    return told


def _view_in_words(description: str) -> tuple[View, Projection | None]:
    """The one view that a description names (`W033 CHEST PA`); one that names two says nothing."""
    words = re.findall("[a-z]+", description.lower())
    if any(word.startswith(("decub", "obliq", "lordo", "abdom", "kub")) for word in words):
        return "other", None
    told = {view_of(word) for word in words if word in ("pa", "ap", "lat", "lateral")}
    return told.pop() if len(told) == 1 else UNKNOWN


def age(header: Dataset, acquired: Time | None) -> int | None:
    """PatientAge, else the years from birth to the exam; None where either is out of range."""
    try:
        years = values.age(value(header, "PatientAge"))
    except values.Refused:
        years = None
    born = _moment(value(header, "PatientBirthDate"))
    if years is None and born and acquired:
        then, start = acquired[0], born[0]
        years = then.year - start.year - ((then.month, then.day) < (start.month, start.day))
    return years if years is not None and 0 <= years <= 120 else None


def when(header: Dataset, *names: str) -> Time | None:
    """The first time that is there and is one, of `Study` (StudyDate and StudyTime), `Acquisition`, ..."""
    told = None
    for name in names:
        told = told or _moment(value(header, f"{name}DateTime"))
        told = told or _moment(value(header, f"{name}Date"), value(header, f"{name}Time"))
    return told


def earliest(times: Iterable[Time | None]) -> Time | None:
    """The first time of the earliest day; its bare date, which would stand as midnight, where it has none."""
    return min(
        filter(None, times), key=lambda time: (time[0].date(), time[1] == "date", time[0]), default=None
    )


_DAY = re.compile(r"([0-9]{4})[.-]?([0-9]{2})[.-]?([0-9]{2})([0-9]*)(?:\.[0-9]*)?(?:[+-][0-9]{4})?")
_CLOCK = re.compile(r"([0-9]{2}):?(?:([0-9]{2}):?([0-9]{2})?)?(?:\.[0-9]*)?")


def _moment(day: str, clock: str = "") -> Time | None:
    """DICOM DA and TM, or a DT alone, also with the separators of old files; None of what is no date.

    An offset from UTC is ignored, as DA and TM have none. Basis `date` where the time is missing or none.
    """
    date = _DAY.fullmatch(day)
    if date is None:
        return None
    try:
        midnight = datetime(int(date[1]), int(date[2]), int(date[3]))
    except ValueError:
        return None
    time = _CLOCK.fullmatch(date[4] or clock)
    hour, minute, second = (int(part or 0) for part in time.groups()) if time else (24, 0, 0)
    if hour > 23 or minute > 59 or second > 60:
        return midnight, "date"
    return midnight.replace(hour=hour, minute=minute, second=min(second, 59)), "timestamp"


def value(header: Dataset, keyword: str) -> str:
    """The first value of an attribute as a stripped text, '' where it is missing or cannot be read."""
    return next(iter(every(header, keyword)), "")


def every(header: Dataset, keyword: str) -> list[str]:
    """The first MOST_VALUES values of an attribute, each as above."""
    try:
        found: Any = header.get(keyword)
        several = isinstance(found, MutableSequence)  # pydicom's MultiValue
        some = found[:MOST_VALUES] if several else [found]
        return ["" if one is None else str(one).strip(" \0")[:LONGEST_VALUE] for one in some]
    except Exception:  # what a hostile value raises when it is converted is open-ended
        return []


def meaning(header: Dataset, name: str) -> str:
    """What the first code of a sequence of codes means, such as ViewCodeSequence."""
    try:
        items = header.get(f"{name}CodeSequence") or header.get(f"{name}Sequence") or []
        return value(items[0], "CodeMeaning") if len(items) else ""
    except Exception:
        return ""
