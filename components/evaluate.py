"""KFP component: predictions -> evaluation, in the artifact store and in the metrics store."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    store: str,
    recipe: str,
    overrides: list,
    cohort: str,
    predictions: dict,
    checkpoints: dict,
    judge_url: str,
    weights: str,
    tracking_uri: str,
    traceparent: str,
) -> str:
    """Score every system's predictions against the references; returns the evaluation's URI.

    Args:
        store: URI below which every artifact lies.
        recipe: shipped recipe or YAML file of `unirg.evaluation.evaluate.EvaluateConfig`.
        overrides: `key=value` settings over the recipe.
        cohort: URI of the cohort that the predictions are of; empty: the references are the files' own.
        predictions: URI of the predictions or prediction file of each system, by its name.
        checkpoints: URI of the checkpoint of each system that has one, by its name.
        judge_url: OpenAI-compatible endpoint that counts errors.
        weights: URI of the scorers' weights; empty: only metrics without a model.
        tracking_uri: MLflow's tracking URI; empty writes no metrics store.
        traceparent: W3C trace context of the run.
    """
    from unirg import artifact, config, telemetry
    from unirg.evaluation.evaluate import EvaluateConfig, evaluate, opened

    telemetry.join_trace(traceparent)
    settings = config.load(EvaluateConfig, recipe, overrides, judge_url=judge_url, tracking_uri=tracking_uri)
    archive = artifact.open_artifact(cohort, "cohort") if cohort else None
    systems = opened(predictions), artifact.open_all(checkpoints)
    scorers = artifact.open_artifact(weights, "weights") if weights else None
    return evaluate(settings, archive, *systems, store, scorers).uri
