"""Suite `dynamics`: how each training went, step by step, with its ablations laid over it (Figure 2b to 2d).

2c: RadCliQ-v1 of the periodic validation against the training step. 2d: errors per report. 2b: every score
of the validation, to see that a reward on one metric alone raises that one alone. The trainers' own logs
stand beside: loss, reward, each term of the reward, entropy and lengths of the rollouts.

A log holds means over the validation's studies and no study's own score, so its curves have no intervals.
Where the runs were also evaluated, `ends` compares each run with its ablations study by study, with
intervals by patient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unirg.errors import UserError
from unirg.evaluation import groups, history
from unirg.evaluation.groups import RADCLIQ, Record
from unirg.evaluation.history import VALIDATION, points
from unirg.evaluation.report.plots import running_mean
from unirg.evaluation.scores import Scores
from unirg.evaluation.statistics import bootstrap, paired
from unirg.metrics.catalog import CATALOG

SUITE = "dynamics"
History = Sequence[Mapping[str, Any]]
LOGGED = ("loss", "reward", "kl", "entropy", "length/mean", "duplicate_share", "truncated_share")
"""Keys of a trainer's log that are drawn, besides each term of the reward and the validation's scores."""
FIGURES = {RADCLIQ: "2c", "errors": "2d", "errors_significant": "2d"}
"""Scores of the validation that the paper draws against steps; any other belongs to Figure 2b."""
HEADLINES = (RADCLIQ, "errors")
"""Those that its figures cannot do without."""
MARGINS = {RADCLIQ: 0.05, "errors": 0.25}
"""By how much a validated mean may lie behind the run's best without an alarm; ours. Of RadCliQ-v1 a third of
what RL after SFT gains in the paper's Table 1 (1 / 0.962 - 1 / 1.110 = 0.139)."""
COMPLETE = 0.95
"""Share of the validation's scores that must be there."""


class Alarm(NamedTuple):
    """How an alarm that a trainer raised is told."""

    limit: str
    """The setting that its value is beyond."""
    sentence: str
    """After the name of the run."""


ALARMS = {
    "entropy": Alarm("entropy_floor", "has collapsed: it writes the same whatever it is asked"),
    "duplicates": Alarm("duplicate_share", "writes nearly the same report at every attempt"),
    "length": Alarm("length_ratio", "has come to write reports of quite another length"),
    "hacking": Alarm("hacking_spread", "improves in one metric while every other one falls"),
}
"""Those of `unirg.training.alarms`, by name."""


def dynamics(
    histories: Mapping[str, History],
    ablations: Mapping[str, str] | None = None,
    limits: Mapping[str, Mapping[str, Any]] | None = None,
    scores: Scores | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    min_group: int = groups.MIN_GROUP,
) -> Record:
    """Curves of every run, runs laid over each other, and their ends compared; JSON types only.

    Keys of the result:
        suite, alarms
        runs        name -> of (the run it is an ablation of, None), steps (the last one logged), validation
                    (studies of the last one, missing scores of all; None without any), raised (the trainer's
                    alarms: name, step, value), last (score -> first, last, best, best_step, validations)
        curves      one record a (run, key): run, key, name (the score's or the term's), origin ("validation"
                    or "training"), steps, values, smoothed (running mean over a tenth of the steps)
        figures     runs over each other: figure (of the paper), key, name, higher_is_better (None where it
                    has no direction), of (the whole recipe, None: every run), runs (those with the curve)
        not_logged  figures of the paper that no run has values for: figure, key, why
        ends        per (split, corpus) of the evaluation, findings and impression: `too_small`, or studies,
                    patients, differences (run, ablation, metric -> run - ablation with interval); empty
                    without scores
        metrics     name -> label, higher_is_better, of `ends`

    Args:
        histories: run -> its log (`history.training_history`).
        ablations: run -> the run that it is an ablation of.
        limits: run -> the setting `alarms` of its configuration.
        scores: of systems called as the runs are; a run without a system is compared in none.

    Raises:
        UserError: an ablation, or what it is one of, has no history.
    """
    ablations, limits = ablations or {}, limits or {}
    _check(histories, ablations)
    curves = [curve for name, log in histories.items() for curve in _curves(name, log)]
    runs = {name: _run(name, log, ablations, curves) for name, log in histories.items()}
    ends, metrics = _ends(scores, ablations, resamples, seed, min_group) if scores else ([], {})
    figures = list(_figures(curves, runs))
    alarms = [
        *_raised(runs, limits),
        *_not_finite(histories),
        *_past_best(runs),
        *_incomplete(histories),
        *_uneven(runs),
        *_ahead(ends, metrics),
    ]
    drawn = {figure["key"] for figure in figures}
    return {
        "suite": SUITE,
        "alarms": alarms,
        "runs": runs,
        "curves": curves,
        "figures": figures,
        "not_logged": [
            {
                "figure": FIGURES[name],
                "key": VALIDATION + name,
                "why": "no run validated it as it was trained",
            }
            for name in HEADLINES
            if VALIDATION + name not in drawn
        ],
        "ends": ends,
        "metrics": metrics,
    }


def _check(histories: Mapping[str, History], ablations: Mapping[str, str]) -> None:
    for ablation, whole in ablations.items():
        for name in (ablation, whole):
            if name not in histories:
                known = ", ".join(histories) or "none"
                raise UserError(f"{name} has no training log to lay over another: those known are {known}")
        if ablation == whole or whole in ablations:
            raise UserError(f"{ablation} cannot be an ablation of {whole}: name the run of the whole recipe")


def _keys(log: History) -> list[str]:
    """What a log has to draw, the validation's scores first."""
    present = dict.fromkeys(key for row in log for key in row)
    scored = [f"{VALIDATION}{score}" for score in (*CATALOG, "loss")]
    terms = [key for key in present if key.startswith("rewards/") and key.endswith("/mean")]
    return [key for key in (*scored, *LOGGED, *terms) if key in present]


def _curves(run: str, log: History) -> Iterator[Record]:
    for key in _keys(log):
        steps, values = points(log, key)
        if steps:
            yield {
                **{"run": run, "key": key, "name": term(key)},
                "origin": "validation" if key.startswith(VALIDATION) else "training",
                "steps": steps,
                "values": [groups.number(value) for value in values],
                "smoothed": [groups.number(value) for value in running_mean(values).tolist()],
            }


def term(key: str) -> str:
    """What a key of a trainer's log is of: `rewards/bleu2/mean` and `validation/bleu2` of `bleu2`."""
    return key.removeprefix("rewards/").removeprefix(VALIDATION).removesuffix("/mean")


def _direction(key: str) -> bool | None:
    """Whether more of it is better; None where that depends."""
    if key.startswith("rewards/") or key == "reward":
        return True
    if key.startswith(VALIDATION) and term(key) in CATALOG:
        return CATALOG[term(key)].higher_is_better
    return False if key in ("loss", f"{VALIDATION}loss") else None


def _run(name: str, log: History, ablations: Mapping[str, str], curves: Sequence[Record]) -> Record:
    last = {}
    for curve in curves:
        if curve["run"] == name and curve["origin"] == "validation":
            values = curve["values"]
            best = (max if _direction(curve["key"]) else min)(values)
            last[curve["name"]] = {
                **{"first": values[0], "last": values[-1], "best": best},
                **{"best_step": curve["steps"][values.index(best)], "validations": len(values)},
            }
    return {
        "of": ablations.get(name),
        "steps": max((row["step"] for row in log), default=0),
        "validation": history.validated(log),
        "raised": history.alarms(log),
        "last": last,
    }


def _figures(curves: Sequence[Record], runs: Mapping[str, Record]) -> Iterator[Record]:
    """Each whole recipe with its ablations, by what is drawn; all runs together where none is an ablation."""
    wholes = list(dict.fromkeys(run["of"] for run in runs.values() if run["of"]))
    for whole in wholes or [None]:
        family = [name for name, run in runs.items() if whole is None or name == whole or run["of"] == whole]
        keys = dict.fromkeys(curve["key"] for curve in curves if curve["run"] in family)
        for key in sorted(keys, key=lambda key: key not in [VALIDATION + name for name in FIGURES]):
            scored = key.startswith(VALIDATION) and term(key) in CATALOG
            yield {
                "figure": FIGURES.get(term(key), "2b") if scored else None,
                **{"key": key, "name": term(key), "higher_is_better": _direction(key), "of": whole},
                "runs": [c["run"] for c in curves if c["key"] == key and c["run"] in family],
            }


def _ends(
    scores: Scores, ablations: Mapping[str, str], resamples: int, seed: int, min_group: int
) -> tuple[list[Record], Record]:
    """Runs against their ablations where both were evaluated."""
    values, metrics = groups.with_radcliq(scores)
    metrics = groups.without_categories(metrics)
    names = [system.name for system in scores.systems]
    pairs = [(whole, name) for name, whole in ablations.items() if whole in names and name in names]
    found: list[Record] = []
    for place, rows in groups.groups(scores) if pairs else ():
        setting = place.pop("setting")
        if setting != "report":
            continue
        people = groups.patients(scores, rows)
        if groups.too_small(people, min_group):
            found.append(place | {"too_small": True})
            continue
        differences = [
            paired(values[run, setting, metric], values[ablation, setting, metric])[rows]
            for run, ablation in pairs
            for metric in metrics
        ]
        intervals = bootstrap(np.column_stack(differences), people, resamples, seed)
        records = iter(groups.difference(intervals, column) for column in range(len(differences)))
        compared = [
            {"run": run, "ablation": ablation, "metrics": {metric: next(records) for metric in metrics}}
            for run, ablation in pairs
        ]
        size = {"studies": len(rows), "patients": len(set(people))}
        found.append(place | size | {"differences": compared})
    about = groups.about(metrics)
    return found, {name: about[name] for name in metrics}


def _raised(runs: Mapping[str, Record], limits: Mapping[str, Mapping[str, Any]]) -> Iterator[Record]:
    """The trainers' own alarms."""
    for name, run in runs.items():
        for raised in run["raised"]:
            known = ALARMS.get(raised["name"], Alarm("", f"raised the alarm {raised['name']}"))
            sentence = f"As it was trained, {name} {known.sentence} (step {raised['step']})."
            yield groups.alarm(
                SUITE, raised["name"], name, raised["value"], limits.get(name, {}).get(known.limit), sentence
            )


def _not_finite(histories: Mapping[str, History]) -> Iterator[Record]:
    for name, log in histories.items():
        steps = {
            row["step"]
            for key in _keys(log)
            for row in log
            if isinstance(row.get(key), float) and not math.isfinite(row[key])
        }
        if steps:
            sentence = (
                f"The log of {name} has a value that is no number at {len(steps)} steps, the first at step "
                f"{min(steps)}: its training has broken down there."
            )
            yield groups.alarm(SUITE, "not finite", name, float(len(steps)), 0.0, sentence)


def _past_best(runs: Mapping[str, Record]) -> Iterator[Record]:
    """Runs that ended behind what they had been, and whole recipes that brought nothing."""
    for name, run in runs.items():
        for metric, margin in MARGINS.items():
            told = run["last"].get(metric)
            if not told or told["validations"] < 2:
                continue
            label, behind = CATALOG[metric].label, told["last"] - told["best"]
            if behind > margin:
                sentence = (
                    f"{name} ends with {label} {told['last']:.3f} after {told['best']:.3f} at step "
                    f"{told['best_step']} (lower is better): take the earlier checkpoint."
                )
                yield groups.alarm(SUITE, "past its best", name, behind, margin, sentence)
            elif not run["of"] and told["last"] >= told["first"]:
                sentence = (
                    f"Training {name} brought no better {label}: {told['first']:.3f} at the first "
                    f"validation, {told['last']:.3f} at the last (lower is better)."
                )
                yield groups.alarm(SUITE, "no progress", name, told["last"] - told["first"], 0.0, sentence)


def _incomplete(histories: Mapping[str, History]) -> Iterator[Record]:
    for name, log in histories.items():
        counts = history.validated(log)
        asked = sum(row.get(history.ASKED, 0) for row in log)
        if not counts or not asked:
            continue
        share = 1 - counts["missing"] / asked
        if share < COMPLETE:
            sentence = (
                f"In the validations of {name} {counts['missing']} of {asked} scores are missing: their "
                "means are over the other studies."
            )
            yield groups.alarm(SUITE, "missing scores", name, share, COMPLETE, sentence)


def _uneven(runs: Mapping[str, Record]) -> Iterator[Record]:
    """Ablations that were validated on another number of studies than the whole recipe."""
    for name, run in runs.items():
        if not run["of"]:
            continue
        ours, theirs = run["validation"], runs[run["of"]]["validation"]
        if ours and theirs and ours["studies"] != theirs["studies"]:
            sentence = (
                f"{name} was validated on {ours['studies']} studies and {run['of']} on {theirs['studies']}: "
                "their curves cannot be compared."
            )
            yield groups.alarm(
                SUITE, "not comparable", name, float(ours["studies"]), float(theirs["studies"]), sentence
            )


def _ahead(ends: Sequence[Record], metrics: Mapping[str, Any]) -> Iterator[Record]:
    """Ablations that are better than the whole recipe in what the paper compares."""
    for group in (group for group in ends if group["corpus"] and "too_small" not in group):
        for compared in group["differences"]:
            for metric in (name for name in HEADLINES if name in compared["metrics"]):
                found = compared["metrics"][metric]
                if groups.better(found, metrics[metric]["higher_is_better"]) is False:
                    sentence = (
                        f"{compared['ablation']} is better than {compared['run']}, of which it leaves out a "
                        f"part, in {metrics[metric]['label']} ({groups.where(group)})."
                    )
                    yield groups.alarm(SUITE, "ablation ahead", compared["run"], found["mean"], 0.0, sentence)
