"""Who says what about which study: the systems under evaluation, and the two baselines built in.

Two section settings, as in ReXrank: "report" compares findings and impression as one text (a part that the
reference lacks is left out), "findings" compares the findings alone, over the studies that have any.

*copy-prior* repeats the patient's previous report; *most-frequent-report* says of every study what the
training split says most often. A policy that reads its image must beat both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unirg import prompts
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.scoring import predictions as predicted
from unirg.study import Study

Setting = Literal["report", "findings"]
SETTINGS: tuple[Setting, ...] = ("report", "findings")
COPY_PRIOR = "copy-prior"
MOST_FREQUENT = "most-frequent-report"
BASELINES = (COPY_PRIOR, MOST_FREQUENT)


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


def text(findings: str | None, impression: str | None, setting: Setting) -> str:
    """A report in the form that is scored, `Findings: ... Impression: ...`; empty where it has no part."""
    return prompts.join_sections(findings, impression if setting == "report" else None)


def reference(study: Study, setting: Setting) -> str:
    """What the radiologist wrote; empty where the study has nothing in this setting."""
    return text(study.findings, study.impression, setting)


def attempted(predictions: Mapping[str, Artifact], cohort: Cohort) -> list[Study]:
    """The studies to evaluate: every one that any system was asked about, held-out ones where none was.

    Raises:
        UserError: the predictions belong to another cohort, or name studies that it does not have.
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
    if not asked:
        asked = {study.study_id for study in known.values() if study.split in ("test", "zero_shot")}
    return [study for study_id, study in known.items() if study_id in asked]


def _failed(artifact: Artifact) -> dict[str, str]:
    """study_id -> why it has no prediction."""
    return {row["study_id"]: row["reason"] for batch in predicted.failures(artifact) for row in batch}


def policy(name: str, artifact: Artifact, studies: Sequence[Study]) -> System:
    """A system by its predictions.

    Raises:
        UserError: a study has two predictions, as where the outputs of two runs were put together.
    """
    ids = predicted.column(artifact, "study_id")
    written = predicted.column(artifact, "text")
    finished = predicted.column(artifact, "finish_reason")
    if len(set(ids)) < len(ids):
        twice = sum(times > 1 for times in Counter(ids).values())
        raise UserError(f"predictions {name}: {twice} studies have more than one; keep the output of one run")
    sections = {key: prompts.split_sections(words or "") for key, words in zip(ids, written, strict=True)}
    failed = _failed(artifact)
    reasons = {
        study.study_id: f"no prediction: {failed.get(study.study_id, 'it was not asked')}"
        for study in studies
        if study.study_id not in sections
    }
    cut = sum(reason == "length" for reason in finished)
    note = f"{cut} of {len(ids)} candidates were cut at the token limit" if cut else ""
    texts = {s: {study_id: text(*parts, s) for study_id, parts in sections.items()} for s in SETTINGS}
    return System(name, "policy", texts, reasons, note)


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
