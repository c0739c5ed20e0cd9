"""The eight suites over one evaluation's scores, and the list of those that could not run.

The result is `suites.json`: the name of a suite -> what it returns, and `not_run`: records of `suite`, `why`
and `how` (the remedy, for who runs the command). A suite is in one of the two, but for `zero_shot`, which may
have run without a system that was refused: `not_run` then names it in `system`, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow.parquet as pq

from unirg import telemetry
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.evaluation import absent, groups
from unirg.evaluation.conditions import Labels, conditions, labelled, lexicon, table
from unirg.evaluation.dynamics import dynamics
from unirg.evaluation.errors import errors
from unirg.evaluation.history import training_history
from unirg.evaluation.leaderboard import Row
from unirg.evaluation.longitudinal import longitudinal
from unirg.evaluation.reports import reports
from unirg.evaluation.sanity import cut_at_limit, prior_reports, sanity
from unirg.evaluation.scores import Scores
from unirg.evaluation.subgroups import subgroups
from unirg.evaluation.temporal import assign, truth_of
from unirg.evaluation.unseen import Listed, Seen, Unseen, check_unseen, held_out
from unirg.evaluation.zero_shot import zero_shot
from unirg.metrics.cache import Cache
from unirg.metrics.chexprompt import Judge
from unirg.metrics.engine import Engine
from unirg.metrics.temporal import Labeller
from unirg.scoring import predictions as predicted

FILE = "suites.json"
LABELS = "labels.parquet"
Suite = Literal[
    "reports",
    "errors",
    "conditions",
    "longitudinal",
    "zero_shot",
    "subgroups",
    "dynamics",
    "sanity",
]
SUITES: tuple[Suite, ...] = get_args(Suite)
LEXICON = "lexicon of findings: rules instead of CheXbert"
"""How the labeller of rules is shown, so that nobody takes its labels for CheXbert's."""
NOT_ASKED = "it was not asked for"
NEEDS_COHORT = "name the cohort that the predictions were made on with --cohort"

Record = dict[str, Any]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Options:
    """What is asked of the suites."""

    suites: Sequence[Suite] = SUITES
    resamples: int = 10_000
    seed: int = 0
    min_group: int = 20
    prior_pairs: Sequence[Pair] = ()
    """(system with priors, system without)."""
    regression_pairs: Sequence[Pair] = ()
    """(challenger, champion)."""
    ablations: Mapping[str, str] | None = None
    """Run -> the run that it is an ablation of."""
    labeller: Literal["auto", "chexbert", "lexicon"] = "auto"
    """Who reads the conditions; `auto`: CheXbert where the weights have it, else the lexicon."""


@dataclass(frozen=True)
class Sources:
    """What the suites read beside the scores; an evaluation of prediction files has little of it."""

    engine: Engine
    scratch: Path
    """Folder that survives a crash: the labeller's answers are kept there, by digest."""
    predictions: Mapping[str, Artifact | str]
    """System -> its artifact of stage `score`, or URI of its prediction file."""
    checkpoints: Mapping[str, Artifact]
    """System -> the checkpoint that it was served from."""
    cohort: Cohort | None = None
    weights: Artifact | None = None
    judge: Judge | None = None
    board: Sequence[Row] = ()
    labels: Path | None = None
    """Where the suite conditions leaves what it read (`conditions.table`)."""

    @property
    def scored(self) -> dict[str, Artifact]:
        """The systems that have an artifact."""
        return {name: made for name, made in self.predictions.items() if isinstance(made, Artifact)}


class _NotRun(Exception):
    """A suite cannot run: why, and how it could."""

    def __init__(self, why: str, how: str) -> None:
        super().__init__(why)
        self.why, self.how = why, how


def run(scores: Scores, sources: Sources, options: Options) -> Record:
    """Run the suites that are asked for and possible.

    Raises:
        UserError: the labeller's endpoint cannot be reached, CheXbert's weights do not fit, an ablation names
            a run without a log.
    """
    runner = _Runner(scores, sources, options)
    found: Record = {}
    for name, one in zip(SUITES, runner.suites(), strict=True):
        if name not in options.suites:
            runner.not_run.append({"suite": name, "why": NOT_ASKED, "how": f"add --suite {name}"})
            continue
        try:
            with telemetry.span(f"evaluate.{name}"):
                found[name] = one()
        except _NotRun as refused:
            runner.not_run.append({"suite": name, "why": refused.why, "how": refused.how})
    return found | {"not_run": runner.not_run}


def read(evaluation: Artifact) -> Record:
    """The suites of an evaluation."""
    return dict(json.loads(evaluation.path(FILE).read_bytes()))


def alarms(found: Mapping[str, Any]) -> list[Record]:
    """The alarms of all suites, in their order."""
    return [each for name in SUITES for each in found.get(name, {}).get("alarms", ())]


def missing(found: Mapping[str, Any]) -> list[str]:
    """What was not computed and how to get it: means at all, suites, then metrics, a line for each remedy."""
    reports = found.get("reports", {})
    lines = []
    if reports and all("too_small" in group for group in reports["groups"]):
        largest, needed = reports["largest"], reports["limits"]
        lines.append(
            f"the suites show no means: the largest group has {largest['studies']} studies of "
            f"{largest['patients']} patients, and {needed['studies']} of {needed['patients']} are needed; "
            "evaluate more studies, or set min_group lower where the patients suffice"
        )
    unasked = [each["suite"] for each in found["not_run"] if each["why"] == NOT_ASKED]
    if unasked:
        lines.append(f"{', '.join(unasked)} did not run: {NOT_ASKED}; add --suite and the name of one")
    lines += [
        f"{' of '.join(filter(None, (each['suite'], each.get('system'))))} did not run: "
        f"{each['why']}; {each['how']}"
        for each in found["not_run"]
        if each["why"] != NOT_ASKED
    ]
    return lines + absent.lines(reports.get("absent", ()))


class _Runner:
    def __init__(self, scores: Scores, sources: Sources, options: Options) -> None:
        self.scores, self.sources, self.options = scores, sources, options
        self.not_run: list[Record] = []
        self._how: Any = {
            "resamples": options.resamples,
            "seed": options.seed,
            "min_group": options.min_group,
        }

    def suites(self) -> Sequence[Callable[[], Record]]:
        """In the order of `SUITES`."""
        return (
            self._reports,
            self._errors,
            self._conditions,
            self._longitudinal,
            self._zero_shot,
            self._subgroups,
            self._dynamics,
            self._sanity,
        )

    def _reports(self) -> Record:
        return reports(self.scores, self.sources.board, **self._how)

    def _errors(self) -> Record:
        if self.sources.judge is None:
            raise _NotRun(
                "no judge counted errors", "set judge_model and judge_url to a language model's (CheXprompt)"
            )
        return errors(self.scores, self.sources.judge.model, **self._how)

    def _conditions(self) -> Record:
        label, name = self._labeller()
        references, candidates = labelled(self.scores, label)
        if self.sources.labels:
            pq.write_table(table(self.scores, references, candidates), self.sources.labels)
        return conditions(self.scores, references, candidates, name, **self._how)

    def _labeller(self) -> tuple[Callable[[Sequence[str]], Labels], str]:
        """Who reads the conditions, and its name for the reader."""
        weights, asked = self.sources.weights, self.options.labeller
        stored = weights is not None and any(name.startswith("chexbert/") for name in weights.manifest.files)
        if asked == "lexicon" or (asked == "auto" and not stored):
            return lexicon, LEXICON
        if weights is None or not stored:
            raise _NotRun(
                "it needs the weights of chexbert",
                "run unirg weights fetch chexbert, then unirg weights make source=hub 'scorers=[chexbert]', "
                "and name the artifact with --weights; or set condition_labeller=lexicon",
            )
        toy = weights.manifest.config.get("source") == "toy"
        return lambda texts: np.array(self.sources.engine.conditions(texts), dtype=np.int64), (
            "CheXbert, toy weights" if toy else "CheXbert"
        )

    def _longitudinal(self) -> Record:
        cohort, judge = self.sources.cohort, self.sources.judge
        if cohort is None:
            raise _NotRun("prediction files tell neither priors nor the order of studies", NEEDS_COHORT)
        if all(study.encounter is None for study in self.scores.studies):
            raise _NotRun(
                "the cohort does not tell the order of any patient's studies",
                "stage it from a corpus that does: with dates or numbers of the encounters",
            )
        cache = Cache(self.sources.scratch / "temporal.sqlite") if judge else None
        try:
            categories = assign(
                self.scores.studies,
                Labeller.beside(judge) if judge else None,
                truth_of(cohort.truth()),
                cache,
            )
        finally:
            if cache:
                cache.close()
        shown = {name: _shown(made) for name, made in self.sources.scored.items()}
        return longitudinal(self.scores, categories, self.options.prior_pairs, shown, **self._how)

    def _zero_shot(self) -> Record:
        cohort, studies = self.sources.cohort, self.scores.studies
        places = held_out(studies, cohort.studies() if cohort else studies)
        if not places:
            raise _NotRun(
                "no study that is evaluated was held out of all training",
                "stage the cohort with hold_out naming corpora or institutions, train on it, and score its "
                "split zero_shot" + ("" if cohort else "; " + NEEDS_COHORT),
            )
        lineage: dict[str, Unseen] = {}
        refused: set[str] = set()
        listed: Listed = {}
        for name, (made, claimed) in self._behind().items():
            try:
                lineage[name] = replace(check_unseen(made, places, listed), claimed=claimed)
            except Seen as seen:
                refused.add(name)
                self.not_run.append({"suite": "zero_shot", "system": name, "why": seen.why, "how": seen.how})
        kept = [system for system in self.scores.systems if system.name not in refused]
        if not any(system.kind == "policy" for system in kept) and refused:
            raise _NotRun(
                "every policy has learned from a place that is evaluated as unseen",
                "evaluate one trained on a cohort that was staged with hold_out naming the place",
            )
        return zero_shot(replace(self.scores, systems=kept), places, lineage, **self._how)

    def _behind(self) -> dict[str, tuple[Artifact, bool]]:
        """System -> what its lineage is followed from, and whether that is but claimed.

        Predictions name their model by its digest. The checkpoint of that digest may lie in another store and
        be given for another system; else the model is looked for in the predictions' own store.
        """
        given = self.sources.checkpoints
        known = {made.digest: made for made in given.values()}
        found = {name: (made, True) for name, made in given.items()}
        for name, made in self.sources.scored.items():
            if model := made.manifest.inputs.get("model"):
                found[name] = given.get(name, known.get(model.digest, made)), False
        return found

    def _subgroups(self) -> Record:
        if self.sources.cohort is None:
            raise _NotRun("prediction files tell neither sex, age, race, view nor institution", NEEDS_COHORT)
        shown = list(groups.without_categories(self.scores.metrics))
        return subgroups(self.scores, self.options.regression_pairs, shown, **self._how)

    def _dynamics(self) -> Record:
        checkpoints = self.sources.checkpoints
        histories = {name: log for name, made in checkpoints.items() if (log := training_history(made))}
        if not histories:
            raise _NotRun(
                "no system comes with a trained checkpoint, whose log it draws",
                "name the checkpoint of each system that was trained here with --checkpoint NAME=URI",
            )
        settings: dict[str, Any] = {name: checkpoints[name].manifest.config for name in histories}
        limits = {name: chosen.get("alarms") or {} for name, chosen in settings.items()}
        return dynamics(histories, self.options.ablations, limits, self.scores, **self._how)

    def _sanity(self) -> Record:
        cut = {name: cut_at_limit(made) for name, made in self.sources.scored.items()}
        priors = None
        if self.sources.cohort is not None:
            known = {study.study_id: study for study in self.sources.cohort.studies()}
            priors = prior_reports(self.scores.studies, known)
        return sanity(self.scores, cut, priors, **self._how)


def _shown(predictions: Artifact) -> dict[str, bool]:
    """study_id -> whether its prompt held a prior, where the predictions say so."""
    return {
        row["study_id"]: row["with_prior"]
        for batch in predicted.batches(predictions, ["study_id", "with_prior"])
        for row in batch
        if row.get("with_prior") is not None
    }
