"""Prediction files without a cohort: the studies and their references come out of the files themselves.

A ReXrank submission carries the reference of each study; a CSV or JSONL may have it in a column, or it lies
in a file of its own (`metrics.pairs` names the columns). That is enough for every metric of report against
reference. What needs more is not there and is not made up: no images, no priors, no patient unless a column
names one, and no training split, hence no baselines.

Two runs put together under other ids ("s1", "run2_s1") name no study twice, but their references do: `echoed`
counts the studies whose references stand in a file a second time in the same order. References that repeat by
nature, since many radiographs are normal, do so without any order.

    found = files.alone({"a": "a.json", "b": "b.csv"})
    scores.score(found.studies, found.systems, measured, weights, engine)
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unirg import prompts
from unirg.errors import UserError
from unirg.evaluation.candidates import System, has_heading, headed, mended, of_file
from unirg.metrics.pairs import File
from unirg.study import SAFE_ID, SECTIONS, Study

CORPUS = "files"
"""Corpus and institution of studies that no cohort has."""

MIN_PAIRS = 8
"""References that must stand exactly twice: by chance so many come in one order once in two million times."""
IN_ORDER = 0.9
"""Share of them that must lie across the middle, and in the order of the first."""

_Sections = tuple[str | None, str | None]


@dataclass(frozen=True)
class Alone:
    """What an evaluation without a cohort compares."""

    studies: list[Study]
    """In the order of the files, of split `test`; one without any reference is here too, and counted."""
    systems: list[System]
    notes: list[str]
    """What a reader must know to judge the numbers; no text of a report, no id."""


def alone(predictions: Mapping[str, str], references: str = "", corpus: str = CORPUS) -> Alone:
    """Studies and systems from prediction files.

    Args:
        predictions: system -> path or URI of its file, .csv, .jsonl or .json.
        references: a file with the references; empty: those in the prediction files count, the first first.
        corpus: what the studies are of, such as rexrank_iu_xray, which sets its public board beside them.

    Raises:
        UserError: a file cannot be read or lacks a column, there is no reference at all, or the corpus is no
            name.
    """
    if not re.fullmatch(SAFE_ID, corpus):
        raise UserError(f"corpus = {corpus!r} is no name of a corpus: give one such as rexrank_iu_xray")
    opened = {name: File(uri, repeats=True) for name, uri in predictions.items()}
    if not opened:
        raise UserError("no prediction file: name at least one")
    for file in opened.values():
        file.need("candidate")
    sources = [File(references, repeats=True)] if references else list(opened.values())
    # A study that has a reference and that no system says anything about is missing, not absent.
    order = dict.fromkeys(key for file in [*opened.values(), *sources] for key in file.records)
    sources = [file for file in sources if any(map(file.has, ("reference", *SECTIONS)))]
    found: dict[str, _Sections] = {}
    conflicting, bare = set(), 0
    for file in sources:
        for key in order.keys() & file.records.keys():
            sections, named = _reference(file, key)
            if not any(sections):
                continue
            if key not in found:
                found[key] = sections
                bare += not named
            elif prompts.join_sections(*found[key]) != prompts.join_sections(*sections):
                conflicting.add(key)
    if not found:
        raise UserError(
            f"{references or ', '.join(predictions.values())}: no reference for any study: add a column "
            "reference, or columns findings and impression, or name a file that has them"
        )
    everywhere = [*opened.values(), *sources]
    studies = [
        Study.checked(
            corpus=corpus,
            study_id=safe(key),
            patient_id=safe(_patient(everywhere, key) or key),
            institution=corpus,
            split="test",
            **dict(zip(SECTIONS, found.get(key, (None, None)), strict=True)),
        )
        for key in order
    ]
    systems = [
        replace(
            of_file(name, file, studies, safe),
            echoed=echoed([prompts.join_sections(*found[key]) for key in file.records if key in found]),
        )
        for name, file in opened.items()
    ]
    notes = ["no cohort was named: there are no baselines, no priors and no images"]
    strangers = sum(not _patient(everywhere, key) for key in order)
    if strangers:
        some = f"{strangers} of {len(order)} studies name no patient: the intervals take each of them"
        every = "no file names patients: the intervals take every study"
        notes.append(f"{every if strangers == len(order) else some} for a patient of its own")
    if without := len(order) - len(found):
        notes.append(f"{without} of {len(order)} studies have no reference and are not scored")
    if bare:
        notes.append(f"{bare} references have no heading: their whole text counts as findings")
    if conflicting:
        notes.append(f"{len(conflicting)} studies have another reference in another file: the first counts")
    return Alone(studies, systems, notes)


def echoed(references: Sequence[str]) -> int:
    """Studies of a file whose references stand in it a second time in the same order; 0 where none do.

    Looked at are references that stand exactly twice: of two runs put together, nearly all that are one
    patient's own. By nature such a pair lies anywhere, so that few pairs have their first in one half of all
    and their second in the other, and these in no common order.
    """
    places: dict[str, list[int]] = {}
    for place, text in enumerate(references):
        places.setdefault(text, []).append(place)
    pairs = [(at[0], at[1]) for at in places.values() if len(at) == 2]
    if len(pairs) < max(MIN_PAIRS, len(places) / 2):
        return 0
    middle = sorted(place for pair in pairs for place in pair)[len(pairs)]
    across = sorted(pair for pair in pairs if pair[0] < middle <= pair[1])
    kept = sum(before[1] < after[1] for before, after in itertools.pairwise(across))
    # A study that one of the runs lacks, or a few that repeat by nature, leave the order of the others.
    ordered = kept >= IN_ORDER * (len(across) - 1) and len(across) >= IN_ORDER * len(pairs)
    return len(pairs) if ordered else 0


def safe(value: str) -> str:
    """An id that may be printed: itself, or its digest where it breaks the rule of `Study`."""
    if re.fullmatch(SAFE_ID, value):
        return value
    return "id-" + hashlib.sha256(value.encode()).hexdigest()[:24]


def _reference(file: File, key: str) -> tuple[_Sections, bool]:
    """(findings, impression) of a study, and whether the file tells the two apart."""
    if any(map(file.has, SECTIONS)):
        findings, impression = (mended(file.text(key, section)) or None for section in SECTIONS)
        return (findings, impression), True
    words = mended(file.text(key, "reference"))
    return prompts.split_sections(headed(words)), has_heading(words)


def _patient(files: Sequence[File], key: str) -> str:
    """Whose study it is, by the first file that says so; else empty."""
    return next((patient for file in files if (patient := file.text(key, "patient_id"))), "")
