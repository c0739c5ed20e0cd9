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
    metrics: dsl.Output[dsl.Metrics],
    html: dsl.Output[dsl.HTML],
    markdown: dsl.Output[dsl.Markdown],
    all_conditions: dsl.Output[dsl.ClassificationMetrics],
    atelectasis: dsl.Output[dsl.ClassificationMetrics],
    cardiomegaly: dsl.Output[dsl.ClassificationMetrics],
    consolidation: dsl.Output[dsl.ClassificationMetrics],
    edema: dsl.Output[dsl.ClassificationMetrics],
    pleural_effusion: dsl.Output[dsl.ClassificationMetrics],
    references: str = "",
) -> str:
    """Score every system's predictions against the references; returns the evaluation's URI.

    What KFP's UI shows of it beside holds numbers and alarms and no text of a report.

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
        metrics: headline means and the number of alarms.
        html: summary, as a page.
        markdown: the same as Markdown.
        all_conditions: confusion matrix of the last policy over CheXbert's 14 conditions, taken together.
        atelectasis: the same of this condition alone; empty where too few references state it.
        cardiomegaly: the same.
        consolidation: the same.
        edema: the same.
        pleural_effusion: the same.
        references: URI of a file with the references, where there is no cohort and the files lack them.
    """
    from unirg import artifact, config, telemetry
    from unirg.evaluation import kfp_outputs
    from unirg.evaluation.evaluate import EvaluateConfig, evaluate, opened

    telemetry.join_trace(traceparent)
    settings = config.load(EvaluateConfig, recipe, overrides, judge_url=judge_url, tracking_uri=tracking_uri)
    archive = artifact.open_artifact(cohort, "cohort") if cohort else None
    systems = opened(predictions), artifact.open_all(checkpoints)
    scorers = artifact.open_artifact(weights, "weights") if weights else None
    made = evaluate(settings, archive, *systems, store, scorers, references)
    classified = {
        "all": all_conditions,
        "Atelectasis": atelectasis,
        "Cardiomegaly": cardiomegaly,
        "Consolidation": consolidation,
        "Edema": edema,
        "Pleural Effusion": pleural_effusion,
    }
    kfp_outputs.show_evaluation(made, metrics, html, markdown, classified)
    return made.uri
