"""Suite `sanity`: what no metric tells, a model that collapsed onto one report or a file that was mixed up.

A policy under reinforcement may learn to say one safe report of every study and score well for it; a
prediction file may hold two runs, or the right reports of the wrong studies. Each measure of the candidates
stands beside the same measure of the references of the same studies, since many radiographs are normal and
radiologists repeat themselves, too. The paper has no figure of it.

Texts of candidates are in the field `text` alone, which the report escapes; no alarm holds any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from unirg.artifact import Artifact
from unirg.evaluation.candidates import SETTINGS, Setting, System, reference
from unirg.evaluation.groups import (
    MIN_ALARM,
    MIN_GROUP,
    Record,
    Rows,
    alarm,
    groups,
    number,
    patient,
    patients,
    record,
    too_small,
    warns,
    where,
)
from unirg.evaluation.scores import Scores
from unirg.evaluation.statistics import bootstrap
from unirg.evaluation.texts import commonest, jaccard, plain, statistics, words
from unirg.scoring import predictions as predicted
from unirg.study import Study

Flags = NDArray[np.bool_]

SUITE = "sanity"
SHOWN = 5
"""Most frequent candidates that are listed."""
TOP_EXCESS = 0.25
"""Share of studies that get the most frequent candidate, beyond the references' own most frequent text: a
quarter of all patients with one and the same report is more than any archive's wave of normal films."""
REPEATED_EXCESS = 0.5
"""Share of candidates that repeat another, beyond the references' own. Greedy decoding repeats its normal
report where radiologists vary theirs, so less than half is common among sound models."""
NEAR_EXCESS = 0.4
"""Share of candidates that are near copies of one, beyond the references' own: as `TOP_EXCESS`, wider since
normal reports of one model are alike."""
LENGTH_RATIO = 2.0
"""Times that the median length may be above or below the references': half a report leaves findings out,
twice one says what is not there, and no style differs by so much."""
SECTION_LACK = 0.1
"""Share of candidates that lack a section which the reference has, beyond which the model or the reading of
its file has lost that section; single ones are the model's mistakes."""
CUT = 0.02
"""Share of candidates cut at the token limit: reports are far shorter than the limit, so a model that runs
into it in one of fifty goes round in circles."""
UNFINISHED_EXCESS = 0.1
"""Share of candidates that end within a sentence, beyond the references' own, for files that do not say what
was cut."""
EMPTY = 0.01
"""Share of candidates that say nothing: one in a hundred is no accident of single studies."""
UNEVEN = 0.01
"""Share of studies that another system has a candidate for and this one not: beyond it, two means are over
different studies, and those left out are rarely the easy ones."""
PRIOR_EXCESS = 0.25
"""Share of candidates that are the patient's previous report, beyond the references' own: so much of copying
is no reading of the new image."""


def cut_at_limit(predictions: Artifact) -> frozenset[str]:
    """Studies whose candidate was cut at the token limit, of an artifact of stage `score`."""
    reasons = predicted.column(predictions, "finish_reason")
    ids = predicted.column(predictions, "study_id")
    return frozenset(key for key, why in zip(ids, reasons, strict=True) if why == "length")


def prior_reports(studies: Sequence[Study], known: Mapping[str, Study]) -> dict[Setting, dict[str, str]]:
    """The previous report of the same patient, by setting and study, where there is one.

    Args:
        known: study_id -> study, of the whole cohort.
    """
    return {
        setting: {
            study.study_id: text
            for study in studies
            if (prior := known.get(study.prior_study_id or "")) and (text := reference(prior, setting))
        }
        for setting in SETTINGS
    }


def sanity(
    scores: Scores,
    cut: Mapping[str, Collection[str]] | None = None,
    priors: Mapping[Setting, Mapping[str, str]] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    min_group: int = MIN_GROUP,
) -> Record:
    """Measures of candidates as texts beside the references', and alarms; JSON types only.

    Keys of the result:
        suite, alarms
        limits   name of an alarm -> its limit
        files    system -> doubled, differing, echoed: studies with more than one row, of those with different
                 texts, and studies whose references come a second time in the same order
        uneven   system -> `lacking` (studies that another system has a candidate for and this one not) of
                 `studies` (that any has one for), in those splits and corpora that it was asked about
        groups   one record a (split, corpus, setting): `too_small`, or `studies`, `patients` and
                 references   shares repeated, top, near, empty, unfinished, findings, impression, and
                              length (q1, median, q3, longest, in words): `texts.statistics`
                 systems      system -> `said` (studies with a candidate) and `missing`, and of these
                     candidates   as references, over the studies with a candidate
                     expected     the same of their references
                     lacks        findings, impression: share that lacks it where the reference has it
                     cut          share cut at the token limit; None where nobody says
                     prior        {studies, candidates, references}: of studies with a previous report the
                                  shares that equal it; None where there is none
                     own, other   likeness of candidates to their own reference, and to one of another patient
                     fit          mean of own - other, with low, high, n, missing
                     frequent     the commonest candidates that come more than once: count, share, text

    Args:
        cut: system -> studies whose candidate was cut, `cut_at_limit`; no key where nobody says.
        priors: setting -> study_id -> the patient's previous report, `prior_reports`.
    """
    cut, priors = cut or {}, priors or {}
    found: Record = {
        **{"suite": SUITE, "alarms": []},
        "limits": {
            **{"top": TOP_EXCESS, "repeated": REPEATED_EXCESS, "near": NEAR_EXCESS, "length": LENGTH_RATIO},
            **{"section": SECTION_LACK, "cut": CUT, "unfinished": UNFINISHED_EXCESS, "empty": EMPTY},
            **{"uneven": UNEVEN, "prior": PRIOR_EXCESS, "two_runs": 0, "mixed_up": 0},
        },
        "files": {
            each.name: {"doubled": each.doubled, "differing": each.differing, "echoed": each.echoed}
            for each in scores.systems
        },
        "uneven": {
            name: {"lacking": int(lacks.sum()), "studies": int(of.sum())}
            for name, (lacks, of) in lacking(scores).items()
        },
        "groups": [],
    }
    found["alarms"] += _file_alarms(scores, found["uneven"])
    for place, rows in groups(scores):
        people = patients(scores, rows)
        small = too_small(people, min_group)
        if small and not (warns(place) and len(rows) >= MIN_ALARM):
            found["groups"].append(place | {"too_small": True})
            continue
        setting: Setting = place["setting"]
        texts = [scores.references[setting][row] for row in rows]
        group = place | {"studies": len(people), "patients": len(set(people))}
        group |= {"references": statistics(texts), "systems": {}}
        before = priors.get(setting, {})
        others = _others(scores, rows, seed)
        for system in scores.systems:
            one = _system(scores, system, setting, rows, others, cut.get(system.name), before)
            whole = one["said"] == len(rows)
            one["expected"] = group["references"] if whole else statistics(one["expected"])
            fit = one.pop("fit")
            one["fit"] = record(bootstrap(fit[:, None], people, resamples, seed), 0)
            group["systems"][system.name] = one
            if warns(place) and system.kind == "policy":
                size = f"{where(place)}, {len(rows)} studies alone" if small else where(place)
                # An interval of a few patients is no evidence that two means are alike.
                told = one | {"fit": None} if small else one
                found["alarms"] += _alarms(system.name, told, size)
        # The alarms of a small group are told; its numbers are not, for a patient could be recognised.
        found["groups"].append(place | {"too_small": True} if small else group)
    return found


def lacking(scores: Scores) -> dict[str, tuple[Flags, Flags]]:
    """By system (studies,) that another system has a report of and this one not, and of which any has one.

    Only of the splits and corpora that the system was asked about: elsewhere it has no mean to compare.
    """
    said = {
        system.name: np.array([study.study_id in system.texts["report"] for study in scores.studies], bool)
        for system in scores.systems
    }
    some = np.logical_or.reduce(list(said.values())) if said else np.zeros(len(scores.studies), bool)
    asked = {name: np.zeros(len(scores.studies), bool) for name in said}
    for place, rows in groups(scores):
        if warns(place):
            for system in scores.systems:
                asked[system.name][rows] = system.attempts(scores.studies[row] for row in rows)
    return {name: (asked[name] & some & ~own, asked[name] & some) for name, own in said.items()}


def _others(scores: Scores, rows: Rows, seed: int) -> list[int | None]:
    """For each row a row of another patient, drawn at random; None where there is none."""
    drawn = np.random.default_rng(seed).permutation(rows).tolist()
    place = {row: at for at, row in enumerate(drawn)}
    found: list[int | None] = []
    for row in rows.tolist():
        # The next one in a circle that is another patient's: mostly the very next.
        circle = (drawn[(place[row] + step) % len(drawn)] for step in range(1, len(drawn)))
        own = patient(scores.studies[row])
        found.append(next((other for other in circle if patient(scores.studies[other]) != own), None))
    return found


def _system(
    scores: Scores,
    system: System,
    setting: Setting,
    rows: Rows,
    others: Sequence[int | None],
    cut: Collection[str] | None,
    priors: Mapping[str, str],
) -> Record:
    """One system's record; `fit` is still (studies,), NaN without a candidate, and `expected` the texts."""
    references = scores.references[setting]
    ids = [scores.studies[row].study_id for row in rows]
    texts = [system.texts[setting].get(key) for key in ids]
    said = [
        (key, text, references[row])
        for key, text, row in zip(ids, texts, rows, strict=True)
        if text is not None
    ]
    candidates = [text for _, text, _ in said]
    own, other = (np.full(len(rows), np.nan) for _ in range(2))
    for at, (text, row, away) in enumerate(zip(texts, rows.tolist(), others, strict=True)):
        if text is not None and away is not None:
            bag = words(text)
            own[at] = jaccard(bag, words(references[row]))
            other[at] = jaccard(bag, words(references[away]))
    known = [(text, expected, priors[key]) for key, text, expected in said if priors.get(key)]
    return {
        **{"said": len(said), "missing": len(rows) - len(said)},
        "candidates": statistics(candidates),
        "expected": [expected for _, _, expected in said],
        "lacks": {
            name.lower(): _share(
                [f"{name}:" not in text for _, text, expected in said if f"{name}:" in expected]
            )
            for name in ("Findings", "Impression")
        },
        "cut": None if cut is None else _share([key in cut for key, _, _ in said]),
        "prior": {
            "studies": len(known),
            "candidates": _share([plain(text) == plain(before) for text, _, before in known]),
            "references": _share([plain(expected) == plain(before) for _, expected, before in known]),
        }
        if known
        else None,
        **{"own": _mean(own), "other": _mean(other), "fit": own - other},
        "frequent": [
            {"count": times, "share": number(times / len(said)), "text": text}
            for text, times in commonest(candidates, SHOWN)
            if times > 1  # what is said of one patient alone is not for a summary
        ],
    }


def _share(members: Sequence[bool]) -> float | None:
    return number(sum(members) / len(members)) if members else None


def _mean(values: np.ndarray) -> float | None:
    scored = values[np.isfinite(values)]
    return number(float(scored.mean())) if len(scored) else None


def _file_alarms(scores: Scores, uneven: Record) -> Iterator[Record]:
    """What is wrong with a system's predictions as a whole."""
    for system in scores.systems:
        if system.doubled:
            yield alarm(
                SUITE,
                "two_runs",
                system.name,
                system.doubled,
                0,
                f"The predictions of {system.name} name {system.doubled} studies more than once, "
                f"{system.differing} with different reports, as where two runs were put together: the first "
                "of each counts.",
            )
        if system.echoed:
            yield alarm(
                SUITE,
                "two_runs",
                system.name,
                system.echoed,
                0,
                f"In the file of {system.name} the references of {system.echoed} studies come a second time "
                "in the same order, as where two runs were put together under other ids: they count twice.",
            )
        lacking, studies = uneven[system.name]["lacking"], uneven[system.name]["studies"]
        if lacking > UNEVEN * studies and system.kind == "policy":
            yield alarm(
                SUITE,
                "uneven",
                system.name,
                lacking / studies,
                UNEVEN,
                f"{system.name} has no report of {lacking} of the {studies} studies that another system "
                "reports on: their means are over different studies.",
            )


def _alarms(name: str, found: Record, place: str) -> Iterator[Record]:
    """What is wrong with one policy's candidates in one group."""
    if not found["said"]:
        return
    own, expected = found["candidates"], found["expected"]

    def above(kind: str, value: float | None, limit: float, sentence: str) -> Iterator[Record]:
        if value is not None and value > limit:
            yield alarm(SUITE, kind, name, value, limit, f"{sentence} ({place}).")

    beside = "against {:.0%} of the radiologists' reports"
    yield from above(
        "top",
        own["top"] - expected["top"],
        TOP_EXCESS,
        f"{name} gives one and the same report to {own['top']:.0%} of the studies; the radiologists' "
        f"commonest text has {expected['top']:.0%}",
    )
    for kind, limit, verb in (
        ("repeated", REPEATED_EXCESS, "repeat another study's word for word"),
        ("near", NEAR_EXCESS, "are near copies of a single one"),
        ("unfinished", UNFINISHED_EXCESS, "end within a sentence"),
    ):
        yield from above(
            kind,
            own[kind] - expected[kind],
            limit,
            f"{own[kind]:.0%} of the reports of {name} {verb}, {beside.format(expected[kind])}",
        )
    yield from above("empty", own["empty"], EMPTY, f"{own['empty']:.1%} of the reports of {name} are empty")
    if found["cut"] is not None:
        yield from above(
            "cut",
            found["cut"],
            CUT,
            f"{found['cut']:.1%} of the reports of {name} were cut at the token limit",
        )
    said, wanted = own["length"]["median"], expected["length"]["median"]
    ratio = max(said, wanted) / max(min(said, wanted), 1)
    yield from above(
        "length",
        ratio,
        LENGTH_RATIO,
        f"The reports of {name} have {said:.0f} words in the middle, the radiologists' {wanted:.0f}",
    )
    for section, share in found["lacks"].items():
        yield from above(
            "section",
            share,
            SECTION_LACK,
            f"{share or 0:.0%} of the reports of {name} lack the {section} that the radiologist wrote",
        )
    if found["prior"]:
        copied, usual = found["prior"]["candidates"], found["prior"]["references"]
        yield from above(
            "prior",
            copied - usual,
            PRIOR_EXCESS,
            f"{copied:.0%} of the reports of {name} are the patient's last one, {beside.format(usual)}",
        )
    fit = found["fit"]
    if fit and fit["low"] is not None and fit["low"] <= 0:
        yield alarm(
            SUITE,
            "mixed_up",
            name,
            fit["mean"],
            0,
            f"The reports of {name} are no more like the reference of their own study than like another "
            f"patient's: they may belong to other studies, or say the same of all ({place}).",
        )
