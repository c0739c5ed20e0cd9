"""The stage `evaluate`: predictions of any number of systems -> scores per study, means with intervals.

Writes `scores.parquet` (one row per system and study) and `aggregates.json` (`aggregates.py` says what is
in it), then records the aggregates in the metrics store.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping

import pyarrow.parquet as pq
from pydantic import Field, model_validator

from unirg import artifact, telemetry
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.config import operational
from unirg.errors import UserError
from unirg.evaluation import aggregates, candidates, tracking
from unirg.evaluation import scores as scoring
from unirg.metrics import catalog
from unirg.metrics.encoder import Compute, Precision
from unirg.metrics.engine import Engine
from unirg.metrics.judge_settings import JudgeSettings

VERSION = 2
STAGE = "evaluate"
SCORES = "scores.parquet"


class EvaluateConfig(JudgeSettings):
    """How systems are compared."""

    systems: tuple[str, ...] = ()
    """Order in which the systems are shown, each named once; empty: the alphabet's."""
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs (a, b) of systems whose paired difference a - b is estimated; baselines may take part."""
    scores: tuple[str, ...] = ("bleu2", "rouge_l")
    """What is measured beside the judge's errors (`unirg metrics list`); the default needs no weights."""
    composite: dict[str, float] = {"bleu2": 1 / 3, "rouge_l": 1 / 3, "errors": 1 / 3}
    """Weights of the composite reward, as GRPO's `rewards`."""
    precision: Precision = "fp32"
    """Precision of the scorers' encoders."""
    device: str = operational("cpu")
    """Where the scorers run, as torch names it."""
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


@telemetry.verb("evaluate")
def evaluate(
    config: EvaluateConfig,
    cohort: Artifact,
    predictions: Mapping[str, Artifact],
    checkpoints: Mapping[str, Artifact],
    store: str,
    weights: Artifact | None = None,
) -> Artifact:
    """Score every system and both baselines on the same studies.

    Args:
        predictions: system's name -> its predictions on the cohort.
        checkpoints: system's name -> the checkpoint it was served from, where there is one.
        weights: the scorers' weights (stage `weights`); needed where a score has a model.

    Raises:
        UserError: a name is unknown or reserved, predictions are of another cohort or checkpoint, the
            scorers' weights are missing, the judge is named without its URL or cannot be reached.
    """
    order = _order(config, predictions, checkpoints)
    judge = config.judge()
    inputs: dict[str, Artifact | str] = {"cohort": cohort}
    inputs |= {f"predictions:{name}": found for name, found in predictions.items()}
    measured = scoring.metrics(config.scores, config.composite)
    inputs["metrics"] = catalog.version(measured.keys() - {"composite"})
    if judge:
        inputs["judge"] = judge.identity
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
            opened = Cohort.open(cohort)
            studies = candidates.attempted(predictions, opened)
            systems = [candidates.policy(name, predictions[name], studies) for name in order]
            systems += candidates.baselines(opened, studies)
            engine = Engine(
                [name for name, m in measured.items() if name != "composite" and (judge or not m.judged)],
                weights=weights.uri if weights else "",
                compute=Compute(config.precision, config.device),
                cache=str(draft.scratch / "scores.sqlite"),
                judge=judge,
            )
            scores = scoring.score(studies, systems, measured, config.composite, engine)
            pq.write_table(scores.table(), draft.out / SCORES)
            data = aggregates.aggregate(scores, config.comparisons, config.resamples, config.seed)
            data |= {"judge": config.judge_model, "composite": config.composite}
            data |= {"scorers": _scorers(weights), "identity": dict(engine.identity)}
            data |= {"resamples": config.resamples, "seed": config.seed}
            (draft.out / aggregates.FILE).write_text(
                json.dumps(data, indent=1, sort_keys=True, allow_nan=False)
            )
            found = draft.commit({"studies": len(studies), "systems": len(systems)})
    if config.tracking_uri:
        tracking.record(found, predictions, checkpoints, config.tracking_uri, config.experiment)
    return found


def _scorers(weights: Artifact | None) -> str | None:
    """Whose the scorers are, for every place that shows their numbers."""
    if weights is None:
        return None
    return "toy scorers" if weights.manifest.config.get("source") == "toy" else "public weights"


def _order(
    config: EvaluateConfig, predictions: Mapping[str, Artifact], checkpoints: Mapping[str, Artifact]
) -> list[str]:
    """The systems as they are shown, after every name was checked."""
    if reserved := set(predictions) & set(candidates.BASELINES):
        raise UserError(f"the name {min(reserved)} belongs to a baseline: give the predictions another")
    order = list(config.systems) or sorted(predictions)
    if sorted(order) != sorted(predictions):
        differing = ", ".join(sorted(set(order) ^ set(predictions))) or "a name comes twice"
        raise UserError(f"systems must name each prediction once; check {differing}")
    known = [*order, *candidates.BASELINES]
    for name in (name for pair in config.comparisons for name in pair):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3) or known[:1]
            raise UserError(f"comparisons name {name}, which is no system: did you mean {near[0]}?")
    for name, checkpoint in checkpoints.items():
        model = predictions[name].manifest.inputs.get("model") if name in predictions else None
        if name not in predictions or (model and model.digest != checkpoint.digest):
            raise UserError(f"checkpoint {name} is not the one that the predictions of {name} came from")
    return order
