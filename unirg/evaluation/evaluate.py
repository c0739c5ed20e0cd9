"""The stage `evaluate`: predictions of any number of systems -> scores per study, means with intervals.

Writes `scores.parquet` (one row per system and study), `aggregates.json` (`aggregates.py` says what is in
it), `suites.json` (`suites.py` says how) and `labels.parquet` (what the suite conditions read), then records
the headline numbers in the metrics store.

A system comes as an artifact of stage `score` or as a prediction file; without a cohort all are files, which
bring their own references (`files.py`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal

import pyarrow.parquet as pq
from pydantic import Field, model_validator

from unirg import artifact, storage, telemetry
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.config import operational
from unirg.errors import UserError
from unirg.evaluation import aggregates, candidates, files, leaderboard, suites, tracking
from unirg.evaluation import scores as scoring
from unirg.evaluation.candidates import System
from unirg.evaluation.history import training_history
from unirg.evaluation.suites import SUITES, Suite
from unirg.metrics import catalog
from unirg.metrics.encoder import Compute, Precision
from unirg.metrics.engine import Engine
from unirg.metrics.judge_settings import JudgeSettings
from unirg.metrics.temporal import Labeller
from unirg.study import Study

VERSION = 6
STAGE = "evaluate"
SCORES = "scores.parquet"
FORMS = (".csv", ".jsonl", ".json")
"""Suffixes of prediction files; a URI without one is an artifact's."""

Predictions = Mapping[str, Artifact | str]
"""System -> its artifact of stage `score`, or the URI of its prediction file."""


class EvaluateConfig(JudgeSettings):
    """How systems are compared."""

    systems: tuple[str, ...] = ()
    """Order in which the systems are shown, each named once; empty: the alphabet's."""
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs (a, b) of systems whose paired difference a - b is estimated; baselines may take part."""
    scores: tuple[str, ...] = ("bleu2", "bleu4", "rouge_l")
    """What is measured beside the judge's errors (`unirg metrics list`); the default needs no weights."""
    composite: dict[str, float] = {"bleu2": 1 / 3, "rouge_l": 1 / 3, "errors": 1 / 3}
    """Weights of the composite reward, as GRPO's `rewards`."""
    precision: Precision = "fp32"
    """Precision of the scorers' encoders."""
    device: str = operational("cpu")
    """Where the scorers run, as torch names it."""
    suites: tuple[Suite | Literal["all"], ...] = ("all",)
    """What is evaluated: `all`, or some of reports, errors, conditions, longitudinal, zero_shot, subgroups,
    dynamics, sanity."""
    min_group: int = Field(default=20, ge=2)
    """Studies that a group needs to be shown as numbers; it needs ten patients, too."""
    prior_pairs: tuple[tuple[str, str], ...] = ()
    """Pairs (system with priors, the same without) of the suite longitudinal."""
    regression_pairs: tuple[tuple[str, str], ...] = ()
    """Pairs (challenger, champion): in which subgroups the first is worse, of the suite subgroups."""
    ablations: dict[str, str] = {}
    """System -> the one of the whole recipe that it is an ablation of, both with checkpoints: dynamics."""
    corpus: str = ""
    """Without a cohort: what the studies are of, such as rexrank_iu_xray, whose public board of `board` then
    stands beside them."""
    condition_labeller: Literal["auto", "chexbert", "lexicon"] = "auto"
    """Who reads conditions out of reports; `auto`: CheXbert where the weights have it, else the rules."""
    board: str = operational("")
    """Folder of ReXrank's public boards, or one board, to show beside ours; its content counts."""
    resamples: int = Field(default=10_000, ge=100)
    """Bootstrap resamples of patients."""
    seed: int = 0
    """Seed of the resamples."""
    tracking_uri: str = operational("")
    """MLflow tracking URI such as sqlite:///runs/mlflow.db; empty: nothing is recorded."""
    experiment: str = operational("unirg")
    """MLflow experiment that the run is recorded in."""

    @model_validator(mode="after")
    def _known_scores(self) -> EvaluateConfig:
        catalog.check([*self.scores, *self.composite])
        return self

    @model_validator(mode="after")
    def _pairs_of_two(self) -> EvaluateConfig:
        # The suites would refuse these, too, but after everything was scored.
        for name, pairs in (("prior_pairs", self.prior_pairs), ("regression_pairs", self.regression_pairs)):
            if same := [a for a, b in pairs if a == b]:
                raise ValueError(f"{name} compare {same[0]} with itself")
        if chained := sorted(self.ablations.keys() & set(self.ablations.values())):
            raise ValueError(f"{chained[0]} is an ablation itself: name the run of the whole recipe")
        return self


def opened(predictions: Mapping[str, str]) -> dict[str, Artifact | str]:
    """Systems by URI: artifacts are opened, prediction files (`FORMS`) stay what they are.

    Raises:
        ArtifactError: there is no artifact at a URI that is no prediction file's.
    """
    named = {name: uri for name, uri in predictions.items() if not _is_file(uri)}
    made = artifact.open_all(named)
    return {name: made.get(name, uri) for name, uri in predictions.items()}


def _is_file(uri: str) -> bool:
    return PurePosixPath(uri).suffix.lower() in FORMS


@telemetry.verb("evaluate")
def evaluate(
    config: EvaluateConfig,
    cohort: Artifact | None,
    predictions: Predictions,
    checkpoints: Mapping[str, Artifact],
    store: str,
    weights: Artifact | None = None,
    references: str = "",
) -> Artifact:
    """Score every system on the same studies, with both baselines where there is a cohort.

    Args:
        cohort: None: the studies and references are those of the prediction files.
        predictions: system's name -> its predictions on the cohort, or its prediction file's URI.
        checkpoints: system's name -> the checkpoint it was served from, where there is one.
        weights: the scorers' weights (stage `weights`); needed where a score has a model.
        references: a file with the references, only without a cohort.

    Raises:
        UserError: a name is unknown or reserved, predictions are of another cohort or checkpoint, a file
            cannot be read, the scorers' weights are missing, the judge is named without its URL or cannot
            be reached.
    """
    order = _order(config, predictions, checkpoints)
    _check_sources(cohort, predictions, references, config.corpus)
    judge = config.judge()
    measured = scoring.metrics(config.scores, config.composite)
    board = leaderboard.read(config.board) if config.board else []
    inputs = sources(cohort, predictions, checkpoints, references)
    inputs["metrics"] = catalog.version(measured.keys() - {"composite"})
    if board:
        inputs["board"] = storage.sha256(repr(board).encode())
    if judge:
        inputs["judge"] = catalog.digest([judge.identity, Labeller.beside(judge).identity])
    if weights:
        inputs["weights"] = weights
    with artifact.draft(store, STAGE, VERSION, config, inputs) as draft:
        found = draft.committed
        if found is None:
            if judge and not config.judge_url:
                raise UserError(f"judge_url is not set: name the endpoint that serves {config.judge_model}")
            if weights is None and (named := catalog.with_weights(measured.keys() - {"composite"})):
                raise UserError(
                    f"{named[0]} needs its scorer's weights: name an artifact of stage weights "
                    "(`unirg weights make` prints one)"
                )
            archive = Cohort.open(cohort) if cohort else None
            studies, systems, notes = compared(order, archive, predictions, references, config.corpus)
            engine = Engine(
                [name for name, m in measured.items() if name != "composite" and (judge or not m.judged)],
                weights=weights.uri if weights else "",
                compute=Compute(config.precision, config.device),
                cache=str(draft.scratch / "scores.sqlite"),
                judge=judge,
            )
            scores = scoring.score(studies, systems, measured, config.composite, engine)
            pq.write_table(scores.table(), draft.out / SCORES)
            data = aggregates.aggregate(
                scores, config.comparisons, config.resamples, config.seed, config.min_group
            )
            data |= {"judge": config.judge_model, "composite": config.composite, "notes": notes}
            data |= {"scorers": _scorers(weights), "identity": dict(engine.identity)}
            data |= {"resamples": config.resamples, "seed": config.seed}
            labels = draft.out / suites.LABELS
            beside = suites.Sources(
                engine, draft.scratch, predictions, checkpoints, archive, weights, judge, board, labels
            )
            all_of_them = suites.run(scores, beside, _options(config))
            for name, content in ((aggregates.FILE, data), (suites.FILE, all_of_them)):
                text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
                (draft.out / name).write_text(text)
            alarms = len(suites.alarms(all_of_them))
            found = draft.commit({"studies": len(studies), "systems": len(systems), "alarms": alarms})
    if config.tracking_uri:
        tracking.record(found, predictions, checkpoints, config.tracking_uri, config.experiment)
    return found


def _options(config: EvaluateConfig) -> suites.Options:
    return suites.Options(
        suites=[name for name in SUITES if "all" in config.suites or name in config.suites],
        resamples=config.resamples,
        seed=config.seed,
        min_group=config.min_group,
        prior_pairs=config.prior_pairs,
        regression_pairs=config.regression_pairs,
        ablations=config.ablations,
        labeller=config.condition_labeller,
    )


def _check_sources(cohort: Artifact | None, predictions: Predictions, references: str, corpus: str) -> None:
    """Refuse what cannot be compared."""
    if cohort is not None:
        if references:
            raise UserError("references are the cohort's: leave out either --cohort or --references")
        if corpus:
            raise UserError("corpus is the cohort's: leave out either --cohort or the setting corpus")
        return
    if made := [name for name, found in predictions.items() if isinstance(found, Artifact)]:
        raise UserError(
            f"predictions {made[0]} are an artifact, whose references are its cohort's: name it with --cohort"
        )


def sources(
    cohort: Artifact | None,
    predictions: Predictions,
    checkpoints: Mapping[str, Artifact],
    references: str = "",
) -> dict[str, Artifact | str]:
    """What an evaluation compares, as inputs of its manifest: a file counts by its content.

    A checkpoint counts by its action key: the suites read its log and its lineage, which are no part of its
    digest. So it leads nobody to the artifact; the predictions do, which name their model.

    Raises:
        UserError: a file is missing.
    """
    found: dict[str, Artifact | str] = {"cohort": cohort} if cohort else {}
    found |= {
        f"predictions:{name}": made if isinstance(made, Artifact) else _content(made)
        for name, made in predictions.items()
    }
    found |= {f"checkpoint:{name}": made.manifest.action_key for name, made in checkpoints.items()}
    return found | ({"references": _content(references)} if references else {})


def _content(uri: str) -> str:
    try:
        return storage.sha256(storage.read_bytes(uri))
    except FileNotFoundError:
        raise UserError(f"no file at {uri}: correct the path") from None


def compared(
    order: Sequence[str],
    cohort: Cohort | None,
    predictions: Predictions,
    references: str,
    corpus: str = "",
) -> tuple[list[Study], list[System], list[str]]:
    """The studies, the systems as they are shown, and what a reader must know of both.

    Args:
        order: names of the predictions; without a cohort the first of their references counts.
        corpus: without a cohort, what the studies are of; empty: `files.CORPUS`.
    """
    uris = {name: found for name in order if isinstance(found := predictions[name], str)}
    if cohort is None:
        alone = files.alone(uris, references, corpus or files.CORPUS)
        return alone.studies, alone.systems, alone.notes
    made = {name: found for name in order if isinstance(found := predictions[name], Artifact)}
    studies = candidates.attempted(made, cohort, uris)
    systems = [
        candidates.policy(name, made[name], studies)
        if name in made
        else candidates.from_file(name, uris[name], studies)
        for name in order
    ]
    return studies, [*systems, *candidates.baselines(cohort, studies)], []


def _scorers(weights: Artifact | None) -> str | None:
    """Whose the scorers are, for every place that shows their numbers."""
    if weights is None:
        return None
    return "toy scorers" if weights.manifest.config.get("source") == "toy" else "public weights"


def _order(
    config: EvaluateConfig, predictions: Predictions, checkpoints: Mapping[str, Artifact]
) -> list[str]:
    """The systems as they are shown, after every name was checked."""
    if reserved := set(predictions) & set(candidates.BASELINES):
        raise UserError(f"the name {min(reserved)} belongs to a baseline: give the predictions another")
    order = list(config.systems) or sorted(predictions)
    if sorted(order) != sorted(predictions):
        differing = ", ".join(sorted(set(order) ^ set(predictions))) or "a name comes twice"
        raise UserError(f"systems must name each prediction once; check {differing}")
    known = [*order, *candidates.BASELINES]
    named = {
        "comparisons": config.comparisons,
        "prior_pairs": config.prior_pairs,
        "regression_pairs": config.regression_pairs,
    }
    for setting, pairs in named.items():
        for name in (name for pair in pairs for name in pair):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.3) or known[:1]
                raise UserError(f"{setting} name {name}, which is no system: did you mean {near[0]}?")
    for name in (name for pair in config.ablations.items() for name in pair):
        if name not in checkpoints:
            raise UserError(f"ablations name {name}, which has no checkpoint: add --checkpoint {name}=URI")
        if not training_history(checkpoints[name]):
            raise UserError(f"ablations name {name}, whose checkpoint has no training log: leave it out")
    for name, checkpoint in checkpoints.items():
        made = predictions.get(name)
        model = made.manifest.inputs.get("model") if isinstance(made, Artifact) else None
        if name not in predictions or (model and model.digest != checkpoint.digest):
            raise UserError(f"checkpoint {name} is not the one that the predictions of {name} came from")
    return order
