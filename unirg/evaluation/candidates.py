"""Who says what about which study: the systems under evaluation, and the two baselines built in.

Two section settings, as in ReXrank: "report" compares findings and impression as one text (a part that the
reference lacks is left out), "findings" compares the findings alone, over the studies that have any.

A system's candidates come from an artifact of stage `score` (`policy`) or from a file in any form that
`metrics.pairs` reads (`from_file`). Both are cut into sections and joined again by one rule, so that headings
and line breaks, which BLEU counts, are not what tells two systems apart.

A candidate without words says nothing and is scored as that, in BLEU with 0, wherever it comes from: a system
that is silent about hard studies must not be spared them. Missing is what has no text at all: a failure, a
study that the file does not name, a null or NaN in JSON. A CSV has no null, so that its empty cells, and the
"nan" that pandas may write there, say nothing.

*copy-prior* repeats the patient's previous report; *most-frequent-report* says of every study what the
training split says most often. A policy that reads its image must beat both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unirg import prompts
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.metrics.pairs import File
from unirg.scoring import predictions as predicted
from unirg.study import Study

Setting = Literal["report", "findings"]
SETTINGS: tuple[Setting, ...] = ("report", "findings")
COPY_PRIOR = "copy-prior"
MOST_FREQUENT = "most-frequent-report"
BASELINES = (COPY_PRIOR, MOST_FREQUENT)
HEADINGS = ("Findings:", "Impression:")


@dataclass(frozen=True)
class System:
    """One system's candidates over the evaluated studies."""

    name: str
    kind: Literal["policy", "baseline"]
    texts: Mapping[Setting, Mapping[str, str]]
    """Setting -> study_id -> candidate; empty text is a candidate that says nothing."""
    reasons: Mapping[str, str]
    """study_id -> why there is no candidate."""
    note: str
    """What a reader must know to judge the numbers; holds no text of a report."""
    doubled: int = 0
    """Studies with more than one row in the predictions, of which the first counts: two runs put together."""
    differing: int = 0
    """Of those, the ones whose rows hold different texts."""
    echoed: int = 0
    """Studies whose references stand in the file a second time, in the same order: two runs put together
    under other ids (`files.echoed`)."""
    asked: frozenset[str] | None = None
    """Ids of the studies that it was asked about, whatever came of it; None: all of them."""

    def attempts(self, studies: Iterable[Study]) -> bool:
        """Whether it was asked about any of the studies: silence about the others is a failure then."""
        return self.asked is None or any(study.study_id in self.asked for study in studies)


def text(findings: str | None, impression: str | None, setting: Setting) -> str:
    """A report in the form that is scored, `Findings: ... Impression: ...`; empty where it has no part."""
    return prompts.join_sections(findings, impression if setting == "report" else None)


def reference(study: Study, setting: Setting) -> str:
    """What the radiologist wrote; empty where the study has nothing in this setting."""
    return text(study.findings, study.impression, setting)


def attempted(
    predictions: Mapping[str, Artifact], cohort: Cohort, files: Mapping[str, str] | None = None
) -> list[Study]:
    """The studies to evaluate: every one that any system was asked about, held-out ones where none was.

    Args:
        predictions: system -> its artifact of stage `score`.
        files: system -> URI of its prediction file; what it says of other studies does not count.

    Raises:
        UserError: the predictions belong to another cohort, or name studies that it does not have; a file
            names none of its studies.
    """
    known = {study.study_id: study for study in cohort.studies()}
    asked: set[str] = set()
    for name, artifact in predictions.items():
        source = artifact.manifest.inputs.get("cohort")
        if source is not None and source.digest != cohort.artifact.digest:
            raise UserError(
                f"predictions {name} were made on another cohort ({source.digest[:16]}, not "
                f"{cohort.artifact.digest[:16]}): score this cohort, or name that one"
            )
        ids = set(predicted.column(artifact, "study_id"))
        ids |= set(_failed(artifact))
        if unknown := ids - known.keys():
            raise UserError(
                f"predictions {name}: {len(unknown)} studies are not in cohort {cohort.artifact.uri}, "
                f"such as {min(unknown)}"
            )
        asked |= ids
    for name, uri in (files or {}).items():
        file = File(uri, repeats=True)
        asked |= _matching(name, file, known)
    if not asked:
        asked = {study.study_id for study in known.values() if study.split in ("test", "zero_shot")}
    return [study for study_id, study in known.items() if study_id in asked]


def _failed(artifact: Artifact) -> dict[str, str]:
    """study_id -> why it has no prediction."""
    return {row["study_id"]: row["reason"] for batch in predicted.failures(artifact) for row in batch}


def policy(name: str, artifact: Artifact, studies: Sequence[Study]) -> System:
    """A system by its predictions; where a study has two, the first counts and the others are counted."""
    ids = predicted.column(artifact, "study_id")
    written = predicted.column(artifact, "text")
    finished = predicted.column(artifact, "finish_reason")
    first: dict[str, tuple[str, str | None]] = {}
    others: dict[str, set[str]] = {}
    for key, words, why in zip(ids, written, finished, strict=True):
        if key in first:
            others.setdefault(key, set()).add(words or "")
        else:
            first[key] = words or "", why
    failed = _failed(artifact)
    reasons = {
        study.study_id: f"no prediction: {failed.get(study.study_id, 'it was not asked')}"
        for study in studies
        if study.study_id not in first
    }
    cut = sum(why == "length" for _, why in first.values())
    differing = sum(found != {first[key][0]} for key, found in others.items())
    notes = [f"{cut} of {len(first)} candidates were cut at the token limit"] if cut else []
    notes += _twice(len(others), differing)
    said = {study.study_id: first[study.study_id][0] for study in studies if study.study_id in first}
    texts = _by_setting({key: prompts.split_sections(words) for key, words in said.items()})
    notes += _silent(texts["report"].values())
    asked = frozenset(study.study_id for study in studies) & (first.keys() | failed.keys())
    return System(name, "policy", texts, reasons, "; ".join(notes), len(others), differing, asked=asked)


def from_file(name: str, uri: str, studies: Sequence[Study]) -> System:
    """A system by its prediction file: CSV, JSONL, JSON or a ReXrank submission, as `metrics.pairs` reads it.

    Raises:
        UserError: the file cannot be read, lacks a column, or names none of the studies.
    """
    return of_file(name, File(uri, repeats=True), studies)


def of_file(name: str, file: File, studies: Sequence[Study], known_as: Callable[[str], str] = str) -> System:
    """A system by its opened file, whose ids are turned into those of the studies by `known_as`.

    Raises:
        UserError: the file lacks a column, or names none of the studies.
    """
    file.need("candidate")
    ids = {known_as(key): key for key in file.records}
    asked = _matching(name, file, {study.study_id for study in studies}, known_as)
    rows = {key: row for key, row in ids.items() if key in asked and file.given(row, "candidate")}
    said = {key: headed(mended(file.text(row, "candidate"))) for key, row in rows.items()}
    texts = _by_setting({key: prompts.split_sections(words) for key, words in said.items()})
    reasons = {
        study.study_id: "no prediction: its file has none of this study"
        if study.study_id not in asked
        else "no prediction: its file has no text of this study"
        for study in studies
        if study.study_id not in said
    }
    notes = _twice(file.doubled, file.differing)
    if unknown := len(ids) - len(asked):
        notes.append(f"{unknown} studies of its file are not evaluated here")
    notes += _silent(texts["report"].values())
    if bare := sum(bool(words) and not has_heading(words) for words in said.values()):
        notes.append(f"{bare} of {len(said)} candidates have no heading: their whole text counts as findings")
    told = "; ".join(notes)
    return System(name, "policy", texts, reasons, told, file.doubled, file.differing, asked=frozenset(asked))


def headed(words: str) -> str:
    """A report whose headings are spelled as `prompts` spells them; MIMIC-CXR's are in capitals."""
    for heading in HEADINGS:
        words = words.replace(heading.upper(), heading)
    return words


def has_heading(words: str) -> bool:
    """Whether a report names its sections."""
    return any(heading in headed(words) for heading in HEADINGS)


def mended(words: str) -> str:
    """The text with U+FFFD for half a surrogate pair, which JSON may hold and UTF-8 may not."""
    return words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _matching(name: str, file: File, known: Container[str], known_as: Callable[[str], str] = str) -> set[str]:
    """Those studies of a file that are known.

    Raises:
        UserError: none is.
    """
    found = {study_id for key in file.records if (study_id := known_as(key)) in known}
    if not found:
        raise UserError(
            f"predictions {name}: none of the {len(file.records)} studies of {file.uri} is evaluated here: "
            "name the cohort that they were made on, or correct its column study_id"
        )
    return found


def _by_setting(
    sections: Mapping[str, tuple[str | None, str | None]],
) -> dict[Setting, dict[str, str]]:
    return {s: {study_id: text(*parts, s) for study_id, parts in sections.items()} for s in SETTINGS}


def _silent(said: Collection[str]) -> list[str]:
    """The note about candidates that say nothing."""
    silent = sum(not words for words in said)
    return [f"{silent} of {len(said)} candidates are empty and are scored as that"] if silent else []


def _twice(doubled: int, differing: int) -> list[str]:
    """The note about studies with more than one row."""
    if not doubled:
        return []
    return [
        f"{doubled} studies have more than one prediction, {differing} with different texts, as where "
        "the outputs of two runs were put together: the first of each counts"
    ]


def baselines(cohort: Cohort, studies: Sequence[Study]) -> list[System]:
    """copy-prior and most-frequent-report over the studies."""
    training = cohort.studies("train")
    frequent = _most_frequent(training, studies)
    known = {study.study_id: study for study in cohort.studies()}
    return [_copy_prior(known, studies, frequent), frequent]


def _most_frequent(training: Sequence[Study], studies: Sequence[Study]) -> System:
    """The commonest training text of each setting, among reports with the sections that were asked for."""
    commonest: dict[tuple[Setting, str], tuple[str, int, int]] = {}
    for setting in SETTINGS:
        for kind in ("both", "findings", "impression"):
            same = [s for s in training if setting == "findings" or prompts.sections(s) == kind]
            counts = Counter(filter(None, (reference(study, setting) for study in same)))
            # Of texts equally frequent the first in the alphabet, so that one cohort has one baseline.
            best, times = min(counts.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
            commonest[setting, kind] = best, times, counts.total()
    texts: dict[Setting, dict[str, str]] = {setting: {} for setting in SETTINGS}
    reasons = {}
    for study in studies:
        kind = prompts.sections(study) or "both"
        for setting in SETTINGS:
            if candidate := commonest[setting, kind][0]:
                texts[setting][study.study_id] = candidate
        if study.study_id not in texts["report"]:
            reasons[study.study_id] = "no training report has these sections"
    _, times, total = commonest["report", "both"]
    note = f"the commonest training report, which occurs {times} times in {total}" if times else ""
    return System(MOST_FREQUENT, "baseline", texts, reasons, note)


def _copy_prior(known: Mapping[str, Study], studies: Sequence[Study], frequent: System) -> System:
    """The previous report of the same patient; where there is none, the most frequent one."""
    texts: dict[Setting, dict[str, str]] = {setting: {} for setting in SETTINGS}
    reasons = {}
    copied = 0
    for study in studies:
        prior = known.get(study.prior_study_id or "")
        copied += prior is not None
        for setting in SETTINGS:
            candidate = reference(prior, setting) if prior else ""
            candidate = candidate or frequent.texts[setting].get(study.study_id, "")
            if candidate:
                texts[setting][study.study_id] = candidate
        if study.study_id not in texts["report"]:
            reasons[study.study_id] = "no prior report, and " + frequent.reasons[study.study_id]
    note = f"{copied} of {len(studies)} studies have a prior report; the others get the most frequent report"
    return System(COPY_PRIOR, "baseline", texts, reasons, note)
