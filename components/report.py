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
    html: dsl.Output[dsl.HTML],
    markdown: dsl.Output[dsl.Markdown],
    references: str = "",
) -> str:
    """Render an evaluation as one self-contained HTML file; returns the report's URI.

    KFP's UI shows copies below the pipeline root. That of the HTML quotes the reports of its cases, as the
    artifact in the store does: who may not read the one must not read the other.

    Args:
        store: URI below which every artifact lies.
        recipe: shipped recipe or YAML file of `unirg.evaluation.report.render.ReportConfig`.
        overrides: `key=value` settings over the recipe.
        evaluation: URI of the evaluation.
        cohort: URI of the cohort, for the example images; empty where the evaluation had none.
        predictions: URI of the predictions or prediction file of each system, by its name.
        checkpoints: URI of the checkpoint of each system that has one, for the training curves.
        traceparent: W3C trace context of the run.
        html: the report.
        markdown: its Markdown, without figures and cases.
        references: URI of the file with the references, where the evaluation had one.
    """
    from unirg import artifact, config, telemetry
    from unirg.evaluation import kfp_outputs
    from unirg.evaluation.evaluate import opened
    from unirg.evaluation.report.render import ReportConfig, report

    telemetry.join_trace(traceparent)
    settings = config.load(ReportConfig, recipe, overrides)
    evaluated = artifact.open_artifact(evaluation, "evaluate")
    archive = artifact.open_artifact(cohort, "cohort") if cohort else None
    systems = opened(predictions), artifact.open_all(checkpoints)
    made = report(settings, evaluated, archive, *systems, store, references)
    kfp_outputs.show_report(made, html, markdown)
    return made.uri
