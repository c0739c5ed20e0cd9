"""Suite `conditions`: precision, recall and F1 of each CheXbert condition, the paper's figures 4b and 4c.

A labeller reads every reference and every candidate into one of blank, positive, negative, uncertain for each
of 14 conditions; a condition counts as stated or not by a rule, and the statements are compared. `RULES` says
the rules: the headline is the public one (f1chexbert's), positive and uncertain are stated; beside it
uncertain counts as not stated. Blank, a condition that is not mentioned, is never stated, as negative is not.

Precision is the mean, over the candidates that state a condition, of whether the reference does; recall the
same the other way round; F1 = 2 both / (candidates + references) is the mean over all statements of either
side. So they are means over statements, and `statistics.bootstrap` draws these with their patients; micro
averages are over the statements of several conditions together. A macro average is a mean of ratios: its
interval is that of its linearisation, each study's influence on it (Davison & Hinkley, Bootstrap Methods and
their Application, 1997, 2.7.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unirg.evaluation.candidates import Setting
from unirg.evaluation.groups import (
    MIN_GROUP,
    MIN_PATIENTS,
    Record,
    alarm,
    groups,
    patients,
    record,
    too_small,
    warns,
    where,
)
from unirg.evaluation.scores import Scores
from unirg.evaluation.statistics import Array, bootstrap
from unirg.metrics.conditions import BLANK, FIVE, NEGATIVE, POSITIVE, UNCERTAIN
from unirg.metrics.findings_lexicon import extract
from unirg.metrics.findings_terms import CONDITIONS, NO_FINDING

SUITE = "conditions"
Labels = NDArray[np.int64]
"""(studies, 14) classes of `metrics.conditions.LABELS`, conditions in CheXbert's order; a row of `UNREAD`
where there is no text."""
UNREAD = -1
Rule = Literal["positive", "negative"]
HEADLINE: Rule = "positive"
RULES: Mapping[Rule, str] = {
    "positive": "positive and uncertain count as stated, negative and blank as not stated (the public rule)",
    "negative": "positive counts as stated, uncertain, negative and blank as not stated",
}
MIN_SUPPORT = 10
"""References that must state a condition, and candidates' F1 over fewer is not shown: with nine the 95%
interval of a recall spans half of its range and more."""
SILENT_SUPPORT = 20
"""References that state a condition for a system that never does to raise an alarm: one that states a
tenth of them would miss all of twenty once in eight times, so fewer would cry wolf."""
SETS: Mapping[str, tuple[str, ...]] = {"14": CONDITIONS, "5": FIVE}
MEASURES = ("precision", "recall", "f1")


def labelled(
    scores: Scores, label: Callable[[Sequence[str]], Labels]
) -> tuple[dict[Setting, Labels], dict[tuple[str, Setting], Labels]]:
    """The labels of all references, and of all candidates of studies that have a reference.

    Args:
        label: texts -> (texts, 14) classes; asked once, for each distinct text. Of the scorer `CheXbert`
            it is `lambda texts: np.stack([chexbert.labels(found) for found in scorer.read(texts)])`.
    """
    texts: dict[tuple[str | None, Setting], list[str | None]] = {}
    for setting, references in scores.references.items():
        texts[None, setting] = [text or None for text in references]
        for system in scores.systems:
            texts[system.name, setting] = [
                system.texts[setting].get(study.study_id) if text else None
                for study, text in zip(scores.studies, references, strict=True)
            ]
    distinct = list(dict.fromkeys(text for column in texts.values() for text in column if text is not None))
    read = np.asarray(label(distinct), dtype=np.int64).reshape(len(distinct), len(CONDITIONS))
    known: dict[str | None, NDArray[np.int64]] = dict(zip(distinct, read, strict=True))
    known[None] = np.full(len(CONDITIONS), UNREAD, dtype=np.int64)
    found = {
        key: np.array([known[text] for text in column], dtype=np.int64).reshape(-1, len(CONDITIONS))
        for key, column in texts.items()
    }
    return (
        {setting: column for (system, setting), column in found.items() if system is None},
        {(system, setting): column for (system, setting), column in found.items() if system is not None},
    )


def lexicon(texts: Sequence[str]) -> Labels:
    """Labels by the rules of `metrics.findings_lexicon`, for where CheXbert's weights are not at hand.

    Of several statements on a condition the gravest counts: positive, uncertain, negative. No Finding is
    positive as CheXpert's labeller has it (Irvin et al., AAAI 2019): nothing but devices is stated.
    """
    order = {"negative": NEGATIVE, "uncertain": UNCERTAIN, "positive": POSITIVE}
    gravity = list(order)
    found = np.full((len(texts), len(CONDITIONS)), BLANK, dtype=np.int64)
    for row, text in enumerate(texts):
        worst: dict[str, str] = {}
        for finding in extract(text):
            worst[finding.condition] = max(
                worst.get(finding.condition, "negative"), finding.presence, key=gravity.index
            )
        worst.pop(NO_FINDING, None)
        for condition, presence in worst.items():
            found[row, CONDITIONS.index(condition)] = order[presence]
        ill = {name for name, presence in worst.items() if presence != "negative"} - {"Support Devices"}
        if text.strip() and not ill:
            found[row, CONDITIONS.index(NO_FINDING)] = POSITIVE
    return found


def table(
    scores: Scores, references: Mapping[Setting, Labels], candidates: Mapping[tuple[str, Setting], Labels]
) -> pa.Table:
    """What was read, for who compares systems study by study (`lifecycle.gate`).

    One row per (setting, system, study): system (null: the reference), setting, corpus, study_id, and one
    class a condition, `UNREAD` where there is no text.
    """
    said: list[tuple[str | None, Setting, Labels]] = [(None, *each) for each in references.items()]
    said += [(*key, labels) for key, labels in candidates.items()]
    ids = {name: [getattr(study, name) for study in scores.studies] for name in ("corpus", "study_id")}
    parts = []
    for system, setting, labels in said:
        whose = {"system": [system] * len(labels), "setting": [setting] * len(labels)}
        named = {name: pa.array(column, pa.string()) for name, column in (whose | ids).items()}
        parts.append(pa.table(named | dict(zip(CONDITIONS, labels.astype(np.int8).T, strict=True))))
    return pa.concat_tables(parts)


def of_truth(truth: pa.Table, studies: Sequence[str]) -> Labels:
    """A phantom's ground truth as labels: positive where the study has the condition, else blank.

    Raises:
        KeyError: a study is not in the truth.
    """
    rows = {row["study_id"]: row["findings"] for row in truth.select(["study_id", "findings"]).to_pylist()}
    found = np.full((len(studies), len(CONDITIONS)), BLANK, dtype=np.int64)
    for row, study_id in enumerate(studies):
        for finding in rows[study_id]:
            found[row, CONDITIONS.index(finding["condition"])] = POSITIVE
    return found


def conditions(
    scores: Scores,
    references: Mapping[Setting, Labels],
    candidates: Mapping[tuple[str, Setting], Labels],
    labeller: str,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    min_group: int = MIN_GROUP,
) -> Record:
    """Precision, recall and F1 by condition, with support and intervals; JSON types only.

    Keys of the result:
        suite, alarms
        labeller     who read the labels, as given
        rules        rule -> in words; headline: the one that is shown first
        sets         "14", "5" -> the conditions of the averages
        min_support  references that a condition needs
        groups       one record a (split, corpus, setting): `too_small`, or `studies`, `patients` and
                     systems   system -> `read` and `missing` (studies with and without a labelled candidate)
                               and, by rule,
                         conditions  name -> `support` (references that state it, of studies that have a
                                     candidate) and `claimed` (candidates that do), with `too_small`, or
                                     `both` (studies where both do) and precision, recall, f1 (mean, low,
                                     high, n, missing); of the `read` studies the rest are true negatives
                         averages    "14", "5" -> `counts` (support, claimed, both over its conditions), and
                                     micro, macro (as is public: a condition that nobody states counts 0),
                                     macro_supported (over `over` conditions with support): precision,
                                     recall, f1 each

    `n` of a precision counts candidates that state the condition, of a recall references, of an F1 both; of a
    macro average studies. A mean over nothing is None; in a macro average it counts 0.

    Args:
        references: setting -> labels; a setting that is not named is left out.
        candidates: (system, setting) -> labels of all its systems, studies in the same order.
        labeller: its name for the reader, such as "CheXbert" or "phantom truth".

    Raises:
        ValueError: labels that are none, or not of these studies.
    """
    for labels in (*references.values(), *candidates.values()):
        _check(labels, len(scores.studies))
    found: Record = {
        **{"suite": SUITE, "alarms": [], "labeller": labeller, "rules": dict(RULES), "headline": HEADLINE},
        **{"sets": {name: list(members) for name, members in SETS.items()}, "min_support": MIN_SUPPORT},
        "groups": [],
    }
    for place, rows in groups(scores):
        setting = place["setting"]
        if setting not in references:
            continue
        people = patients(scores, rows)
        group = place | {"too_small": True}
        if not too_small(people, min_group):
            group = place | {"studies": len(people), "patients": len(set(people)), "systems": {}}
            for system in scores.systems:
                group["systems"][system.name] = _system(
                    references[setting][rows], candidates[system.name, setting][rows], people, resamples, seed
                )
            if warns(place):
                found["alarms"] += _alarms(scores, group)
        found["groups"].append(group)
    return found


def _check(labels: Labels, studies: int) -> None:
    if labels.shape != (studies, len(CONDITIONS)):
        raise ValueError(f"labels of shape {labels.shape}, not {(studies, len(CONDITIONS))}")
    unread = labels == UNREAD
    if (unread.any(axis=1) != unread.all(axis=1)).any() or ((labels < UNREAD) | (labels > UNCERTAIN)).any():
        raise ValueError(f"a label is no class, or a study is read in part: a row without text is {UNREAD}")


def _system(expected: Labels, said: Labels, people: Sequence[str], resamples: int, seed: int) -> Record:
    read = (expected[:, 0] != UNREAD) & (said[:, 0] != UNREAD)
    kept = np.flatnonzero(read)
    own = [people[row] for row in kept.tolist()]
    sides = [(stated(said[kept], rule), stated(expected[kept], rule)) for rule in RULES]
    single = _ratios([pair for side in sides for pair in _columns(side, _SINGLE)], own, resamples, seed)
    members = list(SETS.values())
    micro = _ratios([pair for side in sides for pair in _columns(side, members)], own, resamples, seed)
    supported = [
        [name for name in some if side[1][:, _at([name])].any()] for side in sides for some in members
    ]
    macro = _macros(
        [pair for side in sides for pair in _columns(side, members)]
        + [_columns(sides[at // len(members)], [some])[0] for at, some in enumerate(supported)],
        own,
        resamples,
        seed,
    )
    result: Record = {"read": len(kept), "missing": len(people) - len(kept)}
    for at, (rule, side) in enumerate(zip(RULES, sides, strict=True)):
        first = at * len(members)
        result[rule] = {
            "conditions": _conditions(side, single[at * len(_SINGLE) :], own),
            "averages": {
                name: {
                    "counts": _counts(_columns(side, [members[number]])[0]),
                    "micro": micro[first + number],
                    "macro": macro[first + number],
                    "macro_supported": macro[len(supported) + first + number]
                    | {"over": len(supported[first + number])},
                }
                for number, name in enumerate(SETS)
            },
        }
    return result


Pair = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""What candidates and what references state, (studies, conditions) each."""
_SINGLE = [(name,) for name in CONDITIONS]


def stated(labels: Labels, rule: Rule) -> NDArray[np.bool_]:
    """Which conditions count as stated by a rule."""
    return np.isin(labels, (POSITIVE, UNCERTAIN) if rule == "positive" else (POSITIVE,))


def _columns(side: Pair, members: Sequence[Sequence[str]]) -> list[Pair]:
    ours, truth = side
    return [(ours[:, _at(some)], truth[:, _at(some)]) for some in members]


def _at(some: Sequence[str]) -> list[int]:
    return [CONDITIONS.index(name) for name in some]


def _conditions(side: Pair, numbers: Sequence[Record], people: Sequence[str]) -> Record:
    ours, truth = side
    found: Record = {}
    for column, name in enumerate(CONDITIONS):
        rows = np.flatnonzero(truth[:, column]).tolist()
        enough = len(rows) >= MIN_SUPPORT and len({people[row] for row in rows}) >= MIN_PATIENTS
        counts = _counts((ours[:, [column]], truth[:, [column]]))
        both = counts.pop("both")
        found[name] = counts | (numbers[column] | {"both": both} if enough else {"too_small": True})
    return found


def _counts(side: Pair) -> dict[str, int]:
    ours, truth = side
    return {"support": int(truth.sum()), "claimed": int(ours.sum()), "both": int((ours & truth).sum())}


def _ratios(pairs: Sequence[Pair], people: Sequence[str], resamples: int, seed: int) -> list[Record]:
    """Precision, recall and F1 of each pair, the statements of its conditions taken together.

    Of every pair each study is as many rows as it has places for a statement: first the candidate's, whether
    the reference agrees, then the reference's, whether the candidate does. The rest is NaN.
    """
    widest = max(ours.shape[1] for ours, _ in pairs)
    columns = []
    for ours, truth in pairs:
        both = (ours & truth).astype(np.float64)
        sides = np.full((2, len(people), widest), np.nan)
        for side, stated in zip(sides, (ours, truth), strict=True):
            side[:, : ours.shape[1]] = np.where(stated, both, np.nan)
        claims, cases = sides.reshape(2, -1)
        nothing = np.full_like(claims, np.nan)
        for halves in ((claims, nothing), (nothing, cases), (claims, cases)):
            columns.append(np.concatenate(halves))
    names = np.repeat(np.asarray(people, dtype=np.str_), widest)
    found = bootstrap(np.column_stack(columns), np.concatenate([names, names]).tolist(), resamples, seed)
    # A place without a statement is no missing score: `missing` of the system tells those.
    return [
        {name: record(found, 3 * pair + at) | {"missing": 0} for at, name in enumerate(MEASURES)}
        for pair in range(len(pairs))
    ]


def _macros(pairs: Sequence[Pair], people: Sequence[str], resamples: int, seed: int) -> list[Record]:
    """Macro averages over the conditions of each pair, by the influence of each study on them."""
    values = []
    for ours, truth in pairs:
        both = ours & truth
        for top, bottom in ((both, ours), (both, truth), (2 * both, ours.astype(int) + truth)):
            values.append(influences(top.astype(np.float64), bottom.astype(np.float64)))
    found = bootstrap(np.column_stack(values), people, resamples, seed)
    numbers = [record(found, at) for at in range(len(values))]
    for each in numbers:
        for end in ("low", "high"):  # that of the linearisation may lie beyond what an average can be
            each[end] = None if each[end] is None else min(max(each[end], 0.0), 1.0)
    size = len(MEASURES)
    return [dict(zip(MEASURES, numbers[at : at + size], strict=True)) for at in range(0, len(numbers), size)]


def influences(top: Array, bottom: Array) -> Array:
    """Values of studies whose mean is the mean of the columns' ratios of sums, and that vary as it does.

    Args:
        top, bottom: (studies, conditions); a condition whose bottoms are all 0 has the ratio 0.
    """
    sums = bottom.sum(axis=0)
    ratio = np.divide(top.sum(axis=0), sums, out=np.zeros_like(sums), where=sums > 0)
    if not len(sums) or not len(top):
        return np.full(len(top), np.nan)
    own = np.divide(top - ratio * bottom, sums, out=np.zeros_like(top), where=sums > 0)
    return ratio.mean() + len(top) * own.mean(axis=1)


def _alarms(scores: Scores, group: Record) -> Iterator[Record]:
    """A condition that a system never states, though the references often do."""
    for system in scores.systems:
        if system.kind == "baseline":
            continue
        silent = {
            name: found["support"]
            for name, found in group["systems"][system.name][HEADLINE]["conditions"].items()
            if found["support"] >= SILENT_SUPPORT and not found["claimed"]
        }
        if silent:
            worst = max(silent, key=lambda name: silent[name])
            more = len(silent) - 1
            others = f", nor {more} other condition{'s' if more > 1 else ''}" if more else ""
            yield alarm(
                SUITE,
                "never_stated",
                system.name,
                float(silent[worst]),
                float(SILENT_SUPPORT),
                f"{system.name} never states {worst}{others}, which {silent[worst]} references state "
                f"({where(group)}).",
            )
