"""KFP component: evaluation -> report."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    store: str,
    recipe: str,
    overrides: list,
    evaluation: str,
    cohort: str,
    predictions: dict,
    checkpoints: dict,
    traceparent: str,
) -> str:
    """Render an evaluation as one self-contained HTML file; returns the report's URI.

    Args:
        store: URI below which every artifact lies.
        recipe: shipped recipe or YAML file of `unirg.evaluation.report.render.ReportConfig`.
        overrides: `key=value` settings over the recipe.
        evaluation: URI of the evaluation.
        cohort: URI of the cohort, for the example images.
        predictions: URI of the predictions of each system, by its name.
        checkpoints: URI of the checkpoint of each system that has one, for the training curves.
        traceparent: W3C trace context of the run.
    """
    from unirg import artifact, config, telemetry
    from unirg.evaluation.report.render import ReportConfig, report

    telemetry.join_trace(traceparent)
    settings = config.load(ReportConfig, recipe, overrides)
    evaluated, opened = (
        artifact.open_artifact(evaluation, "evaluate"),
        artifact.open_artifact(cohort, "cohort"),
    )
    given = artifact.open_all(predictions), artifact.open_all(checkpoints)
    return report(settings, evaluated, opened, *given, store).uri
